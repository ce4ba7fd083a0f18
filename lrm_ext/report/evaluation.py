"""Shows an evaluation as tables on the terminal and as `report.html`; shows scores and benchmarks.

In: an `EvalReport`; for the page its folder (for the example images) and the model's folder (for
its loss curves), too. Out: text on a rich console, readable at 80 columns; a page with plots,
examples, all figures, and how to make them again. The cells of the tables are the same. The score
of one file of answers and the list of benchmarks are printed here, too.
"""

from __future__ import annotations

import json
import logging
import mimetypes
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from llava.files import write_atomically
from lrm_ext.evaluate.importing import kind_of
from lrm_ext.evaluate.kind import JUDGE, LOCAL, Kind
from lrm_ext.evaluate.kinds import ANSWERS, KINDS, PAPER
from lrm_ext.evaluate.mapping import SETS_DIR, load_mapping, set_names
from lrm_ext.evaluate.registry import BENCHMARKS
from lrm_ext.evaluate.report import (
    BenchmarkResult,
    EvalReport,
    Example,
    GroupScore,
    Headline,
    LanguageResult,
    mean_of,
)
from lrm_ext.evaluate.results import ENGLISH
from lrm_ext.languages.grouping import (
    MAX_ROWS,
    NUM_WORST,
    group_by_script,
    group_name,
    headed_groups,
    listed,
    script_name,
    search_words,
    worst_and_rest,
)
from lrm_ext.languages.registry import get_language, list_languages
from lrm_ext.report.render import (
    LabelledPoint,
    data_url,
    labelled_scatter,
    loss_curve,
    printable,
    render,
    terminal_table,
)

log = logging.getLogger(__name__)

PAGE_FILE: Final = "report.html"
STATE_FILE: Final = "trainer_state.json"
_CHECKPOINT: Final = re.compile(r"checkpoint-(\d+)")
_NUMBERS: Final = "no one two three four five six seven eight nine ten eleven twelve".split()
NOTHING: Final = "-"
# Centurio's models reach 95 % on captions in 36 languages, trained on English alone 0 to 6 %
LOW_FIDELITY: Final = 0.9
_COUNTS: Final = {
    "num_unparsed": "that say neither yes nor no (wrong)",
    "num_empty": "without any text (wrong)",
    "num_cut": "cut off at the length limit",
    "num_missing": "that are not there, because their image is missing (wrong)",
    "num_refused": "that the service refused to give (wrong)",
}


def percent(value: float | None, digits: int = 1) -> str:
    """Returns a proportion as a percentage without its sign; `-` for None."""
    return NOTHING if value is None else f"{100 * value:.{digits}f}"


def print_report(report: EvalReport, console: Console, show_all: bool = False) -> None:
    """Prints the tables, the remarks and the examples of every benchmark, then the headlines.

    Args:
        report: The figures.
        console: Where they are printed.
        show_all: Show every language, also where there are more than `MAX_ROWS`.
    """
    for benchmark in (part for one in report.benchmarks for part in one.parts()):
        is_short = not show_all and _is_many(benchmark)
        console.print()
        console.print(_score_table(benchmark, bool(report.limit), console.width, is_short))
        if is_short:
            console.print(
                "script: number of further languages: their mean, and lowest..highest; "
                f"{PAGE_FILE} and `lrm report RUN --all` show every language",
                highlight=False,
            )
        for remark in remarks(benchmark, is_short):
            console.print(remark, highlight=False)
        for example in benchmark.examples:
            console.print()
            _print_example(example, console)
    console.print()
    for benchmark in report.benchmarks:
        for name in benchmark.headline_names:
            console.print()
            is_short = not show_all and _is_many(benchmark)
            console.print(headline_table(benchmark, name, console.width, is_short))
            for line in headline_remarks(benchmark, name):
                console.print(line, highlight=False)
    if remark := _unreviewed(report):
        console.print(f"\n{remark}", highlight=False)


