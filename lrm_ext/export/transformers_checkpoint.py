"""Converts LLaVA checkpoints to transformers and back: `lrm export hf`, `lrm import hf`.

Export reads any folder that `load_pretrained_model` reads and writes one of
`LlavaForConditionalGeneration`, of `LlavaNextForConditionalGeneration` for `anyres`, or of
`LlavaOnevisionForConditionalGeneration` for `anyres_max_N`, with processor and chat template.
Import reads such a folder, exported here or elsewhere, and writes one that `load_pretrained_model`
reads. Any language model and any tower will do: the export has their own configurations and
weights, whose names follow from three rules (`NAMES`, the tower's prefix, the head's). What
transformers' classes would compute otherwise is refused before anything is written.

An export keeps LLaVA's configuration in `llava_config.json`, with all else that an import needs to
restore weights and settings bit for bit.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    GenerationConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaProcessor,
    SiglipImageProcessorPil,
)
from transformers.core_model_loading import revert_weight_conversion
from transformers.image_utils import PILImageResampling
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import select_conversation
from llava.errors import CheckpointError, ConfigError
from llava.files import get_model_name_from_path, refuse_existing, write_atomically
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import (
    WEIGHT_FILES,
    MultimodalConfig,
    add_rope_theta,
    carries_tower,
    check_complete,
    read_config,
    save_tower,
    weight_paths,
)
from llava.model.families import (
    build_blank,
    class_names,
    find_family,
    model_type_of,
)
from llava.model.language_model.causal_lm import get_family
from llava.model.multimodal_encoder.families import (
    NUM_TOKENS_KEY,
    family_of,
    refuse_foreign,
    side_px,
)
from llava.model.multimodal_encoder.vision_tower import VisionTower, notes_tokens
from llava.model.tiles import read_pinpoints
from llava.model.tokenizer import load_tokenizer
from lrm_ext.export.chat_template import adds_bos, chat_template
from lrm_ext.languages.templates import register_templates

log = logging.getLogger(__name__)

LLAVA_CONFIG_FILE = "llava_config.json"
TOWER_FOLDER = "vision_tower"
VIDEO_TOKEN = "<video>"
ANYRES_MAX = "anyres_max_"
# how many of a hidden state's positions transformers' strategies leave out at the beginning
SELECT_STRATEGIES = {0: "full", 1: "default"}
IMAGE_SETTINGS = ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor")
TOWER_PREFIX = "model.vision_tower."
LANGUAGE_PREFIX = "model.language_model."
# prefixes of the inner model's weights in LLaVA and in transformers; the first match applies
NAMES = (
    ("mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("image_newline", "model.image_newline"),
    ("", LANGUAGE_PREFIX),
)
# what bases do to their logits besides the head's product, which is all that transformers' LLaVA
# classes compute: key of `config.json`, the value that does nothing, and the factor of a value
HEAD_SETTINGS: dict[str, tuple[float | None, Any]] = {
    "logit_scale": (1.0, lambda value: value),
    "logits_scaling": (1.0, lambda value: 1 / value),
    "lm_head_multiplier": (1.0, lambda value: value),
    "final_logit_softcapping": (None, lambda value: 1.0),
}


def export_hf(
    model_path: Path, out_dir: Path, model_base: str | None = None, conv_mode: str | None = None
) -> None:
    """Writes a checkpoint that plain transformers loads.

    Args:
        model_path: A LLaVA checkpoint.
        out_dir: A new folder.
        model_base: Base model of a projector or of LoRA adapters.
        conv_mode: Conversation template; by default that of the checkpoint.

    Raises:
        ConfigError: `out_dir` exists, or transformers has no class for this model.
        CheckpointError: The checkpoint cannot be read.
    """
    refuse_existing(out_dir)
    register_templates()
    name = get_model_name_from_path(str(model_path))
    written = read_config(model_path) or {}
    dtype = getattr(torch, str(written.get("dtype") or written.get("torch_dtype")), torch.float32)
    tokenizer, model, image_processor, _ = load_pretrained_model(
        str(model_path), model_base, name, device="cpu", dtype=dtype
    )
    check_exportable(model, image_processor)
    template_name, conv = select_conversation(SimpleNamespace(**written), name, conv_mode)
    note = _restorable(model, tokenizer, image_processor)
    note |= {"conversation": template_name, "carries_tower": _is_tower_inside(model, model_path)}
    known = tokenizer.get_vocab()
    ids = {DEFAULT_IMAGE_TOKEN: add_image_token(tokenizer)}
    if _kind_of(model) is LlavaOnevisionConfig:
        tokenizer.add_tokens([AddedToken(VIDEO_TOKEN, special=True)], special_tokens=True)
        ids[VIDEO_TOKEN] = int(tokenizer.convert_tokens_to_ids(VIDEO_TOKEN))
    note["added_tokens"] = [token for token in ids if token not in known]
    source = chat_template(conv, tokenizer)
    if adds_bos(tokenizer):
        # the template writes BOS, and processors would add a second one
        tokenizer.add_bos_token = False
        note["tokenizer"]["add_bos_token"] = True

    hf_config = build_config(model, *ids.values())
    hf_model = build_model(hf_config, transformers_weights(model, hf_config))
    partial = out_dir.with_name(out_dir.name + ".partial")
    # vLLM needs this level, which transformers removes when it loads the weights
    old_prefix = TOWER_PREFIX + model.get_vision_tower().old_level
    weights = {
        key.replace(TOWER_PREFIX, old_prefix, 1): value
        for key, value in hf_model.state_dict().items()
    }
    hf_model.save_pretrained(partial, state_dict=weights)
    add_rope_theta(partial)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=_end_ids(model, tokenizer, conv.sep2 or conv.sep),
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=list(ids.values()),  # their rows are not trained
    ).save_pretrained(partial)
    save_processor(partial, hf_config, model, image_processor, tokenizer, source)
    write_atomically(partial / LLAVA_CONFIG_FILE, json.dumps(note, indent=2))
    partial.rename(out_dir)
    log.info("%s: %s with template %s", out_dir, type(hf_model).__name__, template_name)


def _restorable(model: Any, tokenizer: Any, image_processor: Any) -> dict[str, Any]:
    """Returns what an export notes in `LLAVA_CONFIG_FILE`, so that an import can restore it."""
    config, tower = model.config.to_diff_dict(), model.get_vision_tower()
    config.pop("_name_or_path", None)
    if _is_cut(tower):
        # the exported tower has no more layers than are used, and needs no deviation
        config |= {"mm_vision_select_layer": -1, NUM_TOKENS_KEY: tower.num_image_tokens}
    images = json.loads(image_processor.to_json_string())
    images.pop("num_image_tokens", None)
    return {
        "config": config,
        "tie_word_embeddings": bool(model.config.tie_word_embeddings),
        "logits_factor": logits_factor(model.config),
        "image_processor": images,
        "tokenizer": {
            "padding_side": tokenizer.padding_side,
            "pad_token": tokenizer.pad_token,
        },
    }


def _is_tower_inside(model: Any, model_path: Path) -> bool:
    """Tells whether LLaVA's checkpoint holds the tower's weights."""
    return MultimodalConfig.from_config(model.config).tunes_tower or carries_tower(model_path)


def _end_ids(model: Any, tokenizer: Any, terminator: str) -> list[int]:
    """Returns the ids that end an answer: EOS, the model's own, and the template's if it is one."""
    own = model.generation_config.eos_token_id
    found = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    found.append(tokenizer.get_vocab().get(terminator))
    return sorted({index for index in found if index is not None})


def _kind_of(model: Any) -> Any:
    """Returns the configuration class of transformers' model that arranges images alike."""
    ratio = MultimodalConfig.from_config(model.config).image_aspect_ratio
    if ratio == "anyres":
        return LlavaNextConfig
    return LlavaOnevisionConfig if ratio.startswith(ANYRES_MAX) else LlavaConfig


