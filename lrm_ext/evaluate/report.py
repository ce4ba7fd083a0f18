"""Makes `report.json`: every figure of an evaluation, and where it is from.

`score_run` makes it from the questions and answers of a run, without a model. Tables and plots read
these records and nothing else, so that a report can be made again from the file alone.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import platform
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import regex

import lrm_ext
from llava.errors import DataError, UserError
from llava.eval.m4c_evaluator import edit_distance
from llava.eval.records import read_json_lines
from llava.files import get_model_name_from_path, write_atomically, writing
from llava.images import open_image
from lrm_ext.evaluate.kind import LOCAL, UNPARSED, Reading, Verdict, fidelity, final_answer
from lrm_ext.evaluate.kinds import find_kind, get_kind
from lrm_ext.evaluate.official import join_images
from lrm_ext.evaluate.predictions import read_predictions
from lrm_ext.evaluate.results import ENGLISH, Answered, RunResult, reading_of, store_results
from lrm_ext.evaluate.statistics import num_majority_correct, wilson_interval
from lrm_ext.languages import any_language

if TYPE_CHECKING:
    from lrm_ext.evaluate.registry import Benchmark
    from lrm_ext.evaluate.runner import EvalConfig, QuestionSet

log = logging.getLogger(__name__)
REPORT_FILE: Final = "report.json"
FORMAT_VERSION: Final = 1
CLOSED: Final = ("yesno", "letter")
EXAMPLES_DIR: Final = "examples"
EXAMPLE_LANGUAGES: Final[tuple[str, ...]] = ("en", "hr", "zh")
_PACKAGES: Final = ("torch", "transformers", "tokenizers", "pillow", "numpy")


@dataclass(frozen=True)
class GroupScore:
    """The score of a group of questions. Shares are proportions, 0 to 1.

    Attributes:
        num_questions: Its denominator; unanswered questions do not exist, unparsed ones are wrong.
        accuracy: Share of right answers.
        low: Lower end of the 95 % Wilson interval.
        high: Upper end.
        blind_accuracy: The same model without the image; None if it was not run.
        majority: What the commonest answer of each task would reach.
        num_unparsed: Yes/no answers that say neither.
        num_empty: Answers without text.
        num_cut: Answers that reached the length limit.
        fidelity: Share of answers in the language of the question, among those that belong to a
            language at all; None where none does (figures).
        num_missing: Questions that were not asked, because their image is missing; they are wrong.
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
        blind: The same without the image; None if that was not run.
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
        mode: How answers are read for these shares: `local`, or the owner's or a judge's for a
            language without a file.
        character_errors: Of text that is read from images, the character error rate: graphemes to
            insert, delete or replace per grapheme of the text, in NFC, which may be more than 1.
            None without such questions.
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
    mode: str = LOCAL
    character_errors: float | None = None

    @property
    def main(self) -> GroupScore:
        """The yes/no questions, or all where there are none of those."""
        return self.yesno or self.total


@dataclass(frozen=True)
class ExampleAnswer:
    """One question on an example image, and what the model wrote."""

    lang: str
    question: str
    answer: str
    expected: str
    correct: bool


