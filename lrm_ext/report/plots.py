"""Draws scores: the paper's Figures 1 and 6.

In: scored settings. Out: matplotlib figures, readable in grey and by colour-blind people: what
differs in colour (Okabe and Ito's) differs in hatch, line or marker, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llava.errors import ConfigError, DataError
from lrm_ext.evaluate.results import ENGLISH
from lrm_ext.languages import language_name
from lrm_ext.languages.grouping import MAX_ROWS
from lrm_ext.report.render import BLUE, GREEN, ORANGE, PINK, SKY
from lrm_ext.report.settings import Cell, ScoredBenchmark

_COLOURS: Final = (SKY, ORANGE, GREEN, "#F0E442", PINK, "#999999")
# for lines, of which yellow ones are too faint
_LINE_COLOURS: Final = (BLUE, ORANGE, GREEN, PINK, "#000000", "#E69F00")
_RATIO_COLOURS: Final = (BLUE, ORANGE, GREEN, SKY, PINK, "#E69F00", "#666666")
_HATCHES: Final = ("", "///", "...", "xx", "\\\\\\", "--")
_LINES: Final = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")


def _unit(scored: ScoredBenchmark) -> str:
    """Returns the label of the axis of a benchmark's score."""
    return f"{scored.name}: {scored.kind.headline} ({'%' if _maximum(scored) else 'points'})"


def _maximum(scored: ScoredBenchmark) -> float | None:
    """Returns 100 if the score is in percent; points have no end that a plot must show."""
    maximum = scored.kind.maximum
    return maximum if maximum == 100 else None


def _values(cells: Iterable[Cell]) -> list[float]:
    """Returns the scores; a missing one is drawn as a gap."""
    return [np.nan if cell.value is None else cell.value for cell in cells]


def languages_figure(benchmarks: Sequence[ScoredBenchmark], style: str = "bars") -> Figure:
    """Draws Figure 1: every setting in every language, a panel a benchmark.

    Bars of more than `MAX_ROWS` languages are in several panels, one below the other.

    Args:
        benchmarks: As `score_settings` returns them, with at most six settings.
        style: `bars` or `radar`.

    Raises:
        ConfigError: The style is unknown, or there are too many settings to tell apart.
    """
    if style not in ("bars", "radar"):
        raise ConfigError(f"--style {style}: expected bars or radar")
    if style == "bars":
        benchmarks = [part for one in benchmarks for part in _parts(one)]
    num, num_settings = len(benchmarks), len(benchmarks[0].cells)
    if num_settings > len(_COLOURS):
        raise ConfigError(f"{num_settings} settings; expected at most {len(_COLOURS)} in a figure")
    if style == "radar":
        figure = Figure(figsize=(6.4 * num, 6.6), layout="constrained")
        looks = {"projection": "polar"}
        panels = figure.subplots(1, num, squeeze=False, subplot_kw=looks).ravel()
    else:
        widest = max(len(one.languages) for one in benchmarks)
        size = (max(7.0, 0.34 * widest * (num_settings + 1)), 0.9 + 3.2 * num)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(num, 1, squeeze=False).ravel()
    for axes, one in zip(panels, benchmarks, strict=True):
        (_radar if style == "radar" else _bars)(axes, one)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(3, len(names)),
                  frameon=False)  # fmt: skip
    return figure


