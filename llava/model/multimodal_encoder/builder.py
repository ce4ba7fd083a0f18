"""Finds the vision tower that a configuration names, and builds it.

In: `mm_vision_tower` (or `vision_tower`) of a configuration: a folder or a Hub id, or two of them
joined by `+`. Out: a tower, loaded or delayed. A relative folder may lie beside the checkpoint, so
that a checkpoint and its tower can be moved together.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from llava.errors import ConfigError
from llava.model.multimodal_encoder.vision_tower import (
    ImageEncoder,
    VisionTower,
    VisionTowers,
    VisionTowerS2,
    choices,
)

REPOSITORY_ROOT = Path(__file__).resolve().parents[3]


def build_vision_tower(vision_tower_cfg: Any, **kwargs: Any) -> ImageEncoder:
    """Builds the tower that `vision_tower_cfg` names.

    Args:
        vision_tower_cfg: A model configuration (`mm_vision_tower`) or model arguments
            (`vision_tower`), with `mm_vision_select_layer`; `s2` asks for several scales.
        **kwargs: For `VisionTower`, e.g. `delay_load`.

    Raises:
        ConfigError: No tower of that name, `s2_scales` that do not fit it, or towers side by side
            whose numbers of tokens differ.
    """
    name = getattr(vision_tower_cfg, "mm_vision_tower", None) or getattr(
        vision_tower_cfg, "vision_tower", None
    )
    checkpoint = getattr(vision_tower_cfg, "name_or_path", None) or None
    s2 = getattr(vision_tower_cfg, "s2", False)
    kind = VisionTowerS2 if s2 else VisionTower
    parts = split_towers(name or "", checkpoint)
    if len(parts) > 1 and s2:
        raise ConfigError(
            f"--s2 cuts the images of one tower, not of {name}: leave one of them out"
        )
    towers = [
        kind(resolve_tower(part, checkpoint), args=vision_tower_cfg, **kwargs) for part in parts
    ]
    return VisionTowers(towers) if len(towers) > 1 else towers[0]


def split_towers(name: str, checkpoint: str | Path | None = None) -> list[str]:
    """Splits `a+b` into the names of two towers; a folder whose name has a `+` stays whole."""
    if "+" not in name or _folder_of(name, checkpoint) is not None:
        return [name]
    return name.split("+")


def resolve_tower(name: str | None, checkpoint: str | Path | None = None) -> str:
    """Turns a tower's name into something that can be loaded.

    Args:
        name: A folder, absolute or relative, or a Hub id (`owner/name`); or several, joined by `+`.
        checkpoint: The folder of the checkpoint that names the tower.

    Returns:
        The first of these folders that exists: `name` from the working directory, in the
        checkpoint, beside it, beside its parent (for `checkpoint-N`), in the repository root;
        else `name` itself, if it can be a Hub id.

    Raises:
        ConfigError: None of them exists and the name is no Hub id.
    """
    if not name:
        raise ConfigError("no vision tower is named: set mm_vision_tower (or --vision_tower)")
    if len(parts := split_towers(name, checkpoint)) > 1:
        return "+".join(resolve_tower(part, checkpoint) for part in parts)
    if (folder := _folder_of(name, checkpoint)) is not None:
        return str(folder)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return name
    looked = "\n  ".join(str(place) for place in _places(name, checkpoint))
    raise ConfigError(
        f"Unknown vision tower: {name!r}. It is no Hub id (owner/name), and none of these is a "
        f"folder with a config.json:\n  {looked}\n{choices()}"
    )


def _places(name: str, checkpoint: str | Path | None) -> list[Path]:
    """Returns the folders that a name can mean."""
    places = [Path(name)]
    if not places[0].is_absolute():
        near = Path(checkpoint).resolve() if checkpoint and Path(checkpoint).is_dir() else None
        roots = [near, near.parent, near.parent.parent] if near else []
        places += [root / name for root in (*roots, REPOSITORY_ROOT)]
    return places


def _folder_of(name: str, checkpoint: str | Path | None) -> Path | None:
    """Returns the first folder with a `config.json` that a name can mean."""
    found = (place for place in _places(name, checkpoint) if (place / "config.json").is_file())
    return next(found, None)


def portable_tower(name: str, checkpoint: str | Path) -> str:
    """Returns the tower's name to store when a model leaves the folder of its checkpoint.

    A name that means the same from anywhere stays; one that only the checkpoint's place explains
    becomes a full path.

    Raises:
        ConfigError: There is no such tower.
    """
    try:
        resolve_tower(name)
    except ConfigError:
        return resolve_tower(name, checkpoint)
    return name
