"""Renders reports: one HTML page that needs nothing but itself, and its plots.

In: numbers, labels, pieces of HTML. Out: a page that is readable on a phone, in the dark and on
paper. No requests to anywhere: styles are inside, fonts are the reader's own. Plots are inline SVG
that fits any width: positions are percentages and text is never scaled, colours follow the page.
Every mark differs from the others in shape, not only in colour, and every plot says its numbers in
words. Templates lie in `templates/`; those of HTML escape what they are given.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

MAX_CURVE_POINTS: Final = 200


@cache
def environment() -> Environment:
    """The templates; other files than HTML are not escaped."""
    return Environment(
        loader=PackageLoader("lrm_ext.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _plot(name: str, *values: Any) -> Markup:
    plot: Markup = getattr(environment().get_template("charts.html").module, name)(*values)
    return plot


def render_page(title: str, lead: str, *sections: str) -> str:
    """Puts a page together.

    Args:
        title: Text.
        lead: HTML: what the page says in a sentence or two.
        *sections: HTML; empty ones are left out.
    """
    return (
        environment()
        .get_template("page.html")
        .render(title=title, lead=Markup(lead), content=Markup("\n".join(filter(None, sections))))
    )


def data_url(kind: str, content: bytes) -> str:
    """A picture as a URL that holds it; `kind` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def section(heading: str, *content: str) -> str:
    """A part of the page with a heading."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n{''.join(content)}\n</section>"


@dataclass(frozen=True)
class Bar:
    """One bar: a share with the range around it and what to hold it against.

    Attributes:
        label: Name of the row.
        value: Proportion, 0 to 1.
        low: Lower end of the range around it; None for no range.
        high: Upper end.
        blind: The model without the picture; None if unknown.
        majority: The commonest answer; None if unknown.
        kind: CSS class that tells rows of different meaning apart.
        detail: Smaller text after the label.
        detail_lang: Language of that text.
        range_name: What `low` and `high` are, in words.
    """

    label: str
    value: float
    low: float | None
    high: float | None
    blind: float | None
    majority: float | None
    kind: str = "main"
    detail: str = ""
    detail_lang: str = ""
    range_name: str = "95 % interval"

    def in_words(self) -> str:
        """The whole row as a sentence, for those who cannot see it."""
        parts = [f"{self.label}: {100 * self.value:.1f} percent right"]
        if self.low is not None and self.high is not None:
            parts.append(f"{self.range_name} {100 * self.low:.1f} to {100 * self.high:.1f}")
        if self.blind is not None:
            parts.append(f"without the picture {100 * self.blind:.1f}")
        if self.majority is not None:
            parts.append(f"commonest answer {100 * self.majority:.1f}")
        return ", ".join(parts)


def bar_chart(bars: Sequence[Bar]) -> Markup:
    """Rows of bars over a common axis from 0 to 100 percent."""
    return _plot("bar_chart", bars)


def legend(range_text: str, has_blind: bool) -> Markup:
    """What the marks of a bar chart mean.

    Args:
        range_text: What the range is.
        has_blind: Whether there was a run without the picture.
    """
    return _plot("legend", range_text, has_blind)


def loss_curve(steps: Sequence[int], losses: Sequence[float], name: str) -> Markup:
    """The loss over the steps of a training, on a logarithmic axis.

    Args:
        steps: At least two, ascending.
        losses: Positive, as many.
        name: Of the stage, for the description in words.
    """
    steps, losses = _thin_out(steps, losses)
    low, high = math.log(min(losses)), math.log(max(losses))
    margin = max(0.05 * (high - low), 0.02)
    low, high = low - margin, high + margin
    last = max(steps)

    def height(loss: float) -> float:
        return 100 * (high - math.log(loss)) / (high - low)

    points = " ".join(
        f"{100 * step / last:.2f},{height(loss):.2f}"
        for step, loss in zip(steps, losses, strict=True)
    )
    grid = [
        (f"{tick:g}", f"{height(tick):.2f}") for tick in log_ticks(math.exp(low), math.exp(high))
    ]
    words = (
        f"{name}: loss from {losses[0]:.2f} at step {steps[0]:,} to {losses[-1]:.2f} at {last:,}"
    )
    return _plot("loss_curve", words, points, grid, f"{last:,}")


def log_ticks(low: float, high: float) -> list[float]:
    """Round values (1, 2, 5 times a power of ten) between two positive numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def _thin_out(steps: Sequence[int], losses: Sequence[float]) -> tuple[list[int], list[float]]:
    """Average neighbours, so that a long log does not become a thick band."""
    size = math.ceil(len(steps) / MAX_CURVE_POINTS)
    starts = range(0, len(steps), size)
    groups = [losses[start : start + size] for start in starts]
    ends = [min(start + size, len(steps)) - 1 for start in starts]
    return [steps[end] for end in ends], [sum(group) / len(group) for group in groups]
