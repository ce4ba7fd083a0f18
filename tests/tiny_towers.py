"""Tiny random vision models of each family, written as published folders are, and checkpoints."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from PIL import Image

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "image_size": 32,
         "patch_size": 8, "num_attention_heads": 2}  # fmt: skip
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 9,
        "num_attention_heads": 2, "max_position_embeddings": 8, "projection_dim": 16,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}  # fmt: skip
HALF, IMAGENET = [0.5] * 3, ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
SQUARE = {"height": 32, "width": 32}


def siglip(**changes):
    return hf.SiglipVisionConfig(**{**SIZES, **changes})


# name: (configuration, image processor as its Pillow backend, its name in the published file,
# tokens with `patch`, tokens with `cls_patch`)
TOWERS = {
    "clip": (
        lambda: hf.CLIPVisionConfig(**SIZES),
        lambda: hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE),
        "CLIPImageProcessor", 16, 17,
    ),
    "siglip": (
        siglip,
        lambda: hf.SiglipImageProcessorPil(size=SQUARE), "SiglipImageProcessor", 16, 16,
    ),
    # a whole model with its text part; 36 pixels hold 4.5 patches, of which 4 count
    "siglip2": (
        lambda: hf.SiglipConfig(vision_config={**SIZES, "image_size": 36}, text_config=TEXT),
        lambda: hf.SiglipImageProcessorPil(size={"height": 36, "width": 36}),
        "SiglipImageProcessor", 16, 16,
    ),
    "metaclip2": (
        lambda: hf.MetaClip2Config(vision_config=SIZES, text_config=TEXT, projection_dim=16),
        lambda: hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE),
        "CLIPImageProcessor", 16, 17,
    ),
    # its processor, not image_size, decides: published ones have 518 and 224
    "dinov2": (
        lambda: hf.Dinov2Config(**{**SIZES, "image_size": 48}, mlp_ratio=2),
        lambda: hf.BitImageProcessorPil(
            size={"shortest_edge": 36}, crop_size=SQUARE, do_center_crop=True,
            image_mean=IMAGENET[0], image_std=IMAGENET[1],
        ),
        "BitImageProcessor", 16, 17,
    ),
    "dinov2-registers": (
        lambda: hf.Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2, num_register_tokens=4),
        lambda: hf.BitImageProcessorPil(
            size={"shortest_edge": 36}, crop_size=SQUARE, do_center_crop=True,
            image_mean=IMAGENET[0], image_std=IMAGENET[1],
        ),
        "BitImageProcessor", 16, 17,
    ),
    "dinov3": (
        lambda: hf.DINOv3ViTConfig(**SIZES, num_register_tokens=4),
        lambda: hf.ViTImageProcessorPil(
            size=SQUARE, image_mean=IMAGENET[0], image_std=IMAGENET[1], resample=2
        ),
        "DINOv3ViTImageProcessorFast", 16, 17,
    ),
    # kinds that the table does not have
    "aimv2": (
        lambda: hf.Aimv2VisionConfig(**SIZES),
        lambda: hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE),
        "CLIPImageProcessor", 16, 16,
    ),
    "vit": (
        lambda: hf.ViTConfig(**SIZES),
        lambda: hf.ViTImageProcessorPil(size=SQUARE), "ViTImageProcessorFast", 16, 17,
    ),
}  # fmt: skip


def write_tower(folder: Path, name: str, **changes) -> Path:
    """Writes a tiny model as a folder; `changes` go into its `config.json` settings."""
    make_config, make_processor, processor_type, *_ = TOWERS[name]
    config = make_config(**changes)
    torch.manual_seed(0)
    kind = getattr(hf, type(config).__name__.removesuffix("Config") + "Model")
    model = kind(config)
    with torch.no_grad():
        # published positions are no zeros
        for key, value in model.named_parameters():
            if "token" in key or "position" in key:
                value.normal_(std=0.02)
    model.save_pretrained(folder)
    settings = {**make_processor().to_dict(), "image_processor_type": processor_type}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def photograph(width: int = 90, height: int = 60) -> Image.Image:
    """An image with slopes, edges and noise, as a photograph has."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    channels = [120 + 80 * np.sin(x / (9 + 4 * c)) * np.cos(y / (7 + c)) for c in range(3)]
    values = np.stack(channels, axis=-1)
    values[10:30, 20:50] += 60
    values += rng.normal(0, 12, values.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


# of any language model; what a family does not know is left aside
LANGUAGE_SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def write_checkpoint(folder: Path, golden_dir: Path, family: str, tower: str, **settings) -> Path:
    """Writes a random model of any family with its tower beside it, and Llama's tokenizer."""
    from llava.model.language_model.causal_lm import get_family
    from llava.model.tokenizer import load_tokenizer

    names = tower.split("+")
    vision = [write_tower(folder / name, name) for name in names]
    shutil.copy(golden_dir / "llava" / "tokenizer.model", folder)
    words = {"tokenizer_class": "LlamaTokenizer", "legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    made = get_family(family)
    config = made.config_class(**{
        **LANGUAGE_SIZES, "vocab_size": len(load_tokenizer(folder)), "name_or_path": str(folder),
        "mm_use_im_patch_token": False, "mm_vision_tower": tower,
        "mm_hidden_size": SIZES["hidden_size"] * len(vision), "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat", "image_aspect_ratio": "square", "tie_word_embeddings": False,
        "architectures": [made.model_class.__name__], **settings,
    })  # fmt: skip
    torch.manual_seed(0)
    model = made.model_class(config)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "vision_tower" not in key:
                value.normal_(1.0 if "norm" in key else 0.0, 0.1)
    model.save_pretrained(folder)
    return folder