def _unreviewed(report: EvalReport) -> str:
    """Names the languages whose texts no native reader has signed; "" if there is none."""
    found = {result.lang for benchmark in report.benchmarks for result in benchmark.languages}
    known = [code for code in list_languages() if code in found]
    unsigned = [code for code in known if not get_language(code).reviewed]
    if not unsigned:
        return ""
    named = ", ".join(unsigned) if len(unsigned) <= MAX_ROWS else f"{len(unsigned)} languages"
    return f"not signed by a native reader: {named} (lrm languages review CODE shows the texts)"


def reading(part: BenchmarkResult) -> str:
    """Says how answers are read for the shares of a part, where that can be more than one way."""
    modes = {one.mode for result in part.languages for one in result.headlines}
    modes |= {result.mode for result in part.languages}
    return "" if modes == {LOCAL} else f", read as {part.languages[0].mode}"


def _is_many(benchmark: BenchmarkResult) -> bool:
    return len(benchmark.languages) > MAX_ROWS


def _score_table(benchmark: BenchmarkResult, is_limited: bool, width: int, is_short: bool) -> Table:
    """Makes a table with a row a language: yes/no accuracy, its baselines, and the other tasks."""
    yesno = {task for result in benchmark.languages for task in result.yesno_tasks}
    has_yesno = any(result.yesno for result in benchmark.languages)
    tasks = [task for task in benchmark.tasks if not has_yesno or task not in yesno]
    heads = ("language", "yes/no" if has_yesno else "accuracy", "95 %", "blind", "majority", *tasks)
    title = f"{benchmark.name}: right answers in percent{reading(benchmark)}"
    title += ", some of the questions" if is_limited else ""
    title += f", worst {NUM_WORST} of {len(benchmark.languages)} languages" if is_short else ""
    rows = score_rows(benchmark, "main", tasks, is_short)
    return terminal_table(title, heads, (_with_bold(row, 1) for row in rows), width)


def _with_bold(row: Sequence[str], column: int) -> list[str]:
    return [*row[:column], f"[bold]{row[column]}[/]", *row[column + 1 :]] if row else []


def _short_rows(
    rows: Mapping[str, list[list[str]]],
    values: Mapping[str, float],
    group_row: Callable[[Sequence[str]], list[str]],
) -> list[list[str]]:
    """Returns the rows of English and of the worst languages, and a row a script for the rest.

    Args:
        rows: Those of each language.
        values: What is worst, by language.
        group_row: Makes the row of several languages.
    """
    worst, rest = worst_and_rest({lang: v for lang, v in values.items() if lang != ENGLISH})
    # an empty row is a line between parts of the table
    shown: list[list[str]] = [*rows.get(ENGLISH, []), []]
    shown += [row for lang in worst for row in rows[lang]]
    shown.append([])
    for langs in rest:
        shown += rows[langs[0]] if len(langs) == 1 else [group_row(langs)]
    return shown


def _range(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[0]:.1f}..{ordered[-1]:.1f}"


def score_rows(
    benchmark: BenchmarkResult, group: str, tasks: Sequence[str], is_short: bool = False
) -> list[list[str]]:
    """Returns a row a language, and the mean of the others where there are several.

    Args:
        benchmark: The results.
        group: Whose accuracy and baselines stand first: `main` or `total`.
        tasks: Whose accuracy follows.
        is_short: Rows of the worst languages alone, and of scripts for the rest.
    """
    by_lang = {result.lang: result for result in benchmark.languages}
    found = {lang: [_score_row(r.name, [r], group, tasks)] for lang, r in by_lang.items()}
    shares = {lang: getattr(result, group).accuracy for lang, result in by_lang.items()}

    def group_row(langs: Sequence[str]) -> list[str]:
        row = _score_row(group_name(langs), [by_lang[lang] for lang in langs], group, tasks)
        row[2] = _range(100 * shares[lang] for lang in langs)
        return row

    rows = [row for own in found.values() for row in own]
    if is_short:
        rows = _short_rows(found, shares, group_row)
    others = benchmark.others()
    if len(others) > 1:
        rows.append(_score_row(f"mean of {len(others)}", others, group, tasks))
    return rows


