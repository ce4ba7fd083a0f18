"""The sizes of the models that a preset names, without loading or downloading them.

Input: names or folders, as in flags. Output: a `ModelShape`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.errors import ConfigError
from llava.train.flops import LanguageModelShape, ModelShape, TowerShape
from lrm_ext.languages._toml import load_toml

MODELS_FILE = Path(__file__).with_name("models.toml")


def load_shape(language_model: str, tower: str | None, select_layer: int = -2) -> ModelShape:
    """Read the sizes of a language model and its tower.

    Args:
        language_model: Folder, or name on the Hugging Face hub.
        tower: The same; None for a text-only model.
        select_layer: `--mm_vision_select_layer`.

    Raises:
        ConfigError: A model is neither here nor known, or a size is missing.
    """
    config = _config(language_model, "language_models")
    shape = LanguageModelShape.from_config(config, language_model)
    if tower is None:
        return ModelShape(shape, None)
    vision = TowerShape.from_config(_config(tower, "towers"), tower, select_layer)
    return ModelShape(shape, vision)


def _config(name: str, kind: str) -> Mapping[str, Any]:
    """The `config.json` of a model: its own, or what is known of it.

    Raises:
        ConfigError: It is neither here nor known.
    """
    path = Path(name) / "config.json"
    if not path.is_file():
        path = _cached(name)
    if path.is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: not readable as JSON: {error}") from error
        if isinstance(content, dict):
            return content
        raise ConfigError(f"{path}: expected a JSON object, found {type(content).__name__}")
    known = load_toml(MODELS_FILE)[kind]
    if name in known:
        return dict(known[name])
    raise ConfigError(
        f"the sizes of {name} are not known: there is no such folder with a config.json. Name a "
        f"folder, or one of: {', '.join(known)}"
    )


def _cached(name: str) -> Path:
    """The `config.json` of a model that was downloaded before; a missing path otherwise."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        found = None
    return Path(found) if isinstance(found, str) else Path(name) / "config.json"
