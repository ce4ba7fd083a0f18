"""Draws the paper's Figures 1 and 6 (scores), and 4 (answers of several models to a question).

In: scored settings, or examples. Out: matplotlib figures, readable in grey and by colour-blind
people: what differs in colour (Okabe and Ito's) differs in hatch, line or marker, too. Figure 4 is
also a page. Texts are words.
"""

from __future__ import annotations

import logging
import mimetypes
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llava.errors import ConfigError, DataError
from llava.images import open_image
from lrm_ext.evaluate.kinds import KINDS
from lrm_ext.evaluate.results import ENGLISH
from lrm_ext.report.page import data_url, environment
from lrm_ext.report.qualitative import NO_ENGLISH, Examples, Said, Shown
from lrm_ext.report.settings import Cell, ScoredBenchmark, language_name

BLUE, ORANGE, GREEN, SKY = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
_COLOURS: Final = (SKY, ORANGE, GREEN, "#F0E442", "#CC79A7", "#999999")
_HATCHES: Final = ("", "///", "...", "xx", "\\\\\\", "--")
_LINES: Final = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")


def unit_in_words(scored: ScoredBenchmark) -> str:
    """What the axis of a benchmark's score says."""
    points = "%" if _is_percent(scored) else "points"
    return f"{scored.name}: {scored.unit} ({points})"


def _is_percent(scored: ScoredBenchmark) -> bool:
    return KINDS[scored.kind].maximum == 100


def languages_figure(
    benchmarks: Sequence[ScoredBenchmark], labels: Sequence[str], style: str = "bars"
) -> Figure:
    """Figure 1: every setting in every language, a panel a benchmark.

    Args:
        benchmarks: As `score_settings` returns them.
        labels: Of the settings, in order; at most six.
        style: `bars` or `radar`.

    Raises:
        ConfigError: The style is unknown, or there are too many settings to tell apart.
    """
    if style not in ("bars", "radar"):
        raise ConfigError(f"--style {style}: expected bars or radar")
    if len(labels) > len(_COLOURS):
        raise ConfigError(f"{len(labels)} settings; expected at most {len(_COLOURS)} in a figure")
    if style == "radar":
        figure = Figure(figsize=(6.4 * len(benchmarks), 6.6), layout="constrained")
        parts = figure.subplots(
            1, len(benchmarks), squeeze=False, subplot_kw={"projection": "polar"}
        )[0]
    else:
        widest = max(len(one.languages) for one in benchmarks)
        size = (max(7.0, 0.34 * widest * (len(labels) + 1)), 0.9 + 3.2 * len(benchmarks))
        figure = Figure(figsize=size, layout="constrained")
        parts = figure.subplots(len(benchmarks), 1, squeeze=False)[:, 0]
    for axes, one in zip(parts, benchmarks, strict=True):
        (_radar if style == "radar" else _bars)(axes, one, labels)
    handles, names = parts[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(3, len(names)),
                  frameon=False)  # fmt: skip
    return figure


def _bars(axes: Axes, one: ScoredBenchmark, labels: Sequence[str]) -> None:
    places = np.arange(len(one.languages))
    width = 0.8 / len(labels)
    for number, label in enumerate(labels):
        cells = [one.cells[label][lang] for lang in one.languages]
        values = [np.nan if cell.value is None else cell.value for cell in cells]
        at = places + (number - (len(labels) - 1) / 2) * width
        axes.bar(
            at, values, width, label=label, color=_COLOURS[number], hatch=_HATCHES[number],
            edgecolor="black", linewidth=0.6,
        )  # fmt: skip
        low, high = zip(*(_whisker(cell) for cell in cells), strict=True)
        axes.errorbar(at, values, [low, high], fmt="none", ecolor="black", lw=1, capsize=2)
        for x, cell in zip(at, cells, strict=True):
            if cell.value is None:
                axes.text(x, 0.02, "missing", rotation=90, ha="center", va="bottom", fontsize=8,
                          transform=axes.get_xaxis_transform())  # fmt: skip
    axes.set_xticks(places, [language_name(lang) for lang in one.languages], rotation=30,
                    ha="right", rotation_mode="anchor")  # fmt: skip
    axes.set_ylabel(unit_in_words(one))
    _from_zero(axes, one)
    axes.set_xlabel(_whiskers_in_words(one), fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _from_zero(axes: Axes, one: ScoredBenchmark) -> None:
    """Let the axis begin at 0, so that lengths tell."""
    axes.set_ylim(0, 100 if _is_percent(one) else None)


def _whiskers_in_words(one: ScoredBenchmark) -> str:
    several = [cell.spread is not None for cells in one.cells.values() for cell in cells.values()]
    words = ["95 % interval of a run"] if not all(several) else []
    words += ["standard deviation over seeds"] if any(several) else []
    return f"whiskers: {', or '.join(words)}"


def _whisker(cell: Cell) -> tuple[float, float]:
    if cell.value is None:
        return 0.0, 0.0
    if cell.spread is not None:
        return cell.spread, cell.spread
    score = cell.scores[0] if cell.scores else None
    if score is None or score.low is None or score.high is None:
        return 0.0, 0.0
    return max(0.0, cell.value - score.low), max(0.0, score.high - cell.value)


def _radar(axes: Any, one: ScoredBenchmark, labels: Sequence[str]) -> None:
    angles = 2 * np.pi * np.arange(len(one.languages)) / len(one.languages)
    for number, label in enumerate(labels):
        cells = [one.cells[label][lang] for lang in one.languages]
        values = [np.nan if cell.value is None else cell.value for cell in cells]
        axes.plot(
            [*angles, angles[0]], [*values, values[0]], label=label, color=_line_colour(number),
            linestyle=_LINES[number], marker=_MARKERS[number], ms=5, lw=1.8,
        )  # fmt: skip
    axes.set_xticks(angles, [language_name(lang) for lang in one.languages])
    axes.tick_params(axis="x", pad=14)
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    _from_zero(axes, one)
    # between two spokes, where no line has its points
    axes.set_rlabel_position(180 / len(one.languages))
    for text in axes.get_yticklabels():
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8})
    axes.set_title(unit_in_words(one), pad=18, fontsize=11)


