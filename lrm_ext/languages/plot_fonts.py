"""Draws matplotlib figures whose texts may be in any script, and says what cannot be drawn.

matplotlib takes each letter from the first of several fonts that has it. The first is DejaVu Sans,
which comes with it (Latin, Cyrillic, Greek, Arabic, Hebrew); then follow installed fonts that cover
the rest. Since 3.11 it also joins letters and orders them as they are read.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from fontTools.unicodedata import script

from llava.files import save_figure
from lrm_ext.languages.fonts import SHAPED_SCRIPTS, installed_fonts, missing_font, visible

log = logging.getLogger(__name__)

_REGULAR: Final = 400


def plot_families(texts: Iterable[str]) -> tuple[tuple[str, ...], str]:
    """Chooses the fonts with which matplotlib draws texts.

    Args:
        texts: The texts, together in any number of scripts.

    Returns:
        Names of families, in the order in which matplotlib looks for a glyph; and what to install
        for characters that none of them has, "" if there are none.
    """
    from matplotlib import font_manager, get_data_path

    own = font_manager.get_font(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    lacking = visible("".join(texts)) - own.get_charmap().keys()
    # matplotlib draws the first face of a file
    others = [
        font
        for font in (installed_fonts() if lacking else ())
        if font.index == 0 and font.weight == _REGULAR and "Regular" in font.style
    ]
    names = [own.family_name]
    while lacking and others:
        # of equals the one with a short name: a plain face, not one for displays or small screens
        best = max(others, key=lambda font: (len(font.characters & lacking), -len(font.name)))
        if not best.characters & lacking:
            break
        names.append(_known_to_matplotlib(best.path))
        lacking -= best.characters
    return tuple(names), missing_font(map(chr, lacking)) if lacking else ""


@lru_cache(maxsize=256)
def _known_to_matplotlib(path: Path) -> str:
    """Adds a font to matplotlib's list, which is as old as its cache; returns its family."""
    from matplotlib import font_manager

    font_manager.fontManager.addfont(path)
    name: str = font_manager.get_font(path).family_name
    return name


def is_shaped(text: str) -> bool:
    """Tells whether the installed matplotlib joins and orders the letters of a text rightly."""
    from matplotlib import ft2font

    if hasattr(ft2font, "__libraqm_version__"):  # since 3.11
        return True
    return not any(script(character) in SHAPED_SCRIPTS for character in text)


def save_plot(figure: Any, path: Path, dpi: int = 150) -> None:
    """Writes a figure; warns of letters that no font has, or that are not shaped.

    Raises:
        ConfigError: The name does not end with .png, .svg or .pdf.
    """
    from matplotlib.axes import Axes
    from matplotlib.text import Text

    for axes in figure.findobj(Axes):  # labels of ticks have no text before they are asked for
        _ = (axes.get_xticklabels(), axes.get_yticklabels())
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    families, missing = plot_families(text.get_text() for text in texts)
    if missing:
        log.warning("%s: boxes stand for letters: %s", path, missing)
    if unshaped := sorted({text.get_text() for text in texts if not is_shaped(text.get_text())}):
        log.warning(
            "%s: letters are not joined and ordered as they are read in %s: "
            "pip install 'matplotlib>=3.11'", path, ", ".join(unshaped[:3]),
        )  # fmt: skip
    if len(families) > 1:
        for text in texts:
            text.set_fontfamily(families)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # said above, once for all letters
        save_figure(figure, path, dpi)
