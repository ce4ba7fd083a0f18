import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, MptConfig, MptForCausalLM

from llava.conversation import get_conversation
from llava.errors import DataError
from llava.mm_utils import tokenizer_image_token
from llava.model import LlavaLlamaForCausalLM, LlavaMptConfig, LlavaMptForCausalLM
from llava.model.builder import load_pretrained_model, model_class_of

SIZES = {"d_model": 32, "n_heads": 2, "n_layers": 2, "vocab_size": 2000, "max_seq_len": 256}
MULTIMODAL = {
    "mm_hidden_size": 32,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_use_im_patch_token": False,
}
GREEDY = {"do_sample": False, "max_new_tokens": 8}


@pytest.fixture
def model(models):
    torch.manual_seed(0)
    config = LlavaMptConfig(**SIZES, **MULTIMODAL, mm_vision_tower=str(models / "tiny-clip"))
    model = LlavaMptForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # the usual 0.02 answers with one token for ever
    model.get_vision_tower().load_model()
    return model.eval()


@pytest.fixture
def checkpoint(model, models, tmp_path):
    """A whole model, its tower beside it, in a folder whose name says nothing."""
    shutil.copytree(models / "tiny-clip", tmp_path / "tiny-clip")
    folder = tmp_path / "mine"
    model.config.mm_vision_tower = "tiny-clip"
    model.save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(models / "tiny-llava" / name, folder)
    return folder


def load(path, base=None, name="mine"):
    return load_pretrained_model(str(path), base and str(base), name, device="cpu")


def test_configuration_speaks_both_names():
    config = LlavaMptConfig(**SIZES)
    assert (config.hidden_size, config.max_position_embeddings) == (32, 256)
    assert AutoConfig.for_model("llava_mpt", **SIZES).d_model == 32


def test_configuration_of_an_old_checkpoint(models, tmp_path):
    """With the keys that MPT's first authors and LLaVA wrote."""
    old = {
        **SIZES,
        **MULTIMODAL,
        "model_type": "llava_mpt",
        "hidden_size": 32,
        "attn_config": {"alibi": True, "attn_impl": "triton", "prefix_lm": False, "qk_ln": False},
        "init_config": {"name": "kaiming_normal_", "verbose": 0},
        "auto_map": {"AutoConfig": "configuration_mpt.MPTConfig"},
        "torch_dtype": "float16",
        "mm_vision_tower": str(models / "tiny-clip"),
    }
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = LlavaMptConfig.from_pretrained(tmp_path)
    assert (config.hidden_size, config.d_model, config.attn_config.alibi) == (32, 32, True)
    model = LlavaMptForCausalLM(config).eval()
    assert model(torch.tensor([[1, 300]])).logits.shape == (1, 2, 2000)


def test_forward_equals_mpt_on_text(model):
    plain = MptForCausalLM(MptConfig(**SIZES)).eval()
    weights = {k: v for k, v in model.state_dict().items() if "vision_tower" not in k}
    plain.load_state_dict({k: v for k, v in weights.items() if "mm_projector" not in k})
    ids = torch.tensor([[1, 300, 301, 302]])
    expected = plain(ids, labels=ids)
    found = model(ids, labels=ids)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.loss, expected.loss)
    assert torch.equal(model.get_model().embed_tokens(ids), plain.transformer.wte(ids))


def test_pictures_change_the_answer(model, pixels):
    ids = torch.tensor([[1, -200, 300, 301]])
    outputs = [model(ids, images=pixels[i : i + 1]) for i in range(2)]
    assert outputs[0].logits.shape == (1, 16 + 3, 2000)
    assert not torch.allclose(outputs[0].logits, outputs[1].logits)