def check_exportable(model: Any, image_processor: Any) -> None:
    """Refuses models that transformers' classes would compute otherwise.

    Raises:
        ConfigError: The model cannot be exported; the message lists all reasons.
    """
    config, tower = model.config, model.get_vision_tower()
    if tower is None or image_processor is None:
        raise ConfigError(f"model_type {config.model_type!r} has no tower: it is transformers' own")
    mm = MultimodalConfig.from_config(config)
    is_anyres, unpads = _kind_of(model) is not LlavaConfig, mm.has_image_newline
    fails = {
        "a tower at several scales (s2)": bool(getattr(config, "s2", False)),
        f"projector {mm.mm_projector_type!r}: it has mlp2x_gelu only": (
            mm.mm_projector_type != "mlp2x_gelu"
        ),
        "<im_start> and <im_end> around images (mm_use_im_start_end)": mm.mm_use_im_start_end,
        f"image_aspect_ratio {mm.image_aspect_ratio!r} with mm_patch_merge_type "
        f"{mm.mm_patch_merge_type!r}: it has anyres with spatial_unpad, or neither": (
            is_anyres != unpads
        ),
    }
    reasons = [reason for reason, is_so in fails.items() if is_so]
    reasons += _tower_reasons(tower, is_anyres) + _head_reasons(model)
    if reasons:
        raise ConfigError("transformers has no LLaVA class with:\n  " + "\n  ".join(reasons))


