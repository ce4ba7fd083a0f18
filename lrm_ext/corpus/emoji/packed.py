"""Where the built-in corpus lies, and what its packed form consists of.

The packed form is committed under `playground/data/emoji_scenes/`: one PNG a concept, the names
in all its languages and the recipes of all scenes. `build.py` makes it, `unpack.py` turns it into
pictures and conversations in the git-ignored `corpus/` beside it.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from llava.errors import DataError
from lrm_ext.languages import _toml
from lrm_ext.languages.registry import shipped_languages

SPRITES_DIR = "sprites"
CONCEPTS_FILE = "concepts.json"
SCENES_FILE = "scenes.tsv"

_DATA_DIR = Path(__file__).parent / "data"
# English first: those that have a file of words and sentence patterns here.
LANGUAGES = tuple(code for code in shipped_languages() if (_DATA_DIR / f"{code}.toml").is_file())


def packed_dir() -> Path:
    """Folder of the packed corpus in this checkout."""
    return Path(__file__).resolve().parents[3] / "playground" / "data" / "emoji_scenes"


def packed_path(name: str) -> Path:
    """Path of one packed file.

    Raises:
        DataError: It is not there.
    """
    path = packed_dir() / name
    if not path.exists():
        raise DataError(
            f"{path} is missing; it is part of the repository. Restore it with "
            f"`git checkout -- {packed_dir()}` or make it again with `lrm corpus build-emoji`."
        )
    return path


@functools.cache
def load_toml(name: str) -> dict[str, Any]:
    """A data file of this package, such as `concepts` or `cs`; callers must not change it."""
    return _toml.load_toml(_DATA_DIR / f"{name}.toml")


def data_files() -> tuple[Path, ...]:
    """The data files of this package, in a fixed order."""
    return tuple(sorted(_DATA_DIR.glob("*.toml")))
