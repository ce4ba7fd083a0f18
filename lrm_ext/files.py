"""Names that stay in their folder, and plots as files; see `llava.files` for the rest."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, Final

from llava.errors import ConfigError
from llava.files import writing

_PLOT_SUFFIXES: Final = (".png", ".svg", ".pdf")

LEAVES_FOLDER = r"^/|(?:^|/)\.\.(?:/|$)|\x00"
"""A name that is absolute, goes upwards, or is none; for `re` and for RE2."""


def leaves_folder(name: str) -> bool:
    """Tells whether a file named in data would lie outside of its folder.

    Only the name counts. A link in the folder may lead anywhere, because whoever filled the folder
    set it: image folders consist of links where data is shared, and so do snapshots of the Hub.
    """
    return re.search(LEAVES_FOLDER, name) is not None


def refuse_existing(folder: Path) -> None:
    """Raises `ConfigError` if a folder that is to be written exists."""
    if folder.exists():
        raise ConfigError(f"{folder} exists: name a new folder, or remove it")


def save_figure(figure: Any, path: Path, dpi: int = 150) -> None:
    """Write a figure of matplotlib.

    Raises:
        ConfigError: The name does not end with .png, .svg or .pdf.
    """
    if path.suffix not in _PLOT_SUFFIXES:
        raise ConfigError(
            f"--out {path}: expected a file that ends with {', '.join(_PLOT_SUFFIXES)}"
        )
    drawn = io.BytesIO()  # what cannot be drawn touches no file
    figure.savefig(drawn, dpi=dpi, format=path.suffix[1:])
    with writing(path) as partial:
        partial.write_bytes(drawn.getvalue())
