"""A checkpoint of transformers as a LLaVA checkpoint: `lrm import hf`.

Input: a folder of `LlavaForConditionalGeneration` or `LlavaNextForConditionalGeneration`, our
export or another's. Output: a folder that `load_pretrained_model` takes, with the tower in
`vision_tower/`. Of our exports, weights and configuration come back bit for bit.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import (
    AutoConfig,
    CLIPImageProcessorPil,
    LlamaTokenizer,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import CheckpointError, ConfigError
from llava.model.checkpoint import add_rope_theta, check_complete, read_config
from llava.model.multimodal_encoder.clip_encoder import save_tower
from llava.model.tokenizer import load_tokenizer
from lrm_ext.export.chat_template import adds_bos
from lrm_ext.export.to_hf import (
    LLAVA_CONFIG_FILE,
    PROJECTOR_LAYERS,
    SELECT_STRATEGIES,
    TEXT_CONFIGS,
)

log = logging.getLogger(__name__)

TOWER_FOLDER = "vision_tower"
ARCHITECTURES = {"llama": "LlavaLlamaForCausalLM", "mistral": "LlavaMistralForCausalLM"}


def import_hf(hf_path: Path, out_dir: Path) -> None:
    """Write a LLaVA checkpoint.

    Args:
        hf_path: A folder of transformers' class.
        out_dir: A folder that does not exist yet.

    Raises:
        ConfigError: `out_dir` exists, or the model is of a kind that LLaVA does not have.
        CheckpointError: Files are missing or do not fit.
    """
    if out_dir.exists():
        raise ConfigError(f"{out_dir} exists: name a new folder, or remove it")
    if not hf_path.is_dir():
        raise CheckpointError(f"{hf_path}: no such folder")
    check_complete(hf_path)
    hf_config = _read_hf_config(hf_path)
    hf_model = _load(hf_path, hf_config)
    note = read_config(hf_path, LLAVA_CONFIG_FILE)
    config = llava_config(hf_config, hf_path) if note is None else note["config"]
    config["mm_vision_tower"] = TOWER_FOLDER

    partial = out_dir.with_name(out_dir.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    weights = {
        key: value.contiguous()
        for key, value in renamed_weights(hf_model, hf_config, config["vocab_size"]).items()
    }
    save_torch_state_dict(weights, partial)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (partial / "config.json").write_text(text, encoding="utf-8")
    add_rope_theta(partial)
    hf_model.generation_config.suppress_tokens = None
    hf_model.generation_config.save_pretrained(partial)
    save_tower(hf_model.model.vision_tower, partial / TOWER_FOLDER)
    _image_processor(hf_path).save_pretrained(partial / TOWER_FOLDER)
    read_tokenizer(hf_path, note).save_pretrained(partial)
    if note is not None:
        drop_image_token(partial)
    partial.rename(out_dir)
    log.info("%s: %s", out_dir, config["architectures"][0])


def _read_hf_config(hf_path: Path) -> Any:
    config = AutoConfig.from_pretrained(hf_path)
    found = (
        config.model_type,
        getattr(config.get_text_config(), "model_type", None),
        getattr(getattr(config, "vision_config", None), "model_type", None),
    )
    if (
        found[0] not in ("llava", "llava_next")
        or found[1] not in ARCHITECTURES
        or found[2] != "clip_vision_model"
    ):
        raise ConfigError(
            f"{hf_path}: found model types {found}; LLaVA has llava or llava_next with llama or "
            "mistral and clip_vision_model"
        )
    if config.projector_hidden_act != "gelu" or not config.multimodal_projector_bias:
        raise ConfigError(f"{hf_path}: its projector is not mlp2x_gelu with biases")
    return config


def _load(hf_path: Path, config: Any) -> Any:
    # with loading info it returns a pair, which its types do not say
    kind: Any = (
        LlavaNextForConditionalGeneration
        if isinstance(config, LlavaNextConfig)
        else LlavaForConditionalGeneration
    )
    # the tower's level `vision_model.` may be missing, or be there twice where a script that adds
    # it for vLLM ran on a folder that had it
    model, info = kind.from_pretrained(
        hf_path,
        dtype="auto",
        output_loading_info=True,
        key_mapping={r"vision_tower\.(vision_model\.)+": "vision_tower."},
    )
    if info["missing_keys"] or info["unexpected_keys"]:
        raise CheckpointError(
            f"{hf_path}: missing weights {sorted(info['missing_keys'])[:3]}, unexpected ones "
            f"{sorted(info['unexpected_keys'])[:3]}: the files are incomplete or another model's"
        )
    return model


def llava_config(hf_config: Any, hf_path: Path) -> dict[str, Any]:
    """LLaVA's `config.json` for a checkpoint that was not exported here."""
    text = hf_config.get_text_config()
    assert {f"llava_{kind}" for kind in ARCHITECTURES} == set(TEXT_CONFIGS)
    features = {strategy: feature for feature, strategy in SELECT_STRATEGIES.items()}
    is_next = isinstance(hf_config, LlavaNextConfig)
    config: dict[str, Any] = {
        **text.to_dict(),
        "model_type": f"llava_{text.model_type}",
        "architectures": [ARCHITECTURES[text.model_type]],
        "tie_word_embeddings": bool(hf_config.tie_word_embeddings),
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": hf_config.vision_config.hidden_size,
        "mm_vision_select_layer": hf_config.vision_feature_layer,
        "mm_vision_select_feature": features[hf_config.vision_feature_select_strategy],
        "mm_patch_merge_type": "spatial_unpad" if is_next else "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": text.max_position_embeddings,
    }
    if is_next:
        config["image_aspect_ratio"] = "anyres"
        config["image_grid_pinpoints"] = [
            [width, height] for height, width in hf_config.image_grid_pinpoints
        ]
    else:
        does_pad = _processor_settings(hf_path).get("do_pad")
        config["image_aspect_ratio"] = "pad" if does_pad else "square"
    return config


