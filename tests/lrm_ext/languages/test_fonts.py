"""Fonts are found by what they cover; what no font covers is named with its package."""

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from llava.errors import ConfigError
from lrm_ext.languages.fonts import installed_fonts, missing_font, visible

pytestmark = pytest.mark.usefixtures("matplotlibs_fonts")


def box(size):
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, size), (size, size), (size, 0)):
        pen.lineTo(point)
    pen.closePath()
    return pen.glyph()


def make_font(path, family, text, same_glyph=False):
    """Writes a font with a square for each character, or one for all."""
    names = [".notdef", *(f"u{ord(c):x}" for c in text)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): names[1 if same_glyph else i] for i, c in
                               enumerate(text, start=1)})  # fmt: skip
    builder.setupGlyf({name: box(500) for name in names})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({
        "familyName": family, "styleName": "Light", "version": "Version 1.5",
        "licenseDescription": "Free for all.\nNo warranty.", "licenseInfoURL": "https://free.example",
    })  # fmt: skip
    builder.setupOS2(usWeightClass=300)
    builder.setupPost()
    builder.save(path)


def test_a_font_covers_a_text_if_each_visible_character_has_a_glyph():
    (book,) = [font for font in installed_fonts() if font.name == "DejaVu Sans Book"]
    assert book.weight == 400 and book.index == 0 and "public domain" in book.licence
    assert book.covers("Čćžšđ: щё") and not book.covers("a हिन्दी")
    assert book.covers("می\u200cخواهم\u200f a\u00a0b\n"), "joiners and spaces need no glyph"
    assert visible("a b\u200d") == {ord("a"), ord("b")}
    assert not any(font.family.startswith(("STIX", "Last", "cm")) for font in installed_fonts())


def test_fonts_of_a_folder_come_with_what_they_say_of_themselves(tmp_path):
    make_font(tmp_path / "a.ttf", "Small", "कखग")
    (small,) = [f for f in installed_fonts((tmp_path,)) if f.covers("गक")]
    assert (small.name, small.weight, small.version) == ("Small Light", 300, "Version 1.5")
    assert small.licence == "Free for all. https://free.example"
    assert not small.covers("गकa")


def test_placeholders_and_damaged_files_are_no_fonts(tmp_path, caplog):
    make_font(tmp_path / "box.ttf", "Boxes", [chr(0x900 + i) for i in range(30)], same_glyph=True)
    (tmp_path / "bad.ttf").write_bytes(b"not a font")
    found = installed_fonts((tmp_path,))
    assert found and {font.path.parent for font in found}.isdisjoint({tmp_path})
    assert "bad.ttf cannot be read as a font" in caplog.text


def test_a_folder_without_fonts_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"has no font; expected \.ttf"):
        installed_fonts((tmp_path,))


def test_what_no_font_covers_is_named_with_its_package():
    fonts = installed_fonts()
    assert missing_font(["abc कक ख।"], fonts) == (
        "no font here covers Devanagari (क ख ।); install Noto fonts (Debian: fonts-noto-core)"
    )
    assert missing_font(["ไทย", "漢字かな"], fonts).endswith(
        "(Debian: fonts-noto-core fonts-noto-cjk)"
    )