def _is_cut(tower: Any) -> bool:
    """Tells whether a tower lacks its last layer, as published checkpoints have it."""
    return tower.deviation is not None and tower.deviation.num_cut_layers > 0


def _tower_reasons(tower: Any, is_anyres: bool) -> list[str]:
    """Returns why transformers' LLaVA classes cannot hold a tower."""
    if len(getattr(tower, "towers", ())) > 1:
        return [f"towers side by side ({tower.vision_tower_name})"]
    kind, side = tower.config.model_type, tower.input_size
    own_side = side_px(getattr(tower.config, "image_size", side), "image_size")
    fails = {
        f"a {kind!r} tower: its AutoModel has none": type(tower.config) not in MODEL_MAPPING,
        f"the register tokens of a {kind!r} tower: it would keep them": (
            tower.num_left_out not in SELECT_STRATEGIES
        ),
        f"anyres and {tower.num_image_tokens} tokens a tile, which are no square "
        f"({tower.select_feature})": is_anyres and tower.num_image_tokens != tower.num_patches,
        f"anyres with tiles of {side} pixels and image_size {own_side}: it counts by the latter": (
            is_anyres and own_side != side
        ),
    }
    return [reason for reason, is_so in fails.items() if is_so]


def logits_factor(config: Any) -> float:
    """Returns the number by which a base multiplies its head's product, as its settings say."""
    values = {key: getattr(config, key, None) for key in HEAD_SETTINGS}
    return math.prod(
        HEAD_SETTINGS[key][1](value) for key, value in values.items() if value is not None
    )


@torch.no_grad()
def _head_reasons(model: Any) -> list[str]:
    """Returns why a head without bias, and a final norm that scales, give other logits."""
    head, factor = model.get_output_embeddings(), logits_factor(model.config)
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 4, head.weight.shape[1], generator=random).to(head.weight)
    hidden *= 1000 / head(hidden).abs().max()  # where a soft cap shows
    expected = factor * head(hidden)
    tolerance = 10 * torch.finfo(expected.dtype).eps * expected.abs().max()
    is_product = (model.logits_of(hidden) - expected).abs().max() <= tolerance
    cap = getattr(model.config, "final_logit_softcapping", None)
    advice = f" (final_logit_softcapping {cap}; null keeps the order of the logits)" if cap else ""
    inside = (f"{model.base_model_prefix}.", f"{_name_of(model, head)}.weight")
    beside = [key for key in model.state_dict() if not key.startswith(inside)]
    fails = {
        f"logits that are not the head's product times a number{advice}": not is_product,
        f"weights beside the inner model and its head: {beside[:3]}": bool(beside),
        f"logits times {factor}: the final norm cannot take it over": (
            factor != 1 and _scaled_norm(model, factor) is None
        ),
    }
    return [reason for reason, is_so in fails.items() if is_so]


