"""Converts checkpoints of TinyLLaVA Factory to LLaVA's format: `lrm import tinyllava`.

Input: a folder with one model of three, `language_model.`, `vision_tower._vision_tower.` and
`connector._connector.`, described by `text_config` and `vision_config`. Output: a folder that
`load_pretrained_model` reads, with the tower in `vision_tower/`. Its `config.json` says where it is
from, because TinyLLaVA's code leaves out the first patch of SigLIP (`Deviation`).
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llava.conversation import conversation_to_dict, get_conversation
from llava.errors import CheckpointError, ConfigError
from llava.files import refuse_existing, write_atomically
from llava.model.checkpoint import add_rope_theta, check_complete, read_config, weight_paths
from llava.model.families import build_blank, class_names, find_family, model_type_of
from llava.model.multimodal_encoder.families import IMPORTED_KEY
from llava.model.multimodal_projector.builder import read_tensors
from llava.model.tokenizer import load_tokenizer
from lrm_ext.export.transformers_checkpoint import TOWER_FOLDER
from lrm_ext.languages.templates import register_templates

log = logging.getLogger(__name__)

_TOWER_PREFIX = "vision_tower._vision_tower."
# prefixes of the other weights, there and here
_PREFIXES = (("language_model.", ""), ("connector._connector.", "model.mm_projector."))
# configuration and image processor of the towers that are read
_TOWERS: dict[str, tuple[Any, Any]] = {
    "clip_vision_model": (transformers.CLIPVisionConfig, transformers.CLIPImageProcessorPil),
    "siglip_vision_model": (transformers.SiglipVisionConfig, transformers.SiglipImageProcessorPil),
}
# by language model, as TinyLLaVA's scripts have it; those of others are not known here
_TEMPLATES = {"phi": "phi"}


def import_tinyllava(path: Path, out_dir: Path, conv_mode: str | None = None) -> None:
    """Writes a LLaVA checkpoint.

    Args:
        path: A folder of TinyLLaVA Factory.
        out_dir: A new folder.
        conv_mode: Its conversation template; by default that of its language model, if known.

    Raises:
        ConfigError: `out_dir` exists, or a part of the model is not here.
        CheckpointError: Files are missing or do not fit.
        TemplateError: `conv_mode` is unknown.
    """
    refuse_existing(out_dir)
    described = (read_config(path) if path.is_dir() else None) or {}
    if described.get("model_type") != "tinyllava":
        raise CheckpointError(
            f"{path}: model_type is {described.get('model_type')!r}; expected a folder of "
            "TinyLLaVA Factory, whose config.json says 'tinyllava'"
        )
    parts = ("text_config", "vision_config")
    if lacking := [name for name in parts if not isinstance(described.get(name), dict)]:
        raise CheckpointError(f"{path}: config.json has no {' and no '.join(lacking)}")
    config = tinyllava_config(described, path, conv_mode)
    tower_config, processor = tower_settings(described["vision_config"], path)
    weights, tower = split_weights(path)
    expected = {*build_blank(config, str(path)).state_dict()}
    if config["tie_word_embeddings"]:
        expected -= {"lm_head.weight"}
    if missing := sorted(expected - weights.keys()):
        raise CheckpointError(
            f"{path}: {len(missing)} weights are missing, e.g. {missing[:3]}; the files are "
            "incomplete or another model's"
        )
    partial = out_dir.with_name(out_dir.name + ".partial")
    folder = partial / TOWER_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tower, folder / "model.safetensors", {"format": "pt"})
    tower_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    save_torch_state_dict(weights, partial)
    write_atomically(partial / "config.json", json.dumps(config, indent=2, sort_keys=True))
    add_rope_theta(partial)
    load_tokenizer(path).save_pretrained(partial)
    partial.rename(out_dir)
    log.info("%s: %s", out_dir, config["architectures"][0])


def tinyllava_config(
    described: dict[str, Any], path: Path, conv_mode: str | None = None
) -> dict[str, Any]:
    """Returns LLaVA's `config.json` for one of TinyLLaVA.

    Args:
        described: Content of TinyLLaVA's `config.json`.
        path: Its place, for messages.
        conv_mode: As for `import_tinyllava`.

    Raises:
        ConfigError: A part of the model is not here.
        TemplateError: `conv_mode` is unknown.
    """
    text = described["text_config"]
    family = find_family(str(text.get("model_type")), f"{path} (text_config)")
    connector = str(described.get("connector_type"))
    if connector != "linear" and not re.fullmatch(r"mlp\d+x_gelu", connector):
        raise ConfigError(
            f"{path}: connector_type {connector!r} is not here; linear and mlpNx_gelu are read"
        )
    template = conv_mode or _TEMPLATES.get(family)
    if template is None:
        raise ConfigError(
            f"{path}: the template of TinyLLaVA on {family!r} is not known here: name the one that "
            "it was trained in with --conv-mode"
        )
    register_templates()
    whole = CONFIG_MAPPING[family].from_dict(text).to_dict()  # the file leaves defaults out
    return {
        **whole,
        "model_type": model_type_of(family),
        "architectures": [class_names(family)[2]],
        IMPORTED_KEY: "tinyllava",
        "conversation": conversation_to_dict(get_conversation(template), template),
        "mm_vision_tower": TOWER_FOLDER,
        "mm_projector_type": connector,
        "mm_hidden_size": described["vision_config"]["hidden_size"],
        "mm_vision_select_layer": described.get("vision_feature_layer", -2),
        "mm_vision_select_feature": described.get("vision_feature_select_strategy", "patch"),
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "image_aspect_ratio": described.get("image_aspect_ratio", "square"),
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": described.get(
            "tokenizer_model_max_length", whole.get("max_position_embeddings")
        ),
    }


def tower_settings(vision: dict[str, Any], path: Path) -> tuple[Any, Any]:
    """Returns configuration and image processor of the tower.

    Args:
        vision: `vision_config` of TinyLLaVA's `config.json`.
        path: Its place, for messages.

    Raises:
        ConfigError: The tower is of a kind that is not read, or there are two.
    """
    kind = vision.get("model_type")
    if kind not in _TOWERS or vision.get("model_name_or_path2"):
        second = vision.get("model_name_or_path2") or "no second one"
        raise ConfigError(
            f"{path}: its tower is {kind!r} with {second}; only one of {', '.join(_TOWERS)} is read"
        )
    config_class, processor_class = _TOWERS[kind]
    config = config_class.from_dict(vision)
    side = config.image_size
    square = {"height": side, "width": side}
    if kind == "clip_vision_model":
        return config, processor_class(size={"shortest_edge": side}, crop_size=square)
    return config, processor_class(size=square)


def split_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Reads the weights, under LLaVA's names, and those of the tower, under its own.

    Raises:
        CheckpointError: They are incomplete, or there are others.
    """
    files = weight_paths(path)
    if not files:
        raise CheckpointError(
            f"{path}: no model.safetensors or pytorch_model.bin. A LoRA run of TinyLLaVA keeps its "
            "parts in folders of their own: merge it with its code and save the whole model"
        )
    check_complete(path)
    weights: dict[str, Tensor] = {}
    tower: dict[str, Tensor] = {}
    for file in files:
        for key, value in read_tensors(file).items():
            if key.startswith(_TOWER_PREFIX):
                tower[key.removeprefix(_TOWER_PREFIX)] = value.contiguous()
                continue
            old, new = next((pair for pair in _PREFIXES if key.startswith(pair[0])), ("", ""))
            if not old:
                raise CheckpointError(
                    f"{file}: {key} is no weight of language model, tower or connector"
                )
            weights[new + key.removeprefix(old)] = value.contiguous()
    return weights, tower