def _score_row(
    name: str, results: Sequence[LanguageResult], group: str, tasks: Sequence[str]
) -> list[str]:
    groups: list[GroupScore] = [getattr(result, group) for result in results]
    first = groups[0]
    return [
        name,
        percent(mean_of(groups)),
        f"{percent(first.low)}-{percent(first.high)}" if len(groups) == 1 else "",
        percent(mean_of(groups, "blind_accuracy")),
        percent(mean_of(groups, "majority")),
        *(percent(mean_of([result.tasks.get(task) for result in results])) for task in tasks),
    ]


def remarks(benchmark: BenchmarkResult, is_short: bool = False) -> list[str]:
    """Says what the figures do not: answers that are empty, cut, or in another language.

    Args:
        benchmark: The results.
        is_short: Name the worst languages alone, and how many others there are.
    """
    lines = [
        "blind: the same model shown an empty image; majority: always each task's commonest "
        "answer; mean: without English"
    ]
    join: Callable[[Iterable[str]], str] = listed if is_short else ", ".join
    for name, what in _COUNTS.items():
        counts = {result.lang: getattr(result.total, name) for result in benchmark.languages}
        if is_short:
            counts = dict(sorted(counts.items(), key=lambda pair: -pair[1]))
        if total := sum(counts.values()):
            shown = join(f"{lang} {count}" for lang, count in counts.items() if count)
            in_all = f" {total:,} in all;" if is_short else ""
            lines.append(f"answers {what}:{in_all} {shown}")
    shares = {result.lang: result.total.fidelity for result in benchmark.languages}
    if is_short:
        shares = dict(sorted(shares.items(), key=lambda pair: 1 if pair[1] is None else pair[1]))
    strayed = [
        f"{lang} {percent(share)} %"
        for lang, share in shares.items()
        if share is not None and share < 1
    ]
    if strayed:
        rest = "; all elsewhere" if len(strayed) < len(shares) else ""
        lines.append(f"answers in the language of the question (fidelity): {join(strayed)}{rest}")
    low = [lang for lang, share in shares.items() if share is not None and share < LOW_FIDELITY]
    if low:
        lines.append(
            f"fidelity is below {percent(LOW_FIDELITY, 0)} % in {join(low)}: there the model "
            "often answers in another language; see docs/training.md, What the literature found"
        )
    if rates := {
        result.lang: -100 * result.character_errors
        for result in benchmark.languages
        if result.character_errors is not None
    }:
        scripts = (
            f"{script_name(langs[0])} {-fmean(rates[lang] for lang in langs):.1f} % "
            f"({join(f'{lang} {-rates[lang]:.1f}' for lang in langs)})"
            for langs in group_by_script(rates)
        )
        lines.append(f"character error rate of the text that was read: {'; '.join(scripts)}")
    return lines


def _print_example(example: Example, console: Console) -> None:
    """Prints an image's path, and question, answer and expected answer in each language."""
    console.print(f"[bold]{escape(example.image)}[/]", soft_wrap=True, highlight=False)
    columns = (Column(h, header_style="dim") for h in ("", "question", "answer", "expected"))
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for answer in example.answers:
        colour = "green" if answer.correct else "red"
        said = escape(printable(answer.answer)) or "[dim](nothing)[/]"
        table.add_row(
            answer.lang, escape(answer.question), f"[{colour}]{said}[/]", escape(answer.expected)
        )
    console.print(table)


def headline_table(
    benchmark: BenchmarkResult, name: str, width: int, is_short: bool = False
) -> Table:
    """Makes a table with one row a language and mode of reading.

    Args:
        benchmark: The results.
        name: Which of its headlines: modes whose score is another one are not in it.
        width: Columns of the terminal.
        is_short: Rows of the worst languages alone, and of scripts for the rest.
    """
    heads = ("language", "read as", name, "95 %", "blind", "answered", "unread", "fidelity")
    rows = (_with_bold(row, 2) for row in headline_rows(benchmark, name, is_short=is_short))
    table = terminal_table(f"{benchmark.name}: {name}", heads, rows, width)
    table.columns[1].justify = "left"
    return table