def _name_of(parent: Any, module: Any) -> str:
    """Returns the name of a module in another."""
    return next(name for name, child in parent.named_modules() if child is module)


def _final_norm(inner: Any) -> str | None:
    """Returns the name of the only norm beside an inner model's layers."""
    children = inner.named_children()
    names = [name for name, child in children if "norm" in type(child).__name__.lower()]
    return names[0] if len(names) == 1 else None


@torch.no_grad()
def _scaled_norm(model: Any, factor: float) -> dict[str, Tensor] | None:
    """Returns the final norm's weights, under transformers' names, that multiply its output.

    None if there is no such norm.
    """
    if (name := _final_norm(model.get_model())) is None:
        return None
    norm = model.get_model().get_submodule(name)
    scaled = copy.deepcopy(norm)
    for parameter in scaled.parameters():
        parameter.mul_(factor)
    hidden = torch.randn(1, 4, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    found, wanted = scaled(hidden.to(model.dtype)), factor * norm(hidden.to(model.dtype))
    if not torch.allclose(found, wanted, rtol=10 * torch.finfo(model.dtype).eps):
        return None
    return {f"{LANGUAGE_PREFIX}{name}.{k}": value for k, value in scaled.state_dict().items()}


def add_image_token(tokenizer: Any) -> int:
    """Adds the token `<image>`, which processors need, and returns its id."""
    token = AddedToken(DEFAULT_IMAGE_TOKEN, special=True, normalized=False)
    tokenizer.add_tokens([token], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.padding_side = "left"  # as generation in batches needs
    return int(tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN))


def build_config(model: Any, image_token: int, video_token: int | None = None) -> Any:
    """Returns the configuration for transformers."""
    config, tower, kind = model.config, model.get_vision_tower(), _kind_of(model)
    mm = MultimodalConfig.from_config(config)
    text = _text_config(model, max(config.vocab_size, image_token + 1, (video_token or 0) + 1))
    keywords: dict[str, Any] = {
        "text_config": text,
        "vision_config": tower.vision_tower.config,
        "image_token_index": image_token,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1 if _is_cut(tower) else tower.select_layer,
        "vision_feature_select_strategy": SELECT_STRATEGIES[tower.num_left_out],
        "tie_word_embeddings": text.tie_word_embeddings,
        # for servers that read LLaVA's keys
        "image_aspect_ratio": mm.image_aspect_ratio,
        "mm_patch_merge_type": mm.mm_patch_merge_type,
    }
    if kind is not LlavaConfig:
        # LLaVA writes (width, height), transformers (height, width)
        given = read_pinpoints(mm.image_grid_pinpoints, tower.input_size)
        keywords["image_grid_pinpoints"] = [[high, wide] for wide, high in given]
    if kind is LlavaOnevisionConfig:
        keywords |= {
            "video_token_index": video_token,
            "vision_aspect_ratio": mm.image_aspect_ratio,
        }
        return kind(**keywords)
    return kind(image_seq_length=tower.num_image_tokens, **keywords)


def _text_config(model: Any, vocab_size: int) -> Any:
    """Returns the base's own configuration, of a head that does nothing but multiply."""
    base: Any = CONFIG_MAPPING[find_family(model.config.model_type, "the model")]
    left = {"model_type", "architectures", "transformers_version", "_name_or_path"}
    fields = [field.name for field in dataclasses.fields(base)]
    # a field may be written under its alias (Qwen 3 MoE's number of experts)
    names = {*fields, *(base.attribute_map.get(name, name) for name in fields)} - left
    values = {key: value for key, value in model.config.to_dict().items() if key in names}
    neutral = {key: value for key, (value, _) in HEAD_SETTINGS.items() if key in values}
    text = base(**{**values, **neutral, "vocab_size": vocab_size})
    # transformers ties the head to `embed_tokens` only
    table = model.get_input_embeddings()
    is_tied = model.get_output_embeddings().weight is table.weight
    text.tie_word_embeddings = is_tied and _name_of(model.get_model(), table) == "embed_tokens"
    text.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text.model_type]]
    return text


