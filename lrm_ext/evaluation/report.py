"""The content of `report.json`: every figure of an evaluation, and where it is from.

Whoever prints a table or draws a plot reads these records and nothing else, so that a report can
be made again from the file alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from llava.errors import DataError
from llava.files import write_atomically

REPORT_FILE: Final = "report.json"
FORMAT_VERSION: Final = 1
ENGLISH: Final = "en"


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