def headline_rows(
    benchmark: BenchmarkResult, name: str, ratio: str = "{}/{}", is_short: bool = False
) -> list[list[str]]:
    """Returns a row a language and mode of reading, and a mode's mean of the others.

    Args:
        benchmark: The results.
        name: Which of its headlines.
        ratio: How a number and what it is of are written.
        is_short: Rows of the worst languages alone, and of scripts for the rest.
    """
    found: dict[str, list[list[str]]] = {}
    by_mode: dict[str, dict[str, float]] = {}
    for result in benchmark.languages:
        for headline in (one for one in result.headlines if one.name == name):
            row = _headline_row(result.name, headline, ratio)
            found.setdefault(result.lang, []).append(row)
            by_mode.setdefault(headline.mode, {})[result.lang] = headline.value
    # the mode that most languages are read in
    usual = max(by_mode, key=lambda mode: (len(by_mode[mode]), mode == LOCAL))

    def mean_row(title: str, langs: Sequence[str], mode: str = usual) -> list[str]:
        mean = fmean(by_mode[mode][lang] for lang in langs)
        return [title, mode, f"{mean:.2f}", *[""] * 5]

    def group_row(langs: Sequence[str]) -> list[str]:
        row = mean_row(group_name(langs), langs)
        row[3] = _range(by_mode[usual][lang] for lang in langs)
        return row

    rows = [row for own in found.values() for row in own]
    if is_short:
        rows = _short_rows(found, by_mode[usual], group_row)
    for mode, values in by_mode.items():
        others = [lang for lang in values if lang != ENGLISH]
        if len(others) > 1:
            rows.append(mean_row(f"mean of {len(others)}", others, mode))
    return rows


def _headline_row(name: str, headline: Headline, ratio: str) -> list[str]:
    counts, faith = headline.details["counts"], headline.details["fidelity"]
    return [
        name,
        headline.mode,
        f"{headline.value:.2f}",
        f"{headline.low:.1f}-{headline.high:.1f}",
        NOTHING if headline.blind is None else f"{headline.blind:.2f}",
        ratio.format(counts["answered"], counts["questions"]),
        f"{counts['unparsed']:,}",
        ratio.format(faith["in_language"], faith["decided"]) if faith["decided"] else NOTHING,
    ]


def headline_remarks(benchmark: BenchmarkResult, name: str) -> list[str]:
    """Says what the columns of a headline mean, and whether the benchmark is whole."""
    assert benchmark.headline is not None
    details = benchmark.headline.details
    judged: dict[str, list[Mapping[str, Any]]] = {}
    for headline in (headline for r in benchmark.languages for headline in r.headlines):
        if headline.name == name and headline.mode.startswith(JUDGE):
            judged.setdefault(headline.mode, []).append(headline.details["judged"])
    unread = "that decide nothing (wrong)"
    if judged:
        unread = "that the judge left undecided (not counted)"
    lines = [
        f"unread: answers {unread}; fidelity: answers in the language of the "
        "question, of those that have a language; mean: without English"
    ]
    if categories := _categories(details):
        top = details.get("maximum_perception")
        lines.append(categories + (f": at most {top} points of perception" if top else ""))
    return lines + [f"{mode} {_judged_remark(found)}" for mode, found in judged.items()]


def _judged_remark(found: Sequence[Mapping[str, Any]]) -> str:
    """Says how many answers a judge decided on in some languages, and why not on others."""
    decided, num = (sum(one[key] for one in found) for key in ("decided", "of"))
    undecided, outcomes = (
        sum((Counter(one[key]) for one in found), Counter[str]())
        for key in ("undecided", "outcomes")
    )
    line = f"decided on {decided} of {num} answers"
    if undecided:
        line += f" (left out: {', '.join(f'{why} {n}' for why, n in undecided.items())})"
    if outcomes:
        line += (
            f": {', '.join(f'{outcome} {n}' for outcome, n in outcomes.items())}; the winner "
            f"changes with the order in {100 * outcomes['flip'] / decided:.1f} %, counted as ties"
        )
    return line


@dataclass(frozen=True)
class StageCurve:
    """One stage of a training.

    Attributes:
        name: What it is called in a report.
        folder: Where it was read from.
        steps: Optimizer steps at which the loss was logged.
        losses: The loss at those steps.
        runtime_s: Its duration in seconds; None if the log does not say.
        samples_per_s: Its speed; None if the log does not say.
    """

    name: str
    folder: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    runtime_s: float | None
    samples_per_s: float | None


