"""Runs by setting, scored from their answers: what tables and figures of the paper are made from.

In: `label=run,run,...`, one run a seed, each the folder of a model, of its results or its answers.
Out: a score per benchmark, language and run with how many of how many questions were answered, or
the reason why there is none. Scores are those of `lrm eval` where they are of these very answers; a
run that has not answered all that is known to be asked has none.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llava.errors import ConfigError, DataError
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.kind import Kind
from lrm_ext.evaluate.predictions import stated_kind
from lrm_ext.evaluate.report import REPORT_FILE, EvalReport
from lrm_ext.evaluate.results import (
    ENGLISH,
    RunResult,
    answer_files,
    open_result,
    predictions_dir,
)
from lrm_ext.languages import get_language, list_languages

NOT_ASKED: Final = "not asked"


@dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but the seed.

    Attributes:
        label: What people call it.
        runs: One folder a seed.
    """

    label: str
    runs: tuple[Path, ...]

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read `label=run,run,...`, or a run alone, whose label is its name.

        Raises:
            ConfigError: There is no run in it, or one twice.
        """
        label, has_label, paths = text.rpartition("=")
        runs = tuple(Path(path.strip()) for path in paths.split(",") if path.strip())
        if not runs or (has_label and not label.strip()):
            raise ConfigError(f"{text!r}: expected RUN, or LABEL=RUN,RUN,... with a run a seed")
        if len(set(runs)) < len(runs):
            raise ConfigError(f"{text!r}: the same run twice; expected a run a seed")
        name = runs[0].resolve()
        return cls(label.strip() or (name.parent if name.name == "eval" else name).name, runs)


@dataclass(frozen=True)
class Score:
    """The score of one run on one benchmark in one language.

    Attributes:
        value: In the paper's unit; None if there is none.
        low: Lower end of its 95 % interval.
        high: Upper end.
        num_answered: Questions that are answered.
        num_questions: That are known to be asked.
        reason: Why there is no value.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    num_answered: int = 0
    num_questions: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Cell:
    """The scores of all seeds of a setting.

    Attributes:
        scores: One a run; empty for what was published by others.
        published: A figure that somebody else published.
    """

    scores: tuple[Score, ...] = ()
    published: float | None = None

    @property
    def value(self) -> float | None:
        """Mean over the seeds; None as soon as one of them has no score."""
        if self.published is not None:
            return self.published
        values = [score.value for score in self.scores if score.value is not None]
        whole = bool(values) and len(values) == len(self.scores)
        return statistics.fmean(values) if whole else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None for fewer than two."""
        values = [score.value for score in self.scores if score.value is not None]
        return statistics.stdev(values) if len(values) > 1 and self.value is not None else None

    @property
    def reason(self) -> str:
        """Why there is no value."""
        if self.value is not None:
            return ""
        reasons = [score.reason for score in self.scores if score.reason]
        several = f" ({len(reasons)} of {len(self.scores)} runs)" if len(self.scores) > 1 else ""
        return (reasons[0] if reasons else NOT_ASKED) + several


@dataclass(frozen=True)
class ScoredBenchmark:
    """All settings on one benchmark.

    Attributes:
        name: Its name.
        kind: Whose rules score it.
        unit: What the score is.
        languages: That any setting was asked in.
        cells: By setting's label and language.
    """

    name: str
    kind: str
    unit: str
    languages: tuple[str, ...]
    cells: Mapping[str, Mapping[str, Cell]]

    def mean(self, label: str) -> Cell:
        """Mean over the languages without English, per run; missing if one of them is."""
        return mean_cell([self.cells[label][lang] for lang in self.others])

    @property
    def others(self) -> tuple[str, ...]:
        """The languages without English."""
        return tuple(lang for lang in self.languages if lang != ENGLISH)


def mean_cell(cells: Sequence[Cell]) -> Cell:
    """Mean over languages of each run, so that its spread is that of the runs."""
    if not cells:
        return Cell((Score(None, reason="no other language"),))
    if all(cell.published is not None for cell in cells):
        return Cell(published=statistics.fmean(c.published for c in cells if c.published))
    scores = [_mean_score(run) for run in zip(*(cell.scores for cell in cells), strict=True)]
    return Cell(tuple(scores))


def _mean_score(scores: Sequence[Score]) -> Score:
    values = [score.value for score in scores if score.value is not None]
    num_answered = sum(score.num_answered for score in scores)
    num_questions = sum(score.num_questions for score in scores)
    missing = len(scores) - len(values)
    if missing:
        reason = f"{missing} of {len(scores)} languages missing"
        return Score(None, None, None, num_answered, num_questions, reason)
    return Score(statistics.fmean(values), None, None, num_answered, num_questions)


def score_settings(
    settings: Sequence[Setting],
    benchmarks: Sequence[str] = (),
    languages: Sequence[str] = (),
) -> list[ScoredBenchmark]:
    """Score all runs of all settings.

    Args:
        settings: With different labels.
        benchmarks: Names; empty for all that a run has answers to.
        languages: Codes; empty for all.

    Raises:
        ConfigError: Two settings have the same label.
        DataError: A run has no answers, or no run has any to what is asked for.
    """
    labels = [setting.label for setting in settings]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ConfigError(
            f"two settings are called {', '.join(twice)}; give LABEL=RUN, and the seeds of one "
            "setting as LABEL=RUN,RUN"
        )
    files = {run: answer_files(run) for setting in settings for run in setting.runs}
    there = dict.fromkeys(name for found in files.values() for name, _ in found)
    wanted = tuple(benchmarks) or tuple(there)
    if unknown := [name for name in wanted if name not in there]:
        raise DataError(
            f"no run has answers to {', '.join(unknown)}; there are answers to "
            f"{', '.join(there) or 'nothing'}"
        )
    return [_score_benchmark(name, settings, files, languages) for name in wanted]


def _score_benchmark(
    name: str,
    settings: Sequence[Setting],
    files: Mapping[Path, Mapping[tuple[str, str], Path]],
    languages: Sequence[str],
) -> ScoredBenchmark:
    own = {
        run: {la: p for (n, la), p in found.items() if n == name} for run, found in files.items()
    }
    kind = stated_kind(next(path for paths in own.values() for path in paths.values()))
    langs = ordered_languages({lang for paths in own.values() for lang in paths})
    langs = tuple(languages) or langs
    opened: dict[tuple[Path, str], RunResult | Score] = {}
    for run, paths in own.items():
        for lang in langs:
            opened[run, lang] = _open(paths.get(lang), name, kind, lang)
    known = {lang: _known(name, lang, opened) for lang in langs}
    cells = {
        setting.label: {
            lang: Cell(tuple(_score(opened[run, lang], known[lang])
                             for run in setting.runs))
            for lang in langs
        }
        for setting in settings
    }  # fmt: skip
    return ScoredBenchmark(name, kind.name, kind.headline, langs, cells)


def ordered_languages(langs: set[str]) -> tuple[str, ...]:
    """In the order of the paper, then by code."""
    known = list_languages()
    return tuple(
        sorted(langs, key=lambda one: (known.index(one) if one in known else len(known), one))
    )


def language_name(lang: str) -> str:
    """English name of a language; its code where it is not known."""
    return get_language(lang).name if lang in list_languages() else lang


def _open(path: Path | None, name: str, kind: Kind, lang: str) -> RunResult | Score:
    if path is None:
        return Score(None, reason=NOT_ASKED)
    try:
        return open_result(path, name, lang, kind=kind)
    except DataError as error:
        return Score(None, reason=str(error))


def _known(
    name: str, lang: str, opened: Mapping[tuple[Path, str], RunResult | Score]
) -> tuple[dict[str, Item], int]:
    """The questions that any run was asked, and how many a finished evaluation says there are."""
    items: dict[str, Item] = {}
    stated = 0
    for (run, one), found in opened.items():
        if one == lang and isinstance(found, RunResult):
            for item in found.items:
                items.setdefault(item.question_id, item)
            stated = max(stated, _stated_number(run, name, lang))
    return items, max(stated, len(items))


def _stated_number(run: Path, name: str, lang: str) -> int:
    folder = predictions_dir(run).parent
    if not (folder / REPORT_FILE).is_file():
        return 0
    return next(
        (
            result.total.num_questions
            for benchmark in EvalReport.read(folder).benchmarks
            if benchmark.name == name
            for result in benchmark.languages
            if result.lang == lang
        ),
        0,
    )


def _score(found: RunResult | Score, known: tuple[Mapping[str, Item], int]) -> Score:
    items, num_questions = known
    if isinstance(found, Score):
        return Score(None, num_questions=num_questions, reason=found.reason)
    counts = {"num_answered": len(found.texts), "num_questions": num_questions}
    if len(found.texts) < num_questions:
        reason = f"{len(found.texts):,} of {num_questions:,} questions answered"
        return Score(None, **counts, reason=reason)
    changed = [
        item.question_id
        for item in found.items
        if (item.answer, item.text)
        != (items[item.question_id].answer, items[item.question_id].text)
    ]
    if changed:
        reason = f"{len(changed):,} questions are worded or answered otherwise than in another run"
        return Score(None, **counts, reason=reason)
    try:
        report = found.score()
    except DataError as error:
        return Score(None, **counts, reason=str(error))
    interval = report.interval()
    low, high = interval["low"], interval["high"]
    return Score(report.headline, low, high, len(found.texts), num_questions)
