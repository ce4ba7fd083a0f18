"""The part of `report.html` with the figures of the paper's tables, in the paper's unit.

In: a benchmark's results. Out: a piece of HTML; nothing for a benchmark that has no such figure.
"""

from __future__ import annotations

from html import escape
from typing import Final

from lrm_ext.evaluate.kind import LOCAL
from lrm_ext.evaluate.report import BenchmarkResult, Headline
from lrm_ext.evaluate.results import ENGLISH
from lrm_ext.report.page import section
from lrm_ext.report.tables import headline_remarks

_HEADS: Final = ("95 %", "without the picture", "answered", "unread", "fidelity")


def headlines_section(benchmark: BenchmarkResult) -> str:
    """A row a language and mode of reading, and the mean without English."""
    names = [headline.name for result in benchmark.languages for headline in result.headlines]
    if not names:
        return ""
    rows = [
        _row([result.name, headline.mode, *_cells(headline)])
        for result in benchmark.languages
        for headline in result.headlines
    ]
    # the last mode is the one that every language is read in
    others = [r.headlines[-1] for r in benchmark.languages if r.lang != ENGLISH and r.headlines]
    if len(others) > 1:
        mean = sum(headline.value for headline in others) / len(others)
        cells = [f"mean of {len(others)}", LOCAL, f"<b>{mean:.2f}</b>", *[""] * len(_HEADS)]
        rows.append(f'<tr class="mean">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    heads = ("language", "read as", names[0], *_HEADS)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    notes = "".join(f'<p class="soft">{escape(line)}.</p>' for line in headline_remarks(benchmark))
    return section(
        f"{benchmark.name}: {names[0]}",
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{notes}",
    )


def _row(cells: list[str]) -> str:
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _cells(headline: Headline) -> list[str]:
    counts, faith = headline.details["counts"], headline.details["fidelity"]
    return [
        f"<b>{headline.value:.2f}</b>",
        f"{headline.low:.1f}-{headline.high:.1f}",
        "-" if headline.blind is None else f"{headline.blind:.2f}",
        f"{counts['answered']:,} of {counts['questions']:,}",
        f"{counts['unparsed']:,}",
        f"{faith['in_language']:,} of {faith['decided']:,}",
    ]
