"""Draws a sentence as an image: wrapped, shaped, a little rotated, on a contrasting background.

Everything random comes from one `random.Random`, so the same seed, font and text give the same
image. Shaping and the order of right-to-left text are Raqm's, through Pillow. A text that does not
fit gets a smaller size and then a larger image; nothing is cut.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import regex
from PIL import Image, ImageDraw, ImageFont, features

from lrm_ext.languages.fonts import SHAPED_SCRIPTS, Font
from lrm_ext.languages.registry import Language

MIN_CONTRAST: Final = 4.5
"""Of text and background, as WCAG 2 asks for text (success criterion 1.4.3)."""
# Widths and heights in pixels; towers see the longer side as 224 to 384 pixels.
SHAPES: Final = ((384, 384), (384, 288), (384, 216), (288, 384))
# in pixels of an em; 20 of 384 are 12 of 224
_MIN_SIZE, _MAX_SIZE = 20, 52
_SMALLER, _LARGER = 0.88, 1.25
_MARGIN: Final = 10
_MAX_DEGREES: Final = 6.0
# of an em; narrow fonts have 0.22
_MIN_SPACE: Final = 0.15
_LIGHT_SHARE: Final = 0.65
_LINE_HEIGHT: Final = 1.1
_MAY_NOT_BEGIN_A_LINE: Final = regex.compile(r"[\p{Pe}\p{Pf}\p{Po}\p{M}ーゝ々ๆฯ]")
_GRAPHEME: Final = regex.compile(r"\X")
_SPACED_PIECE: Final = regex.compile(r"\S+\s*")

Colour = tuple[float, ...]
"""Red, green and blue in 0 to 1 (sRGB)."""


def graphemes(text: str) -> list[str]:
    """Splits a text into what readers take for characters (extended grapheme clusters)."""
    found: list[str] = _GRAPHEME.findall(text)
    return found


def needs_shaping(language: Language) -> bool:
    """Tells whether this Pillow cannot draw a language, because it lacks Raqm."""
    return language.script in SHAPED_SCRIPTS and not features.check("raqm")


def shows_spaces(font: Font, language: Language) -> bool:
    """Tells whether readers of a language can see the spaces between words in a font.

    Nastaliq fonts have narrow ones, because their words are told apart by their shapes.
    """
    if not language.spaced or language.direction == "rtl":
        return True
    return bool(_face(font, 100).getlength(" ") >= 100 * _MIN_SPACE)


def render_text(text: str, language: Language, font: Font, rng: random.Random) -> Image.Image:
    """Draws a text.

    Args:
        text: One paragraph.
        language: Its language: direction, where lines may break, forms of letters.
        font: A font that covers it.
        rng: Source of size, shape, colours, background, angle and place.

    Returns:
        An RGB image of one of `SHAPES`, or larger if a long text needs it.
    """
    shape = _pick(rng, SHAPES)
    size = _between(rng, _MIN_SIZE, _MAX_SIZE)
    angle = _between(rng, -_MAX_DEGREES, _MAX_DEGREES)
    align = _pick(rng, ("start", "start", "center"))
    while True:
        mask = _text_mask(text, language, font, round(size), shape[0], align)
        turned = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        turned = turned.crop(turned.getbbox())
        room = (shape[0] - 2 * _MARGIN - turned.width, shape[1] - 2 * _MARGIN - turned.height)
        if min(room) >= 0:
            break
        if size > _MIN_SIZE:
            size = max(_MIN_SIZE, size * _SMALLER)
        else:
            shape = (round(shape[0] * _LARGER), round(shape[1] * _LARGER))
    image, colours = draw_background(shape, rng)
    left, top = (_MARGIN + int(rng.random() * (free + 1)) for free in room)
    image.paste(_in_bytes(text_colour(colours, rng)), (left, top), turned)
    return image


def draw_background(shape: tuple[int, int], rng: random.Random) -> tuple[Image.Image, list[Colour]]:
    """Draws a background of two near colours, both light or both dark.

    Args:
        shape: Width and height in pixels.
        rng: Source of kind and colours.

    Returns:
        An RGB image, and colours from one end of its range to the other.
    """
    base = np.array([rng.random() for _ in range(3)])
    # so that enough colours stand out from it
    base = 0.72 + 0.28 * base if rng.random() < _LIGHT_SHARE else 0.25 * base
    other = np.clip(base + np.array([_between(rng, -0.1, 0.1) for _ in range(3)]), 0, 1)
    x, y = np.linspace(0, 1, shape[0])[None], np.linspace(0, 1, shape[1])[:, None]
    kind = _pick(rng, ("plain", "gradient", "noise", "stripes"))
    share: npt.NDArray[np.float64] = np.zeros((1, 1))
    if kind == "gradient":
        tilt = rng.random()
        share = x * tilt + y * (1 - tilt)
    elif kind == "stripes":
        share = np.floor(y * shape[1] / _between(rng, 8, 40)) % 2
    elif kind == "noise":
        share = np.random.default_rng(int(rng.random() * 2**32)).random(shape[::-1])
    mask = np.broadcast_to(np.rint(share * 255).astype(np.uint8), shape[::-1])
    between = [tuple(map(float, base + k / 8 * (other - base))) for k in range(9)]
    first, last = (Image.new("RGB", shape, _in_bytes(between[k])) for k in (0, -1))
    return Image.composite(last, first, Image.fromarray(mask)), between


def text_colour(background: Sequence[Colour], rng: random.Random) -> Colour:
    """Returns a colour with a contrast of at least `MIN_CONTRAST` to all of some colours."""
    for _ in range(20):
        colour = (rng.random(), rng.random(), rng.random())
        if contrast(colour, background) >= MIN_CONTRAST:
            return colour
    return max((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), key=lambda colour: contrast(colour, background))


def contrast(colour: Colour, others: Sequence[Colour]) -> float:
    """Returns the least contrast ratio of a colour and others (WCAG 2), from 1 to 21."""
    own, shades = _luminance(colour), [*map(_luminance, others)]
    return min((max(own, s) + 0.05) / (min(own, s) + 0.05) for s in shades)


def _luminance(colour: Colour) -> float:
    """Returns the relative luminance of an sRGB colour (WCAG 2), in 0 to 1."""
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _in_bytes(colour: Colour) -> tuple[int, ...]:
    return tuple(round(255 * c) for c in colour)


def wrap_text(text: str, language: Language, font: Any, width: float) -> list[str]:
    """Breaks a text into lines that are at most `width` pixels wide, where they can be broken.

    Lines break at spaces; in languages without spaces between words, between any two graphemes of
    which the second may begin a line.
    """
    pieces = _SPACED_PIECE.findall(text) if language.spaced else _unspaced_pieces(text)
    lines = [""]
    for piece in pieces:
        line = lines[-1] + piece
        if lines[-1] and _length(line.rstrip(), language, font) > width:
            lines.append(piece)
        else:
            lines[-1] = line
    return [line.strip() for line in lines]


def _unspaced_pieces(text: str) -> list[str]:
    pieces: list[str] = []
    for grapheme in graphemes(text):
        latin = pieces and (pieces[-1] + grapheme)[-2:].isascii() and grapheme.isalnum()
        if pieces and (latin or _MAY_NOT_BEGIN_A_LINE.match(grapheme) or grapheme.isspace()):
            pieces[-1] += grapheme
        else:
            pieces.append(grapheme)
    return pieces


def _text_mask(
    text: str, language: Language, font: Font, size: int, width: int, align: str
) -> Image.Image:
    """Draws the lines in white on black, with the box of the ink as its size."""
    face = _face(font, size)
    lines = wrap_text(text, language, face, width - 2 * _MARGIN)
    options = _options(language)
    step = round(sum(face.getmetrics()) * _LINE_HEIGHT)
    longest = max(_length(line, language, face) for line in lines)
    pad = size  # ink may go beyond the advance and the metrics
    mask = Image.new("L", (round(longest) + 2 * pad, step * len(lines) + 2 * pad))
    draw = ImageDraw.Draw(mask)
    for number, line in enumerate(lines):
        free = longest - _length(line, language, face)
        at_end = options.get("direction") == "rtl"
        left = free / 2 if align == "center" else free if at_end else 0.0
        baseline = pad + number * step + face.getmetrics()[0]
        draw.text((pad + left, baseline), line, fill=255, font=face, anchor="ls", **options)
    return mask.crop(mask.getbbox())


@lru_cache(maxsize=256)
def _face(font: Font, size: int) -> Any:
    return ImageFont.truetype(str(font.path), size, index=font.index)


def _options(language: Language) -> dict[str, Any]:
    if not features.check("raqm"):
        return {}
    return {"direction": language.direction, "language": language.code}


def _length(line: str, language: Language, face: Any) -> float:
    return float(face.getlength(line, **_options(language)))


def _pick(rng: random.Random, items: Sequence[Any]) -> Any:
    # random.choice() may change between versions of Python, random() may not
    return items[int(rng.random() * len(items))]


def _between(rng: random.Random, low: float, high: float) -> float:
    return low + (high - low) * rng.random()
