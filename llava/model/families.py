"""Makes a multimodal language model of any decoder that transformers registers.

In: a `model_type`, of transformers (`qwen3`), of LLaVA (`llava_qwen3`) or of one of its forks
(`llava_qwen`, `palo`). Out: configuration, inner model and causal language model with images, made
by one function for all. Tables hold only what differs: the names that LLaVA and its forks gave, and
what the check of every family found (`families.json`, which `tools/families.py` writes together
with `docs/models.md`). Not here: what the classes do (`language_model/causal_lm.py`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING,
)
from transformers.pytorch_utils import Conv1D

from llava.errors import ConfigError
from llava.model.language_model.causal_lm import LlavaCausalLM, LlavaConfigMixin
from llava.model.llava_arch import LlavaMetaModel

CHECKED_FILE = Path(__file__).with_name("families.json")
TABLE = "docs/models.md"
PREFIX = "llava_"
MULTIMODAL_PARTS = ("mm_projector", "vision_tower", "vision_resampler")

# names that LLaVA's forks, and transformers itself, give to a family that has another one
ALIASES = {
    "llava_qwen": "qwen2",
    "llava_qwen_moe": "qwen2_moe",
    "palo": "llama",
    "gpt-sw3": "gpt2",
}
# the forks' class names, where they do not follow from transformers' own
_STEMS = {"qwen2": "Qwen", "qwen2_moe": "QwenMoe"}
# LLaVA's public modules, which a pickle names
_PUBLIC = ("llama", "mistral", "mpt")
# attributes that LLaVA's code, and ours, expects and the language model has under another name
_ATTRIBUTE_MAPS = {"mpt": {"max_position_embeddings": "max_seq_len"}}
# where the inner model is, if `base_model_prefix` is wrong
_INNER_NAMES = {"llama4_text": "model"}
_INNER_METHODS = {"mpt": {"embed_tokens": lambda self, x: self.wte(x)}}

# what a config.json has to say, if the family has it
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


@dataclass(frozen=True)
class Family:
    """The classes of a kind of language model, with images.

    Attributes:
        name: Its `model_type` in transformers.
        config_class: Its configuration; the multimodal keys are in `llava.model.checkpoint`.
        inner_class: Its layers with vision tower and projector.
        model_class: The causal language model, a `LlavaCausalLM`.
    """

    name: str
    config_class: Any
    inner_class: Any
    model_class: Any


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


@cache
def get_family(name: str) -> Family:
    """Makes the classes of a family, and makes them known to transformers' `Auto` classes.

    Args:
        name: As transformers spells it.

    Raises:
        KeyError: Transformers has no causal language model of this name.
    """
    base, checked = CONFIG_MAPPING[name], checked_families().get(name, {})
    module = f"llava.model.language_model.llava_{name}" if name in _PUBLIC else __name__
    config_name, inner_name, model_name = class_names(name)

    def make(class_name: str, mixin: type, base: Any, doc: str, **attributes: Any) -> Any:
        named = {"__module__": module, "__doc__": doc}
        return type(class_name, (mixin, base), {**named, **attributes})

    config_class = make(
        config_name, LlavaConfigMixin, base,
        f"Configuration of {name}; the multimodal keys are in `llava.model.checkpoint`.",
        model_type=model_type_of(name),
        attribute_map={**base.attribute_map, **_ATTRIBUTE_MAPS.get(name, {})},
    )  # fmt: skip
    inner_class = make(
        inner_name, LlavaMetaModel, MODEL_MAPPING[base],
        f"Layers of {name} with vision tower and projector.",
        config_class=config_class, **_INNER_METHODS.get(name, {}),
    )  # fmt: skip
    causal = MODEL_FOR_CAUSAL_LM_MAPPING[base]
    model_class = make(
        model_name, LlavaCausalLM, causal,
        f"{name} with images; see `LlavaCausalLM` for `forward` and `generate`.",
        config_class=config_class, inner_class=inner_class,
        base_model_prefix=_INNER_NAMES.get(name, causal.base_model_prefix),
        cannot_pack=checked.get("packing"), packs_by_mask="mask" in checked,
    )  # fmt: skip
    # how transformers converts the weights of a checkpoint, such as one tensor for each expert
    bases = (MODEL_MAPPING[base].__name__, causal.__name__)
    renamed = {name: config_class.model_type, bases[0]: inner_name, bases[1]: model_name}
    for theirs, ours in renamed.items():
        if (conversions := get_checkpoint_conversion_mapping(theirs)) is not None:
            register_checkpoint_conversion_mapping(ours, conversions, overwrite=True)
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
    return Family(name, config_class, inner_class, model_class)


def build_blank(config: Mapping[str, Any], where: str) -> Any:
    """Builds the language model of a configuration without images and without weights.

    Args:
        config: Content of `config.json`, of a language model or of one with images; a missing
            `model_type` means Llama.
        where: Its place, for messages.

    Returns:
        Transformers' causal language model on the meta device, which takes no memory.

    Raises:
        ConfigError: The family does not work, or its configuration is not complete.
    """
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


def __getattr__(name: str) -> Any:
    """Makes a class by its name on first use (PEP 562), as pickles and imports ask for it."""
    family = family_of_class(name)
    if family is None or family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = get_family(family)
    classes = (made.config_class, made.inner_class, made.model_class)
    return classes[class_names(family).index(name)]