def build_model(config: Any, weights: dict[str, Tensor]) -> Any:
    """Returns transformers' model with these weights.

    Raises:
        ConfigError: They do not fit it.
    """
    kind: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    with torch.device("meta"):
        hf_model = kind(config)
    try:
        result = hf_model.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:  # of another shape
        raise ConfigError(f"transformers has no LLaVA class with these weights: {error}") from error
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    missing = sorted({*result.missing_keys} - tied)
    if missing or result.unexpected_keys:
        raise ConfigError(
            f"transformers' {kind.__name__} with {config.text_config.model_type} and "
            f"{config.vision_config.model_type} lacks {result.unexpected_keys[:3]} and needs "
            f"{missing[:3]}"
        )
    hf_model.tie_weights()
    return hf_model


def transformers_weights(model: Any, config: Any) -> dict[str, Tensor]:
    """Returns the weights under transformers' names, with rows for the added tokens."""
    inner, tower, head = model.get_model(), model.get_vision_tower(), model.get_output_embeddings()
    weights = {TOWER_PREFIX + k: value for k, value in tower.vision_tower.state_dict().items()}
    for key, value in inner.state_dict().items():
        if not key.startswith("vision_tower."):
            weights[_renamed(key, NAMES)] = value
    if (factor := logits_factor(model.config)) != 1:
        weights |= _scaled_norm(model, factor) or {}
    if not config.tie_word_embeddings:
        weights["lm_head.weight"] = head.weight
    embed = f"{LANGUAGE_PREFIX}{_name_of(inner, model.get_input_embeddings())}.weight"
    for key in {embed, "lm_head.weight"} & weights.keys():
        weights[key] = _with_rows(weights[key], config.text_config.vocab_size)
    return weights


def _renamed(key: str, names: Sequence[tuple[str, str]]) -> str:
    """Converts the name of a weight."""
    old, new = next(pair for pair in names if key.startswith(pair[0]))
    return new + key.removeprefix(old)


def _with_rows(table: Tensor, num_rows: int) -> Tensor:
    """Appends mean rows to a table [V, D], as LLaVA initializes new tokens."""
    num_new = num_rows - len(table)
    mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(num_new, -1)]) if num_new > 0 else table


def save_processor(
    folder: Path, config: Any, model: Any, image_processor: Any, tokenizer: Any, template: str
) -> None:
    """Writes a processor that prepares images and text as LLaVA does; `template` is Jinja."""
    tower, has_crop = model.get_vision_tower(), getattr(image_processor, "crop_size", None)
    settings = {
        key: getattr(image_processor, key)
        for key in IMAGE_SETTINGS
        if has_crop or key != "crop_size"
    }
    keywords: dict[str, Any] = {
        "tokenizer": tokenizer,
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": tower.num_before_patches,
        "chat_template": template,
    }
    if isinstance(config, LlavaConfig):
        kind: Any = type(image_processor)
        if MultimodalConfig.from_config(model.config).image_aspect_ratio == "pad":
            kind, settings["do_pad"] = LlavaImageProcessorPil, True
        settings["do_center_crop"] = bool(has_crop)
        LlavaProcessor(image_processor=kind(**settings), **keywords).save_pretrained(folder)
        return
    # LLaVA cuts tiles of this side, and resizes and pads images by Pillow's default filter
    side = {"height": tower.input_size, "width": tower.input_size}
    settings |= {"size": side, "crop_size": side, "do_center_crop": False}
    settings["resample"] = PILImageResampling.BICUBIC
    is_next = isinstance(config, LlavaNextConfig)
    kind = LlavaNextImageProcessorPil if is_next else LlavaOnevisionImageProcessorPil
    tiles = kind(image_grid_pinpoints=config.image_grid_pinpoints, **settings)
    LlavaNextProcessor(image_processor=tiles, **keywords).save_pretrained(folder)
    if not is_next:
        _make_onevision(folder, config, tower.num_image_tokens + tower.num_left_out)


