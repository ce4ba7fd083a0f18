"""Exports and imports of pairs of a language model and a tower."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_towers import photograph, write_checkpoint
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
)

from llava.conversation import chat_conversation, conversation_to_dict, get_conversation
from llava.errors import ConfigError
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.tokenizer import load_tokenizer
from lrm_ext.export.check import check_folder
from lrm_ext.export.transformers_checkpoint import export_hf, import_hf

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
       "shared_expert_intermediate_size": 16}  # fmt: skip
TILES = [[64, 32], [32, 64], [64, 64], [96, 64]]
ANYRES = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad",
          "image_grid_pinpoints": TILES}  # fmt: skip
NEW = {"mm_num_image_tokens": 16}  # as this code writes it, so that no deviation applies

# language model, tower, settings
PAIRS = {
    "qwen3-siglip": ("qwen3", "siglip", {"image_aspect_ratio": "pad", **NEW}),
    "gemma3-siglip2": ("gemma3_text", "siglip2", {"tie_word_embeddings": True}),
    # Aya and Maya: scaled logits; the first patch is lost
    "cohere-siglip": ("cohere", "siglip", {"tie_word_embeddings": True, "logit_scale": 0.0625}),
    "phi3-dinov2": ("phi3", "dinov2", {"mm_vision_select_feature": "cls_patch"}),
    "smollm3-clip-anyres": ("smollm3", "clip", ANYRES),
    "llama-siglip-anyres": ("llama", "siglip", {**ANYRES, **NEW}),
    # the checkpoint carries the tower; LLaVA-NeXT's Qwen 2 lacks its last layer
    "qwen2-siglip-cut-onevision": (
        "qwen2", "siglip",
        {**ANYRES, "image_aspect_ratio": "anyres_max_2", "unfreeze_mm_vision_tower": True},
    ),
    "qwen2-moe-vit": ("qwen2_moe", "vit", MOE),
    # its head has another name, and so has its inner model
    "gpt-neox-clip": ("gpt_neox", "clip", {"mm_vision_select_layer": 1}),
}  # fmt: skip

SELECTIONS = ("phi3-dinov2", "llama-siglip-anyres", "qwen2-siglip-cut-onevision")


class WithoutVideo(LlavaOnevisionProcessor):
    """Does not need torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        return type(argument)

    @classmethod
    def read(cls, folder):
        settings = json.loads((folder / "processor_config.json").read_text())
        assert settings["processor_class"] == "LlavaOnevisionProcessor"
        keys = ("num_image_tokens", "vision_feature_select_strategy", "vision_aspect_ratio")
        parts = (kind.from_pretrained(folder) for kind in (AutoImageProcessor, AutoTokenizer))
        template = (folder / "chat_template.jinja").read_text()
        return cls(*parts, chat_template=template, **{key: settings[key] for key in keys})


IMAGES = (photograph(), None)


def logits_here(folder):
    """The checkpoint's own logits, [L, V] for each of `IMAGES`."""
    tokenizer, model, processor, _ = load_pretrained_model(str(folder), None, "llava", device="cpu")
    found = []
    for image in IMAGES:
        conv = get_conversation("v1")
        conv.append_message(conv.roles[0], "<image>\nWhat is this?" if image else "What is this?")
        conv.append_message(conv.roles[1], None)
        ids = tokenizer_image_token(conv.get_prompt(), tokenizer, return_tensors="pt")[None]
        given = {"image_sizes": [image.size]} if image else {}
        if image:
            given["images"] = process_images([image], processor, model.config)
        with torch.no_grad():
            found.append(model(ids, **given).logits[0])
    return found


