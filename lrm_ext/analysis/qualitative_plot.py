"""Draws Figure 4, as a picture and as a page; see `qualitative.py`."""

from __future__ import annotations

import base64
import logging
import mimetypes
import textwrap
import unicodedata
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, Final

from matplotlib import font_manager
from matplotlib.figure import Figure

from llava.images import open_image
from lrm_ext.analysis.page import render_page, section
from lrm_ext.analysis.qualitative import NO_ENGLISH, Examples, ModelAnswer, Said, Shown
from lrm_ext.analysis.settings import language_name

log = logging.getLogger(__name__)

_FONT: Final = "DejaVu Sans"  # comes with matplotlib: Latin, Cyrillic, Greek, Arabic
# what it lacks, where that is installed: the first of each that is found
_MORE_FONTS: Final = (
    ("NotoSansCJK-Regular", "NotoSansCJKsc-Regular", "NotoSansSC-Regular", "wqy-zenhei", "msyh",
     "PingFang", "NotoSerifCJK-Regular", "simhei"),
    ("NotoSansDevanagari-Regular",), ("NotoSansThai-Regular",), ("NotoSansBengali-Regular",),
    ("NotoSansTamil-Regular",), ("NotoSansHebrew-Regular",),
)  # fmt: skip
_COLUMNS: Final = 66
_LINE_INCHES: Final = 0.2
_MARKS: Final = {True: ("right", "#0072B2"), False: ("wrong", "#D55E00")}


@lru_cache(maxsize=1)
def fonts() -> tuple[str, ...]:
    """Names of installed fonts, in the order in which a letter is looked for."""
    # looked for as files: matplotlib's own list is as old as its cache
    there = {Path(path).stem: path for path in font_manager.findSystemFonts()}
    names = [_FONT]
    for stems in _MORE_FONTS:
        if stem := next((stem for stem in stems if stem in there), None):
            font_manager.fontManager.addfont(there[stem])
            names.append(font_manager.FontProperties(fname=there[stem]).get_name())
    return tuple(names)


@lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    """Code points that those fonts have."""
    from fontTools.ttLib import TTFont

    known: set[int] = set()
    for name in fonts():
        known |= set(TTFont(font_manager.findfont(name), fontNumber=0, lazy=True).getBestCmap())
    return frozenset(known)


def examples_figure(examples: Examples) -> Figure:
    """Pictures on the left, questions and answers on the right."""
    blocks = [_lines(shown) for shown in examples.shown]
    heights = [max(2.0, _LINE_INCHES * (len(lines) + 1)) for lines in blocks]
    caption = textwrap.wrap(examples.caption, 135)
    foot = 0.2 + _LINE_INCHES * len(caption)
    figure = Figure(figsize=(9.2, sum(heights) + foot))
    top = sum(heights) + foot
    for shown, lines, height in zip(examples.shown, blocks, heights, strict=True):
        bottom = top - height
        total = sum(heights) + foot
        axes = figure.add_axes((0.01, (bottom + 0.08) / total, 0.22, (height - 0.16) / total))
        axes.imshow(open_image(shown.picture))
        axes.set_anchor("N")
        axes.set_axis_off()
        for number, (text, look) in enumerate(lines):
            y = (top - 0.1 - _LINE_INCHES * number) / total
            figure.text(
                0.25, y, text, va="top", fontfamily=list(fonts()), **{"fontsize": 10, **look}
            )
        top = bottom
    for number, line in enumerate(caption):
        y = (foot - 0.1 - _LINE_INCHES * number) / (sum(heights) + foot)
        figure.text(0.01, y, line, va="top", fontsize=8, color="#444444")
    return figure


def _lines(shown: Shown) -> list[tuple[str, dict[str, Any]]]:
    """Lines of text with their looks."""
    lines: list[tuple[str, dict[str, Any]]] = []

    def add(text: str, **look: Any) -> None:
        lines.extend((line, look) for line in wrap(text))

    add(f"{language_name(shown.lang)}: {drawable(shown.question.text, shown.lang)}", fontsize=11.5)
    if shown.lang != "en":
        add(f"({_english(shown.question)})", color="#444444")
    for answer in shown.answers:
        word, colour = _MARKS[answer.correct]
        said = drawable(answer.said.text, shown.lang) or "(nothing)"
        add(f"{answer.label} ({word}): {said}", color=colour)
        if shown.lang != "en" and answer.said.text:
            add(f"    ({_english(answer.said)})", color="#444444")
    add(f"Expected: {_both(shown.expected, shown.lang)}")
    return lines


def wrap(text: str) -> list[str]:
    """Lines that fit the figure; a wide letter (Chinese) counts twice."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    width = _COLUMNS * len(text) // max(1, len(text) + wide)
    indent = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(text, width, subsequent_indent=indent) or [""]


def _english(said: Said) -> str:
    return f"English: {said.english}" if said.english is not None else NO_ENGLISH


def _both(said: Said, lang: str) -> str:
    text = drawable(said.text, lang)
    return text if lang == "en" else f"{text} ({_english(said)})"


def drawable(text: str, lang: str) -> str:
    """The text, or a remark in its place where no font here has its letters."""
    lacking = sorted({c for c in text if c.isprintable() and ord(c) not in _letters()})
    if not lacking:
        return text
    log.warning(
        "no font here has %s: the picture says so in place of a text in %s; install Noto Sans CJK "
        "or the like. The page shows it with the reader's own fonts",
        " ".join(lacking[:10]), language_name(lang),
    )  # fmt: skip
    return "[no font here has its letters]"


def examples_page(examples: Examples) -> str:
    """The same as a page that needs nothing but itself."""
    parts = "".join(map(_example, examples.shown))
    note = f'<p class="soft">{escape(examples.caption)}</p>'
    return render_page("The same questions to several models", note, section("Examples", parts))


def _example(shown: Shown) -> str:
    kind = mimetypes.guess_type(shown.picture.name)[0] or "image/png"
    open_image(shown.picture)
    data = base64.b64encode(shown.picture.read_bytes()).decode("ascii")
    picture = f'<img src="data:{kind};base64,{data}" alt="{escape(shown.picture.name)}">'
    answers = "".join(_answer(answer, shown.lang) for answer in shown.answers)
    expected = f"<div><dt>Expected</dt><dd>{_said(shown.expected, shown.lang)}</dd></div>"
    question = (
        f"<div><dt>{escape(language_name(shown.lang))}, {escape(shown.question_id)}</dt>"
        f"<dd>{_said(shown.question, shown.lang)}</dd></div>"
    )
    return f'<div class="example"><div>{picture}</div><dl>{question}{answers}{expected}</dl></div>'


def _answer(answer: ModelAnswer, lang: str) -> str:
    word = _MARKS[answer.correct][0]
    verdict = f'<span class="verdict {word}">{word}</span>'
    return (
        f"<div><dt>{escape(answer.label)}</dt><dd>{_said(answer.said, lang)} {verdict}</dd></div>"
    )


def _said(said: Said, lang: str) -> str:
    text = f'<span lang="{escape(lang)}">{escape(said.text) or "(nothing)"}</span>'
    if lang == "en" or not said.text:
        return text
    return f'{text} <span class="soft">({escape(_english(said))})</span>'