def _make_onevision(folder: Path, config: Any, num_positions: int) -> None:
    """Turns a processor's files into those of `LlavaOnevisionProcessor`.

    That class cannot be made without torchvision, because of its part for videos.
    """
    name = "LlavaOnevisionProcessor"
    settings = read_config(folder, "processor_config.json") or {}
    images = settings["image_processor"]
    for key in ("patch_size", "num_additional_image_tokens"):
        settings.pop(key)
    settings |= {
        "processor_class": name,
        "num_image_tokens": num_positions,
        "vision_aspect_ratio": config.vision_aspect_ratio,
        "video_token": VIDEO_TOKEN,
        "video_processor": {
            **{key: images[key] for key in ("size", "image_mean", "image_std", "resample")},
            "video_processor_type": "LlavaOnevisionVideoProcessor",
        },
    }
    write_atomically(folder / "processor_config.json", _as_json(settings))
    own = read_config(folder, "tokenizer_config.json") or {}
    write_atomically(folder / "tokenizer_config.json", _as_json({**own, "processor_class": name}))


def import_hf(hf_path: Path, out_dir: Path) -> None:
    """Writes a LLaVA checkpoint.

    Args:
        hf_path: A folder of transformers' LLaVA classes.
        out_dir: A new folder.

    Raises:
        ConfigError: `out_dir` exists, or LLaVA has no such model.
        CheckpointError: Files are missing or inconsistent.
    """
    refuse_existing(out_dir)
    if not hf_path.is_dir():
        raise CheckpointError(f"{hf_path}: no such folder")
    check_complete(hf_path)
    hf_config, note = _read_hf_config(hf_path), read_config(hf_path, LLAVA_CONFIG_FILE)
    if not weight_paths(hf_path):
        raise CheckpointError(f"{hf_path} holds no weights; expected {' or '.join(WEIGHT_FILES)}")
    hf_model = _load(hf_path)
    partial = out_dir.with_name(out_dir.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    folder, is_inside = partial / TOWER_FOLDER, (note or {}).get("carries_tower", False)
    _save_tower_folder(
        hf_model.model.vision_tower, folder, _image_settings(hf_path, note), is_inside
    )
    config = llava_config(hf_config, hf_path, folder) if note is None else note["config"]
    config["mm_vision_tower"] = TOWER_FOLDER

    weights = llava_weights(hf_model, config["vocab_size"], note or {})
    save_torch_state_dict(weights, partial)
    write_atomically(partial / "config.json", json.dumps(config, indent=2, sort_keys=True))
    add_rope_theta(partial)
    hf_model.generation_config.suppress_tokens = None
    hf_model.generation_config.save_pretrained(partial)
    read_tokenizer(hf_path, note).save_pretrained(partial)
    if note is not None:
        drop_tokens(partial, {*note.get("added_tokens", [DEFAULT_IMAGE_TOKEN])})
    partial.rename(out_dir)
    log.info("%s: %s", out_dir, config["architectures"][0])


def _read_hf_config(hf_path: Path) -> Any:
    described = read_config(hf_path) or {}
    refuse_foreign(described, str(hf_path))
    kinds = [kind.model_type for kind in (LlavaConfig, LlavaNextConfig, LlavaOnevisionConfig)]
    if described.get("model_type") not in kinds:
        raise ConfigError(
            f"{hf_path}: found model_type {described.get('model_type')!r}; expected one of "
            f"transformers' own: {', '.join(kinds)}"
        )
    config: Any = AutoConfig.from_pretrained(hf_path)
    find_family(config.text_config.model_type, f"{hf_path}: text_config")
    if config.projector_hidden_act != "gelu" or not config.multimodal_projector_bias:
        raise ConfigError(f"{hf_path}: its projector is not mlp2x_gelu with biases")
    if not isinstance(config.vision_feature_layer, int):
        raise ConfigError(
            f"{hf_path}: vision_feature_layer is {config.vision_feature_layer}; LLaVA selects one"
        )
    return config


def _load(hf_path: Path) -> Any:
    # the level `vision_model.` may be missing, or be there twice if a script that adds it for vLLM
    # ran on a folder that had it
    kind: Any = AutoModelForImageTextToText
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


def _save_tower_folder(tower: Any, folder: Path, images: dict[str, Any], is_inside: bool) -> None:
    """Writes a tower's configuration and image processor, and weights that lie nowhere else."""
    if is_inside:
        tower.config.save_pretrained(folder)
    else:
        save_tower(tower, folder, _old_level(tower))
    write_atomically(folder / "preprocessor_config.json", _as_json(images))


def _old_level(tower: Any) -> str:
    family = family_of(tower.config.model_type)
    return "" if family is None else family.old_level


def _image_settings(hf_path: Path, note: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the settings of the tower's own processor: LLaVA itself pads and tiles images."""
    if found := (note or {}).get("image_processor"):
        return dict(found)
    own = _processor_settings(hf_path)
    settings = {key: own[key] for key in IMAGE_SETTINGS if own.get(key) is not None}
    # of many, these two crop, or do not
    crops = "shortest_edge" in settings.get("size", {}) or own.get("do_center_crop")
    kind: Any = CLIPImageProcessorPil if crops else SiglipImageProcessorPil
    return dict(json.loads(kind(**settings).to_json_string()))


def llava_config(hf_config: Any, hf_path: Path, tower_dir: Path) -> dict[str, Any]:
    """Returns LLaVA's `config.json` for a checkpoint that was not exported here.

    Args:
        hf_config: Its configuration.
        hf_path: Its folder.
        tower_dir: Folder of its tower.

    Raises:
        ConfigError: LLaVA cannot select the same features.
    """
    text = hf_config.get_text_config()
    values = text.to_dict()
    # transformers' LLaVA classes ignore these
    values |= {key: value for key, (value, _) in HEAD_SETTINGS.items() if key in values}
    family = find_family(text.model_type, str(hf_path))
    tower = _tower_of(hf_config, hf_path, tower_dir)
    is_flat = isinstance(hf_config, LlavaConfig)
    config: dict[str, Any] = {
        **values,
        "model_type": model_type_of(family),
        "architectures": [class_names(family)[2]],
        "tie_word_embeddings": bool(hf_config.tie_word_embeddings),
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": hf_config.vision_config.hidden_size,
        "mm_vision_select_layer": hf_config.vision_feature_layer,
        "mm_vision_select_feature": tower.select_feature,
        "mm_patch_merge_type": "flat" if is_flat else "spatial_unpad",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": text.max_position_embeddings,
    }
    if notes_tokens(tower):
        config[NUM_TOKENS_KEY] = tower.num_image_tokens
    if is_flat:
        does_pad = _processor_settings(hf_path).get("do_pad")
        config["image_aspect_ratio"] = "pad" if does_pad else "square"
    else:
        config["image_aspect_ratio"] = getattr(hf_config, "vision_aspect_ratio", "anyres")
        config["image_grid_pinpoints"] = [[w, h] for h, w in hf_config.image_grid_pinpoints]
    return config


def _tower_of(hf_config: Any, hf_path: Path, tower_dir: Path) -> VisionTower:
    """Finds the select feature that leaves out what transformers' strategy leaves out.

    Raises:
        ConfigError: There is none.
    """
    strategy = hf_config.vision_feature_select_strategy
    for feature in ("patch", "cls_patch"):
        selection = SimpleNamespace(
            mm_vision_select_layer=hf_config.vision_feature_layer, mm_vision_select_feature=feature
        )
        tower = VisionTower(str(tower_dir), selection, delay_load=True)
        if SELECT_STRATEGIES.get(tower.num_left_out) == strategy:
            return tower
    raise ConfigError(
        f"{hf_path}: vision_feature_select_strategy {strategy!r} with a tower of "
        f"{tower.num_before_patches} positions before the patches: LLaVA leaves out all of them, "
        "or keeps the class token alone"
    )


def llava_weights(hf_model: Any, vocab_size: int, note: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the weights under LLaVA's names, as files have them, without an export's rows."""
    text = hf_model.config.text_config
    family = find_family(text.model_type, "text_config")
    blank = build_blank(text.to_dict(), "text_config")
    inner = get_family(family).model_class.base_model_prefix
    head = _name_of(blank, blank.get_output_embeddings())
    tower = f"{inner}.vision_tower.vision_tower.{_old_level(hf_model.model.vision_tower)}"
    names = [(new, f"{inner}.{old}") for old, new in NAMES]
    names += [("lm_head.", f"{head}."), (TOWER_PREFIX, tower)]
    is_tied = note.get("tie_word_embeddings", hf_model.config.tie_word_embeddings)
    weights = {_renamed(key, names): value for key, value in hf_model.state_dict().items()}
    if is_tied:
        weights.pop(f"{head}.weight", None)
    if not note.get("carries_tower"):
        weights = {key: value for key, value in weights.items() if not key.startswith(tower)}
    norm = f"{inner}.{_final_norm(blank.base_model)}."
    for key in weights:
        if key.startswith(norm) and note.get("logits_factor", 1) != 1:
            weights[key] = weights[key] / note["logits_factor"]
    embed = f"{inner}.{_name_of(blank.base_model, blank.get_input_embeddings())}.weight"
    for key in {embed, f"{head}.weight"} & weights.keys():
        weights[key] = weights[key][:vocab_size]
    weights = revert_weight_conversion(blank, weights)
    return {key: _own_memory(value) for key, value in weights.items()}


def _own_memory(value: Tensor) -> Tensor:
    """Copies a view, such as an expert's part of a tensor, which cannot be saved."""
    is_view = value.untyped_storage().nbytes() > value.nbytes
    return value.clone() if is_view else value.contiguous()


def read_tokenizer(hf_path: Path, note: dict[str, Any] | None) -> Any:
    """Loads the tokenizer with LLaVA's settings: it adds BOS if the chat template writes BOS.

    Args:
        hf_path: The folder.
        note: Content of `llava_config.json`; None for a folder that was exported elsewhere.
    """
    # older exports have no such key and kept the tokenizer's BOS
    settings = dict((note or {}).get("tokenizer", {}))
    has_pad = settings.pop("pad_token", "") is not None
    tokenizer = load_tokenizer(hf_path, **settings)
    if not has_pad:
        tokenizer.pad_token = None
    is_llama = isinstance(tokenizer, LlamaTokenizer)
    if note is None and is_llama and tokenizer.chat_template:
        asked = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
        prompt = tokenizer.apply_chat_template(asked, tokenize=False)
        if prompt.startswith(tokenizer.bos_token) and not adds_bos(tokenizer):
            tokenizer.add_bos_token = True
    return tokenizer


def _processor_settings(hf_path: Path) -> dict[str, Any]:
    """Reads the settings of the image processor, as either version of transformers stores them."""
    whole = read_config(hf_path, "processor_config.json") or {}
    settings = whole.get("image_processor") or read_config(hf_path, "preprocessor_config.json")
    if settings is None:
        raise CheckpointError(
            f"{hf_path}: neither preprocessor_config.json nor an image processor in "
            "processor_config.json"
        )
    return dict(settings)


def drop_tokens(folder: Path, tokens: set[str]) -> None:
    """Removes the tokens that an export added; LLaVA splits prompts at `<image>` beforehand."""
    content = read_config(folder, "tokenizer.json")
    if content is not None:
        content["added_tokens"] = [
            token for token in content["added_tokens"] if token["content"] not in tokens
        ]
        write_atomically(folder / "tokenizer.json", _as_json(content))
    added = read_config(folder, "added_tokens.json") or {}
    (folder / "added_tokens.json").unlink(missing_ok=True)
    if left := {token: index for token, index in added.items() if token not in tokens}:
        write_atomically(folder / "added_tokens.json", _as_json(left))
    settings = read_config(folder, "tokenizer_config.json") or {}
    for key in ("processor_class", "chat_template", "image_token", "extra_special_tokens"):
        settings.pop(key, None)
    if decoder := settings.get("added_tokens_decoder"):
        settings["added_tokens_decoder"] = {
            key: token for key, token in decoder.items() if token["content"] not in tokens
        }
    write_atomically(folder / "tokenizer_config.json", _as_json(settings))
    (folder / "chat_template.jinja").unlink(missing_ok=True)


def _as_json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=2)
