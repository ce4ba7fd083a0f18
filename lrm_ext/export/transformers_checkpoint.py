"""Converts LLaVA checkpoints to transformers and back: `lrm export hf`, `lrm import hf`.

Export reads any folder that `load_pretrained_model` reads and writes a folder of
`LlavaForConditionalGeneration`, or of `LlavaNextForConditionalGeneration` for `anyres`, with
processor and chat template. Import reads such a folder, exported here or elsewhere, and writes one
that `load_pretrained_model` reads, with the tower in `vision_tower/`. An export keeps LLaVA's own
configuration in `llava_config.json`, so that import restores weights and configuration bit for bit.
"""

from __future__ import annotations

import json
import logging
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
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import select_conversation
from llava.errors import CheckpointError, ConfigError
from llava.files import refuse_existing, write_atomically
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import (
    MultimodalConfig,
    add_rope_theta,
    check_complete,
    read_config,
    save_tower,
)
from llava.model.tiles import read_pinpoints
from llava.model.tokenizer import load_tokenizer
from lrm_ext.export.chat_template import adds_bos, chat_template
from lrm_ext.languages.templates import register_templates

log = logging.getLogger(__name__)

LLAVA_CONFIG_FILE = "llava_config.json"
TOWER_FOLDER = "vision_tower"
CLIP_TOWER = "clip_vision_model"
TEXT_CONFIGS = {"llava_llama": LlamaConfig, "llava_mistral": MistralConfig}
# LLaVA's architecture for each language model of transformers
ARCHITECTURES = {"llama": "LlavaLlamaForCausalLM", "mistral": "LlavaMistralForCausalLM"}
# how many of a hidden state's positions transformers' strategies leave out at the beginning
SELECT_STRATEGIES = {0: "full", 1: "default"}
IMAGE_SETTINGS = ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor")
TOWER_PREFIX = "model.vision_tower."
# prefixes of weights in LLaVA and in transformers; the first match applies
NAMES = (
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.image_newline", "model.image_newline"),
    ("lm_head.", "lm_head."),
    ("model.", "model.language_model."),
)
# weights with one row per token
TABLES = {"lm_head.weight", "model.embed_tokens.weight"}


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
    config = SimpleNamespace(**written)
    template_name, conv = select_conversation(config, name, conv_mode)
    own_config = model.config.to_diff_dict()
    own_config.pop("_name_or_path", None)
    settings = {"padding_side": tokenizer.padding_side, "pad_token": tokenizer.pad_token}
    note = {"config": own_config, "conversation": template_name, "tokenizer": settings}
    image_token = add_image_token(tokenizer)
    source = chat_template(conv, tokenizer)
    if adds_bos(tokenizer):
        # the template writes BOS, and processors would add a second one
        tokenizer.add_bos_token = False
        settings["add_bos_token"] = True

    hf_config = build_config(model, image_token)
    hf_model = build_model(hf_config, model, dtype)
    partial = out_dir.with_name(out_dir.name + ".partial")
    # vLLM needs this level, which transformers removes when it loads the weights
    weights = hf_model.state_dict()
    old_prefix = TOWER_PREFIX + model.get_vision_tower().old_level
    level = {key: key.replace(TOWER_PREFIX, old_prefix, 1) for key in weights}
    hf_model.save_pretrained(partial, state_dict={level[k]: v for k, v in weights.items()})
    add_rope_theta(partial)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[image_token],  # its row is not trained
    ).save_pretrained(partial)
    ratio = MultimodalConfig.from_config(model.config).image_aspect_ratio
    num_before = model.get_vision_tower().num_before_patches
    processor = build_processor(hf_config, ratio, image_processor, tokenizer, source, num_before)
    processor.save_pretrained(partial)
    write_atomically(partial / LLAVA_CONFIG_FILE, json.dumps(note, indent=2))
    partial.rename(out_dir)
    log.info("%s: %s with template %s", out_dir, type(hf_model).__name__, template_name)


def check_exportable(model: Any, image_processor: Any) -> None:
    """Refuses models for which transformers has no class.

    Raises:
        ConfigError: The model cannot be exported; the message lists all reasons.
    """
    config = model.config
    mm = MultimodalConfig.from_config(config)
    sizes = f"{mm.image_aspect_ratio!r} with mm_patch_merge_type {mm.mm_patch_merge_type!r}"
    is_anyres, unpads = mm.image_aspect_ratio == "anyres", mm.mm_patch_merge_type == "spatial_unpad"
    is_known = config.model_type in TEXT_CONFIGS and image_processor is not None
    holds = {
        f"model_type {config.model_type!r}: only {', '.join(TEXT_CONFIGS)} have one": is_known,
        "a tower at several scales (s2)": not getattr(config, "s2", False),
        f"projector {mm.mm_projector_type!r}: it has mlp2x_gelu only": (
            mm.mm_projector_type == "mlp2x_gelu"
        ),
        "<im_start> and <im_end> around images (mm_use_im_start_end)": not mm.mm_use_im_start_end,
        f"image_aspect_ratio {sizes}: it has anyres with spatial_unpad, or neither": (
            is_anyres == unpads
        ),
    }
    reasons = [reason for reason, is_held in holds.items() if not is_held]
    if (tower := model.get_vision_tower()) is not None:
        reasons += _tower_reasons(tower, is_anyres)
    if reasons:
        raise ConfigError("transformers has no LLaVA class with:\n  " + "\n  ".join(reasons))


