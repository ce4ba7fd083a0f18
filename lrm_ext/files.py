"""File names that stay in their folder, locks of folders, and plots; see also `llava.files`."""

from __future__ import annotations

import fcntl
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from llava.errors import ConfigError
from llava.files import writing

PLOT_ENDINGS: Final = (".png", ".svg", ".pdf")

LEAVES_FOLDER = r"^/|(?:^|/)\.\.(?:/|$)|\x00"
"""Matches a name that is absolute, goes upwards or is invalid; for `re` and RE2."""


def leaves_folder(name: str) -> bool:
    """Tells whether a file name in a dataset leads out of its folder.

    Only the name counts. Links in the folder may lead anywhere, because the owner of the folder
    made them: image folders often consist of links to shared data, as snapshots of the Hub do.
    """
    return re.search(LEAVES_FOLDER, name) is not None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, waiting for it first; the system frees it if the process dies."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def refuse_existing(folder: Path) -> None:
    """Raises `ConfigError` if a folder that is to be written exists."""
    if folder.exists():
        raise ConfigError(f"{folder} exists: name a new folder, or remove it")


def save_figure(figure: Any, path: Path, dpi: int = 150) -> None:
    """Writes a matplotlib figure.

    Raises:
        ConfigError: The name does not end with .png, .svg or .pdf.
    """
    if path.suffix not in PLOT_ENDINGS:
        raise ConfigError(f"--out {path}: expected a file that ends with {', '.join(PLOT_ENDINGS)}")
    drawn = io.BytesIO()  # a figure that cannot be drawn leaves the file alone
    figure.savefig(drawn, dpi=dpi, format=path.suffix[1:])
    with writing(path) as partial:
        partial.write_bytes(drawn.getvalue())
