"""`report.json`: every figure of an evaluation, and where it is from.

`score_run` makes it from the questions and answers of a run, without a model. Tables and plots read
these records and nothing else, so that a report can be made again from the file alone.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import lrm_ext
from llava.errors import DataError
from llava.eval.records import read_json_lines
from llava.files import write_atomically, writing
from llava.mm_utils import get_model_name_from_path
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.kind import LOCAL, UNPARSED, Reading, Verdict
from lrm_ext.evaluate.kinds import find_kind, get_kind
from lrm_ext.evaluate.predictions import Answered, read_predictions
from lrm_ext.evaluate.reading import fidelity
from lrm_ext.evaluate.registry import Benchmark
from lrm_ext.evaluate.results import ENGLISH, RunResult, reading_of, store_results
from lrm_ext.evaluate.statistics import num_majority_correct, wilson_interval
from lrm_ext.languages import get_language

if TYPE_CHECKING:
    from lrm_ext.evaluate.runner import EvalConfig, QuestionSet

REPORT_FILE: Final = "report.json"
FORMAT_VERSION: Final = 1
CLOSED: Final = ("yesno", "letter")
EXAMPLES_DIR: Final = "examples"
EXAMPLE_LANGUAGES: Final[tuple[str, ...]] = ("en", "hr", "zh")
NUM_EXAMPLE_LANGUAGES: Final = 3
_PACKAGES: Final = ("torch", "transformers", "tokenizers", "pillow", "numpy")


@dataclass(frozen=True)
class GroupScore:
    """The score of a group of questions. Shares are proportions, 0 to 1.

    Attributes:
        num_questions: Its denominator; unanswered questions do not exist, unparsed ones are wrong.
        accuracy: Share of right answers.
        low: Lower end of the 95 % Wilson interval.
        high: Upper end.
        blind_accuracy: The same model without the picture; None if it was not run.
        majority: What the commonest answer of each task would reach.
        num_unparsed: Yes/no answers that say neither.
        num_empty: Answers without text.
        num_cut: Answers that reached the length limit.
        fidelity: Share of answers in the language of the question, among those that belong to a
            language at all; None where none does (figures).
        num_missing: Questions that were not asked, for their picture is missing; they are wrong.
        num_refused: Questions that a service refused to answer; they are wrong.
    """

    num_questions: int
    accuracy: float
    low: float
    high: float
    blind_accuracy: float | None
    majority: float
    num_unparsed: int
    num_empty: int
    num_cut: int
    fidelity: float | None
    num_missing: int = 0
    num_refused: int = 0


@dataclass(frozen=True)
class Headline:
    """The figure of the paper's tables, in its unit.

    Attributes:
        name: What it is, such as perception.
        mode: How answers were read.
        value: The figure.
        low: Lower end of its 95 % interval.
        high: Upper end.
        method: How the interval was found.
        blind: The same without the picture; None if that was not run.
        details: All other figures, as `lrm benchmark score --json` prints them.
    """

    name: str
    mode: str
    value: float
    low: float
    high: float
    method: str
    blind: float | None
    details: Mapping[str, Any]


@dataclass(frozen=True)
class LanguageResult:
    """One language's scores.

    Attributes:
        lang: Code.
        name: English name.
        native_name: Its own name.
        sha256: Of the question file.
        total: Over all questions.
        yesno: Over the yes/no questions; None if there are none.
        text: Over the others; None if there are none.
        tasks: By task.
        yesno_tasks: The tasks that are answered by yes or no.
        headlines: The figure of the paper's tables, in each mode of reading; empty for a benchmark
            that has none but accuracy.
    """

    lang: str
    name: str
    native_name: str
    sha256: str
    total: GroupScore
    yesno: GroupScore | None
    text: GroupScore | None
    tasks: Mapping[str, GroupScore]
    yesno_tasks: tuple[str, ...]
    headlines: tuple[Headline, ...] = ()


@dataclass(frozen=True)
class ExampleAnswer:
    """One question on an example picture, and what the model wrote."""

    lang: str
    question: str
    answer: str
    expected: str
    correct: bool


@dataclass(frozen=True)
class Example:
    """A picture with the same question in several languages.

    Attributes:
        image: Where the picture is, for people.
        file: Copy of it, relative to the report.
        answers: By language.
    """

    image: str
    file: str
    answers: tuple[ExampleAnswer, ...]


@dataclass(frozen=True)
class BenchmarkResult:
    """One benchmark's scores and examples."""

    name: str
    languages: tuple[LanguageResult, ...]
    examples: tuple[Example, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks, in the order in which they occur."""
        return tuple(dict.fromkeys(task for r in self.languages for task in r.tasks))

    def english(self) -> LanguageResult | None:
        """The English result, if English was asked."""
        return next((r for r in self.languages if r.lang == ENGLISH), None)

    def others(self) -> tuple[LanguageResult, ...]:
        """The results of all other languages."""
        return tuple(r for r in self.languages if r.lang != ENGLISH)


@dataclass(frozen=True)
class EvalReport:
    """A whole evaluation.

    Attributes:
        model_path: The checkpoint, as it was named on the command line.
        model_id: Its name.
        mode: How answers were read.
        limit: About how many questions per benchmark and language were asked; None for all.
        command: The command line that made the report.
        environment: Versions of what ran.
        benchmarks: The results.
    """

    model_path: str
    model_id: str
    mode: str
    limit: int | None
    command: str
    environment: Mapping[str, str]
    benchmarks: tuple[BenchmarkResult, ...]
    format_version: int = field(default=FORMAT_VERSION)

    def write(self, folder: Path) -> Path:
        """Write `report.json`; returns its path."""
        path = folder / REPORT_FILE
        write_atomically(path, json.dumps(asdict(self), indent=1, ensure_ascii=False))
        return path

    @classmethod
    def read(cls, folder: Path) -> EvalReport:
        """Read `report.json`.

        Raises:
            DataError: It is missing, unreadable or of another version.
        """
        path = folder / REPORT_FILE
        if not path.is_file():
            raise DataError(f"no {path}; `lrm eval --model ...` makes it")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format_version"] != FORMAT_VERSION:
                raise DataError(
                    f"{path}: format_version is {data['format_version']}, this code reads "
                    f"{FORMAT_VERSION}; run `lrm eval` again (answers are kept)"
                )
            data["benchmarks"] = tuple(map(_benchmark, data["benchmarks"]))
            return cls(**data)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: not a report: {error!r}; run `lrm eval` again") from error


def _benchmark(data: dict[str, Any]) -> BenchmarkResult:
    examples = (
        Example(e["image"], e["file"], tuple(ExampleAnswer(**a) for a in e["answers"]))
        for e in data["examples"]
    )
    return BenchmarkResult(data["name"], tuple(map(_language, data["languages"])), tuple(examples))


def _language(data: dict[str, Any]) -> LanguageResult:
    groups = {name: data[name] and GroupScore(**data[name]) for name in ("total", "yesno", "text")}
    tasks = {task: GroupScore(**group) for task, group in data["tasks"].items()}
    yesno_tasks = tuple(data["yesno_tasks"])
    headlines = tuple(Headline(**headline) for headline in data.get("headlines", ()))
    tuples = {"yesno_tasks": yesno_tasks, "headlines": headlines}
    return LanguageResult(**{**data, **groups, "tasks": tasks, **tuples})


def mean_accuracy(groups: Sequence[GroupScore | None]) -> float | None:
    """Unweighted mean over languages; None without any."""
    values = [group.accuracy for group in groups if group is not None]
    return sum(values) / len(values) if values else None


def score_run(config: EvalConfig, sets: Sequence[QuestionSet], command: str) -> EvalReport:
    """Score all answers of a run; write `scores.jsonl`, `report.json` and the example pictures.

    Args:
        config: The run.
        sets: Its questions, as `run_evaluation` returned them.
        command: The command line, for the report.

    Raises:
        DataError: A question has no answer.
    """
    benchmarks: list[BenchmarkResult] = []
    results: list[RunResult] = []
    for name, group in itertools.groupby(sets, key=lambda qs: qs.benchmark.name):
        members = list(group)
        found = [_open_asked(config, qs) for qs in members]
        languages = tuple(map(_language_result, members, found))
        examples = _examples(config, members, found)
        benchmarks.append(BenchmarkResult(name, languages, examples))
        results += found
    store_results(config.results_dir, results)
    report = EvalReport(
        model_path=str(config.model_path),
        model_id=get_model_name_from_path(str(config.model_path)),
        mode=LOCAL,
        limit=config.limit,
        command=command,
        environment=_environment(),
        benchmarks=tuple(benchmarks),
    )
    report.write(config.results_dir)
    return report


def _open_asked(config: EvalConfig, qs: QuestionSet) -> RunResult:
    """The result on the questions that were asked, with earlier verdicts that still hold."""
    path = qs.path(config.predictions_dir, blind=False)
    blind = read_predictions(qs.path(config.predictions_dir, blind=True))
    # A blind run that was interrupted says nothing yet.
    is_whole = all(i.question_id in blind or i.question_id in qs.unasked for i in qs.items)
    cut = {r["key"] for _, r in read_json_lines(path) if r.get("finish_reason") == "length"}
    answered = Answered(
        items=qs.items,
        texts=read_predictions(path),
        lang=qs.lang,
        version=qs.benchmark.versions.get(qs.lang, ""),
        cut_keys=cut,
    )

    def reading() -> Reading:
        has_english = ENGLISH in qs.benchmark.languages()
        english = qs.benchmark.read(ENGLISH) if has_english else ()
        return reading_of(qs.lang, qs.benchmark.read(qs.lang), english)

    kind = find_kind(qs.benchmark.kind or "") or get_kind("answers")
    result = RunResult(
        qs.benchmark.name, kind, answered, reading, blind if is_whole else None, qs.unasked
    )
    result.take_stored(path)
    return result


def _language_result(qs: QuestionSet, result: RunResult) -> LanguageResult:
    verdicts = result.verdicts(LOCAL)
    blind = None if result.blind is None else result.verdicts(LOCAL, blind=True)

    def group(keep: Iterable[bool]) -> GroupScore | None:
        chosen = list(keep)
        if not any(chosen):
            return None
        return tally(
            list(itertools.compress(verdicts, chosen)),
            None if blind is None else list(itertools.compress(blind, chosen)),
            qs.items[0].answer_lang or qs.lang,
            result.answered.cut_keys,
        )

    total = group(True for _ in verdicts)
    assert total is not None, "a question set is never empty"
    tasks = {
        task: group(v.category == task for v in verdicts)
        for task in dict.fromkeys(verdict.category for verdict in verdicts)
    }
    language = get_language(qs.lang)
    return LanguageResult(
        lang=qs.lang,
        name=language.name,
        native_name=language.native_name,
        sha256=qs.sha256,
        total=total,
        yesno=group(v.answer_type == "yesno" for v in verdicts),
        text=group(v.answer_type == "text" for v in verdicts),
        tasks={task: score for task, score in tasks.items() if score is not None},
        yesno_tasks=tuple(dict.fromkeys(v.category for v in verdicts if v.answer_type == "yesno")),
        headlines=_headlines(result) if find_kind(qs.benchmark.kind or "") else (),
    )


def _headlines(result: RunResult) -> tuple[Headline, ...]:
    """The figure of the paper's tables, in each mode of interest.

    English answers are read by the English scorers' rules and, for comparison, by the rules for any
    language; other languages by the latter only.
    """
    headlines: list[Headline] = []
    for mode in dict.fromkeys((result.kind.mode_for(result.lang), LOCAL)):
        report = result.score(mode)
        found = report.interval()
        headlines.append(
            Headline(
                name=report.headline_name,
                mode=mode,
                value=report.headline,
                low=found["low"],
                high=found["high"],
                method=found["method"],
                blind=None if result.blind is None else result.score(mode, blind=True).headline,
                details=report.to_json(),
            )
        )
    return tuple(headlines)


def tally(
    verdicts: Sequence[Verdict],
    blind: Sequence[Verdict] | None,
    lang: str,
    cut_keys: Collection[str] = (),
) -> GroupScore:
    """Count a group of verdicts.

    Args:
        verdicts: At least one.
        blind: The verdicts on the same questions without the picture.
        lang: The language that answers are expected in.
        cut_keys: Questions whose answer reached the length limit.
    """
    n = len(verdicts)
    num_correct = sum(verdict.correct for verdict in verdicts)
    accuracy = num_correct / n
    low, high = wilson_interval(num_correct, n)
    graded = [verdict.value for verdict in verdicts if verdict.value is not None]
    if graded:
        # captions are neither right nor wrong; their interval is in the headline
        low = high = accuracy = sum(graded) / n
    own, decided = fidelity((verdict.answer_lang for verdict in verdicts), lang)
    return GroupScore(
        num_questions=n,
        accuracy=accuracy,
        low=low,
        high=high,
        blind_accuracy=None if blind is None else sum(v.correct for v in blind) / n,
        majority=num_majority_correct((v.category, v.gold) for v in verdicts) / n,
        num_unparsed=sum(v.answer_type in CLOSED and v.parsed in UNPARSED for v in verdicts),
        num_empty=sum(verdict.empty for verdict in verdicts),
        num_cut=sum(verdict.key in cut_keys for verdict in verdicts),
        num_missing=sum(verdict.missing for verdict in verdicts),
        num_refused=sum(verdict.refused for verdict in verdicts),
        fidelity=own / decided if decided else None,
    )


def _environment() -> dict[str, str]:
    versions = {"lrm_ext": lrm_ext.__version__, "python": platform.python_version()}
    return versions | {name: version(name) for name in _PACKAGES}


def _examples(
    config: EvalConfig,
    sets: Sequence[QuestionSet],
    results: Sequence[RunResult],
) -> tuple[Example, ...]:
    """The first yes/no question and the first free one on another picture, in three languages.

    They are chosen by their place in the file, never by how well they were answered.
    """
    by_lang = {qs.lang: qs for qs in sets}
    preferred = [lang for lang in EXAMPLE_LANGUAGES if lang in by_lang]
    preferred += [lang for lang in by_lang if lang not in preferred]
    languages = preferred[:NUM_EXAMPLE_LANGUAGES]
    first = by_lang[languages[0]]
    chosen: list[Item] = []
    for answer_type in ("yesno", "text"):
        seen = {item.image for item in chosen}
        candidates = [
            item
            for item in first.items
            if item.answer_type == answer_type and item.question_id not in first.unasked
        ]
        chosen += [item for item in candidates if item.image not in seen][:1]
    by_result = {result.lang: result for result in results}
    chosen_results = [by_result[lang] for lang in languages]
    return tuple(
        _example(config, item, number, by_lang[languages[0]].benchmark, chosen_results)
        for number, item in enumerate(chosen, 1)
    )


def _example(
    config: EvalConfig,
    item: Item,
    number: int,
    benchmark: Benchmark,
    results: Sequence[RunResult],
) -> Example:
    answers: list[ExampleAnswer] = []
    for result in results:
        for same, verdict in zip(result.items, result.verdicts(LOCAL), strict=True):
            if same.question_id == item.question_id:
                text = result.texts[same.question_id]
                answers.append(
                    ExampleAnswer(result.lang, same.text, text, same.answer, verdict.correct)
                )
    source = benchmark.image_path(item.image)
    file = f"{EXAMPLES_DIR}/{benchmark.name}-{number}{source.suffix}"
    with writing(config.results_dir / file) as partial:
        shutil.copyfile(source, partial)
    return Example(os.path.relpath(source), file, tuple(answers))