def _tower_reasons(tower: Any, is_anyres: bool) -> list[str]:
    """Returns why transformers' LLaVA classes cannot hold a tower."""
    if len(getattr(tower, "towers", ())) > 1:
        return [f"towers side by side ({tower.vision_tower_name})"]
    kind = tower.config.model_type
    has_registers = tower.num_left_out not in SELECT_STRATEGIES
    is_cut = tower.deviation is not None and tower.deviation.num_cut_layers > 0
    fails = {
        f"a {kind!r} tower: its AutoModel has none": type(tower.config) not in MODEL_MAPPING,
        f"the register tokens of a {kind!r} tower: it would keep them": has_registers,
        "a tower without its last layer": is_cut,
        f"anyres with a {kind!r} tower: its tiles are CLIP's": is_anyres and kind != CLIP_TOWER,
    }
    return [reason for reason, is_so in fails.items() if is_so]


def add_image_token(tokenizer: Any) -> int:
    """Adds the token `<image>`, which processors need, and returns its id."""
    token = AddedToken(DEFAULT_IMAGE_TOKEN, special=True, normalized=False)
    tokenizer.add_tokens([token], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.padding_side = "left"  # as generation in batches needs
    return int(tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN))


def build_config(model: Any, image_token: int) -> LlavaConfig | LlavaNextConfig:
    """Returns the configuration for transformers."""
    config, tower = model.config, model.get_vision_tower()
    mm = MultimodalConfig.from_config(config)
    kind = TEXT_CONFIGS[config.model_type]
    own = {"model_type", "architectures", "transformers_version", "_name_or_path"}
    known = set(kind().to_dict()) - own
    text = kind(**{key: value for key, value in config.to_dict().items() if key in known})
    text.vocab_size = max(config.vocab_size, image_token + 1)
    text.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text.model_type]]
    keywords: dict[str, Any] = {
        "text_config": text,
        "vision_config": tower.vision_tower.config,
        "image_token_index": image_token,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": tower.select_layer,
        "vision_feature_select_strategy": SELECT_STRATEGIES[tower.num_left_out],
        "image_seq_length": tower.num_image_tokens,
        "tie_word_embeddings": bool(config.tie_word_embeddings),
        # for servers that read LLaVA's keys
        "image_aspect_ratio": mm.image_aspect_ratio,
        "mm_patch_merge_type": mm.mm_patch_merge_type,
    }
    if mm.image_aspect_ratio == "anyres":
        # LLaVA writes (width, height), transformers (height, width)
        given = read_pinpoints(mm.image_grid_pinpoints, tower.input_size)
        pinpoints = [[high, wide] for wide, high in given]
        return LlavaNextConfig(image_grid_pinpoints=pinpoints, **keywords)
    return LlavaConfig(**keywords)


def build_model(config: Any, model: Any, dtype: torch.dtype) -> Any:
    """Returns transformers' model with the same weights."""
    kind: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    with torch.device("meta"):
        hf_model = kind(config)
    hf_model.load_state_dict(
        {key: value.to(dtype) for key, value in transformers_weights(model, config).items()},
        strict=not config.tie_word_embeddings,  # a tied head has no weights
        assign=True,
    )
    hf_model.tie_weights()
    left = [key for key, value in hf_model.state_dict().items() if value.is_meta]
    assert not left, left
    return hf_model


def transformers_weights(model: Any, config: Any) -> dict[str, Tensor]:
    """Returns the weights under transformers' names, with an embedding for `<image>`."""
    tower = model.get_vision_tower().vision_tower.state_dict()
    weights = {TOWER_PREFIX + key: value for key, value in tower.items()}
    for key, value in model.state_dict().items():
        if ".vision_tower." not in key:
            if key in TABLES:
                value = _with_rows(value, config.text_config.vocab_size)
            weights[_renamed(key, NAMES)] = value
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
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


