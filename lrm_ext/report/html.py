"""`report.html`: an evaluation as one page that needs nothing but itself.

In: an `EvalReport`, its folder (for the example pictures) and the model's folder (for its loss
curves). Out: a page with plots, examples, all figures, and how to make them again. No requests to
anywhere: pictures are embedded, fonts are the reader's own.
"""

from __future__ import annotations

import base64
import logging
import mimetypes
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Final

from llava.files import write_atomically
from lrm_ext.evaluate.report import (
    BenchmarkResult,
    EvalReport,
    Example,
    ExampleAnswer,
    GroupScore,
    LanguageResult,
    mean_accuracy,
)
from lrm_ext.report.headlines import headlines_section
from lrm_ext.report.page import Bar, bar_chart, legend, loss_curve, render_page, section
from lrm_ext.report.tables import interval, main_group, percent, printable, remarks
from lrm_ext.report.training import StageCurve, training_stages

log = logging.getLogger(__name__)

PAGE_FILE: Final = "report.html"


def write_report(report: EvalReport, folder: Path, model_path: Path) -> Path:
    """Render the page into a folder.

    Args:
        report: The figures.
        folder: Where `report.json` and the example pictures are.
        model_path: The model's folder; may have gone.

    Returns:
        The page's path.
    """
    path = folder / PAGE_FILE
    write_atomically(path, render(report, folder, training_stages(model_path)))
    return path


def render(report: EvalReport, folder: Path, stages: Sequence[StageCurve]) -> str:
    """Render the page as text."""
    sections = [
        part
        for benchmark in report.benchmarks
        for part in (
            headlines_section(benchmark),
            _languages_section(benchmark),
            _tasks_section(benchmark),
            _examples_section(benchmark, folder),
            _figures_section(benchmark),
        )
    ]
    sections += [_training_section(stages), _method_section(report)]
    title = f"{report.model_id} in {_languages_in_words(report)}"
    return render_page(title, _lead(report.benchmarks[0]), *sections)


def _languages_in_words(report: EvalReport) -> str:
    codes = {result.lang for benchmark in report.benchmarks for result in benchmark.languages}
    return f"{_number_in_words(len(codes))} language{'s' if len(codes) > 1 else ''}"


def _number_in_words(number: int) -> str:
    small = "no one two three four five six seven eight nine ten eleven twelve".split()
    return small[number] if number < len(small) else str(number)


def _lead(benchmark: BenchmarkResult) -> str:
    """The result in two sentences."""
    english, others = benchmark.english(), benchmark.others()
    parts = []
    if english:
        parts.append(f"<b>{percent(main_group(english).accuracy)}&nbsp;%</b> in English")
    mean = mean_accuracy([main_group(result) for result in others])
    if len(others) == 1:
        parts.append(f"<b>{percent(mean)}&nbsp;%</b> in {escape(others[0].name)}")
    elif others:
        number = _number_in_words(len(others))
        parts.append(f"<b>{percent(mean)}&nbsp;%</b> on average over {number} other languages")
    text = f"{_kind(benchmark)} answered right: {' and '.join(parts)}."
    blind = [main_group(result).blind_accuracy for result in benchmark.languages]
    known = [value for value in blind if value is not None]
    if known:
        text += f" Shown an empty picture, the same model reaches {percent(_mean(known))}&nbsp;%."
    return text


def _kind(benchmark: BenchmarkResult) -> str:
    return "Yes/no questions" if any(r.yesno for r in benchmark.languages) else "Questions"


def _languages_section(benchmark: BenchmarkResult) -> str:
    bars = [
        _bar(main_group(result), result.name, result.native_name, result.lang)
        for result in benchmark.languages
    ]
    num = {main_group(result).num_questions for result in benchmark.languages}
    each = f"{max(num):,} questions in each" if len(num) == 1 else f"up to {max(num):,} questions"
    return section(
        f"{_kind(benchmark)}, by language",
        f'<p class="soft">Share of right answers in percent, benchmark '
        f"<code>{escape(benchmark.name)}</code>, {each}.</p>",
        legend("95 % interval", any(bar.blind is not None for bar in bars)),
        bar_chart(bars),
    )


def _bar(group: GroupScore, label: str, detail: str = "", lang: str = "") -> Bar:
    return Bar(
        label=label,
        value=group.accuracy,
        low=group.low,
        high=group.high,
        blind=group.blind_accuracy,
        majority=group.majority,
        detail="" if detail == label else detail,
        detail_lang=lang,
    )


def _tasks_section(benchmark: BenchmarkResult) -> str:
    """Per task: English, and the mean of the others with its lowest and highest language."""
    english, others = benchmark.english(), benchmark.others()
    charts: list[str] = []
    for task in benchmark.tasks:
        bars: list[Bar] = []
        if english and task in english.tasks:
            bars.append(_bar(english.tasks[task], "English"))
        groups = [result.tasks[task] for result in others if task in result.tasks]
        if groups:
            label = others[0].name if len(others) == 1 else f"{len(groups)} others"
            bars.append(_mean_bar(groups, label))
        charts.append(f"<h3>{escape(task.capitalize())}</h3>{bar_chart(bars)}")
    return section(
        "By task",
        '<p class="soft">English with its 95 % interval; the mean of the other languages '
        "(outlined) with the range from the lowest to the highest of them.</p>",
        *charts,
    )


