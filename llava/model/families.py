"""Names the families of language models: any decoder that transformers registers.

In: a `model_type`, of transformers (`qwen3`), of LLaVA (`llava_qwen3`) or of one of its forks
(`llava_qwen`, `palo`). Out: the family, its classes' names, and its language model without weights.
Tables hold only what differs: the names that LLaVA and its forks gave, and what the check of every
family found (`families.json`, which `tools/families.py` writes together with `docs/models.md`).
The classes with images are made in `language_model/causal_lm.py`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
)
from transformers.pytorch_utils import Conv1D

from llava.errors import ConfigError

log = logging.getLogger(__name__)

CHECKED_FILE = Path(__file__).with_name("families.json")
TABLE = "docs/models.md"
PREFIX = "llava_"
MULTIMODAL_PARTS = ("mm_projector", "vision_tower", "vision_resampler")
# Patterns from the start of a module's name, for transformers. Also heads, whose weights the loss
# reads, and which may share them with the embeddings.
NOT_QUANTIZED = (*(f".*{part}" for part in MULTIMODAL_PARTS), "lm_head", "embed_out")

# names that LLaVA's forks, and transformers itself, give to a family that has another one
ALIASES = {
    "llava_qwen": "qwen2",
    "llava_qwen_moe": "qwen2_moe",
    "palo": "llama",
    "gpt-sw3": "gpt2",
}
# the forks' class names, where they do not follow from transformers' own
_STEMS = {"qwen2": "Qwen", "qwen2_moe": "QwenMoe"}
# what a config.json has to say, if the family has it
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


@cache
def checked_families() -> dict[str, dict[str, str]]:
    """Returns what the check of every family found.

    Returns:
        By name: nothing, or a reason: `refused`, `packing` (cannot be packed) or `mask` (its
            borders of samples have to be in a mask).
    """
    content: dict[str, dict[str, str]] = json.loads(CHECKED_FILE.read_text(encoding="utf-8"))
    return content


def family_names() -> list[str]:
    """Returns the names of the families that work, as transformers spells them."""
    return [name for name, found in checked_families().items() if "refused" not in found]


def find_family(model_type: str, where: str) -> str:
    """Returns the family that a `model_type` means.

    Args:
        model_type: As transformers, LLaVA or a fork of it spells it.
        where: Its place, for messages.

    Raises:
        ConfigError: The family is unknown, or known not to work; those that do are listed.
    """
    family = ALIASES.get(model_type) or model_type.removeprefix(PREFIX)
    found = checked_families().get(family)
    if found is not None and "refused" not in found:
        return family
    reason = "is not known" if found is None else f"does not work: {found['refused']}"
    raise ConfigError(
        f"{where}: model_type {model_type!r} is not supported with images; the language model "
        f"{family!r} {reason}. Choices ({TABLE} has the table): {', '.join(family_names())}"
    )


def has_text_part(config: Mapping[str, Any]) -> bool:
    """Tells whether a configuration is that of a composite model of transformers (Gemma 3, ...).

    Those have a `text_config` beside the configuration of their own vision tower. Transformers' own
    LLaVA models do not count: `lrm import hf` converts them as a whole.
    """
    model_type = str(config.get("model_type"))
    return (
        model_type in CONFIG_MAPPING_NAMES
        and not model_type.startswith("llava")
        and "mm_vision_tower" not in config
        and "text_config" in CONFIG_MAPPING[model_type].sub_configs
    )


# what composite models say about their language model outside `text_config`
_OUTSIDE_TEXT = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")


def text_part(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the configuration of the language model: of a composite model its text part.

    Args:
        config: Content of `config.json`.
        where: Its place, for messages.

    Raises:
        ConfigError: Transformers cannot read the composite configuration.
    """
    if not has_text_part(config):
        return dict(config)
    try:
        whole = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    except (StrictDataclassError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise ConfigError(f"{where}: {config['model_type']} cannot be read: {error}") from error
    log.info("%s: of %s, the language model is taken", where, config["model_type"])
    # what the file says: the default of composite classes (tied) may not be that of the text part
    outside = {key: config[key] for key in _OUTSIDE_TEXT if config.get(key) is not None}
    return {**whole.text_config.to_dict(), **outside}


def text_part_names(inner: str) -> dict[str, str]:
    """Returns how weights of a composite model's text part are renamed to those of a base model.

    Args:
        inner: Name of the inner model in the base model, such as `model`.

    Returns:
        Replacements by pattern, for the spellings of transformers 4 and 5.
    """
    return {
        rf"^language_model\.{inner}\.": f"{inner}.",
        r"^model\.language_model\.": f"{inner}.",
        r"^language_model\.lm_head\.": "lm_head.",
    }


def family_of_class(class_name: str | None) -> str | None:
    """Returns the family whose classes have this name, such as one in `architectures`."""
    return _families_by_class().get(class_name or "")


def model_type_of(name: str) -> str:
    """Returns the `model_type` that configurations of a family get with images."""
    forked = (alias for alias, family in ALIASES.items() if family == name)
    return next((alias for alias in forked if alias.startswith(PREFIX)), PREFIX + name)


def class_names(name: str) -> tuple[str, str, str]:
    """Returns the names of configuration, inner model and causal language model."""
    stem = _STEMS.get(name) or CONFIG_MAPPING_NAMES[name].removesuffix("Config")
    config = "LlavaConfig" if name == "llama" else f"Llava{stem}Config"
    return config, f"Llava{stem}Model", f"Llava{stem}ForCausalLM"


@cache
def _families_by_class() -> dict[str, str]:
    names = (name for name in CONFIG_MAPPING_NAMES if name not in ALIASES)
    return {class_name: name for name in names for class_name in class_names(name)}


def build_blank(config: Mapping[str, Any], where: str) -> Any:
    """Builds the language model of a configuration without images and without weights.

    Args:
        config: Content of `config.json`, of a language model or of one with images; a missing
            `model_type` means Llama. Of a composite model its text part is taken.
        where: Its place, for messages.

    Returns:
        Transformers' causal language model on the meta device, which takes no memory.

    Raises:
        ConfigError: The family does not work, or its configuration is not complete.
    """
    config = text_part(config, where)
    base = CONFIG_MAPPING[find_family(str(config.get("model_type", "llama")), where)]
    kept = {key: value for key, value in config.items() if key != "model_type"}
    fields = {field.name for field in dataclasses.fields(base)}
    for size in _SIZES:
        name = base.attribute_map.get(size, size)
        if name in fields and not {size, name} & set(kept):  # transformers would take a default
            raise ConfigError(
                f"{where}: {name!r} is missing; expected a config.json of {base.__name__}"
            )
    try:
        with torch.device("meta"):
            return MODEL_FOR_CAUSAL_LM_MAPPING[base](base.from_dict(kept))
    except (StrictDataclassError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: no {base.__name__} can be made of it: {error}") from error


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the linear layers of the language model by name, without its head and routers.

    A router of experts may be a linear layer that returns more than a product.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not head
        and "router" not in type(module).__name__.lower()
        and not any(part in name for part in MULTIMODAL_PARTS)
    }
