"""Figures about counts: intervals, tests and baselines (EVAL_SPEC 9). Pure functions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

Z_95: Final = 1.959964  # two-sided 95 % quantile of the normal distribution
Z_POWER: Final = 0.841621  # its one-sided 80 % quantile


def wilson_interval(num_correct: int, num_total: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion.

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
    """How many questions the commonest answer of each task gets right.

    The baseline knows the task of a question and how often each answer is right in this very set,
    but sees neither question nor picture: what a model must beat to have understood anything.

    Args:
        golds: (task, expected answer) of each question.
    """
    per_task: dict[str, Counter[str]] = {}
    for task, gold in golds:
        per_task.setdefault(task, Counter())[gold] += 1
    return sum(max(counts.values()) for counts in per_task.values())


def mcnemar(num_only_a: int, num_only_b: int) -> float:
    """Exact two-sided p-value that two systems are right equally often.

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
    """How many questions of the same sort it takes to tell a difference, four times in five.

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
    """The smallest difference that is found four times in five, at the level of 5 percent."""
    return (Z_95 + Z_POWER) * standard_error


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of several tests so that the chance of any false alarm stays the same.

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