def training_stages(model_path: Path) -> tuple[StageCurve, ...]:
    """Reads the curves of the stages of a model: `<model>-pretrain` beside it, and itself."""
    before = model_path.with_name(f"{model_path.name}-pretrain")
    stages = (("Pre-training", before), ("Fine-tuning", model_path))
    return tuple(curve for name, folder in stages if (curve := read_stage(name, folder)))


def read_stage(name: str, folder: Path) -> StageCurve | None:
    """Reads a stage's curve; None where there is none.

    Args:
        name: What to call it.
        folder: Holds `trainer_state.json`, or `checkpoint-<step>` folders that do.
    """
    numbered = {
        int(match[1]): path / STATE_FILE
        for path in folder.glob("checkpoint-*")
        if (match := _CHECKPOINT.fullmatch(path.name))
    }
    candidates = [folder / STATE_FILE, *(numbered[step] for step in sorted(numbered, reverse=True))]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        return None
    try:
        history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
        losses = {int(entry["step"]): float(entry["loss"]) for entry in history if "loss" in entry}
        summary: dict[str, Any] = next((e for e in reversed(history) if "train_runtime" in e), {})
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s: left out of the report, as it cannot be read: %r", path, error)
        return None
    losses = {step: loss for step, loss in losses.items() if loss > 0}
    if len(losses) < 2:
        return None
    return StageCurve(
        name=name,
        folder=str(folder),
        steps=tuple(losses),
        losses=tuple(losses.values()),
        runtime_s=summary.get("train_runtime"),
        samples_per_s=summary.get("train_samples_per_second"),
    )


def write_report(report: EvalReport, folder: Path, model_path: Path) -> Path:
    """Renders the page into a folder.

    Args:
        report: The figures.
        folder: Where `report.json` and the example images are.
        model_path: The model's folder; it may be gone.

    Returns:
        The page's path.
    """

    def image_url(example: Example) -> str:
        path = folder / example.file
        if not path.is_file():
            log.warning("%s is gone: the report has its example without the image", path)
            return ""
        return data_url(mimetypes.guess_type(path.name)[0] or "image/jpeg", path.read_bytes())

    report = replace(report, benchmarks=tuple(map(_in_order, report.benchmarks)))
    codes = {result.lang for benchmark in report.benchmarks for result in benchmark.languages}
    number = f"{_in_words(len(codes))} language{'s' if len(codes) > 1 else ''}"
    page = render(
        "report.html",
        title=f"{report.model_id} in {number}",
        report=report,
        has_filter=any(map(_is_many, report.benchmarks)),
        gap_map=_gap_map,
        by_script=_groups,
        search_words=_search_words,
        stages=training_stages(model_path),
        commas="{:,}".format,
        figure_rows=_figure_rows,
        headline_remarks=headline_remarks,
        headline_rows=headline_rows,
        image_url=image_url,
        in_words=_in_words,
        loss_curve=loss_curve,
        mean_bar=_mean_bar,
        mean_of=mean_of,
        percent=percent,
        printable=printable,
        reading=reading,
        remarks=lambda benchmark: remarks(benchmark, _is_many(benchmark)),
        unreviewed=_unreviewed(report),
    )
    write_atomically(folder / PAGE_FILE, page)
    return folder / PAGE_FILE


def _groups(benchmark: BenchmarkResult) -> list[tuple[str, list[LanguageResult]]]:
    """Returns headings and languages: one group without a heading, or by script if they are many.

    Of scripts and of the languages of each the worst come first; scripts of one language are last.
    """
    if not _is_many(benchmark):
        return [("", list(benchmark.languages))]
    by_lang = {result.lang: result for result in benchmark.languages}
    groups = headed_groups({lang: one.main.accuracy for lang, one in by_lang.items()})
    return [(heading, [by_lang[lang] for lang in langs]) for heading, langs in groups]


def _search_words(result: LanguageResult) -> str:
    return search_words(result.lang, result.name, result.native_name)


