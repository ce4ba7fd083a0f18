"""Sentences as images: nothing is cut, letters are joined, text stands out from its background."""

import random

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageFont, features

from lrm_ext.corpus import text_rendering
from lrm_ext.corpus.text_rendering import (
    MIN_CONTRAST,
    SHAPES,
    contrast,
    draw_background,
    needs_shaping,
    render_text,
    shows_spaces,
    text_colour,
    wrap_text,
)
from lrm_ext.languages.fonts import installed_fonts
from lrm_ext.languages.registry import get_language

LONG = "Moja sestra studira medicinu na sveučilištu u Zagrebu, a brat gradi čamce i žične ograde. "


def font(name="DejaVu Sans Book"):
    return next(font for font in installed_fonts() if font.name == name)


def language(code, script, spaced=True):
    """A language that the project may not have, for what rendering reads of it."""
    return msgspec.structs.replace(get_language("hr"), code=code, script=script, spaced=spaced)


ARABIC = language("ar", "Arab")


def white_on_black(monkeypatch):
    def black(shape, rng):
        return Image.new("RGB", shape), [(0.0, 0.0, 0.0)]

    monkeypatch.setattr(text_rendering, "draw_background", black)
    monkeypatch.setattr(text_rendering, "text_colour", lambda colours, rng: (1.0, 1.0, 1.0))


@pytest.mark.parametrize("text", ["Da.", LONG * 2, "x" * 90, "(g) jÅ_|"])
def test_no_ink_is_cut(monkeypatch, text):
    white_on_black(monkeypatch)
    drawn = []
    for seed in range(6):
        image = render_text(text, get_language("hr"), font(), random.Random(seed))
        pixels = np.asarray(image.convert("L"))
        inner = pixels[9:-9, 9:-9]
        assert pixels.sum() == inner.sum() > 0, seed
        drawn.append(image.size)
    # only what does not fit otherwise gets a larger image
    assert (set(drawn) <= set(SHAPES)) == (text != "x" * 90)


def test_all_lines_are_drawn(monkeypatch):
    white_on_black(monkeypatch)
    once, twice = (
        [np.asarray(render_text(text, get_language("hr"), font(), rng).convert("L")).sum()
         for rng in map(random.Random, range(6))]
        for text in (LONG, LONG + LONG)
    )  # fmt: skip
    # the longer text may be smaller, but at the same size it has twice the ink
    assert max(np.array(twice) / np.array(once)) == pytest.approx(2, rel=0.1)


def test_lines_break_at_spaces_and_fit():
    face = ImageFont.truetype(str(font().path), 24)
    lines = wrap_text(LONG.strip(), get_language("hr"), face, 300)
    assert " ".join(lines) == LONG.strip() and len(lines) > 3
    assert all(face.getlength(line) <= 300 for line in lines)


def test_lines_without_spaces_break_between_graphemes():
    face = ImageFont.truetype(str(font().path), 20)
    text = "请先将问题翻译成英文，然后用中文回答。Python 3" * 2
    lines = wrap_text(text, get_language("zh"), face, 120)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert not any(line[0] in "，。" for line in lines)
    assert any("Python" in line for line in lines), "words in Latin letters stay whole"
    thai = language("th", "Thai", spaced=False)
    for width in range(20, 120, 7):
        lines = wrap_text("น้ำผึ้งที่นี่อร่อย", thai, face, width)
        assert "".join(lines) == "น้ำผึ้งที่นี่อร่อย"
        assert not any(line[0] in "\u0e31\u0e33\u0e34\u0e35\u0e36\u0e48\u0e49" for line in lines)


@pytest.mark.skipif(not features.check("raqm"), reason="this Pillow lacks Raqm")
def test_arabic_is_joined_and_runs_from_right_to_left():
    face = ImageFont.truetype(str(font().path), 40)
    joined = text_rendering._length("سلام", ARABIC, face)
    assert joined < 0.9 * sum(text_rendering._length(c, ARABIC, face) for c in "سلام")
    mask = text_rendering._text_mask("ا ......", ARABIC, font(), 40, 400, "start")
    ink = np.asarray(mask)
    top = ink[: ink.shape[0] // 2]
    third = ink.shape[1] // 3
    assert top[:, -third:].any() and not top[:, :third].any(), "the tall first letter is right"
    # a wrapped line begins at the right, too
    text = "مرحبا بكم في بيتنا الآن هنا"
    last = np.asarray(text_rendering._text_mask(text, ARABIC, font(), 40, 200, "start"))[-50:]
    assert last[:, -20:].any() and not last[:, :20].any()


def test_directions_and_what_needs_raqm(monkeypatch):
    assert [language("xx", s).direction for s in ("Arab", "Hebr", "Latn", "Hans")] == [
        "rtl", "rtl", "ltr", "ltr",
    ]  # fmt: skip
    monkeypatch.setattr(features, "check", lambda name: False)
    scripts = ("Arab", "Deva", "Thai", "Latn", "Hans", "Cyrl")
    assert [needs_shaping(language("xx", s)) for s in scripts] == [True] * 3 + [False] * 3


def test_fonts_with_narrow_spaces_are_for_scripts_that_need_none(monkeypatch):
    assert shows_spaces(font(), get_language("hr"))

    class Nastaliq:
        def getlength(self, text):
            return 13.2

    monkeypatch.setattr(text_rendering, "_face", lambda font, size: Nastaliq())
    languages = (get_language("hr"), ARABIC, get_language("zh"))
    assert [shows_spaces(font(), one) for one in languages] == [False, True, True]


def test_text_stands_out_from_every_pixel():
    assert contrast((0, 0, 0), [(1, 1, 1)]) == pytest.approx(21)
    assert contrast((119 / 255,) * 3, [(1, 1, 1)]) == pytest.approx(4.48, abs=0.005)  # WCAG's #777
    kinds = set()
    for seed in range(150):
        rng = random.Random(seed)
        image, colours = draw_background((48, 36), rng)
        colour = text_colour(colours, rng)
        assert contrast(colour, colours) >= MIN_CONTRAST
        pixels = [tuple(c / 255 for c in found) for _, found in image.getcolors(48 * 36)]
        assert contrast(colour, pixels) >= MIN_CONTRAST - 0.1  # colours are rounded to bytes
        kinds.add(min(len(pixels), 20))
    assert {1, 2, 20} <= kinds, "plain, striped and others"


def test_the_same_seed_gives_the_same_image():
    images = [render_text(LONG, get_language("hr"), font(), random.Random(s)) for s in (1, 1, 2)]
    assert images[0].tobytes() == images[1].tobytes() != images[2].tobytes()
