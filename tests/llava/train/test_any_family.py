"""Both stages on other language models than Llama, from the command line to an answer."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llava.errors import ConfigError
from llava.model.builder import load_pretrained_model
from llava.model.families import model_type_of
from llava.model.language_model.causal_lm import get_family
from llava.train.arguments import parse_arguments
from llava.train.build import add_vision, build_model
from lrm_ext.plan.presets import load_shape

SHORT = {"max_steps": 2, "save_steps": 50}


def answers(folder, base=None):
    _, model, processor, _ = load_pretrained_model(
        str(folder), base and str(base), "m", device="cpu"
    )
    side = processor.crop_size["height"]
    image = torch.ones(1, 3, side, side)
    ids = torch.tensor([[1, -200, 5, 6]])
    return model, model.generate(ids, images=image, do_sample=False, max_new_tokens=5)


@pytest.mark.parametrize(
    "name",
    [
        "qwen3",
        "gemma",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("qwen2", "mixtral", "gemma2", "gemma3_text", "cohere2", "phi3", "gpt2")
        ),
    ],
)
def test_both_stages_and_an_answer(name, make_base, run_train, flags, tmp_path):
    base, stage1, stage2 = make_base(name), tmp_path / "stage1", tmp_path / "stage2"
    shared = {"model_name_or_path": base, **SHORT}
    run_train(flags(**shared, tune_mm_mlp_adapter=True, output_dir=stage1))
    adapter = stage1 / "mm_projector.bin"
    run_train(flags(**shared, pretrain_mm_mlp_adapter=adapter, output_dir=stage2))
    config = json.loads((stage2 / "config.json").read_text())
    family = get_family(name)
    assert config["model_type"] == model_type_of(name)
    assert config["architectures"] == [family.model_class.__name__]
    model, found = answers(stage2)
    assert type(model) is family.model_class and found.shape[1] <= 5
    # the projector alone answers, too, on its base
    assert type(answers(stage1, base)[0]) is family.model_class


@pytest.mark.parametrize("name", ["qwen3", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_adapters_and_packing(name, make_base, run_train, flags, tmp_path):
    base = make_base(name)
    lora = {"lora_enable": True, "lora_r": 4, "packing": True, "gradient_checkpointing": True}
    run_train(flags(model_name_or_path=base, **SHORT, **lora))
    model, _ = answers(tmp_path / "out", base)
    assert type(model) is get_family(name).model_class


def test_experts_get_no_adapters_and_that_is_said(make_base, run_train, flags, tmp_path, caplog):
    base = make_base("qwen3_moe")
    with caplog.at_level("INFO", logger="llava"):
        run_train(flags(model_name_or_path=base, **SHORT, lora_enable=True, lora_r=4))
    (said,) = (r.getMessage() for r in caplog.records if r.getMessage().startswith("LoRA:"))
    assert (
        "(down_proj, gate_up_proj)" in said
        and "--lora_experts" in said
        and "k_proj, o_proj, q_proj, v_proj" in said
    )
    adapters = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert adapters and not any("experts" in name for name in adapters)


ON_EXPERTS = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "lora_experts": True,
              "lora_dropout": 0}  # fmt: skip


def test_adapters_on_experts(make_base, run_train, flags, tmp_path):
    base = make_base("qwen3_moe")
    run_train(flags(model_name_or_path=base, **SHORT, **ON_EXPERTS, gradient_checkpointing=True))
    adapters = load_file(tmp_path / "out" / "adapter_model.safetensors")
    counted = load_shape(str(base), None).language_model.num_in_adapters(4, experts=True)
    assert sum(weight.numel() for weight in adapters.values()) == counted
    model, _ = answers(tmp_path / "out", base)
    start = AutoModelForCausalLM.from_pretrained(base).state_dict()
    for name, inner in (("gate_up_proj", ".base_layer"), ("down_proj", "")):
        path = "model.layers.0.mlp.experts"
        a, b = (
            adapters[f"base_model.model.{path}{inner}.lora_{each}.weight"] for each in ("A", "B")
        )
        merged, before = model.state_dict()[f"{path}.{name}"], start[f"{path}.{name}"]
        assert b.any()
        for expert in range(num := len(merged)):
            delta = 2 * b[:, expert::num] @ a[4 * expert : 4 * expert + 4]
            torch.testing.assert_close(merged[expert] - before[expert], delta, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("qwen3_moe", {"lora_dropout": 0.1}, "--lora_dropout 0"),
        ("qwen3_moe", {"lora_enable": False}, "--lora_enable True"),
        ("qwen3", {}, r"no language model with experts in one tensor \(found: none\)"),
    ],
)
def test_adapters_on_experts_that_are_refused(name, changes, message, make_base, run_train, flags):
    with pytest.raises(ConfigError, match=message):
        run_train(flags(model_name_or_path=make_base(name), **{**ON_EXPERTS, **changes}))


def test_fsdp_wraps_layers_that_are_there(make_base, run_train, flags, tmp_path):
    """Those of a checkpoint's tower were noted while it was read, and are hidden then."""
    base = make_base("qwen3")
    run_train(flags(model_name_or_path=base, **SHORT))
    for start in (base, tmp_path / "out"):
        model_args, data_args, training_args, _ = parse_arguments(
            args=flags(model_name_or_path=start)
        )
        training_args.fsdp = "full_shard"
        model = build_model(model_args, training_args)
        add_vision(model, None, model_args, data_args, training_args)
        assert set(model._no_split_modules) == {"Qwen3DecoderLayer"}


