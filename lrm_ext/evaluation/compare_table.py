"""A comparison of two runs on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

from lrm_ext.evaluation.compare import BETTER, UNCLEAR, WORSE, BenchmarkComparison, Comparison
from lrm_ext.languages import get_language, list_languages

_STYLES: Final = {BETTER: "green", WORSE: "red", UNCLEAR: "dim"}
_WIDE_COLUMNS: Final = 110


def print_comparison(
    results: list[BenchmarkComparison], a: Path, b: Path, console: Console
) -> None:
    """Print a table for each benchmark and what its columns mean."""
    for result in results:
        console.print()
        console.print(comparison_table(result, console.width))
        for run, langs in result.only_in.items():
            if langs:
                console.print(f"only {run} has answers in {', '.join(langs)}", highlight=False)
        console.print(sentence(result, b), highlight=False)
    console.print(
        f"\nA: {a}, B: {b}. B-A with its 95 % interval by a paired bootstrap over pictures; p: of "
        "no difference, adjusted for the number of languages (Holm); McNemar: exact p on "
        "questions, not adjusted; needed: questions that would tell a difference of this size four "
        "times in five.",
        highlight=False,
    )


def comparison_table(result: BenchmarkComparison, width: int) -> Table:
    """One row a language, and the average.

    Args:
        result: The comparison.
        width: Columns of the terminal.
    """
    table = Table(
        title=f"{result.name}: {result.headline}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        show_edge=False,
        padding=(0, 1) if width >= _WIDE_COLUMNS else 0,
    )
    table.add_column("language", no_wrap=True)
    for column in ("A", "B", "B-A", "95 %", "p", "McNemar", "asked", "needed"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("B is", no_wrap=width >= _WIDE_COLUMNS)
    for one in result.languages:
        name = get_language(one.lang).name if one.lang in list_languages() else one.lang
        table.add_row(name, *_cells(one))
    if result.mean:
        table.add_section()
        others = sum(one.lang != "en" for one in result.languages)
        table.add_row(f"mean of {others}", *_cells(result.mean))
    return table


def _cells(one: Comparison) -> list[str]:
    found = one.difference
    return [
        f"{one.a:.1f}",
        f"{one.b:.1f}",
        f"[bold]{found.value:+.1f}[/]",
        f"{found.low:+.1f}..{found.high:+.1f}",
        f"{one.p_adjusted:.4f}",
        "-" if one.p_mcnemar is None else f"{one.p_mcnemar:.4f}",
        f"{one.num_questions:,}",
        "-" if one.num_needed is None else f"{one.num_needed:,}",
        f"[{_STYLES[one.verdict]}]{one.verdict}[/]",
    ]


def sentence(result: BenchmarkComparison, b: Path) -> str:
    """The answer in a sentence."""
    groups: dict[str, list[str]] = {}
    for one in result.languages:
        groups.setdefault(one.verdict, []).append(one.lang)
    parts = [
        f"{verdict} in {', '.join(groups[verdict])}"
        for verdict in (BETTER, WORSE, UNCLEAR)
        if verdict in groups
    ]
    text = f"{result.name}: {b.name or b} is {'; '.join(parts)}"
    if result.mean:
        text += f"; on average it is {result.mean.verdict}"
    unclear = [one for one in result.languages if one.verdict == UNCLEAR]
    if unclear:
        largest = max(one.detectable for one in unclear)
        if largest > 0:
            text += f". A difference of {largest:.1f} or more would have been told in any of them"
        else:
            # nothing differs on any picture, so there is no spread to learn from either
            text += ". There both score the same on every picture"
    return text + "."
