"""Names that stay in their folder, locks, and plots as files; see `llava.files` for the rest."""

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
"""A name that is absolute, goes upwards, or is none; for `re` and for RE2."""


def leaves_folder(name: str) -> bool:
    """Tells whether a file named in data would lie outside of its folder.

    Only the name counts. A link in the folder may lead anywhere, because whoever filled the folder
    set it: image folders consist of links where data is shared, and so do snapshots of the Hub.
    """
    return re.search(LEAVES_FOLDER, name) is not None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, once nobody else does; the system drops it if the process dies."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def save_figure(figure: Any, path: Path, dpi: int = 150) -> None:
    """Write a figure of matplotlib.

    Raises:
        ConfigError: The name does not end with .png, .svg or .pdf.
    """
    if path.suffix not in PLOT_ENDINGS:
        raise ConfigError(f"--out {path}: expected a file that ends with {', '.join(PLOT_ENDINGS)}")
    drawn = io.BytesIO()  # what cannot be drawn touches no file
    figure.savefig(drawn, dpi=dpi, format=path.suffix[1:])
    with writing(path) as partial:
        partial.write_bytes(drawn.getvalue())
