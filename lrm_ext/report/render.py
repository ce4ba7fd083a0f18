"""Renders what reports show: tables on the terminal, and pages from the templates in `templates/`.

A page needs nothing but itself and is readable on a phone, in the dark and on paper: styles and
images are inside, fonts are the reader's own. Plots are inline SVG that fits any width: positions
are percentages and text is never scaled, colours follow the page. Marks differ in shape, not only
in colour, and every plot says its numbers in words. Templates escape what they are given.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from rich import box
from rich.table import Table

from llava.errors import ConfigError
from lrm_ext.languages.registry import text_direction

# Okabe and Ito's colours, which colour-blind people can tell apart
BLUE, ORANGE, GREEN, SKY, PINK = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#CC79A7"
MAX_CURVE_POINTS: Final = 200
WIDE_COLUMNS: Final = 100
# of a plot with labels on a phone and on a wide page; its height, as in charts.html
_WIDTHS_PX: Final = (300, 750)
_PLOT_HEIGHT_PX: Final = 300


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("lrm_ext.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["in_language"] = _in_language
    return environment


def _in_language(code: str) -> Markup:
    """Returns the attributes of an element whose text is in a language: its code and direction."""
    try:
        direction = text_direction(code)
    except ConfigError:  # data of others may have other codes
        direction = "auto"
    return Markup('lang="{}" dir="{}"').format(code, direction)


def render(template: str, **values: Any) -> str:
    """Renders a template with its values."""
    return _templates().get_template(template).render(**values)


def data_url(kind: str, content: bytes) -> str:
    """Returns an image as a URL that holds it; `kind` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def loss_curve(steps: Sequence[int], losses: Sequence[float], name: str) -> Markup:
    """Draws the loss over the steps of a training, on a logarithmic axis.

    Neighbours are averaged, so that a long log does not become a thick band.

    Args:
        steps: At least two, ascending.
        losses: Positive, as many.
        name: Of the stage, for the description in words.
    """
    size = math.ceil(len(steps) / MAX_CURVE_POINTS)
    starts = range(0, len(steps), size)
    steps = [steps[min(start + size, len(steps)) - 1] for start in starts]
    losses = [fmean(losses[start : start + size]) for start in starts]
    low, high = math.log(min(losses)), math.log(max(losses))
    margin = max(0.05 * (high - low), 0.02)
    low, high = low - margin, high + margin

    def height(loss: float) -> str:
        return f"{100 * (high - math.log(loss)) / (high - low):.2f}"

    ends = zip(steps, losses, strict=True)
    points = " ".join(f"{100 * step / steps[-1]:.2f},{height(loss)}" for step, loss in ends)
    grid = [(f"{tick:g}", height(tick)) for tick in log_ticks(math.exp(low), math.exp(high))]
    words = f"{name}: loss from {losses[0]:.2f} at step {steps[0]:,} to {losses[-1]:.2f}"
    words += f" at {steps[-1]:,}"
    charts: Any = _templates().get_template("charts.html").module
    return Markup(charts.loss_curve(words, points, grid, f"{steps[-1]:,}"))


@dataclass(frozen=True)
class LabelledPoint:
    """A point of a plot with its label.

    Attributes:
        label: Short, such as the code of a language.
        words: What it says, in words.
        search: What the filter of the page finds it by.
        x: In percent.
        y: In percent.
    """

    label: str
    words: str
    search: str
    x: float
    y: float


