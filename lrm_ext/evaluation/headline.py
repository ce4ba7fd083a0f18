"""The figure of the paper's tables: MME's perception, POPE's mean F1, accuracies, in any language.

English answers are read by the English scorers' rules and, for comparison, by the rules for any
language; other languages by the latter only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from lrm_ext.benchmarks.items import Item
from lrm_ext.benchmarks.kind import LOCAL, Kind
from lrm_ext.evaluation.questions import QuestionSet
from lrm_ext.evaluation.report import ENGLISH, BenchmarkResult, EvalReport, Headline
from lrm_ext.evaluation.results import score_benchmark
from lrm_ext.evaluation.statistics import headline_interval

WIDE_COLUMNS: Final = 100


def score_headlines(
    qs: QuestionSet,
    kind: Kind,
    texts: Mapping[str, str],
    blind_texts: Mapping[str, str],
    english: Sequence[Item],
    cut_keys: Collection[str],
) -> tuple[Headline, ...]:
    """Score a benchmark of the paper in one language, in each mode that is of interest.

    Args:
        qs: The questions.
        kind: Whose rules score them.
        texts: Answers by question id.
        blind_texts: Answers without the picture; used only if there is one to each question.
        english: All questions in English, where there are some.
        cut_keys: Questions whose answer reached the length limit.
    """
    modes = dict.fromkeys((kind.mode_for(qs.lang), LOCAL))
    has_blind = all(i.question_id in blind_texts or i.question_id in qs.unasked for i in qs.items)
    headlines: list[Headline] = []
    for mode in modes:
        common: dict[str, Any] = {
            "lang": qs.lang, "mode": mode, "english": english, "allow_missing": qs.unasked,
        }  # fmt: skip
        report = score_benchmark(
            kind, qs.items, texts, **common, cut_keys=cut_keys, name=qs.benchmark.name,
            version=qs.benchmark.versions.get(qs.lang, ""),
        )  # fmt: skip
        blind = score_benchmark(kind, qs.items, blind_texts, **common) if has_blind else None
        found = headline_interval(report)
        headlines.append(
            Headline(
                name=report.headline_name,
                mode=mode,
                value=report.headline,
                low=found["low"],
                high=found["high"],
                method=found["method"],
                blind=blind.headline if blind else None,
                details=report.to_json(),
            )
        )
    return tuple(headlines)


def print_headlines(report: EvalReport, console: Console) -> None:
    """Print a table of headlines for each benchmark that has them."""
    for benchmark in report.benchmarks:
        if any(result.headlines for result in benchmark.languages):
            console.print()
            console.print(headline_table(benchmark, console.width))
            for line in headline_remarks(benchmark):
                console.print(line, highlight=False)


def headline_table(benchmark: BenchmarkResult, width: int) -> Table:
    """One row a language and mode.

    Args:
        benchmark: The results.
        width: Columns of the terminal.
    """
    name = next(h.name for result in benchmark.languages for h in result.headlines)
    table = Table(
        title=f"{benchmark.name}: {name}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        show_edge=False,
        padding=(0, 1) if width >= WIDE_COLUMNS else 0,
    )
    for column in ("language", "read as"):
        table.add_column(column, no_wrap=True)
    for column in (name, "95 %", "blind", "answered", "unread", "fidelity"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in benchmark.languages:
        for headline in result.headlines:
            counts, faith = headline.details["counts"], headline.details["fidelity"]
            table.add_row(
                result.name,
                headline.mode,
                f"[bold]{headline.value:.2f}[/]",
                f"{headline.low:.1f}-{headline.high:.1f}",
                "-" if headline.blind is None else f"{headline.blind:.2f}",
                f"{counts['answered']}/{counts['questions']}",
                str(counts["unparsed"]),
                f"{faith['in_language']}/{faith['decided']}",
            )
    others = [r.headlines[-1] for r in benchmark.languages if r.lang != ENGLISH and r.headlines]
    if len(others) > 1:
        table.add_section()
        mean = sum(headline.value for headline in others) / len(others)
        table.add_row(f"mean of {len(others)}", LOCAL, f"[bold]{mean:.2f}[/]")
    return table


def headline_remarks(benchmark: BenchmarkResult) -> list[str]:
    """What the columns mean, and whether the benchmark is whole; some language has a headline."""
    details = next(h.details for result in benchmark.languages for h in result.headlines)
    lines = [
        "unread: answers that decide nothing (wrong); fidelity: answers in the language of the "
        "question, of those that have a language; mean: without English"
    ]
    expected = details.get("num_categories_expected")
    if expected and details["num_categories"] < expected:
        top = details.get("maximum_perception")
        lines.append(
            f"{details['num_categories']} of {expected} categories are there"
            + (f": at most {top} points of perception" if top else "")
        )
    return lines
