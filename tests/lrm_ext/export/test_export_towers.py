"""Exports of models with towers other than CLIP."""

import json
import shutil

import pytest
import torch
from tiny_towers import photograph, write_tower
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava.conversation import get_conversation
from llava.errors import ConfigError
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.builder import load_pretrained_model
from lrm_ext.export.check import check_folder
from lrm_ext.export.transformers_checkpoint import export_hf


def checkpoint(folder, golden_dir, tower, **settings):
    """A random model with a tower in `tower/`, without the tower's weights."""
    names = tower.split("+")
    for name in names:
        write_tower(folder / name, name)
    config = LlavaConfig(
        vocab_size=320, hidden_size=24, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=256, mm_use_im_patch_token=False,
        mm_vision_tower=tower, mm_hidden_size=32 * len(names), mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=-2, name_or_path=str(folder),
        **{"mm_patch_merge_type": "flat", "image_aspect_ratio": "square",
           "mm_vision_select_feature": "patch", **settings},
    )  # fmt: skip
    config.vocab_size = len(load_tokenizer_files(folder, golden_dir))
    torch.manual_seed(0)
    LlavaLlamaForCausalLM(config).save_pretrained(folder)
    return folder


def load_tokenizer_files(folder, golden_dir):
    from llava.model.tokenizer import load_tokenizer

    shutil.copy(golden_dir / "llava" / "tokenizer.model", folder)
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return load_tokenizer(folder)


@pytest.mark.parametrize(
    ("tower", "settings"),
    [
        ("siglip", {"image_aspect_ratio": "pad"}),
        ("siglip", {"mm_num_image_tokens": 16}),
        ("dinov2", {"mm_vision_select_feature": "cls_patch"}),
        ("vit", {}),
    ],
)
def test_plain_transformers_gives_the_same_logits(tower, settings, golden_dir, tmp_path):
    (tmp_path / "model").mkdir()
    folder = checkpoint(tmp_path / "model", golden_dir, tower, **settings)
    export_hf(folder, tmp_path / "out", conv_mode="v1")
    assert all(finding.ok for finding in check_folder(tmp_path / "out"))
    tokenizer, model, processor, _ = load_pretrained_model(str(folder), None, "llava", device="cpu")
    conv = get_conversation("v1")
    conv.append_message(conv.roles[0], "<image>\nWhat is this?")
    conv.append_message(conv.roles[1], None)
    ids = tokenizer_image_token(conv.get_prompt(), tokenizer, return_tensors="pt")[None]
    image = photograph()
    with torch.no_grad():
        ours = model(ids, images=process_images([image], processor, model.config)).logits[0]
    theirs_model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    theirs_processor = AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    prompt = theirs_processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = theirs_processor(text=prompt, images=image, return_tensors="pt")
    with torch.no_grad():
        theirs = theirs_model(**inputs).logits[0]
    assert len(theirs) == len(ours)
    torch.testing.assert_close(theirs[:, : ours.shape[1]], ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("tower", "settings", "message"),
    [
        ("dinov3", {}, "register tokens of a 'dinov3_vit' tower"),
        ("metaclip2", {}, "'metaclip_2_vision_model' tower: its AutoModel has none"),
        ("siglip+clip", {}, "towers side by side"),
        (
            "siglip",
            {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad",
             "image_grid_pinpoints": [[64, 32]]},
            "anyres with a 'siglip_vision_model' tower",
        ),
    ],
)  # fmt: skip
def test_what_transformers_cannot_express(tower, settings, message, golden_dir, tmp_path):
    (tmp_path / "model").mkdir()
    folder = checkpoint(tmp_path / "model", golden_dir, tower, **settings)
    with pytest.raises(ConfigError, match=message):
        export_hf(folder, tmp_path / "out", conv_mode="v1")
    assert not (tmp_path / "out").exists()
