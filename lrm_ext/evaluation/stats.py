"""Figures about counts: intervals and baselines (EVAL_SPEC 9). Pure functions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Final

Z_95: Final = 1.959964  # two-sided 95 % quantile of the normal distribution


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
