"""The kinds of benchmarks by name, and what a benchmark's folder says of its kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from llava.errors import ConfigError, DataError
from lrm_ext.evaluate.kind import Kind
from lrm_ext.evaluate.mmbench import MMBENCH
from lrm_ext.evaluate.mme import MME
from lrm_ext.evaluate.plain import ANSWERS, CAPTIONS
from lrm_ext.evaluate.pope import POPE
from lrm_ext.evaluate.seed_bench import SEED_BENCH

PAPER: Final = ("mme", "pope", "seed_bench", "mmbench")
KINDS: Final = {kind.name: kind for kind in (MME, POPE, SEED_BENCH, MMBENCH, ANSWERS, CAPTIONS)}
ALIASES: Final = {"seed": "seed_bench", "seed-bench": "seed_bench", "seedbench": "seed_bench"}


def find_kind(name: str) -> Kind | None:
    """A kind by its name; None if there is none of this name."""
    return KINDS.get(ALIASES.get(name, name))


def get_kind(name: str) -> Kind:
    """A kind by its name.

    Raises:
        ConfigError: There is none of this name.
    """
    kind = find_kind(name)
    if kind is None:
        raise ConfigError(f"unknown benchmark {name!r}; choose from {', '.join(KINDS)}")
    return kind


DESCRIPTION_FILE: Final = "benchmark.json"
IMAGES_DIR: Final = "images"
_KEYS: Final = {"kind": str, "prompt": str, "image_root": str, "files": dict}


def read_description(folder: Path) -> Mapping[str, Any]:
    """Read a folder's description.

    Returns:
        `kind`; `prompt`, its style; `image_root`, relative to the folder; `files`, with `version`,
        `source` and `num_questions` of each language.

    Raises:
        DataError: It is not as it must be.
    """
    path = folder / DESCRIPTION_FILE
    try:
        described = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); import the benchmark again") from error
    for key, kind in _KEYS.items():
        if not isinstance(described, dict) or not isinstance(described.get(key), kind):
            raise DataError(f"{path}: {key} is missing or wrong; import the benchmark again")
    return dict(described)