def _gap_map(benchmark: BenchmarkResult) -> tuple[Markup, list[str]] | None:
    """Draws right answers over fidelity, a mark a language; names languages without fidelity.

    Returns:
        None where there are few languages, or none with a fidelity.
    """
    without = [result.lang for result in benchmark.languages if result.total.fidelity is None]
    if not _is_many(benchmark) or len(without) == len(benchmark.languages):
        return None
    points = [
        LabelledPoint(
            label=result.lang,
            words=f"{result.name}: {percent(result.main.accuracy)} percent right, "
            f"{percent(result.total.fidelity)} in the language of the question",
            search=_search_words(result),
            x=100 * result.main.accuracy,
            y=100 * result.total.fidelity,
        )
        for result in benchmark.languages
        if result.total.fidelity is not None
    ]
    axes = ("right answers, %", "in the language of the question, %")
    return labelled_scatter(points, axes, 100 * LOW_FIDELITY), without


def _in_words(number: int) -> str:
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def _mean_bar(results: Sequence[LanguageResult], task: str) -> tuple[dict[str, Any], int]:
    """Returns the mean of languages in a task with its range, and how many have the task."""
    groups = [result.tasks[task] for result in results if task in result.tasks]
    shares = [group.accuracy for group in groups]
    means = {name: mean_of(groups, name) for name in ("accuracy", "blind_accuracy", "majority")}
    return {**means, "low": min(shares, default=0), "high": max(shares, default=0)}, len(groups)


def _in_order(benchmark: BenchmarkResult) -> BenchmarkResult:
    """Returns the benchmark with its languages in the order of the page."""
    languages = tuple(result for _, results in _groups(benchmark) for result in results)
    return replace(benchmark, languages=languages)


def _figure_rows(benchmark: BenchmarkResult) -> list[list[str]]:
    """Returns heads and every figure of a benchmark; the mean has no fidelity.

    Doubtful answers have columns where there are too many languages to name them in remarks.
    """
    heads = ["language", "all", "95 %", "blind", "majority", *benchmark.tasks, "fidelity"]
    counts = [
        name
        for name in _COUNTS
        if _is_many(benchmark) and any(getattr(r.total, name) for r in benchmark.languages)
    ]
    more = [
        [percent(one.total.fidelity), *(f"{getattr(one.total, name):,}" for name in counts)]
        for one in benchmark.languages
    ]
    rows = score_rows(benchmark, "total", benchmark.tasks)
    rows = [
        [*row, *cells] for row, cells in zip_longest(rows, more, fillvalue=[""] * (1 + len(counts)))
    ]
    return [[*heads, *(name.removeprefix("num_") for name in counts)], *rows]


_DOUBTFUL: Final = {
    "missing": "without an answer (wrong)",
    "refused": "refused by the service (wrong)",
    "empty": "with an empty answer",
    "cut": "with an answer cut off at the length limit",
    "unparsed": "with an answer that decides nothing",
    "default_yes": "read as yes because nothing in the answer negates",
    "ambiguous_cyrillic": "answered by a Cyrillic letter that may be the second or the third",
    "guessed": "where nothing could be read and the owner's rule guesses",
    "answered_twice": "answered twice, equally",
}
# Groups that a report may have scores of, under `per_<group>`.
_GROUPS: Final = ("category", "dimension", "ability")
_SUMS: Final = (
    "perception",
    "cognition",
    "mean_f1",
    "all",
    "circular_accuracy",
    "vanilla_accuracy",
    "all_rows_accuracy",
    "accuracy",
    "chrf",
    "exact_match",
    "accuracy_of_read",
    "format_error_share",
    *(f"bleu_{n}" for n in range(1, 5)),
    "rouge_l",
    "cider",
)
_STYLE: Final[dict[str, Any]] = {"box": box.SIMPLE_HEAD, "show_edge": False}


