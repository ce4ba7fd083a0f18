"""Every kind of language model: names, classes, and what `tools/families.py` checks."""

import pickle

import pytest
import torch
from transformers import AutoConfig

import llava.model
from llava.errors import ConfigError
from llava.model.families import checked_families, family_names, find_family
from llava.model.language_model import causal_lm
from llava.model.language_model.causal_lm import choose_attention, get_family, model_class_of
from tools.families import ROOT, SPECIAL, TABLE, Case, check, page, tiny_config

QUICK = ("qwen3", "gemma", "gemma2", "gemma3_text", "cohere", "granite", "mixtral", "falcon")
# the issue of any family: these have to work, packed as well
MAIN = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2"),
    *("gemma3_text", "cohere", "cohere2", "phi3", "olmo2", "olmo3", "smollm3", "granite", "glm4"),
    *("stablelm", "falcon"),
)


@pytest.mark.parametrize("name", QUICK)
def test_a_family_does_what_the_table_says(name):
    assert check(name) == checked_families()[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in checked_families() if name not in QUICK])
def test_any_family_does_what_the_table_says(name):
    assert check(name) == checked_families()[name]


def test_the_main_families_work_packed():
    assert not [name for name in MAIN if set(checked_families()[name]) - {"mask"}]


def test_the_page_is_what_the_tool_writes():
    assert (ROOT / TABLE).read_text(encoding="utf-8") == page(checked_families()), (
        "run: python tools/families.py --write"
    )


@pytest.mark.parametrize(
    ("model_type", "family", "class_name"),
    [
        ("llava_llama", "llama", "LlavaLlamaForCausalLM"),
        ("palo", "llama", "LlavaLlamaForCausalLM"),
        ("llava_mistral", "mistral", "LlavaMistralForCausalLM"),
        ("llava_mpt", "mpt", "LlavaMptForCausalLM"),
        ("llava_qwen", "qwen2", "LlavaQwenForCausalLM"),
        ("llava_qwen2", "qwen2", "LlavaQwenForCausalLM"),
        ("llava_qwen_moe", "qwen2_moe", "LlavaQwenMoeForCausalLM"),
        ("llava_mixtral", "mixtral", "LlavaMixtralForCausalLM"),
        ("llava_gemma", "gemma", "LlavaGemmaForCausalLM"),
        ("llava_cohere", "cohere", "LlavaCohereForCausalLM"),
        ("llava_qwen3", "qwen3", "LlavaQwen3ForCausalLM"),
    ],
)
def test_names_of_llava_and_its_forks(model_type, family, class_name):
    assert find_family(model_type, "here") == family
    found = model_class_of({"model_type": model_type, "mm_vision_tower": "t"}, "here")
    assert found is get_family(family).model_class and found.__name__ == class_name
    # a released checkpoint may name nothing but the class
    config = {"model_type": "llava", "mm_vision_tower": "t", "architectures": [class_name]}
    assert model_class_of(config, "here") is found


def test_classes_are_found_by_their_names():
    made = get_family("qwen3")
    assert llava.model.LlavaQwen3ForCausalLM is made.model_class
    assert causal_lm.LlavaQwen3Config is made.config_class
    assert causal_lm.LlavaQwen3Model is made.inner_class
    for kind in (made.model_class, made.config_class, llava.model.LlavaLlamaForCausalLM):
        assert pickle.loads(pickle.dumps(kind)) is kind
    assert llava.model.LlavaConfig.__module__ == "llava.model.language_model.llava_llama"
    assert isinstance(AutoConfig.for_model("llava_qwen3"), made.config_class)
    with pytest.raises(AttributeError, match="LlavaNothingForCausalLM"):
        _ = llava.model.LlavaNothingForCausalLM


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [("made_up", "is not known"), ("bart", "does not work: it is an encoder-decoder")],
)
def test_other_models_are_refused_with_what_works(model_type, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        find_family(model_type, "config.json")
    assert "docs/models.md" in str(caught.value)
    assert all(name in str(caught.value) for name in family_names())


@pytest.mark.parametrize(
    ("name", "sizes", "inside", "in_table"),
    [
        ("llama", {}, 1, 1),
        ("gemma", {}, 1, 32**0.5),
        ("gemma2", {}, 1, 32**0.5),
        ("gemma3_text", {}, 1, 32**0.5),
        ("granite", {"embedding_multiplier": 3.0}, 3, 1),
    ],
)
def test_which_inputs_a_family_multiplies(name, sizes, inside, in_table, monkeypatch):
    """Image features are multiplied by what is inside the model only, text by both."""
    monkeypatch.setitem(SPECIAL, name, sizes)
    model, seen = Case(name).model, []
    model.get_model().layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    embeds = torch.ones(1, 3, 32)
    model(inputs_embeds=embeds)
    torch.testing.assert_close(seen[0], inside * embeds)
    table, ids = model.get_input_embeddings(), torch.tensor([5, 6])
    torch.testing.assert_close(table(ids), in_table * table.weight[ids])


def test_experts_that_a_token_does_not_visit_cost_no_operations():
    shape = families_shape("mixtral")
    dense = families_shape("mistral")
    experts = 2 * 4 * 3 * 32 * 64  # layers, experts, matrices
    assert shape.num_in_matrices - dense.num_in_matrices == experts * 3 // 4
    assert shape.num_visited - dense.num_visited == experts // 4


def families_shape(name):
    from llava.train.flops import LanguageModelShape

    return LanguageModelShape.from_config(tiny_config(name), name)


ROUTED = ("mixtral", "qwen3_moe", "qwen2_moe", "olmoe", "granitemoe", "gpt_oss")


@pytest.mark.parametrize("name", ROUTED)
def test_the_routers_loss_is_that_of_transformers(name):
    case = Case(name)
    ids = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 10, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(),
             "labels": ids.masked_fill(ids == 0, -100)}  # fmt: skip
    without = case.model.train()(**batch).loss
    for model in (case.model, case.plain.train()):
        model.config.output_router_logits = True
    loss, own = case.model(**batch).loss, case.plain(**batch)
    torch.testing.assert_close(loss, own.loss)
    assert own.aux_loss > 0 and not torch.allclose(loss, without)
    loss.backward()
    own.loss.backward()
    gradients = dict(case.model.named_parameters())
    for key, weight in case.plain.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(gradients[key].grad, weight.grad, atol=1e-5, rtol=1e-4)
    # half of a step's positions have half of its weight
    num = int((batch["labels"][:, 1:] >= 0).sum())
    torch.testing.assert_close(case.model(**batch, num_items_in_batch=2 * num).loss, loss / 2)
    # a packed row has the same positions
    if "packing" not in checked_families()[name]:
        attention = choose_attention(type(case.model), None, packing=True)
        if attention is not None:
            case.model.set_attn_implementation(attention)
        torch.testing.assert_close(case.model(**batch, packing=True).loss, loss)
    # validation has the loss of the tokens alone
    case.model.eval(), case.plain.eval()
    case.plain.config.output_router_logits = False
    torch.testing.assert_close(case.model(**batch).loss, case.plain(**batch).loss)
