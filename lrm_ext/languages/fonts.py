"""Finds the installed fonts that cover a text, and names the package to install where none does.

Fonts are those of the system, matplotlib's DejaVu, and those of folders that the caller names. A
font covers a text if it has a glyph for each character. Fonts without outlines of their own for
letters (emoji, symbols, placeholders such as Last Resort) are left out.

matplotlib takes each letter from the first of several fonts that has it: from DejaVu Sans, which
comes with it (Latin, Cyrillic, Greek, Arabic, Hebrew), or else from installed fonts that cover the
rest. Since 3.11 it also joins letters and orders them as they are read.
"""

from __future__ import annotations

import logging
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from fontTools.ttLib import TTCollection, TTFont, TTLibError
from fontTools.unicodedata import script, script_name

from llava.errors import ConfigError
from llava.files import save_figure
from lrm_ext.languages.tags import NEUTRAL_SCRIPTS

log = logging.getLogger(__name__)

# Scripts that are read from right to left, or whose letters are joined, ordered or stacked, so that
# they cannot be drawn one after the other.
SHAPED_SCRIPTS: Final = frozenset(
    "Arab Hebr Syrc Thaa Nkoo Adlm Mong Deva Beng Guru Gujr Orya Taml Telu Knda Mlym Sinh Thai "
    "Khmr Mymr Laoo Tibt".split()
)
# Characters without a glyph: controls, joiners and marks of direction, separators.
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
_COLOUR_TABLES: Final = ("CBDT", "sbix", "COLR", "SVG ")
# A placeholder font draws the same box for thousands of characters.
_MIN_GLYPHS_PER_CHARACTER: Final = 0.1
_MAX_SHOWN: Final = 10
_PACKAGE, _CJK_PACKAGE = "fonts-noto-core", "fonts-noto-cjk"
_CJK: Final = frozenset({"Hani", "Hira", "Kana", "Hang", "Bopo"})
_REGULAR: Final = 400
# ids in the table "name"
_FAMILY, _STYLE, _VERSION, _LICENCE, _LICENCE_URL = (16, 1), (17, 2), 5, 13, 14


@dataclass(frozen=True)
class Font:
    """A face of a font file.

    Attributes:
        path: The file.
        index: Number of the face in a collection (.ttc); 0 in other files.
        family: Such as "DejaVu Sans".
        style: Such as "Bold Oblique".
        weight: 400 for regular, 700 for bold (OpenType's usWeightClass).
        version: As the file states it.
        licence: First line of the licence that the file states, with its address; "" if none.
        characters: Code points that have a glyph.
    """

    path: Path
    index: int
    family: str
    style: str
    weight: int
    version: str
    licence: str
    characters: frozenset[int] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """Family and style."""
        return f"{self.family} {self.style}"

    def covers(self, text: str) -> bool:
        """Tells whether every character of a text has a glyph."""
        return visible(text) <= self.characters


def visible(text: str) -> frozenset[int]:
    """Returns the code points of a text that need a glyph."""
    return frozenset(ord(c) for c in set(text) if unicodedata.category(c) not in _INVISIBLE)


@lru_cache(maxsize=8)
def installed_fonts(folders: tuple[Path, ...] = ()) -> tuple[Font, ...]:
    """Returns the fonts that are there, by name; of faces with the same name the first.

    Args:
        folders: Folders to search first, with those below them.

    Raises:
        ConfigError: A folder has no font file.
    """
    found: dict[str, Font] = {}
    for path in _font_files(folders):
        for font in _faces(path):
            found.setdefault(font.name, font)
    return tuple(sorted(found.values(), key=lambda font: font.name))


def missing_font(texts: Iterable[str], fonts: Iterable[Font] = ()) -> str:
    """Says what to install for texts that no font covers.

    Args:
        texts: The texts.
        fonts: Fonts that were tried; characters that one of them has are not named.

    Returns:
        Such as "no font here covers Devanagari (क ख); install Noto fonts (Debian: ...)".
    """
    covered = frozenset[int]().union(*(font.characters for font in fonts))
    lacking = Counter(chr(c) for text in texts for c in sorted(visible(text) - covered))
    shown = " ".join(character for character, _ in lacking.most_common(_MAX_SHOWN))
    scripts = Counter(script(character) for character in lacking)
    named = [code for code, _ in scripts.most_common() if code not in NEUTRAL_SCRIPTS]
    packages = dict.fromkeys(_CJK_PACKAGE if code in _CJK else _PACKAGE for code in named)
    return (
        f"no font here covers {', '.join(map(script_name, named)) or 'some signs'} ({shown}); "
        f"install Noto fonts (Debian: {' '.join(packages or [_PACKAGE])})"
    )


def _font_files(folders: tuple[Path, ...]) -> Iterator[Path]:
    from matplotlib import font_manager, get_data_path

    for folder in folders:
        there = sorted(font_manager.findSystemFonts([str(folder)]))
        if not there:
            raise ConfigError(f"{folder} has no font; expected .ttf, .otf or .ttc files in it.")
        yield from map(Path, there)
    yield from map(Path, sorted(font_manager.findSystemFonts()))
    # of the others there, STIX and Computer Modern are for formulas
    yield from sorted((Path(get_data_path()) / "fonts" / "ttf").glob("DejaVuS*.ttf"))


def _faces(path: Path) -> Iterator[Font]:
    """Reads the faces of a file, without those that are not for text."""
    try:
        if path.suffix.lower() == ".ttc":
            faces = list(TTCollection(str(path), lazy=True))
        else:
            faces = [TTFont(path, lazy=True)]
        for index, face in enumerate(faces):
            if (characters := _characters(face)) is not None:
                yield _font(path, index, face, characters)
    except (TTLibError, OSError, ValueError, KeyError, AssertionError) as error:
        log.warning("%s cannot be read as a font: %s", path, error)


def _characters(face: TTFont) -> frozenset[int] | None:
    # the names of glyphs take ten times as long to read in a font of thousands
    face.setGlyphOrder([*map(str, range(face["maxp"].numGlyphs))])
    cmap: dict[int, str] | None = face.getBestCmap()
    has_outlines = any(table in face for table in ("glyf", "CFF ", "CFF2"))
    if not cmap or not has_outlines or any(table in face for table in _COLOUR_TABLES):
        return None
    if len(set(cmap.values())) < _MIN_GLYPHS_PER_CHARACTER * len(cmap):
        return None
    return frozenset(cmap)


def _font(path: Path, index: int, face: Any, characters: frozenset[int]) -> Font:
    def name(*ids: int) -> str:
        return next(filter(None, map(face["name"].getDebugName, ids)), "")

    licence = [*name(_LICENCE).splitlines()[:1], name(_LICENCE_URL)]
    return Font(
        path=path,
        index=index,
        family=name(*_FAMILY) or path.stem,
        style=name(*_STYLE) or "Regular",
        weight=int(face["OS/2"].usWeightClass) if "OS/2" in face else 400,
        version=name(_VERSION),
        licence=" ".join(part.strip() for part in licence if part),
        characters=characters,
    )


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
