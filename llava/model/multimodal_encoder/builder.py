"""Finds the vision tower that a configuration names, and builds it.

In: `mm_vision_tower` (or `vision_tower`) of a configuration: a folder or a Hub id. Out: a
`CLIPVisionTower`, loaded or delayed. A relative folder may lie beside the checkpoint, so that a
checkpoint and its tower can be moved together.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from llava.errors import ConfigError
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower, CLIPVisionTowerS2

REPOSITORY_ROOT = Path(__file__).resolve().parents[3]


def build_vision_tower(vision_tower_cfg: Any, **kwargs: Any) -> CLIPVisionTower:
    """Builds the tower that `vision_tower_cfg` names.

    Args:
        vision_tower_cfg: A model configuration (`mm_vision_tower`) or model arguments
            (`vision_tower`), with `mm_vision_select_layer`; `s2` asks for several scales.
        **kwargs: For `CLIPVisionTower`, e.g. `delay_load`.

    Raises:
        ConfigError: No tower of that name, or `s2_scales` that do not fit it.
    """
    name = getattr(vision_tower_cfg, "mm_vision_tower", None) or getattr(
        vision_tower_cfg, "vision_tower", None
    )
    checkpoint = getattr(vision_tower_cfg, "name_or_path", None) or None
    kind = CLIPVisionTowerS2 if getattr(vision_tower_cfg, "s2", False) else CLIPVisionTower
    return kind(resolve_tower(name, checkpoint), args=vision_tower_cfg, **kwargs)


def resolve_tower(name: str | None, checkpoint: str | Path | None = None) -> str:
    """Turns a tower's name into something that can be loaded.

    Args:
        name: A folder, absolute or relative, or a Hub id (`owner/name`).
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
    places = [Path(name)]
    if not places[0].is_absolute():
        near = Path(checkpoint).resolve() if checkpoint and Path(checkpoint).is_dir() else None
        roots = [near, near.parent, near.parent.parent] if near else []
        places += [root / name for root in (*roots, REPOSITORY_ROOT)]
    for place in places:
        if (place / "config.json").is_file():
            return str(place)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return name
    looked = "\n  ".join(str(place) for place in places)
    raise ConfigError(
        f"Unknown vision tower: {name!r}. It is no Hub id (owner/name), and none of these is a "
        f"folder with a config.json:\n  {looked}"
    )


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