def _mean_bar(groups: Sequence[GroupScore], label: str) -> Bar:
    blind = [group.blind_accuracy for group in groups if group.blind_accuracy is not None]
    return Bar(
        label=label,
        value=_mean(group.accuracy for group in groups),
        low=min(group.accuracy for group in groups),
        high=max(group.accuracy for group in groups),
        blind=_mean(blind) if blind else None,
        majority=_mean(group.majority for group in groups),
        kind="other",
        range_name="lowest and highest language",
    )


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _examples_section(benchmark: BenchmarkResult, folder: Path) -> str:
    if not benchmark.examples:
        return ""
    return section(
        "What it says",
        '<p class="soft">The first yes/no question of the benchmark and the first of another '
        "kind; not chosen by how well they went.</p>",
        *(_example(example, folder) for example in benchmark.examples),
    )


def _example(example: Example, folder: Path) -> str:
    path = folder / example.file
    if path.is_file():
        kind = mimetypes.guess_type(path.name)[0] or "image/jpeg"
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        picture = f'<img src="data:{kind};base64,{data}" alt="{escape(example.image)}">'
    else:
        log.warning("%s is gone: the report has its example without the picture", path)
        picture = f'<p class="soft">{escape(example.image)}</p>'
    answers = "".join(map(_answer, example.answers))
    return f'<div class="example"><div>{picture}</div><dl>{answers}</dl></div>'


def _answer(answer: ExampleAnswer) -> str:
    lang = escape(answer.lang)
    if answer.correct:
        verdict = '<span class="verdict right">right</span>'
    else:
        expected = f'<span lang="{lang}">{escape(answer.expected)}</span>'
        verdict = f'<span class="verdict wrong">wrong, expected: {expected}</span>'
    said = escape(printable(answer.answer)) or "(nothing)"
    return (
        f'<div><dt lang="{lang}">{escape(answer.question)}</dt>'
        f'<dd><span lang="{lang}">{said}</span>{verdict}</dd></div>'
    )


def _figures_section(benchmark: BenchmarkResult) -> str:
    """Every figure in a table; plots only show some."""
    heads = ["language", "all", "95 %", "blind", "majority", *benchmark.tasks, "fidelity"]
    rows = [_figures_row(result, benchmark.tasks) for result in benchmark.languages]
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    others = benchmark.others()
    if len(others) > 1:
        cells = [f"mean of {len(others)}", percent(mean_accuracy([r.total for r in others]))]
        cells += ["", "", ""]
        cells += [
            percent(mean_accuracy([r.tasks.get(task) for r in others])) for task in benchmark.tasks
        ]
        row = "".join(f"<td>{cell}</td>" for cell in (*cells, ""))
        body += f'<tr class="mean">{row}</tr>'
    notes = "".join(
        f'<p class="soft">{escape(remark[0].upper() + remark[1:])}.</p>'
        for remark in remarks(benchmark)
    )
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return section(
        "All figures",
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"</div>{notes}",
    )


def _figures_row(result: LanguageResult, tasks: Sequence[str]) -> list[str]:
    total = result.total
    groups = [result.tasks.get(task) for task in tasks]
    return [
        escape(result.name),
        f"<b>{percent(total.accuracy)}</b>",
        interval(total),
        percent(total.blind_accuracy),
        percent(total.majority),
        *(percent(group.accuracy if group else None) for group in groups),
        percent(total.fidelity),
    ]


def _training_section(stages: Sequence[StageCurve]) -> str:
    if not stages:
        return ""
    figures = "".join(
        f"<figure><h3>{escape(stage.name)}</h3>{loss_curve(stage.steps, stage.losses, stage.name)}"
        f"<figcaption>{_stage_caption(stage)}</figcaption></figure>"
        for stage in stages
    )
    return section(
        "Training",
        '<p class="soft">Loss over the steps of each stage, on a logarithmic axis.</p>',
        f'<div class="stages">{figures}</div>',
    )


def _stage_caption(stage: StageCurve) -> str:
    parts = [f"<code>{escape(stage.folder)}</code>", f"last loss {stage.losses[-1]:.3f}"]
    if stage.runtime_s is not None:
        parts.append(f"{stage.runtime_s / 60:.1f} minutes")
    if stage.samples_per_s is not None:
        parts.append(f"{stage.samples_per_s:,.0f} samples a second")
    return ", ".join(parts)


def _method_section(report: EvalReport) -> str:
    commands = [report.command, f"lrm report {report.model_path}"]
    data = "".join(
        f"<tr><td>{escape(benchmark.name)}</td><td>{escape(result.lang)}</td>"
        f"<td><code>{result.sha256[:16]}</code></td></tr>"
        for benchmark in report.benchmarks
        for result in benchmark.languages
    )
    versions = ", ".join(f"{name} {number}" for name, number in report.environment.items())
    limit = "all questions" if report.limit is None else f"about {report.limit:,} questions each"
    return section(
        "How this was measured",
        f"<p>Greedy answers, {limit}, read by mode <code>{escape(report.mode)}</code>: a yes/no "
        "answer must begin with a yes or a no of its language (or of English), any other must "
        "equal the expected one but for case, accents and a full stop. What cannot be read "
        "counts as wrong. Intervals are Wilson's, at 95 %. The blind run shows the same model a "
        "canvas in one colour; the commonest answer is that of each task in this very set.</p>",
        f"<pre>{escape(chr(10).join(commands))}</pre>",
        f'<p class="soft">{escape(versions)}</p>',
        '<details><summary>SHA-256 of the question files</summary><div class="scroll">'
        f'<table class="plain"><tbody>{data}</tbody></table></div></details>',
    )
