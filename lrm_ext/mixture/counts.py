"""Exact counts from shares: how many samples of each language and instruction.

Input: a total and shares. Output: integers that add up to the total. Counts are apportioned by
largest remainder, never sampled, so that a mixture of the same spec is the same every time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


def apportion(total: int, shares: Sequence[Fraction]) -> list[int]:
    """Split `total` by largest remainder; ties go to the earlier share.

    Args:
        total: What to split, at least 0.
        shares: Positive; only their ratio counts.

    Example:
        >>> apportion(10, [Fraction(1)] * 3)
        [4, 3, 3]
    """
    whole = sum(shares)
    return _round_to(total, [total * share / whole for share in shares])


def apportion_table(row_totals: Sequence[int], shares: Sequence[Fraction]) -> list[list[int]]:
    """Split every row total by the same shares so that the columns come out right, too.

    What a row's rounding owes a column is carried into the next row. So each row adds up to its
    total, and each column adds up to what largest remainder gives it for the sum of all rows
    (exactly if every row is large enough to give each column at least one).

    Args:
        row_totals: One total a row (languages).
        shares: One share a column (instructions); only their ratio counts.

    Returns:
        `[rows][columns]` counts.
    """
    whole = sum(shares)
    owed = [Fraction(0)] * len(shares)
    table = []
    for total in row_totals:
        ideal = [total * share / whole + debt for share, debt in zip(shares, owed, strict=True)]
        row = _round_to(total, ideal)
        owed = [want - got for want, got in zip(ideal, row, strict=True)]
        table.append(row)
    return table


def halves(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Split each count in two; the odd ones go to the first and second half in turn."""
    table = []
    extra_first = True
    for count in counts:
        first = count // 2
        if count % 2:
            first += extra_first
            extra_first = not extra_first
        table.append((first, count - first))
    return table


def _round_to(total: int, ideal: Sequence[Fraction]) -> list[int]:
    """Round non-negative integers out of `ideal`, which adds up to `total`, by remainder."""
    counts = [max(0, math.floor(value)) for value in ideal]
    left = total - sum(counts)
    by_remainder = sorted(range(len(ideal)), key=lambda i: counts[i] - ideal[i])
    for i in by_remainder[: max(0, left)]:
        counts[i] += 1
    for _ in range(-left):  # only where a debt would have made a count negative
        i = max((i for i in range(len(counts)) if counts[i]), key=lambda i: counts[i] - ideal[i])
        counts[i] -= 1
    assert sum(counts) == total
    return counts