def logits_there(folder):
    """The same by plain transformers."""
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    is_onevision = isinstance(model, LlavaOnevisionForConditionalGeneration)
    processor = (WithoutVideo.read if is_onevision else AutoProcessor.from_pretrained)(folder)
    found = []
    for image in IMAGES:
        parts = [{"type": "image"}] if image else []
        content = [*parts, {"type": "text", "text": "What is this?"}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        with torch.no_grad():
            inputs = processor(text=prompt, images=image, return_tensors="pt")
            found.append(model(**inputs).logits[0])
    return found


def assert_same(expected, found):
    for ours, theirs in zip(expected, found, strict=True):
        assert len(theirs) == len(ours) and ours.std() > 0.01
        size = min(ours.shape[1], theirs.shape[1])  # an export has rows for its tokens
        torch.testing.assert_close(theirs[:, :size], ours[:, :size], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_plain_transformers_gives_the_same_logits_and_all_comes_back(name, golden_dir, tmp_path):
    family, tower, settings = PAIRS[name]
    (tmp_path / "model").mkdir()
    folder = write_checkpoint(tmp_path / "model", golden_dir, family, tower, **settings)
    out = tmp_path / "out"
    export_hf(folder, out, conv_mode="v1")
    assert [finding for finding in check_folder(out) if not finding.ok] == []
    ours = logits_here(folder)
    assert_same(ours, logits_there(out))

    import_hf(out, tmp_path / "back")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert_same(ours, logits_here(tmp_path / "back"))
    tower_file = tmp_path / "back" / "vision_tower" / "model.safetensors"
    if tower in ("clip", "siglip") and tower_file.exists():
        assert all(key.startswith("vision_model.") for key in load_file(tower_file))

    if name in SELECTIONS:
        (out / "llava_config.json").unlink()  # as if someone else had written it
        import_hf(out, tmp_path / "other")
        assert_same(ours, logits_here(tmp_path / "other"))


def test_a_strategy_that_llava_cannot_select_is_refused(golden_dir, tmp_path):
    (tmp_path / "model").mkdir()
    family, tower, settings = PAIRS["cohere-siglip"]
    folder = write_checkpoint(tmp_path / "model", golden_dir, family, tower, **settings)
    export_hf(folder, tmp_path / "out", conv_mode="v1")
    (tmp_path / "out" / "llava_config.json").unlink()
    with pytest.raises(ConfigError, match="'default' with a tower of 0 positions before"):
        import_hf(tmp_path / "out", tmp_path / "other")


@pytest.mark.parametrize(
    ("family", "tower", "settings", "message"),
    [
        ("llama", "dinov3", {}, "register tokens of a 'dinov3_vit' tower"),
        ("llama", "metaclip2", {}, "'metaclip_2_vision_model' tower: its AutoModel has none"),
        ("llama", "siglip+clip", {}, "towers side by side"),
        ("llama", "dinov2", ANYRES, "tiles of 32 pixels and image_size 48"),
        ("llama", "clip", {**ANYRES, "mm_vision_select_feature": "cls_patch"}, "17 tokens a tile"),
        ("gemma2", "clip", {"final_logit_softcapping": 30.0}, "not the head's product.*capping 30"),
        ("phi", "clip", {}, r"weights beside the inner model and its head: \['lm_head.bias'\]"),
    ],
)
def test_what_transformers_cannot_express(family, tower, settings, message, golden_dir, tmp_path):
    (tmp_path / "model").mkdir()
    folder = write_checkpoint(tmp_path / "model", golden_dir, family, tower, **settings)
    with pytest.raises(ConfigError, match=message):
        export_hf(folder, tmp_path / "out", conv_mode="v1")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("qwen_2_5", ["<|im_start|>", "<|im_end|>"]),
        ("gemma_3", ["<start_of_turn>", "<end_of_turn>"]),
    ],
)
def test_the_bases_own_chat_template_is_exported(name, tokens, golden_dir, tmp_path):
    (tmp_path / "model").mkdir()
    sizes = {"vocab_size": 2016, **NEW}  # more rows than tokens, as Qwen has
    folder = write_checkpoint(tmp_path / "model", golden_dir, "qwen3", "siglip", **sizes)
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = (golden_dir / "llava/chat_templates" / f"{name}.jinja").read_text()
    conv = chat_conversation(tokenizer)
    config = json.loads((folder / "config.json").read_text())
    config["conversation"] = conversation_to_dict(conv, "auto")
    (folder / "config.json").write_text(json.dumps(config))
    export_hf(folder, tmp_path / "out")

    turns = ["<image>\nŠto je to?", "Pas.", "A ovo?", None]
    for role, text in zip(conv.roles * 2, turns, strict=True):
        conv.append_message(role, text)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    wanted = []
    for token in tokenizer_image_token(conv.get_prompt(), tokenizer):
        wanted += [token] if token >= 0 else [image] * 16
    first = [{"type": "image"}, {"type": "text", "text": "Što je to?"}]
    messages = [{"role": "user", "content": first}, {"role": "assistant", "content": "Pas."},
                {"role": "user", "content": [{"type": "text", "text": "A ovo?"}]}]  # fmt: skip
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=prompt, images=photograph(), return_tensors="pt")
    end = processor.tokenizer.convert_tokens_to_ids(tokens[1])
    assert end in GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert inputs.input_ids[0].tolist() == wanted
    _, model, images, _ = load_pretrained_model(str(folder), None, "llava", device="cpu")
    assert torch.equal(inputs.pixel_values, process_images([photograph()], images, model.config))
