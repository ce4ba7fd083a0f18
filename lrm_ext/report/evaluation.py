"""An evaluation as tables on the terminal, and two pictures with what the model said.

In: an `EvalReport`. Out: text on a rich console, readable at 80 columns.
"""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lrm_ext.evaluate.kind import LOCAL
from lrm_ext.evaluate.report import (
    BenchmarkResult,
    EvalReport,
    Example,
    GroupScore,
    LanguageResult,
    mean_accuracy,
)
from lrm_ext.evaluate.results import ENGLISH

NOTHING = "-"
WIDE_COLUMNS = 100


def percent(value: float | None, digits: int = 1) -> str:
    """A proportion as a percentage without its sign; `-` for None."""
    return NOTHING if value is None else f"{100 * value:.{digits}f}"


def printable(text: str) -> str:
    """A model's text with control characters shown as spaces: they could steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def interval(group: GroupScore | None) -> str:
    """The 95 % interval, in percent."""
    return NOTHING if group is None else f"{percent(group.low)}-{percent(group.high)}"


def print_report(report: EvalReport, console: Console) -> None:
    """Print the tables, the remarks and the examples of every benchmark."""
    for benchmark in report.benchmarks:
        console.print()
        console.print(score_table(benchmark, report, console.width))
        for remark in remarks(benchmark):
            console.print(remark, highlight=False)
        for example in benchmark.examples:
            console.print()
            print_example(example, console)
    console.print()


def score_table(benchmark: BenchmarkResult, report: EvalReport, width: int) -> Table:
    """One row a language: yes/no accuracy beside its baselines, and the other tasks.

    Args:
        benchmark: The results.
        report: Where they are from.
        width: Columns of the terminal.
    """
    some = ", some of the questions" if report.limit else ""
    has_yesno = any(result.yesno for result in benchmark.languages)
    headline = "yes/no" if has_yesno else "accuracy"
    text_tasks = _text_tasks(benchmark) if has_yesno else benchmark.tasks
    table = Table(
        title=f"{benchmark.name}: right answers in percent{some}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        padding=0 if width < WIDE_COLUMNS else (0, 1),
        show_edge=False,
    )
    table.add_column("language", no_wrap=True)
    for name in (headline, "95 %", "blind", "majority", *text_tasks):
        table.add_column(name, justify="right", no_wrap=True)
    for result in benchmark.languages:
        group = main_group(result)
        table.add_row(
            result.name,
            f"[bold]{percent(group.accuracy)}[/]",
            interval(group),
            percent(group.blind_accuracy),
            percent(group.majority),
            *(_task(result, task) for task in text_tasks),
        )
    others = benchmark.others()
    if len(others) > 1:
        table.add_section()
        groups = [main_group(result) for result in others]
        blind = [group.blind_accuracy for group in groups if group.blind_accuracy is not None]
        table.add_row(
            f"mean of {len(others)}",
            f"[bold]{percent(mean_accuracy(groups))}[/]",
            "",
            percent(sum(blind) / len(blind) if blind else None),
            percent(sum(group.majority for group in groups) / len(groups)),
            *(percent(mean_accuracy([r.tasks.get(task) for r in others])) for task in text_tasks),
        )
    return table


def main_group(result: LanguageResult) -> GroupScore:
    """The questions of the headline: yes/no, or all where there are none of those."""
    return result.yesno or result.total


def _text_tasks(benchmark: BenchmarkResult) -> tuple[str, ...]:
    """Tasks that are not answered by yes or no."""
    yesno = yesno_tasks(benchmark)
    return tuple(task for task in benchmark.tasks if task not in yesno)


def yesno_tasks(benchmark: BenchmarkResult) -> frozenset[str]:
    """Tasks that are answered by yes or no."""
    return frozenset(t for result in benchmark.languages for t in result.yesno_tasks)


def _task(result: LanguageResult, task: str) -> str:
    group = result.tasks.get(task)
    return percent(group.accuracy if group else None)


def remarks(benchmark: BenchmarkResult) -> list[str]:
    """What the figures do not show: answers that say nothing, are cut, or in another language."""
    lines = [
        "blind: the same model shown an empty picture; majority: always each task's commonest "
        "answer; mean: without English"
    ]
    for label, name in (
        ("that say neither yes nor no (wrong)", "num_unparsed"),
        ("without any text (wrong)", "num_empty"),
        ("cut off at the length limit", "num_cut"),
        ("that are not there, for their picture is missing (wrong)", "num_missing"),
        ("that the service refused to give (wrong)", "num_refused"),
    ):
        counts = {r.lang: getattr(r.total, name) for r in benchmark.languages}
        shown = ", ".join(f"{lang} {count}" for lang, count in counts.items() if count)
        if shown:
            lines.append(f"answers {label}: {shown}")
    strayed = {
        r.lang: r.total.fidelity
        for r in benchmark.languages
        if r.total.fidelity is not None and r.total.fidelity < 1
    }
    if strayed:
        shown = ", ".join(f"{lang} {percent(share)} %" for lang, share in strayed.items())
        rest = "; all elsewhere" if len(strayed) < len(benchmark.languages) else ""
        lines.append(f"answers in the language of the question (fidelity): {shown}{rest}")
    return lines


def print_example(example: Example, console: Console) -> None:
    """Print a picture's path, and question, answer and expected answer in each language."""
    console.print(f"[bold]{escape(example.image)}[/]", soft_wrap=True, highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "question", "answer", "expected"):
        table.add_column(heading, header_style="dim", justify="left")
    for answer in example.answers:
        colour = "green" if answer.correct else "red"
        said = escape(printable(answer.answer)) or "[dim](nothing)[/]"
        table.add_row(
            answer.lang, escape(answer.question), f"[{colour}]{said}[/]", escape(answer.expected)
        )
    console.print(table)


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
