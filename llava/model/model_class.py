"""Which class a checkpoint is loaded with, from its `config.json`.

In: the content of `config.json`. Out: a multimodal class, or None for a text-only model. The
folder's name is asked only where the file leaves the language model open. Loading is
`llava.model.builder`.
"""

from __future__ import annotations

import logging
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from llava.errors import CheckpointError, ConfigError

log = logging.getLogger(__name__)


def model_class_of(config: dict[str, Any], where: str, model_name: str = "") -> Any:
    """The multimodal class for a configuration, or None for a text-only model.

    Args:
        config: content of `config.json`.
        where: its place, for messages.
        model_name: what to go by where the type is `llava` and no architecture is written.

    Raises:
        ConfigError: a format that is not supported.
    """
    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
    from llava.model.language_model.llava_mistral import LlavaMistralForCausalLM
    from llava.model.language_model.llava_mpt import LlavaMptForCausalLM

    classes = {
        "llama": LlavaLlamaForCausalLM,
        "mistral": LlavaMistralForCausalLM,
        "mpt": LlavaMptForCausalLM,
    }
    model_type = str(config.get("model_type"))
    has_tower = "mm_vision_tower" in config
    if model_type in ("llava", "llava_next") and not has_tower:
        raise ConfigError(
            f"{where} is in the format of transformers' own {model_type!r} model, not in LLaVA's "
            "(no mm_vision_tower in config.json): load it with transformers, or convert it with "
            "`lrm import hf`"
        )
    if model_type == "llava":  # released v1.5 and v1.6 checkpoints
        return classes[_family_of(config, model_name)]
    base_type = model_type.removeprefix("llava_")
    if model_type == base_type and not has_tower:
        return None
    if base_type not in classes:
        raise ConfigError(
            f"{where}: model_type {model_type!r} is not supported with images. "
            f"Choices: {', '.join(f'llava_{name}' for name in classes)}"
        )
    return classes[base_type]


def _family_of(config: dict[str, Any], model_name: str) -> str:
    """The language model of a checkpoint whose type is just `llava`."""
    architecture = str((config.get("architectures") or [""])[0])
    for family in ("llama", "mistral", "mpt"):
        if architecture == f"Llava{family.capitalize()}ForCausalLM":
            return family
    family = next((part for part in ("mpt", "mistral") if part in model_name.lower()), "llama")
    log.warning("%s: config.json names no language model, taking %s", model_name, family)
    return family


def read_model_config(model_class: Any, path: str | None) -> Any:
    """Read `config.json` as the class wants it.

    Raises:
        CheckpointError: a value has the wrong type.
    """
    try:
        return model_class.config_class.from_pretrained(path)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}/config.json: {error}") from error
