"""Charts of a corpus' report as pieces of HTML: parts of a whole, and how figures are spread.

In: numbers and labels. Out: HTML that fits any width, coloured by the page's style sheet (`STYLE`
is what these charts add to it). As in `charts.py`, marks differ in more than colour, and every
chart says its numbers in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

ROW_HEIGHT_PX: Final = 20
STYLE: Final = """
.stack { display: flex; height: 14px; border-radius: .2rem; overflow: hidden; background: var(--card); }
.stack i, .legend i { display: block; height: 100%; flex: none; }
.legend i { width: 1.6rem; height: 12px; }
.ok { background: var(--bar); }
.suspect { background: repeating-linear-gradient(45deg, var(--bar-other) 0 3px, var(--page) 3px 6px); }
.rejected { background: var(--bad); background-image: radial-gradient(var(--page) 1px, transparent 1.2px); background-size: 5px 5px; }
.english-only { background: var(--rule); }
.missing { background: repeating-linear-gradient(90deg, var(--soft) 0 1px, var(--card) 1px 5px); }
.spread { stroke: var(--bar); stroke-width: 2; }
.middle { fill: var(--bar-other); stroke: var(--bar); stroke-width: 1; }
.median { stroke: var(--ink); stroke-width: 2.5; }
.limit { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 3 2; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: .5rem 2rem; }
@media print { .stack i, .legend i { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""  # noqa: E501 - a rule a line


@dataclass(frozen=True)
class Part:
    """One part of a bar.

    Attributes:
        kind: CSS class, which decides how it looks.
        label: What it is, in words.
        count: How many.
    """

    kind: str
    label: str
    count: int


def stacked_bar(label: str, parts: Sequence[Part], number: str) -> str:
    """One row: a name, its parts of a whole, and a number at the end."""
    total = sum(part.count for part in parts) or 1
    words = ", ".join(f"{part.count:,} {part.label}" for part in parts)
    pieces = "".join(
        f'<i class="{part.kind}" style="width:{100 * part.count / total:.3f}%"></i>'
        for part in parts
    )
    said = escape(f"{label}: {words}")
    return (
        f'<div class="label">{escape(label)}</div>'
        f'<div class="stack" role="img" aria-label="{said}" title="{said}">{pieces}</div>'
        f'<div class="number">{escape(number)}</div>'
    )


def parts_legend(labels: Mapping[str, str]) -> str:
    """What the parts of stacked bars mean, by their CSS class."""
    items = "".join(
        f'<li><i class="{kind}"></i>{escape(label)}</li>' for kind, label in labels.items()
    )
    return f'<ul class="legend">{items}</ul>'


@dataclass(frozen=True)
class Spread:
    """How a figure is spread over many rows.

    Attributes:
        label: Name of the row.
        quantiles: Values at 5, 25, 50, 75 and 95 percent.
        limit: What it must not exceed; None if there is no such thing.
    """

    label: str
    quantiles: tuple[float, float, float, float, float]
    limit: float | None = None

    def in_words(self) -> str:
        """The whole row as a sentence."""
        low, quarter, middle, three, high = (f"{value:.3g}" for value in self.quantiles)
        limit = "" if self.limit is None else f"; limit {self.limit:.3g}"
        return (
            f"{self.label}: median {middle}, half between {quarter} and {three}, nine of ten "
            f"between {low} and {high}{limit}"
        )


def spread_chart(spreads: Sequence[Spread]) -> str:
    """Rows over a common axis: a line from 5 to 95 percent, a box for the middle half."""
    values = [v for spread in spreads for v in (*spread.quantiles, spread.limit) if v is not None]
    low, high = min(0.0, *values), max(values)
    span = (high - low) or 1.0
    rows = "".join(_spread_row(spread, low, span) for spread in spreads)
    ends = "".join(
        f'<text x="{at}" y="13" text-anchor="{anchor}">{value:.3g}</text>'
        for at, anchor, value in (("0", "start", low), ("100%", "end", high))
    )
    axis = f'<div></div><svg class="plot" height="16" aria-hidden="true">{ends}</svg><div></div>'
    return f'<div class="chart">{rows}{axis}</div>'


def _spread_row(spread: Spread, low: float, span: float) -> str:
    def at(value: float) -> str:
        return f"{100 * (value - low) / span:.2f}%"

    five, quarter, middle, three, ninety_five = spread.quantiles
    y = ROW_HEIGHT_PX // 2
    width = f"{100 * (three - quarter) / span:.2f}%"
    marks = [
        f'<line class="spread" x1="{at(five)}" x2="{at(ninety_five)}" y1="{y}" y2="{y}"/>',
        f'<rect class="middle" x="{at(quarter)}" y="{y - 5}" width="{width}" height="10"/>',
        f'<line class="median" x1="{at(middle)}" x2="{at(middle)}" y1="{y - 7}" y2="{y + 7}"/>',
    ]
    if spread.limit is not None:
        x = at(spread.limit)
        marks.append(f'<line class="limit" x1="{x}" x2="{x}" y1="0" y2="{ROW_HEIGHT_PX}"/>')
    words = escape(spread.in_words())
    return (
        f'<div class="label">{escape(spread.label)}</div>'
        f'<svg class="plot" height="{ROW_HEIGHT_PX}" role="img" aria-label="{words}">'
        f"<title>{words}</title>{''.join(marks)}</svg>"
        f'<div class="number">{middle:.3g}</div>'
    )