def _parts(one: ScoredBenchmark) -> list[ScoredBenchmark]:
    """Splits a benchmark into parts of at most `MAX_ROWS` languages, of about equal size."""
    num = -(-len(one.languages) // MAX_ROWS)
    size = -(-len(one.languages) // num)
    starts = range(0, len(one.languages), size)
    parts = []
    for langs in (one.languages[start : start + size] for start in starts):
        cells = {name: {lang: own[lang] for lang in langs} for name, own in one.cells.items()}
        parts.append(replace(one, languages=langs, cells=cells))
    return parts


def _bars(axes: Axes, one: ScoredBenchmark) -> None:
    places = np.arange(len(one.languages))
    width = 0.8 / len(one.cells)
    for number, (label, by_lang) in enumerate(one.cells.items()):
        values = _values(by_lang.values())
        at = places + (number - (len(one.cells) - 1) / 2) * width
        axes.bar(
            at, values, width, label=label, color=_COLOURS[number], hatch=_HATCHES[number],
            edgecolor="black", linewidth=0.6,
        )  # fmt: skip
        whiskers = np.array([_whisker(cell) for cell in by_lang.values()]).T
        axes.errorbar(at, values, whiskers, fmt="none", ecolor="black", lw=1, capsize=2)
        for x in at[np.isnan(values)]:
            axes.text(x, 0.02, "missing", rotation=90, ha="center", va="bottom", fontsize=8,
                      transform=axes.get_xaxis_transform())  # fmt: skip
    axes.set_xticks(places, [language_name(lang) for lang in one.languages], rotation=30,
                    ha="right", rotation_mode="anchor")  # fmt: skip
    axes.set_ylabel(_unit(one))
    axes.set_ylim(0, _maximum(one))  # from 0, so that lengths tell
    several = [cell.spread is not None for cells in one.cells.values() for cell in cells.values()]
    words = ["95 % interval of a run"] if not all(several) else []
    words += ["standard deviation over seeds"] if any(several) else []
    axes.set_xlabel(f"whiskers: {', or '.join(words)}", fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _whisker(cell: Cell) -> tuple[float, float]:
    """Returns how far a value may be off, downwards and upwards."""
    if cell.value is None or cell.spread is not None:
        return cell.spread or 0.0, cell.spread or 0.0
    (score,) = cell.scores
    if score.low is None or score.high is None:
        return 0.0, 0.0
    return max(0.0, cell.value - score.low), max(0.0, score.high - cell.value)


def _radar(axes: Any, one: ScoredBenchmark) -> None:
    angles = 2 * np.pi * np.arange(len(one.languages)) / len(one.languages)
    for number, (label, by_lang) in enumerate(one.cells.items()):
        values = _values(by_lang.values())
        axes.plot(
            [*angles, angles[0]], [*values, values[0]], label=label, color=_LINE_COLOURS[number],
            linestyle=_LINES[number], marker=_MARKERS[number], ms=5, lw=1.8,
        )  # fmt: skip
    axes.set_xticks(angles, [language_name(lang) for lang in one.languages])
    axes.tick_params(axis="x", pad=14)
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    axes.set_ylim(0, _maximum(one))
    # between two spokes, where no line has its points
    axes.set_rlabel_position(180 / len(one.languages))
    for text in axes.get_yticklabels():
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8})
    axes.set_title(_unit(one), pad=18, fontsize=11)


def ratio_of(label: str) -> float:
    """Reads the ratio of non-English data from a label, in percent: `150`, `150%`, `ratio-150`.

    Raises:
        ConfigError: There is no number, or more than one.
    """
    numbers = re.findall(r"\d+(?:\.\d+)?", label)
    if len(numbers) != 1:
        raise ConfigError(f"{label!r}: expected a label with the ratio in percent, as in 150=RUN")
    return float(numbers[0])


def ratio_figure(scored: ScoredBenchmark) -> Figure:
    """Draws Figure 6: the score over the ratio of non-English to English data, a line a language.

    Lines of more than `MAX_ROWS` languages cannot be told apart: they are grey.

    Args:
        scored: One benchmark; the label of each setting names its ratio.

    Raises:
        ConfigError: A label names no ratio, or two name the same.
        DataError: There is no score to draw.
    """
    ratios = {label: ratio_of(label) for label in scored.cells}
    if len(set(ratios.values())) < len(ratios):
        raise ConfigError(f"two settings have the same ratio: {', '.join(ratios)}")
    ordered, xs = zip(*sorted(ratios.items(), key=lambda pair: pair[1]), strict=True)
    figure = Figure(figsize=(8.2, 5.2), layout="constrained")
    axes = figure.subplots()
    lines: list[tuple[str, list[Cell], dict[str, Any]]] = []
    for number, lang in enumerate(scored.others):
        look: dict[str, Any] = {
            "color": _RATIO_COLOURS[number % len(_RATIO_COLOURS)], "lw": 1.1, "alpha": 0.9,
            "linestyle": _LINES[number % len(_LINES)],
            "marker": _MARKERS[number % len(_MARKERS)], "ms": 5,
        }  # fmt: skip
        name = language_name(lang)
        if len(scored.others) > MAX_ROWS:
            look = {"color": "#999999", "lw": 0.8, "alpha": 0.7}
            # matplotlib leaves a label with this beginning out of the legend
            name = f"_{name}" if number else f"each of {len(scored.others)} languages"
        lines.append((name, [scored.cells[label][lang] for label in ordered], look))
    bold: dict[str, Any] = {"color": "black", "lw": 3, "ms": 7}
    if len(scored.others) > 1:
        name = f"mean of {len(scored.others)} without English"
        lines.append((name, list(map(scored.mean, ordered)), {**bold, "marker": "o"}))
    if ENGLISH in scored.languages:
        look = {**bold, "linestyle": "--", "marker": "s", "mfc": "white"}
        lines.append(("English", [scored.cells[label][ENGLISH] for label in ordered], look))
    if np.isnan([value for _, cells, _ in lines for value in _values(cells)]).all():
        raise DataError(f"{scored.name}: no score to draw: every value is missing")
    for name, cells, look in lines:
        spreads = [cell.spread or 0.0 for cell in cells]
        errors = spreads if any(spreads) and look["lw"] > 2 else None
        axes.errorbar(xs, _values(cells), errors, label=name, capsize=3, elinewidth=1.2, **look)
    axes.set_xticks(xs, [f"{x:g} %" for x in xs])
    axes.set_xlabel("non-English data, in percent of the English data")
    axes.set_ylabel(_unit(scored))
    axes.grid(alpha=0.3)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside right upper", frameon=False,
                  handlelength=4)  # fmt: skip
    return figure