def renamed_weights(hf_model: Any, hf_config: Any, vocab_size: int) -> dict[str, Tensor]:
    """Weights under LLaVA's names, without the tower and without rows that an export added."""
    layers = {new: old for old, new in PROJECTOR_LAYERS.items()}
    weights: dict[str, Tensor] = {}
    for key, value in hf_model.state_dict().items():
        if key.startswith("model.vision_tower."):
            continue
        if key == "lm_head.weight":
            if not hf_config.tie_word_embeddings:
                weights[key] = value[:vocab_size].clone()
        elif key.startswith("model.multi_modal_projector."):
            layer, name = key.removeprefix("model.multi_modal_projector.").split(".")
            weights[f"model.{layers[layer + '.']}{name}"] = value
        elif key == "model.image_newline":
            weights[key] = value
        else:
            weights[key.replace("model.language_model.", "model.", 1)] = value
    table = weights["model.embed_tokens.weight"]
    # a copy: a part of a tensor is not saved
    weights["model.embed_tokens.weight"] = table[:vocab_size].clone()
    return weights


def read_tokenizer(hf_path: Path, note: dict[str, Any] | None) -> Any:
    """The tokenizer with LLaVA's settings: it adds BOS where the chat template writes BOS.

    Args:
        hf_path: The folder.
        note: What our export wrote down, None for another's folder.
    """
    if note is not None:
        # exports before this key was written kept the tokenizer's BOS
        settings = dict(note.get("tokenizer", {}))
        has_pad = "pad_token" not in settings or settings.pop("pad_token") is not None
        tokenizer = load_tokenizer(hf_path, **settings)
        if not has_pad:
            tokenizer.pad_token = None
        return tokenizer
    tokenizer = load_tokenizer(hf_path)
    is_llama = isinstance(tokenizer, LlamaTokenizer)
    if is_llama and tokenizer.chat_template:
        asked = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
        prompt = tokenizer.apply_chat_template(asked, tokenize=False)
        if prompt.startswith(tokenizer.bos_token) and not adds_bos(tokenizer):
            tokenizer.add_bos_token = True
    return tokenizer


def _image_processor(hf_path: Path) -> CLIPImageProcessorPil:
    """CLIP's own processor with the settings of the folder's; padding and tiles are LLaVA's."""
    keys = ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor")
    settings = _processor_settings(hf_path)
    return CLIPImageProcessorPil(**{key: settings[key] for key in keys if key in settings})


def _processor_settings(hf_path: Path) -> dict[str, Any]:
    """The image processor's settings, from the file of either version of transformers."""
    whole = read_config(hf_path, "processor_config.json") or {}
    settings = whole.get("image_processor") or read_config(hf_path, "preprocessor_config.json")
    if settings is None:
        raise CheckpointError(
            f"{hf_path}: neither preprocessor_config.json nor an image processor in "
            "processor_config.json"
        )
    return dict(settings)


def drop_image_token(folder: Path) -> None:
    """Take `<image>` out of a tokenizer again: LLaVA cuts prompts there before it tokenizes."""
    path = folder / "tokenizer.json"
    content = read_config(folder, path.name)
    if content is not None:
        content["added_tokens"] = [
            token for token in content["added_tokens"] if token["content"] != DEFAULT_IMAGE_TOKEN
        ]
        path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
    path = folder / "added_tokens.json"
    if (added := read_config(folder, path.name)) is not None:
        added.pop(DEFAULT_IMAGE_TOKEN, None)
        path.write_text(json.dumps(added, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if not added:
            path.unlink()
    path = folder / "tokenizer_config.json"
    settings = read_config(folder, path.name) or {}
    settings.pop("processor_class", None)
    settings.pop("chat_template", None)
    for key in ("image_token", "extra_special_tokens"):
        settings.pop(key, None)
    decoder = settings.get("added_tokens_decoder", {})
    for token_id in [key for key, token in decoder.items() if token["content"] == "<image>"]:
        del decoder[token_id]
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
