"""Scores runs by setting, for the tables and figures of the paper.

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

from llava.errors import ConfigError, DataError, UserError
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.kind import JUDGE, LOCAL, Kind
from lrm_ext.evaluate.results import (
    ENGLISH,
    RunResult,
    answer_files,
    num_judged,
    open_result,
    stated_kind,
)
from lrm_ext.languages import in_language_order

NOT_ASKED: Final = "not asked"
# a result, or why there is none; and how many questions an evaluation has judged
_Opened = tuple[RunResult | str, int]


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
        """Reads `label=run,run,...`, or a run alone, whose label is its name.

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
        metric: What the value is.
        fidelity: Share of answers in the language of the question; None if none has a language.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    num_answered: int = 0
    num_questions: int = 0
    reason: str = ""
    metric: str = ""
    fidelity: float | None = None


@dataclass(frozen=True)
class Cell:
    """The scores of all seeds of a setting; of a figure that somebody else published, the one."""

    scores: tuple[Score, ...]

    @property
    def value(self) -> float | None:
        """Mean over the seeds; None as soon as one of them has no score."""
        values = [score.value for score in self.scores if score.value is not None]
        return statistics.fmean(values) if values and len(values) == len(self.scores) else None

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
        languages: That any setting was asked in.
        cells: By setting's label and language.
    """

    name: str
    kind: Kind
    languages: tuple[str, ...]
    cells: Mapping[str, Mapping[str, Cell]]

    @property
    def title(self) -> str:
        """Names it, its score, and how answers are read by default."""
        own = self.kind.default_mode
        is_one = own == LOCAL or own.startswith(JUDGE)
        reading = own if is_one else f"{own} in English, {LOCAL} in other languages"
        return f"{self.name}: {self.kind.headline}, read as {reading}"

    def mean(self, label: str) -> Cell:
        """Returns the mean over the languages without English, per run; all must have a score."""
        return mean_cell([self.cells[label][lang] for lang in self.others])

    @property
    def others(self) -> tuple[str, ...]:
        """The languages without English."""
        return tuple(lang for lang in self.languages if lang != ENGLISH)


def mean_cell(cells: Sequence[Cell]) -> Cell:
    """Returns the mean over languages of each run, so that its spread is that of the runs."""
    if not cells:
        return Cell((Score(None, reason="no other language"),))
    return Cell(tuple(map(_mean_score, zip(*(cell.scores for cell in cells), strict=True))))


def _mean_score(scores: Sequence[Score]) -> Score:
    values = [score.value for score in scores if score.value is not None]
    missing = len(scores) - len(values)
    return Score(
        value=None if missing else statistics.fmean(values),
        num_answered=sum(score.num_answered for score in scores),
        num_questions=sum(score.num_questions for score in scores),
        reason=f"{missing} of {len(scores)} languages missing" if missing else "",
        metric=scores[0].metric,
    )


def seed_notes(settings: Sequence[Setting]) -> list[str]:
    """Says of which settings a value is a mean over seeds."""
    several = [f"{one.label} ({len(one.runs)})" for one in settings if len(one.runs) > 1]
    if not several:
        return []
    return [
        "Mean and standard deviation over runs with different seeds: "
        f"{', '.join(several)}; their questions are counted once a run."
    ]


def score_settings(
    settings: Sequence[Setting],
    benchmarks: Sequence[str] = (),
    languages: Sequence[str] = (),
    mode: str | None = None,
) -> list[ScoredBenchmark]:
    """Scores all runs of all settings.

    Args:
        settings: With different labels.
        benchmarks: Names; empty for all that a run has answers to.
        languages: Codes; empty for all.
        mode: How answers are read; by default as `lrm eval` reads them.

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
    return [_score_benchmark(name, settings, files, languages, mode) for name in wanted]


def _score_benchmark(
    name: str,
    settings: Sequence[Setting],
    files: Mapping[Path, Mapping[tuple[str, str], Path]],
    languages: Sequence[str],
    mode: str | None,
) -> ScoredBenchmark:
    own = {
        run: {la: p for (n, la), p in found.items() if n == name} for run, found in files.items()
    }
    kind = stated_kind(next(path for paths in own.values() for path in paths.values()))
    asked = in_language_order({lang for paths in own.values() for lang in paths})
    langs = tuple(languages) or asked
    # run by run, because only the stored verdicts of a few runs are kept in memory
    opened = {
        run: {lang: _open(run, paths.get(lang), name, kind, lang) for lang in langs}
        for run, paths in own.items()
    }
    rules = {
        one.rules().headline: one.rules()
        for found in opened.values()
        for one, _ in found.values()
        if isinstance(one, RunResult) and mode is None and one.is_comparable
    }
    if len(rules) > 1:
        raise DataError(
            f"{name}: {' and '.join(rules)} are different scores, which are not put into one "
            "table; have `lrm benchmark judge` judge all answers by one judge"
        )
    kind = next(iter(rules.values()), kind)
    scores = {
        lang: _score_runs({run: one[lang] for run, one in opened.items()}, mode) for lang in langs
    }
    cells = {
        setting.label: {
            lang: Cell(tuple(scores[lang][run] for run in setting.runs)) for lang in langs
        }
        for setting in settings
    }
    return ScoredBenchmark(name, kind, langs, cells)


def _score_runs(opened: Mapping[Path, _Opened], mode: str | None) -> dict[Path, Score]:
    """Scores the answers of each run in one language.

    All questions that any run was asked are known to be asked, and as many as were judged.
    """
    known: dict[str, Item] = {}
    num_questions = 0
    for found, num in opened.values():
        if isinstance(found, RunResult):
            known = {item.question_id: item for item in found.items} | known
            num_questions = max(num_questions, len(known), num)
    return {run: _score(found, known, num_questions, mode) for run, (found, _) in opened.items()}


def _open(run: Path, path: Path | None, name: str, kind: Kind, lang: str) -> _Opened:
    if path is None:
        return NOT_ASKED, 0
    try:
        return open_result(path, name, lang, kind=kind), num_judged(run, name, lang)
    except DataError as error:
        return str(error), 0


def _score(
    found: RunResult | str, known: Mapping[str, Item], num_questions: int, mode: str | None
) -> Score:
    if isinstance(found, str):
        return Score(None, num_questions=num_questions, reason=found)
    num_answered = len(found.texts)
    changed = sum(
        (item.answer, item.text) != (known[item.question_id].answer, known[item.question_id].text)
        for item in found.items
    )
    if mode is None and not found.is_comparable:
        mode = LOCAL  # which says why it has none: readings are not mixed in a table
    if num_answered < num_questions:
        reason = f"{num_answered:,} of {num_questions:,} questions answered"
    elif changed:
        reason = f"{changed:,} questions are worded or answered otherwise than in another run"
    else:
        try:
            report = found.score(mode)
            interval = report.interval()
            return Score(
                report.headline, interval["low"], interval["high"], num_answered, num_questions,
                metric=report.headline_name, fidelity=report.fidelity["share"],
            )  # fmt: skip
        except UserError as error:  # also of a mode that this set has not
            reason = str(error)
    return Score(None, num_answered=num_answered, num_questions=num_questions, reason=reason)