def _line_colour(number: int) -> str:
    # yellow lines are too faint
    return (BLUE, ORANGE, GREEN, "#CC79A7", "#000000", "#E69F00")[number]


def ratio_of(label: str) -> float:
    """The ratio of non-English data that a label names, in percent: `150`, `150%`, `ratio-150`.

    Raises:
        ConfigError: There is no number, or more than one.
    """
    numbers = re.findall(r"\d+(?:\.\d+)?", label)
    if len(numbers) != 1:
        raise ConfigError(f"{label!r}: expected a label with the ratio in percent, as in 150=RUN")
    return float(numbers[0])


def ratio_figure(scored: ScoredBenchmark, labels: Sequence[str]) -> Figure:
    """Figure 6: the score over the ratio of non-English to English data, a line a language.

    Args:
        scored: One benchmark.
        labels: Of the settings; each names its ratio.

    Raises:
        ConfigError: A label names no ratio, or two name the same.
        DataError: There is no score to draw.
    """
    ratios = {label: ratio_of(label) for label in labels}
    if len(set(ratios.values())) < len(labels):
        raise ConfigError(f"two settings have the same ratio: {', '.join(labels)}")
    ordered = sorted(labels, key=lambda label: ratios[label])
    xs = [ratios[label] for label in ordered]
    figure = Figure(figsize=(8.2, 5.2), layout="constrained")
    axes = figure.subplots()
    colours = cycle((BLUE, ORANGE, GREEN, SKY, "#CC79A7", "#E69F00", "#666666"))
    drawn = 0
    for number, lang in enumerate(scored.others):
        cells = [scored.cells[label][lang] for label in ordered]
        drawn += _line(
            axes, xs, cells, language_name(lang), color=next(colours), lw=1.1, alpha=0.9,
            linestyle=_LINES[number % len(_LINES)], marker=_MARKERS[number % len(_MARKERS)], ms=5,
        )  # fmt: skip
    means = [scored.mean(label) for label in ordered]
    if len(scored.others) > 1:
        name = f"mean of {len(scored.others)} without English"
        drawn += _line(axes, xs, means, name, color="black", lw=3, marker="o", ms=7)
    if ENGLISH in scored.languages:
        cells = [scored.cells[label][ENGLISH] for label in ordered]
        drawn += _line(axes, xs, cells, "English", color="black", lw=3, linestyle="--",
                       marker="s", ms=7, mfc="white")  # fmt: skip
    if not drawn:
        raise DataError(f"{scored.name}: no score to draw: every value is missing")
    axes.set_xticks(xs, [f"{x:g} %" for x in xs])
    axes.set_xlabel("non-English data, in percent of the English data")
    axes.set_ylabel(unit_in_words(scored))
    axes.grid(alpha=0.3)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside right upper", frameon=False,
                  handlelength=4)  # fmt: skip
    return figure


def _line(axes: Axes, xs: Sequence[float], cells: Sequence[Cell], name: str, **look: Any) -> int:
    """Draw what is there; a missing value is a gap. Returns how many values are drawn."""
    values = [np.nan if cell.value is None else cell.value for cell in cells]
    spreads = [cell.spread or 0.0 for cell in cells]
    errors = spreads if any(spreads) and look["lw"] > 2 else None
    axes.errorbar(xs, values, errors, label=name, capsize=3, elinewidth=1.2, **look)
    return int(np.isfinite(values).sum())


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
    return (
        environment()
        .get_template("examples.html")
        .render(
            title="The same questions to several models",
            caption=examples.caption,
            shown=[(shown, _picture_url(shown.picture)) for shown in examples.shown],
            english=_english,
            language_name=language_name,
        )
    )


def _picture_url(path: Path) -> str:
    open_image(path)  # refuses what is no image
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    return data_url(kind, path.read_bytes())