def test_a_family_that_does_not_work_is_refused(make_base, run_train, flags):
    base = make_base("qwen3")
    path = base / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "bert"}))
    with pytest.raises(ConfigError, match=r"'bert' does not work: .*docs/models.md.*qwen3"):
        run_train(flags(model_name_or_path=base))


@pytest.fixture
def make_composite(make_base, tmp_path):
    """Makes a model of transformers with a vision tower of its own, around a base model.

    Args of the result: kind of the composite model, family of its language model, and whether its
    weights have the names of transformers 5 (`model.language_model.`) or those of published files.

    Returns:
        Folder of the base model, and that of the composite model with the same text weights.
    """

    def make(kind, family, new_names):
        from transformers import AutoConfig, AutoModelForImageTextToText

        base, folder = make_base(family), tmp_path / "composite"
        text = json.loads((base / "config.json").read_text())
        vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                  "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
        base_model = AutoModelForCausalLM.from_pretrained(base)
        is_tied = base_model.config.tie_word_embeddings
        config = AutoConfig.for_model(
            kind, text_config=text, vision_config=vision, tie_word_embeddings=is_tied
        )
        whole = AutoModelForImageTextToText.from_config(config)
        whole.model.language_model.load_state_dict(base_model.base_model.state_dict())
        whole.lm_head.load_state_dict(base_model.lm_head.state_dict())
        whole.save_pretrained(folder)
        # published files leave it to the text part
        content = json.loads((folder / "config.json").read_text())
        content.pop("tie_word_embeddings", None)
        (folder / "config.json").write_text(json.dumps(content))
        if new_names:
            weights = {name: weight.clone() for name, weight in whole.state_dict().items()}
            if is_tied:
                weights.pop("lm_head.weight")
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        for path in base.glob("*token*"):
            shutil.copy(path, folder)
        return base, folder

    return make


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize(
    ("kind", "family", "new_names"),
    [
        ("gemma3", "gemma3_text", False),
        ("gemma3", "gemma3_text", True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("mistral3", "mistral", False),
                ("mistral3", "ministral3", True),
                ("aya_vision", "cohere2", False),
                ("internvl", "qwen2", True),
            )
        ),
    ],
)
def test_of_a_composite_model_the_language_model_is_the_base(
    kind, family, new_names, make_composite, run_train, flags, tmp_path
):
    base, composite = make_composite(kind, family, new_names)
    names = {name.split(".layers")[0] for name in load_file(composite / "model.safetensors")}
    assert ("model.language_model" in names) == new_names
    found = {}
    for folder in (base, composite):
        torch.manual_seed(0)
        out = tmp_path / f"out-{folder.name}"
        run_train(flags(model_name_or_path=folder, output_dir=out, **SHORT))
        found[folder] = load_file(out / "model.safetensors"), losses(out)
    (expected, of_base), (weights, of_composite) = found.values()
    assert of_composite == of_base
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
    assert type(answers(out)[0]) is get_family(family).model_class
    # the plan counts what is trained
    assert load_shape(str(composite), None) == load_shape(str(base), None)


def test_adapters_and_projector_on_a_composite_model(make_composite, run_train, flags, tmp_path):
    _, composite = make_composite("gemma3", "gemma3_text", False)
    model_class = get_family("gemma3_text").model_class
    for kind in ({"lora_enable": True, "lora_r": 4}, {"tune_mm_mlp_adapter": True}):
        out = tmp_path / next(iter(kind))
        run_train(flags(model_name_or_path=composite, output_dir=out, **SHORT, **kind))
        assert type(answers(out, composite)[0]) is model_class


def test_a_composite_model_whose_language_model_does_not_work(make_base, run_train, flags):
    base = make_base("qwen3")
    text = {"model_type": "gemma4_text", "vocab_size": 160}
    config = {"model_type": "gemma4", "text_config": text}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"'gemma4_text' does not work: .*token ids"):
        run_train(flags(model_name_or_path=base))