@dataclass(frozen=True)
class Example:
    """An image with the same question in several languages.

    Attributes:
        image: Where the image is, for people; several are named one after the other.
        file: Copy of it, relative to the report; several are joined, side by side.
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

    @property
    def headline(self) -> Headline | None:
        """The first of its headlines; None if it has none but accuracy."""
        return next((headline for r in self.languages for headline in r.headlines), None)

    @property
    def headline_names(self) -> tuple[str, ...]:
        """What its headlines are: those of different names are not in one table."""
        return tuple(dict.fromkeys(one.name for r in self.languages for one in r.headlines))

    def parts(self) -> tuple[BenchmarkResult, ...]:
        """Returns the results by how answers are read for their shares, which are not mixed."""
        modes = dict.fromkeys(r.mode for r in self.languages)
        return tuple(
            replace(
                self,
                languages=tuple(r for r in self.languages if r.mode == mode),
                examples=() if number else self.examples,
            )
            for number, mode in enumerate(modes)
        )

    def english(self) -> LanguageResult | None:
        """Returns the English result, if English was asked."""
        return next((r for r in self.languages if r.lang == ENGLISH), None)

    def others(self) -> tuple[LanguageResult, ...]:
        """Returns the results of all other languages."""
        return tuple(r for r in self.languages if r.lang != ENGLISH)


@dataclass(frozen=True)
class EvalReport:
    """A whole evaluation.

    Attributes:
        model_path: The checkpoint, as it was named on the command line.
        model_id: Its name.
        mode: How answers were read; headlines say their own.
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
    format_version: int = FORMAT_VERSION

    def write(self, folder: Path) -> Path:
        """Writes `report.json`; returns its path."""
        path = folder / REPORT_FILE
        write_atomically(path, json.dumps(asdict(self), indent=1, ensure_ascii=False))
        return path

    @classmethod
    def read(cls, folder: Path) -> EvalReport:
        """Reads `report.json`.

        Raises:
            DataError: It is missing, unreadable or of another version.
        """
        path = folder / REPORT_FILE
        if not path.is_file():
            raise DataError(f"no {path}; `lrm eval --model ...` makes it")
        try:
            report = msgspec.json.decode(path.read_bytes(), type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not a report: {error}; run `lrm eval` again") from error
        if report.format_version != FORMAT_VERSION:
            raise DataError(
                f"{path}: format_version is {report.format_version}, this code reads "
                f"{FORMAT_VERSION}; run `lrm eval` again (answers are kept)"
            )
        return report


def mean_of(groups: Iterable[GroupScore | None], name: str = "accuracy") -> float | None:
    """Returns the unweighted mean of a share over the groups that have it; None without any.

    Args:
        groups: Such as those of several languages.
        name: The field of `GroupScore`.
    """
    values = [getattr(group, name) for group in groups if group is not None]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def score_run(
    config: EvalConfig,
    sets: Sequence[QuestionSet],
    command: str,
    judge: Callable[[RunResult, Benchmark], object] | None = None,
) -> EvalReport:
    """Scores all answers of a run; writes `scores.jsonl`, `report.json` and the example images.

    Args:
        config: The run.
        sets: Its questions, as `run_evaluation` returned them.
        command: The command line, for the report.
        judge: Has a model judge the answers to a benchmark in a language; None for no model.

    Raises:
        DataError: A question has no answer.
    """
    benchmarks: list[BenchmarkResult] = []
    results: list[RunResult] = []
    for name, group in itertools.groupby(sets, key=lambda qs: qs.benchmark.name):
        found = [(qs, _open_asked(config, qs)) for qs in group]
        if judge is not None:
            for qs, result in found:
                judge(result, qs.benchmark)
        results += [result for _, result in found]
        if read := [(qs, result) for qs, result in found if result.is_read()]:
            languages = tuple(_language_result(qs, result) for qs, result in read)
            benchmarks.append(BenchmarkResult(name, languages, _examples(config, read)))
    store_results(config.results_dir, results)
    if not benchmarks:
        raise DataError("there is no score: nothing reads the answers; they are kept")
    versions = {"lrm_ext": lrm_ext.__version__, "python": platform.python_version()}
    report = EvalReport(
        model_path=str(config.model_path),
        model_id=get_model_name_from_path(str(config.model_path)),
        mode=LOCAL,
        limit=config.limit,
        command=command,
        environment=versions | {name: version(name) for name in _PACKAGES},
        benchmarks=tuple(benchmarks),
    )
    report.write(config.results_dir)
    return report


def _open_asked(config: EvalConfig, qs: QuestionSet) -> RunResult:
    """Opens the result on the questions that were asked, with earlier verdicts that still hold."""
    path = qs.path(config.predictions_dir, blind=False)
    blind = read_predictions(qs.path(config.predictions_dir, blind=True))
    # A blind run that was interrupted says nothing yet.
    is_whole = all(i.question_id in blind or i.question_id in qs.unasked for i in qs.items)
    answered = Answered(
        items=qs.items,
        texts=read_predictions(path),
        lang=qs.lang,
        version=qs.benchmark.versions.get(qs.lang, ""),
        cut_keys={r["key"] for _, r in read_json_lines(path) if r.get("finish_reason") == "length"},
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
    verdicts = result.verdicts(result.usual_mode)
    language = any_language(qs.lang)
    total = _group_score(qs, result)
    assert total is not None, "a question set is never empty"
    scores = {
        task: _group_score(qs, result, "category", task)
        for task in dict.fromkeys(verdict.category for verdict in verdicts)
    }
    return LanguageResult(
        lang=qs.lang,
        name=language.name,
        native_name=language.native_name,
        sha256=qs.sha256,
        total=total,
        yesno=_group_score(qs, result, "answer_type", "yesno"),
        text=_group_score(qs, result, "answer_type", "text"),
        tasks={task: score for task, score in scores.items() if score is not None},
        yesno_tasks=tuple(dict.fromkeys(v.category for v in verdicts if v.answer_type == "yesno")),
        headlines=_headlines(result) if find_kind(qs.benchmark.kind or "") else (),
        mode=result.usual_mode,
        character_errors=_character_errors(result),
    )


def _group_score(
    qs: QuestionSet, result: RunResult, field: str = "", value: str = ""
) -> GroupScore | None:
    """Returns the score of the questions whose verdict has a value in a field, or None."""

    def chosen(blind: bool) -> list[Verdict]:
        verdicts = result.verdicts(result.usual_mode, blind)
        return [verdict for verdict in verdicts if not field or getattr(verdict, field) == value]

    verdicts = chosen(blind=False)
    if not verdicts:
        return None
    n = len(verdicts)
    has_blind = result.blind is not None and result.usual_mode not in result.judges()
    blind = sum(v.correct for v in chosen(blind=True)) / n if has_blind else None
    num_correct = sum(verdict.correct for verdict in verdicts)
    accuracy = num_correct / n
    low, high = wilson_interval(num_correct, n)
    graded = [verdict.value for verdict in verdicts if verdict.value is not None]
    if graded:
        # captions are neither right nor wrong; their interval is in the headline
        low = high = accuracy = sum(graded) / n
    langs = (verdict.answer_lang for verdict in verdicts)
    own, decided = fidelity(langs, qs.items[0].answer_lang or qs.lang)
    return GroupScore(
        num_questions=n,
        accuracy=accuracy,
        low=low,
        high=high,
        blind_accuracy=blind,
        majority=num_majority_correct((v.category, v.gold) for v in verdicts) / n,
        num_unparsed=sum(v.answer_type in CLOSED and v.parsed in UNPARSED for v in verdicts),
        num_empty=sum(verdict.empty for verdict in verdicts),
        num_cut=sum(verdict.key in result.answered.cut_keys for verdict in verdicts),
        num_missing=sum(verdict.missing for verdict in verdicts),
        num_refused=sum(verdict.refused for verdict in verdicts),
        fidelity=own / decided if decided else None,
    )


def _character_errors(result: RunResult) -> float | None:
    errors = length = 0
    for item in result.items:
        # as `lrm corpus text-images` names its questions
        if (item.category, item.answer_type) == ("reading", "text"):
            said = final_answer(result.texts.get(item.question_id, ""))
            written, read = (
                regex.findall(r"\X", " ".join(unicodedata.normalize("NFC", text).split()))
                for text in (item.answer, said)
            )
            errors += edit_distance(written, read)
            length += len(written)
    return errors / length if length else None


def _headlines(result: RunResult) -> tuple[Headline, ...]:
    """Returns the figure of the paper's tables in each mode of interest.

    English answers are read by the English scorers' rules and, for comparison, by the rules for any
    language; other languages by the latter only. Where a set's owner has a rule, all are read by
    it, too; a package or options that it lacks cost its row alone. Each judge that judged the
    answers has a row.
    """
    headlines: list[Headline] = []
    kind, judges = result.kind, result.judges()
    own = (kind.mode_for(result.lang), LOCAL) if kind.reads_locally(result.lang) else ()
    for mode in dict.fromkeys((*own, *kind.beside, *judges)):
        has_blind = result.blind is not None and mode not in judges
        try:
            report = result.score(mode)
        except UserError as error:
            if mode not in kind.beside:
                raise
            log.warning("%s %s: no row %s: %s", result.benchmark, result.lang, mode, error)
            continue
        found = report.interval()
        headlines.append(
            Headline(
                name=report.headline_name,
                mode=mode,
                value=report.headline,
                low=found["low"],
                high=found["high"],
                method=found["method"],
                blind=result.units(mode, blind=True).score() if has_blind else None,
                details=report.to_json(),
            )
        )
    return tuple(headlines)


def add_judged(folder: Path, results: Sequence[RunResult]) -> None:
    """Stores the verdicts of judges, and adds their scores to `report.json` if there is one.

    Args:
        folder: The folder of results.
        results: The results that were judged.
    """
    store_results(folder, results)
    if not (folder / REPORT_FILE).is_file():
        return
    judged = {(result.benchmark, result.lang): result for result in results}

    def renewed(name: str, one: LanguageResult) -> LanguageResult:
        if (name, one.lang) not in judged or not one.headlines:
            return one
        result = judged[name, one.lang]
        own = [headline for headline in one.headlines if headline.mode not in result.judges()]
        fresh = [h for h in _headlines(result) if h.mode in result.judges()]
        return replace(one, headlines=(*own, *fresh))

    report = EvalReport.read(folder)
    benchmarks = tuple(
        replace(one, languages=tuple(renewed(one.name, lang) for lang in one.languages))
        for one in report.benchmarks
    )
    replace(report, benchmarks=benchmarks).write(folder)


def _examples(
    config: EvalConfig, found: Sequence[tuple[QuestionSet, RunResult]]
) -> tuple[Example, ...]:
    """Returns the first yes/no and the first free question on another image, in three languages.

    They are chosen by their place in the file, never by how well they were answered.
    """
    places = {lang: place for place, lang in enumerate(EXAMPLE_LANGUAGES)}
    # the sort is stable: other languages keep their order
    ordered = sorted(found, key=lambda pair: places.get(pair[0].lang, len(places)))[: len(places)]
    (first, _), results = ordered[0], [result for _, result in ordered]
    examples: list[Example] = []
    for answer_type in ("yesno", "text"):
        for item in first.items:
            sources = first.image_paths(item)
            image = " + ".join(map(os.path.relpath, sources))
            is_asked = item.question_id not in first.unasked
            if item.answer_type != answer_type or not (is_asked and sources):
                continue
            if image in [example.image for example in examples]:
                continue
            suffix = sources[0].suffix if len(sources) == 1 else ".png"
            file = f"{EXAMPLES_DIR}/{first.benchmark.name}-{len(examples) + 1}{suffix}"
            with writing(config.results_dir / file) as partial:
                if len(sources) == 1:
                    shutil.copyfile(sources[0], partial)
                else:
                    join_images([open_image(path) for path in sources]).save(partial, "PNG")
            answers = tuple(
                ExampleAnswer(
                    result.lang, own.text, result.texts[own.question_id], own.answer,
                    verdict.correct,
                )
                for result in results
                for own, verdict in zip(
                    result.items, result.verdicts(result.usual_mode), strict=True
                )
                if own.question_id == item.question_id
            )  # fmt: skip
            examples.append(Example(image, file, answers))
            break
    return tuple(examples)
