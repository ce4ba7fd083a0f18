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
        rows: Cells, with rich's markup. A row of means, which begins with "mean", is set apart.
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
        if row[0].startswith("mean "):
            table.add_section()
        table.add_row(*row)
    return table
