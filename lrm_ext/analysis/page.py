"""Renders reports: one HTML page that needs nothing but itself, and its plots.

In: numbers, labels, pieces of HTML. Out: a page that is readable on a phone, in the dark and on
paper. No requests to anywhere: styles are inside, fonts are the reader's own. Plots are inline SVG
that fits any width: positions are percentages and text is never scaled, colours follow the page.
Every mark differs from the others in shape, not only in colour, and every plot says its numbers in
words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Final

_TEMPLATE_FILE: Final = "report.html"


def render_page(title: str, lead: str, *sections: str, style: str = "") -> str:
    """Put a page together.

    Args:
        title: Text.
        lead: HTML: what the page says in a sentence or two.
        *sections: HTML; empty ones are left out.
        style: More CSS.
    """
    template = files("lrm_ext.analysis").joinpath(_TEMPLATE_FILE).read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(title), lead=lead, sections="\n".join(filter(None, sections)), style=style
    )


def section(heading: str, *content: str) -> str:
    """A part of the page with a heading."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n{''.join(content)}\n</section>"


ROW_HEIGHT_PX: Final = 26
CURVE_HEIGHT_PX: Final = 180
MAX_CURVE_POINTS: Final = 200
_TICKS: Final = (0, 25, 50, 75, 100)


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


def bar_chart(bars: Sequence[Bar]) -> str:
    """Rows of bars over a common axis from 0 to 100 percent."""
    return f'<div class="chart">{"".join(map(_row, bars))}{_axis()}</div>'


def legend(range_text: str, has_blind: bool) -> str:
    """What the marks of a bar chart mean.

    Args:
        range_text: What the range is.
        has_blind: Whether there was a run without the picture.
    """
    entries = [
        ('<rect class="bar main" x="2" y="5" width="24" height="10"/>', "right answers"),
        (_whisker("4", "24", 10), range_text),
    ]
    if has_blind:
        entries.append(('<circle class="blind" cx="14" cy="10" r="4.5"/>', "without the picture"))
    entries.append(
        ('<line class="majority" x1="14" x2="14" y1="1" y2="19"/>', "always the commonest answer")
    )
    items = "".join(
        f'<li><svg width="28" height="20" aria-hidden="true">{mark}</svg>{escape(text)}</li>'
        for mark, text in entries
    )
    return f'<ul class="legend">{items}</ul>'


def _row(bar: Bar) -> str:
    middle = ROW_HEIGHT_PX // 2
    marks = [
        f'<line class="grid" x1="{tick}%" x2="{tick}%" y1="0" y2="{ROW_HEIGHT_PX}"/>'
        for tick in _TICKS
    ]
    place = f'x="0" y="{middle - 7}" width="{_at(bar.value)}" height="14"'
    marks.append(f'<rect class="bar {bar.kind}" {place}/>')
    if bar.majority is not None:
        at = _at(bar.majority)
        marks.append(
            f'<line class="majority" x1="{at}" x2="{at}" y1="1" y2="{ROW_HEIGHT_PX - 1}"/>'
        )
    if bar.low is not None and bar.high is not None:
        marks.append(_whisker(_at(bar.low), _at(bar.high), middle))
    if bar.blind is not None:
        marks.append(f'<circle class="blind" cx="{_at(bar.blind)}" cy="{middle}" r="4.5"/>')
    detail = ""
    if bar.detail:
        lang = f' lang="{escape(bar.detail_lang)}"' if bar.detail_lang else ""
        detail = f' <span class="detail"{lang}>{escape(bar.detail)}</span>'
    return (
        f'<div class="label">{escape(bar.label)}{detail}</div>'
        f'<svg class="plot" height="{ROW_HEIGHT_PX}" role="img" '
        f'aria-label="{escape(bar.in_words())}"><title>{escape(bar.in_words())}</title>'
        f"{''.join(marks)}</svg>"
        f'<div class="number">{100 * bar.value:.1f}</div>'
    )


def _axis() -> str:
    texts = []
    for tick in _TICKS:
        anchor = {0: "start", 100: "end"}.get(tick, "middle")
        texts.append(f'<text x="{tick}%" y="14" text-anchor="{anchor}">{tick}</text>')
    return (
        '<div></div><svg class="plot axis" height="18" aria-hidden="true">'
        f"{''.join(texts)}</svg><div></div>"
    )


def _whisker(low: str, high: str, y: int) -> str:
    ends = "".join(
        f'<line class="whisker" x1="{x}" x2="{x}" y1="{y - 4}" y2="{y + 4}"/>' for x in (low, high)
    )
    return f'<line class="whisker" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>{ends}'


def _at(value: float) -> str:
    return f"{100 * value:.2f}%"


def loss_curve(steps: Sequence[int], losses: Sequence[float], name: str) -> str:
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
    grid = "".join(
        f'<line class="grid" x1="0" x2="100%" y1="{y:.2f}%" y2="{y:.2f}%"/>'
        f'<text x="100%" dx="-2" text-anchor="end" y="{y:.2f}%" dy="-3">{tick:g}</text>'
        for tick in log_ticks(math.exp(low), math.exp(high))
        for y in [height(tick)]
    )
    words = (
        f"{name}: loss from {losses[0]:.2f} at step {steps[0]:,} to {losses[-1]:.2f} at {last:,}"
    )
    return (
        f'<svg class="curve" height="{CURVE_HEIGHT_PX}" role="img" aria-label="{escape(words)}">'
        f"<title>{escape(words)}</title>{grid}"
        '<svg x="0" y="0" width="100%" height="100%" viewBox="0 0 100 100" '
        f'preserveAspectRatio="none"><polyline class="loss" points="{points}"/></svg></svg>'
        f'<div class="steps"><span>0</span><span>step {last:,}</span></div>'
    )


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