def labelled_scatter(
    points: Sequence[LabelledPoint], axes: tuple[str, str], level: float
) -> Markup:
    """Draws labelled points; labels that would cover each other are moved aside and tied to theirs.

    Args:
        points: At least one.
        axes: What x and y are.
        level: Of y, where a line is drawn; below it points are marked.
    """
    xs, ys = ([getattr(point, axis) for point in points] for axis in ("x", "y"))
    x_axis, y_axis = (_percent_axis(min(values), max(values)) for values in (xs, ys))

    def place(value: float, axis: Sequence[int]) -> float:
        return 100 * (value - axis[0]) / (axis[-1] - axis[0])

    at = [(place(x, x_axis), 100 - place(y, y_axis)) for x, y in zip(xs, ys, strict=True)]
    labels = _label_offsets(at, [point.label for point in points])
    lowest = min(points, key=lambda point: point.x)
    charts: Any = _templates().get_template("charts.html").module
    return Markup(
        charts.scatter(
            words=f"{axes[1]} over {axes[0]}: {len(points)} points; the least of x is "
            f"{lowest.words}; all figures are in the table below",
            marks=list(zip(points, at, labels, strict=True)),
            ticks=[[(tick, place(tick, axis)) for tick in axis] for axis in (x_axis, y_axis)],
            axes=axes,
            level=100 - place(level, y_axis) if level > y_axis[0] else None,
            is_low=[point.y < level for point in points],
        )
    )


def _percent_axis(low: float, high: float) -> range:
    """Returns the ticks of an axis of percentages around the values."""
    step = 5 if high - low <= 25 else 10 if high - low <= 50 else 20
    start = min(math.floor(low / step), math.ceil(high / step) - 1) * step
    return range(start, math.ceil(high / step) * step + 1, step)


def _label_offsets(
    at: Sequence[tuple[float, float]], labels: Sequence[str]
) -> list[tuple[float, float]]:
    """Returns how far the middle of each label is from its point, in pixels.

    Args:
        at: Points, in percent of the plot.
        labels: As many.
    """
    # of a place that is free on a phone another label may be near on a wider page, so try both
    points = [[(width * x / 100, _PLOT_HEIGHT_PX * y / 100) for x, y in at] for width in _WIDTHS_PX]
    taken = [[(x - 4, y - 4, x + 4, y + 4) for x, y in own] for own in points]

    def cost(number: int, half: float, dx: float, dy: float) -> float:
        total = 0.0
        for own, boxes in zip(points, taken, strict=True):
            left, top, right, bottom = _around(own[number], half, dx, dy)
            total += 1000 * (top < -8 or bottom > _PLOT_HEIGHT_PX or left < 0)
            for a, b, c, d in boxes:
                total += max(0.0, min(right, c) - max(left, a)) * max(
                    0.0, min(bottom, d) - max(top, b)
                )
        return total

    offsets: list[tuple[float, float]] = []
    for number, label in enumerate(labels):
        half = 3.8 * len(label)
        tries = [
            ((half + 5 + far) * math.cos(angle), (10 + far) * math.sin(angle))
            for far in range(0, 72, 8)
            for angle in (math.tau * turn / 16 for turn in range(16))
        ]
        # the nearest that is free: `tries` are in order of distance
        free = (offset for offset in tries if not cost(number, half, *offset))
        dx, dy = next(free, None) or min(tries, key=lambda offset: cost(number, half, *offset))
        for own, boxes in zip(points, taken, strict=True):
            boxes.append(_around(own[number], half, dx, dy))
        offsets.append((dx, dy))
    return offsets


def _around(
    point: tuple[float, float], half: float, dx: float, dy: float
) -> tuple[float, float, float, float]:
    """Returns left, top, right and bottom of a label."""
    x, y = point[0] + dx, point[1] + dy
    return x - half, y - 6, x + half, y + 6


def log_ticks(low: float, high: float) -> list[float]:
    """Returns the round values (1, 2, 5 times a power of ten) between two positive numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def printable(text: str) -> str:
    """Replaces control characters by spaces: they could steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def terminal_table(
    title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], width: int = 0, **options: Any
) -> Table:
    """Makes a table of numbers for the terminal.

    Args:
        title: Stands above it.
        heads: The first column is words, the others are numbers.
        rows: Cells, with rich's markup. A row of means, which begins with "mean", is set apart; an
            empty row sets apart what follows.
        width: Columns of the terminal; 0 if there are enough.
        options: Of rich's table.
    """
    padding = (0, 1) if not 0 < width < WIDE_COLUMNS else 0
    table = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", show_edge=False, padding=padding,
        **options,
    )  # fmt: skip
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        if not row or row[0].startswith("mean "):
            table.add_section()
        if row:
            table.add_row(*row)
    return table
