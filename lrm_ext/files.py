"""Files that are there whole or not at all, and names that stay in their folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

LEAVES_FOLDER = r"^/|(?:^|/)\.\.(?:/|$)|\x00"
"""A name that is absolute, goes upwards, or is none; for `re` and for RE2."""


def leaves_folder(name: str) -> bool:
    """Tells whether a file named in data would lie outside of its folder.

    Only the name counts. A link in the folder may lead anywhere, because whoever filled the folder
    set it: image folders consist of links where data is shared, and so do snapshots of the Hub.
    """
    return re.search(LEAVES_FOLDER, name) is not None


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old content or the new, never a part.

    Args:
        path: The file; its folder is made if it is not there.
        text: Its content; a line end is added where it lacks one.

    Raises:
        OSError: It cannot be written; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    os.replace(partial, path)