def print_score(report: Mapping[str, Any], console: Console) -> None:
    """Prints a report as `ScoreReport.to_json` gives it, with `interval` if there is one."""
    version = f" {report['version']}" if report["version"] else ""
    console.print(
        f"[bold]{report['benchmark']}[/]{version}, {report['lang']}, read as {report['mode']}",
        highlight=False,
    )
    span = ""
    if found := report.get("interval"):
        span = f"  (95 %: {found['low']:.2f} to {found['high']:.2f}, {found['method']})"
    console.print(
        f"{report['headline_name']}: [bold]{report['headline']:.2f}[/]{span}{_whole(report)}",
        highlight=False,
    )
    sums = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name in _SUMS:
        if isinstance(report.get(name), float):
            sums.add_row(name.replace("_", " "), f"{report[name]:.4f}")
    console.print(sums)
    for name in _GROUPS:
        groups = report.get(f"per_{name}") or {}
        if len(groups) > 1:
            table = Table(name, Column("score", justify="right"), **_STYLE)
            for group, value in groups.items():
                table.add_row(group, f"{value:.4f}")
            console.print(table)
    for line in _score_remarks(report):
        console.print(line, highlight=False, soft_wrap=True)


def _whole(report: Mapping[str, Any]) -> str:
    """Says what part of the benchmark a score is of, if it is not the whole."""
    if not (categories := _categories(report)):
        return ""
    top = report.get("maximum_perception")
    return f"{f' of {top} possible' if top else ''}; {categories}"


def _categories(report: Mapping[str, Any]) -> str:
    """Says how many of how many categories are there; "" if all are."""
    expected, num = report.get("num_categories_expected"), report.get("num_categories")
    return "" if expected in (None, num) else f"{num} of {expected} categories are there"


def _score_remarks(report: Mapping[str, Any]) -> list[str]:
    """Says how many of how many questions, and which answers a reader should know of."""
    counts = report["counts"]
    lines = [f"{counts['answered']} of {counts['questions']} questions are answered"]
    if "rule" in report:
        seed = f", seed of guesses {report['seed']}" if "seed" in report else ""
        lines.append(f"rule of the set's owner: {report['rule']}{seed}")
    lines += [
        f"{counts[field]} of {counts['questions']} questions {what}"
        for field, what in _DOUBTFUL.items()
        if counts.get(field)
    ]
    if judged := report.get("judged"):
        lines.append(f"the judge {_judged_remark([judged])}")
    if without := report.get("num_without_options"):
        lines.append(
            f"{without} rows came without their options: whether rotations are missing at the end "
            "was not checked, and options named by their text were not read"
        )
    fidelity = report["fidelity"]
    if fidelity["decided"]:
        lines.append(
            f"fidelity: {fidelity['in_language']} of {fidelity['decided']} answers that have a "
            f"language are in {report['lang']} ({fidelity['undecided']} are too short to tell)"
        )
    return lines


def known_benchmarks() -> list[dict[str, Any]]:
    """Returns name, title, origin of the files, what is scored, modes and languages of each."""
    rows = [_row(name, KINDS[name].title, "import", KINDS[name]) for name in PAPER]
    for name in set_names():
        mapping = load_mapping(SETS_DIR / f"{name}.toml")
        row = _row(name, mapping.title, "import", kind_of(name))
        rows.append({**row, "languages": list(mapping.languages), "licence": mapping.licence})
    for name in BENCHMARKS:
        kind = KINDS.get(name.removeprefix("mini-"), ANSWERS)
        rows.append(_row(name, f"{kind.title}, scenes of the built-in corpus", "built-in", kind))
    return rows


def _row(name: str, title: str, files: str, kind: Kind) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "files": files,
        "headline": kind.headline,
        "modes": list(dict.fromkeys((*kind.modes, *kind.aliases))),
        "default_mode": kind.default_mode,
        "languages": None,
        "licence": "",
    }


def print_benchmarks(console: Console) -> None:
    """Prints a table of every benchmark."""
    table = Table("name", "files", "score", "read as", "languages", **_STYLE)
    for row in known_benchmarks():
        languages = "any" if row["languages"] is None else " ".join(row["languages"])
        modes = ", ".join(row["modes"])
        table.add_row(row["name"], row["files"], row["headline"], modes, languages)
    console.print(table)
    console.print(
        "import: `lrm benchmark import NAME FILES --out DIR/NAME`, then `lrm eval --benchmarks "
        "NAME --benchmark-dir DIR`; a mapping file of your own (.toml) is a name, too",
        highlight=False,
    )
