"""`benchmark.json`: what a benchmark folder says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from llava.errors import DataError

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
