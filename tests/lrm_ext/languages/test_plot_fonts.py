"""Plots take each letter from a font that has it, and say what to install where none has."""

import logging

import pytest
from fontTools.ttLib import TTFont
from matplotlib import font_manager, ft2font, get_data_path
from matplotlib.figure import Figure

from lrm_ext.languages.fonts import is_shaped, plot_families, save_plot

HINDI = "\u0939\u093f\u0928\u094d\u0926\u0940"


@pytest.fixture
def devanagari(tmp_path, monkeypatch):
    """An installed font with letters of Hindi: DejaVu's box under their code points."""
    from lrm_ext.languages.fonts import installed_fonts

    font = TTFont(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf")
    for table in font["cmap"].tables:
        table.cmap = {ord(c): f"uni{ord(c):04X}" for c in "\u0410\u0411\u0412\u0413\u0414\u0415"}
        names = list(table.cmap.values())
        table.cmap = dict(zip(map(ord, sorted(set(HINDI))), names, strict=False))
    for record in font["name"].names:
        if record.nameID in (1, 16):
            record.string = "Made Devanagari"
        elif record.nameID in (2, 17):
            record.string = "Regular"
    path = tmp_path / "made.ttf"
    font.save(path)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda paths=None: [str(path)])
    known = list(font_manager.fontManager.ttflist)
    installed_fonts.cache_clear()
    yield "Made Devanagari"
    installed_fonts.cache_clear()
    font_manager.fontManager.ttflist = known


def test_a_font_is_found_by_what_it_covers(devanagari, tmp_path, caplog):
    assert plot_families(["a \u0449 \u0627\u0628"]) == (("DejaVu Sans",), "")
    assert plot_families(["a", HINDI]) == (("DejaVu Sans", devanagari), "")
    figure = Figure()
    axes = figure.subplots()
    axes.set_xticks([0, 1], ["English", HINDI])
    save_plot(figure, tmp_path / "plot.svg")
    assert axes.get_xticklabels()[1].get_fontfamily() == ["DejaVu Sans", devanagari]
    assert caplog.records == []


def test_what_no_font_covers_is_said_once_with_its_package(matplotlibs_fonts, tmp_path, caplog):
    figure = Figure()
    figure.text(0.1, 0.1, HINDI)
    figure.text(0.1, 0.5, "\u4e2d\u6587")
    with caplog.at_level(logging.WARNING, "lrm_ext"):
        save_plot(figure, tmp_path / "plot.png")
    (record,) = [each for each in caplog.records if each.name.startswith("lrm_ext")]
    for expected in ("plot.png", "Devanagari", "Han", "fonts-noto-core fonts-noto-cjk"):
        assert expected in record.getMessage()


def test_a_matplotlib_that_does_not_join_letters_says_so(monkeypatch, tmp_path, caplog):
    monkeypatch.delattr(ft2font, "__libraqm_version__", raising=False)
    assert is_shaped("hrvatski 中文") and not is_shaped("\u05d0\u05d1")
    figure = Figure()
    figure.text(0.1, 0.1, "\u0639\u0631\u0628\u064a")
    with caplog.at_level(logging.WARNING, "lrm_ext"):
        save_plot(figure, tmp_path / "plot.png")
    assert "matplotlib>=3.11" in caplog.text