def build_processor(
    config: Any,
    aspect_ratio: str,
    image_processor: Any,
    tokenizer: Any,
    template: str,
    num_before_patches: int,
) -> Any:
    """Returns a processor that prepares images and text as LLaVA does; `template` is Jinja."""
    has_crop = getattr(image_processor, "crop_size", None) is not None
    settings = {
        key: getattr(image_processor, key)
        for key in IMAGE_SETTINGS
        if has_crop or key != "crop_size"
    }
    keywords: dict[str, Any] = {
        "tokenizer": tokenizer,
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": num_before_patches,
        "chat_template": template,
    }
    if isinstance(config, LlavaNextConfig):
        pinpoints = config.image_grid_pinpoints
        tiles = LlavaNextImageProcessorPil(image_grid_pinpoints=pinpoints, **settings)
        return LlavaNextProcessor(image_processor=tiles, **keywords)
    kind: Any = type(image_processor)
    if aspect_ratio == "pad":
        kind, settings["do_pad"] = LlavaImageProcessorPil, True
    settings["do_center_crop"] = has_crop
    return LlavaProcessor(image_processor=kind(**settings), **keywords)


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
    hf_config = _read_hf_config(hf_path)
    hf_model = _load(hf_path)
    note = read_config(hf_path, LLAVA_CONFIG_FILE)
    config = llava_config(hf_config, hf_path) if note is None else note["config"]
    config["mm_vision_tower"] = TOWER_FOLDER

    partial = out_dir.with_name(out_dir.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(llava_weights(hf_model, hf_config, config["vocab_size"]), partial)
    write_atomically(partial / "config.json", json.dumps(config, indent=2, sort_keys=True))
    add_rope_theta(partial)
    hf_model.generation_config.suppress_tokens = None
    hf_model.generation_config.save_pretrained(partial)
    save_tower(hf_model.model.vision_tower, partial / TOWER_FOLDER)
    own = _processor_settings(hf_path)
    settings = {key: own[key] for key in IMAGE_SETTINGS if key in own}
    # CLIP's own processor: LLaVA itself pads and tiles images
    CLIPImageProcessorPil(**settings).save_pretrained(partial / TOWER_FOLDER)
    read_tokenizer(hf_path, note).save_pretrained(partial)
    if note is not None:
        drop_image_token(partial)
    partial.rename(out_dir)
    log.info("%s: %s", out_dir, config["architectures"][0])


def _read_hf_config(hf_path: Path) -> Any:
    config = AutoConfig.from_pretrained(hf_path)
    parts = (config, config.get_text_config(), getattr(config, "vision_config", None))
    found = [getattr(part, "model_type", None) for part in parts]
    expected = (("llava", "llava_next"), ARCHITECTURES, (CLIP_TOWER,))
    if not all(kind in kinds for kind, kinds in zip(found, expected, strict=True)):
        raise ConfigError(
            f"{hf_path}: found model types {found}; LLaVA has llava or llava_next with llama or "
            "mistral and clip_vision_model"
        )
    if config.projector_hidden_act != "gelu" or not config.multimodal_projector_bias:
        raise ConfigError(f"{hf_path}: its projector is not mlp2x_gelu with biases")
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


def llava_config(hf_config: Any, hf_path: Path) -> dict[str, Any]:
    """Returns LLaVA's `config.json` for a checkpoint that was not exported here."""
    text = hf_config.get_text_config()
    # of CLIP, whose one class token `default` leaves out
    features = {"default": "patch", "full": "cls_patch"}
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
        config["image_grid_pinpoints"] = [[w, h] for h, w in hf_config.image_grid_pinpoints]
    else:
        does_pad = _processor_settings(hf_path).get("do_pad")
        config["image_aspect_ratio"] = "pad" if does_pad else "square"
    return config


def llava_weights(hf_model: Any, hf_config: Any, vocab_size: int) -> dict[str, Tensor]:
    """Returns the weights under LLaVA's names, without the tower and the rows of an export."""
    names = [(new, old) for old, new in NAMES]
    weights = {
        _renamed(key, names): value.contiguous()
        for key, value in hf_model.state_dict().items()
        if not key.startswith(TOWER_PREFIX)
    }
    if hf_config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    for key in TABLES & weights.keys():
        weights[key] = weights[key][:vocab_size].clone()  # a view cannot be saved
    return weights


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


def drop_image_token(folder: Path) -> None:
    """Removes `<image>` from a tokenizer, because LLaVA splits prompts there beforehand."""
    content = read_config(folder, "tokenizer.json")
    if content is not None:
        content["added_tokens"] = [
            token for token in content["added_tokens"] if token["content"] != DEFAULT_IMAGE_TOKEN
        ]
        write_atomically(folder / "tokenizer.json", _as_json(content))
    added = read_config(folder, "added_tokens.json") or {}
    (folder / "added_tokens.json").unlink(missing_ok=True)
    if added.keys() - {DEFAULT_IMAGE_TOKEN}:
        added.pop(DEFAULT_IMAGE_TOKEN, None)
        write_atomically(folder / "added_tokens.json", _as_json(added))
    settings = read_config(folder, "tokenizer_config.json") or {}
    for key in ("processor_class", "chat_template", "image_token", "extra_special_tokens"):
        settings.pop(key, None)
    if decoder := settings.get("added_tokens_decoder"):
        settings["added_tokens_decoder"] = {
            key: token for key, token in decoder.items() if token["content"] != DEFAULT_IMAGE_TOKEN
        }
    write_atomically(folder / "tokenizer_config.json", _as_json(settings))
    (folder / "chat_template.jinja").unlink(missing_ok=True)


def _as_json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=2)
