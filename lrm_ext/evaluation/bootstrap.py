"""Intervals and tests of scores that are not shares: the bootstrap over pictures (EVAL_SPEC 9).

Questions about one picture depend on each other, so pictures are drawn, not questions. The same
draw serves both systems, all languages and all parts of a score, and each replicate computes the
whole score again from the counts of the units that were drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llava.errors import DataError
from lrm_ext.benchmarks.kind import UnitCounts

NUM_REPLICATES: Final = 10_000
_CHUNK: Final = 500
_LEVELS: Final = (2.5, 97.5)
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """A difference of two scores.

    Attributes:
        value: As measured.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Two-sided p-value of no difference.
        standard_error: Its standard deviation over the replicates.
    """

    value: float
    low: float
    high: float
    p: float
    standard_error: float


def replicate(
    systems: Sequence[UnitCounts], seed: int = 0, num_replicates: int = NUM_REPLICATES
) -> Array:
    """Scores of several systems on the same draws of units.

    Args:
        systems: Their counts on the same units.
        seed: Of the draws.
        num_replicates: B.

    Returns:
        [S, B].

    Raises:
        DataError: The systems answered questions about other pictures.
    """
    first = systems[0]
    for other in systems[1:]:
        if other.units != first.units or other.strata != first.strata:
            differing = len(set(other.units) ^ set(first.units))
            raise DataError(
                f"the two have answered other questions: {differing} pictures (or questions with "
                "rotations) are in one of them only; compare runs over the same questions"
            )
    rng = np.random.Generator(np.random.PCG64(seed))
    strata = np.array(first.strata)
    scores = np.empty((len(systems), num_replicates))
    for start in range(0, num_replicates, _CHUNK):
        size = min(_CHUNK, num_replicates - start)
        weights = _draw(rng, strata, size)
        for number, system in enumerate(systems):
            scores[number, start : start + size] = system.combine(weights @ system.counts)
    return scores


def _draw(rng: np.random.Generator, strata: NDArray[np.str_], size: int) -> Array:
    """How often each unit is drawn: [size, U]; as many as there are in each stratum."""
    weights = np.empty((size, len(strata)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        chances = np.full(len(members), 1 / len(members))
        weights[:, members] = rng.multinomial(len(members), chances, size=size)
    return weights


def interval(replicates: Array) -> tuple[float, float]:
    """95 % interval of a score or a difference; [B]."""
    low, high = np.percentile(replicates, _LEVELS)
    return float(low), float(high)


def bootstrap_interval(system: UnitCounts, seed: int = 0) -> tuple[float, float]:
    """95 % interval of one system's score."""
    return interval(replicate([system], seed)[0])


def difference(value: float, replicates: Array) -> Difference:
    """Judge a difference by its replicates.

    Args:
        value: As measured.
        replicates: The same difference on each draw, [B].
    """
    low, high = interval(replicates)
    num = len(replicates)
    smaller = 1 + int((replicates <= 0).sum())
    larger = 1 + int((replicates >= 0).sum())
    p = min(1.0, 2 * min(smaller, larger) / (num + 1))
    return Difference(value, low, high, p, float(replicates.std(ddof=1)))
