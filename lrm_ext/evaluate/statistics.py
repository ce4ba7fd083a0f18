"""Intervals, tests and baselines of scores: Wilson, McNemar, Holm, a bootstrap over images.

Questions about one image depend on each other, so images are drawn, not questions. The same draw
serves both systems, all languages and all parts of a score, and each replicate computes the whole
score again from the counts of the units that were drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llava.errors import DataError
from lrm_ext.evaluate.kind import UnitCounts

Array = NDArray[np.float64]
Z_95: Final = 1.959964  # two-sided 95 % quantile of the normal distribution
Z_POWER: Final = 0.841621  # its one-sided 80 % quantile


def wilson_interval(num_correct: int, num_total: int) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of a proportion.

    Args:
        num_correct: Successes, 0 to `num_total`.
        num_total: Trials, at least 1.

    Returns:
        Lower and upper end, proportions.

    Example:
        >>> [round(end, 4) for end in wilson_interval(8, 10)]
        [0.4902, 0.9433]
    """
    assert 0 <= num_correct <= num_total and num_total > 0, (num_correct, num_total)
    p, n, z2 = num_correct / num_total, num_total, Z_95**2
    scale = 1 + z2 / n
    centre = (p + z2 / (2 * n)) / scale
    half = Z_95 / scale * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def num_majority_correct(golds: Iterable[tuple[str, str]]) -> int:
    """Returns how many questions the commonest answer of each task gets right.

    The baseline knows the task of a question and how often each answer is right in this very set,
    but sees neither question nor image: what a model must beat to have understood anything.

    Args:
        golds: (task, expected answer) of each question.
    """
    commonest: dict[str, int] = {}
    for (task, _), count in Counter(golds).items():
        commonest[task] = max(count, commonest.get(task, 0))
    return sum(commonest.values())


def mcnemar(num_only_a: int, num_only_b: int) -> float:
    """Returns the exact two-sided p-value that two systems are right equally often.

    Args:
        num_only_a: Questions that only the first gets right.
        num_only_b: Questions that only the second gets right.

    Example:
        >>> round(mcnemar(10, 2), 6)
        0.038574
    """
    discordant = num_only_a + num_only_b
    ways = tail = 1
    for i in range(min(num_only_a, num_only_b)):
        ways = ways * (discordant - i) // (i + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**discordant)


def num_needed(num: int, difference: float, standard_error: float) -> int | None:
    """Returns how many such questions it takes to tell a difference, four times in five.

    The standard error shrinks with the square root of their number. Found is meant at the level of
    5 percent, two-sided, for one comparison.

    Args:
        num: Questions asked.
        difference: The difference that was measured.
        standard_error: Of that difference, with `num` questions.

    Returns:
        None where there is no difference.
    """
    if difference == 0 or standard_error == 0:
        return None
    return math.ceil(num * (detectable(standard_error) / abs(difference)) ** 2)


def detectable(standard_error: float) -> float:
    """Returns the smallest difference that is found four times in five, at the 5 percent level."""
    return (Z_95 + Z_POWER) * standard_error


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts the p-values of several tests so that the chance of any false alarm stays the same.

    Example:
        >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


@dataclass(frozen=True)
class RaterAgreement:
    """How far two raters agree on the same answers.

    Attributes:
        num: Answers that both rated.
        equal: Share of equal ratings.
        kappa: Cohen's kappa; of scores with quadratic weights. None where chance explains it all.
        spearman: Rank correlation of scores; None for labels, and where a rater says one thing.
    """

    num: int
    equal: float
    kappa: float | None
    spearman: float | None


def rater_agreement(a: Sequence[float], b: Sequence[float], *, is_scale: bool) -> RaterAgreement:
    """Compares the ratings of two raters.

    Args:
        a: Of the one, [N], N at least 1.
        b: Of the other, in the same order.
        is_scale: They are scores; else labels, of which only equality counts.

    Example:
        >>> rater_agreement([1, 1, 0, 0], [1, 0, 0, 0], is_scale=False)
        RaterAgreement(num=4, equal=0.75, kappa=0.5, spearman=None)
    """
    first, second = np.array(a, float), np.array(b, float)
    differing, spearman = (first != second).astype(float), None
    # what two raters differ by whose ratings have nothing to do with each other
    by_chance = float(np.mean([np.mean(first != value) for value in second]))
    equal = 1 - float(differing.mean())
    if is_scale:
        differing = (first - second) ** 2
        by_chance = float(first.var() + second.var() + (first.mean() - second.mean()) ** 2)
        ranks = [_ranks(first), _ranks(second)]
        if all(one.std() for one in ranks):
            spearman = float(np.asarray(np.corrcoef(ranks))[0, 1])
    kappa = 1 - float(differing.mean()) / by_chance if by_chance else None
    return RaterAgreement(len(first), equal, kappa, spearman)


def _ranks(values: Array) -> Array:
    """Returns ranks from 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared: Array = np.cumsum(counts) - (counts - 1) / 2
    return shared[places]


NUM_REPLICATES: Final = 10_000
_CHUNK: Final = 500
_LEVELS: Final = (2.5, 97.5)


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
    """Returns the scores of several systems on the same draws of units.

    Args:
        systems: Their counts on the same units.
        seed: Of the draws.
        num_replicates: B.

    Returns:
        [S, B].

    Raises:
        DataError: The systems answered questions about other images.
    """
    first = systems[0]
    for other in systems[1:]:
        if other.units != first.units or other.strata != first.strata:
            differing = len(set(other.units) ^ set(first.units))
            raise DataError(
                f"the two have answered other questions: {differing} images (or questions with "
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
    """Draws units within each stratum; returns how often each is drawn: [size, U]."""
    weights = np.empty((size, len(strata)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        chances = np.full(len(members), 1 / len(members))
        weights[:, members] = rng.multinomial(len(members), chances, size=size)
    return weights


def interval(replicates: Array) -> tuple[float, float]:
    """Returns the 95 % interval of a score or a difference; [B]."""
    low, high = np.percentile(replicates, _LEVELS)
    return float(low), float(high)


def bootstrap_interval(system: UnitCounts, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % interval of one system's score."""
    return interval(replicate([system], seed)[0])


def difference(value: float, replicates: Array) -> Difference:
    """Judges a difference by its replicates.

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