def test_generate_in_a_batch_equals_one_at_a_time(model, pixels):
    rows = [[1, -200, 300, 301, 302], [1, 300, -200, 301, -200, 400, 401, 402], [1, 300, 500]]
    single = [
        model.generate(torch.tensor([rows[0]]), images=pixels[:1], **GREEDY),
        model.generate(torch.tensor([rows[1]]), images=pixels[1:3], **GREEDY),
        model.generate(torch.tensor([rows[2]]), **GREEDY),
    ]
    uncached = model.generate(
        torch.tensor([rows[1]]), images=pixels[1:3], use_cache=False, **GREEDY
    )
    assert torch.equal(uncached, single[1])
    ids = torch.tensor([[0] * (8 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (8 - len(row)) + [1] * len(row) for row in rows])
    found = model.generate(ids, attention_mask=mask, images=pixels[[0, 1, 2, 0]], **GREEDY)
    assert torch.equal(found, torch.cat(single))
    assert len(set(found.flatten().tolist())) > 3


def test_prompt_longer_than_the_context(model, pixels):
    ids = torch.tensor([[1, -200] + [300] * 250])
    with pytest.raises(DataError, match="267 positions.*context is 256"):
        model.generate(ids, images=pixels[:1], **GREEDY)


def test_training_reaches_every_part(model, pixels):
    model.train()
    model.gradient_checkpointing_enable()
    ids = torch.tensor([[1, -200, 300, 301]])
    model(ids, labels=ids, images=pixels[:1]).loss.backward()
    weights = {"mm_projector": model.get_model().mm_projector[0].weight,
               "head": model.lm_head.weight,
               "block": model.transformer.blocks[0].attn.Wqkv.weight}  # fmt: skip
    for name, weight in weights.items():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name
    assert model.lm_head.weight is model.transformer.wte.weight


def test_whole_model_by_its_configuration(checkpoint, model, pixels):
    tokenizer, loaded, processor, context_len = load(checkpoint)
    assert isinstance(loaded, LlavaMptForCausalLM) and context_len == 256
    assert processor.crop_size["height"] == 28
    assert isinstance(AutoModelForCausalLM.from_pretrained(checkpoint), LlavaMptForCausalLM)
    conv = get_conversation("mpt")
    conv.append_message(conv.roles[0], "<image>\nWhat?")
    conv.append_message(conv.roles[1], None)
    ids = tokenizer_image_token(conv.get_prompt(), tokenizer, return_tensors="pt")[None]
    expected = model.generate(ids, images=pixels[:1], **GREEDY)
    assert torch.equal(loaded.generate(ids, images=pixels[:1], **GREEDY), expected)


def test_keys_are_those_of_llava(checkpoint):
    keys = set(load_file(checkpoint / "model.safetensors"))
    expected = {
        "transformer.mm_projector.0.weight",
        "transformer.wte.weight",
        "transformer.blocks.1.ffn.up_proj.weight",
        "transformer.norm_f.weight",
        "transformer.vision_tower.vision_tower.vision_model.pre_layrnorm.bias",
    }
    assert expected <= keys
    assert not any(key.startswith("model.") for key in keys)


def test_projector_on_its_base(checkpoint, model, pixels, tmp_path):
    tensors = load_file(checkpoint / "model.safetensors")
    base = shutil.copytree(checkpoint, tmp_path / "base")
    config = json.loads((checkpoint / "config.json").read_text())
    plain = {key: value for key, value in config.items() if not key.startswith("mm_")}
    plain.update(model_type="mpt", architectures=["MptForCausalLM"])
    (base / "config.json").write_text(json.dumps(plain))
    language = {k: v for k, v in tensors.items() if "vision_tower" not in k and "mm_" not in k}
    save_file(language, base / "model.safetensors", metadata={"format": "pt"})
    stage1 = tmp_path / "stage1"
    stage1.mkdir()
    shutil.copy(checkpoint / "config.json", stage1)
    projector = {key: value for key, value in tensors.items() if "mm_projector" in key}
    torch.save(projector, stage1 / "mm_projector.bin")
    loaded = load(stage1, base)[1]
    ids = torch.tensor([[1, -200, 300, 301]])
    expected = model.generate(ids, images=pixels[:1], **GREEDY)
    assert torch.equal(loaded.generate(ids, images=pixels[:1], **GREEDY), expected)
    assert isinstance(load(base)[1], MptForCausalLM)


@pytest.mark.parametrize(
    ("architectures", "name", "kind"),
    [
        (["LlavaMptForCausalLM"], "anything", LlavaMptForCausalLM),
        (None, "llava-mpt-7b-chat", LlavaMptForCausalLM),
        (["LlavaLlamaForCausalLM"], "trained-with-mpt-prompts", LlavaLlamaForCausalLM),
        (None, "llava-v1.5-7b", LlavaLlamaForCausalLM),
    ],
)
def test_class_where_the_type_is_just_llava(architectures, name, kind, caplog):
    config = {"model_type": "llava", "mm_vision_tower": "t", "architectures": architectures}
    assert model_class_of(config, "here", name) is kind
    assert ("names no language model" in caplog.text) == (architectures is None)
