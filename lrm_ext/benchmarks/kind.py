"""What a benchmark must say of itself so that it can be asked, scored and compared.

A `Kind` is data and pure functions; the four of the paper are in `mme.py`, `pope.py`,
`seed_bench.py` and `mmbench.py`, and `kinds.py` knows them by name. Every score is a function of
sums over units (pictures, or a question with its rotations), so that a bootstrap can draw units
and compute the score itself again, never a mean of scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llava.errors import ConfigError, DataError
from lrm_ext.benchmarks.items import Item
from lrm_ext.benchmarks.score import Judge, Verdict
from lrm_ext.languages.registry import Language

LOCAL: Final = "local"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class UnitCounts:
    """The counts that a score is computed from.

    Attributes:
        units: Names, sorted.
        strata: Of each unit: units are drawn within their stratum.
        counts: [U, K], in the columns that `combine` expects.
        combine: From sums over units [..., K] to scores [...], in the paper's unit.
    """

    units: tuple[str, ...]
    strata: tuple[str, ...]
    counts: Array
    combine: Callable[[Array], Array]

    def score(self) -> float:
        """The score itself."""
        return float(self.combine(self.counts.sum(axis=0)))


@dataclass(frozen=True)
class Kind:
    """A benchmark's rules.

    Attributes:
        name: As on the command line.
        title: As people call it.
        headline: What the number in the paper's tables is.
        maximum: The best possible headline of the whole benchmark.
        answer_type: Of its questions.
        modes: Judges by mode; `local` is for any language.
        outcomes: Whether each question is right, where a question is more than one verdict.
        aliases: Modes that are the same as another.
        default_mode: For English; other languages are read by `local`.
        refused: Modes that cannot be had from texts, and why.
        prompt: From question, hint, options and language to what the model is asked.
        check: Refuses questions that do not belong together as they must; its second argument
            says whether missing ones are allowed (they count as wrong).
        count: From verdicts (and items beside them, and the mode) to counts.
        details: All other figures, by name, from the same arguments.
        skipped: Questions that must exist beside some that were answered, where the answers are
            all that is known.
    """

    name: str
    title: str
    headline: str
    maximum: float
    answer_type: str
    modes: Mapping[str, Judge]
    default_mode: str
    prompt: Callable[[str, str, Sequence[str], Language], str]
    check: Callable[[Sequence[Item], bool], int]
    count: Callable[[Sequence[Item], Sequence[Verdict], str], UnitCounts]
    details: Callable[[Sequence[Item], Sequence[Verdict], str], dict[str, Any]]
    outcomes: Callable[[Sequence[Item], Sequence[Verdict]], dict[str, bool]] | None = None
    skipped: Callable[[Sequence[Item]], list[Item]] = lambda items: []
    aliases: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def right_by_question(
        self, items: Sequence[Item], verdicts: Sequence[Verdict]
    ) -> dict[str, bool]:
        """Whether each question is right, by its id."""
        if self.outcomes is not None:
            return self.outcomes(items, verdicts)
        return {verdict.key: verdict.correct for verdict in verdicts}

    def mode_for(self, lang: str, wanted: str | None = None) -> str:
        """The mode in which answers in a language are read.

        Args:
            lang: Language of the questions.
            wanted: What the user asked for.

        Raises:
            ConfigError: There is no such mode, or it needs more than texts.
        """
        mode = wanted or (self.default_mode if lang == "en" else LOCAL)
        mode = self.aliases.get(mode, mode)
        if mode in self.refused:
            raise ConfigError(f"{self.name} cannot be scored in mode {mode}: {self.refused[mode]}")
        if mode not in self.modes:
            known = ", ".join(dict.fromkeys((*self.modes, *self.aliases)))
            raise ConfigError(f"{self.name} has no mode {mode!r}; choose from {known}")
        return mode


def pair_up(items: Sequence[Item], verdicts: Sequence[Verdict]) -> list[tuple[Item, Verdict]]:
    """Items with their verdicts; our own mistake if they differ in number."""
    return list(zip(items, verdicts, strict=True))


def gather(
    rows: Sequence[tuple[str, str, Mapping[int, float]]],
    num_columns: int,
    combine: Callable[[Array], Array],
) -> UnitCounts:
    """Sum contributions by unit.

    Args:
        rows: (unit, stratum, amount by column) of each question.
        num_columns: K.
        combine: See `UnitCounts`.
    """
    strata: dict[str, str] = {}
    for unit, stratum, _ in rows:
        strata[unit] = stratum
    units = sorted(strata)
    place = {unit: number for number, unit in enumerate(units)}
    counts = np.zeros((len(units), num_columns))
    for unit, _, amounts in rows:
        for column, amount in amounts.items():
            counts[place[unit], column] += amount
    return UnitCounts(tuple(units), tuple(strata[unit] for unit in units), counts, combine)


def count_accuracy(
    items: Sequence[Item], verdicts: Sequence[Verdict], mode: str = LOCAL
) -> UnitCounts:
    """Counts of right answers; the score is their share, in percent."""
    rows = [(v.unit, "", {0: float(v.correct), 1: 1.0}) for v in verdicts]
    return gather(rows, 2, percentage)


def percentage(sums: Array) -> Array:
    """From (right, all) to percent."""
    result: Array = 100.0 * sums[..., 0] / sums[..., 1]
    return result


def share(verdicts: Sequence[Verdict]) -> float:
    """Share of right answers."""
    return sum(verdict.correct for verdict in verdicts) / len(verdicts)


def by_category(items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """Verdicts by category, in the order in which categories occur."""
    groups: dict[str, list[Verdict]] = {}
    for item, verdict in pair_up(items, verdicts):
        groups.setdefault(item.category, []).append(verdict)
    return groups


def refuse_golds(items: Sequence[Item], allowed: Sequence[str], name: str) -> None:
    """Demand that every expected answer is one of a few.

    Raises:
        DataError: One is not.
    """
    for item in items:
        if item.answer not in allowed and item.answer:
            raise DataError(
                f"{name}: question {item.question_id}: the expected answer is {item.answer!r}; "
                f"expected one of {', '.join(allowed)}"
            )
