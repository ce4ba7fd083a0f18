from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from lrm_ext.mixture.order import apportion, apportion_table, halves

shares = st.lists(st.fractions(Fraction(1, 50), 10, max_denominator=50), min_size=1, max_size=6)


def test_worked_examples() -> None:
    assert apportion(10, [Fraction(1)] * 3) == [4, 3, 3]
    assert apportion(10, [Fraction(1), Fraction(2), Fraction(4)]) == [1, 3, 6]
    assert apportion(0, [Fraction(1)] * 2) == [0, 0]
    # a third of 4 each: rows add up to 4, columns to 12 / 3
    assert apportion_table([4, 4, 4], [Fraction(1)] * 3) == [[2, 1, 1], [1, 2, 1], [1, 1, 2]]
    assert halves([3, 3, 4, 1]) == [(2, 1), (1, 2), (2, 2), (1, 0)]


@given(total=st.integers(0, 10**9), shares=shares)
def test_counts_add_up_and_are_within_one(total: int, shares: list[Fraction]) -> None:
    counts = apportion(total, shares)
    assert sum(counts) == total
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - total * share / sum(shares)) < 1


@given(rows=st.lists(st.integers(0, 200), min_size=1, max_size=9), shares=shares)
def test_rows_of_a_table_add_up(rows: list[int], shares: list[Fraction]) -> None:
    table = apportion_table(rows, shares)
    assert [sum(row) for row in table] == rows
    assert all(count >= 0 for row in table for count in row)


@given(rows=st.lists(st.integers(3100, 10**6), min_size=1, max_size=9), shares=shares)
def test_columns_of_a_table_add_up(rows: list[int], shares: list[Fraction]) -> None:
    """3100 is enough for each share to come to one at least."""
    table = apportion_table(rows, shares)
    assert [sum(column) for column in zip(*table, strict=True)] == apportion(sum(rows), shares)
    for row, total in zip(table, rows, strict=True):
        for count, share in zip(row, shares, strict=True):
            assert abs(count - total * share / sum(shares)) < 2


@given(counts=st.lists(st.integers(0, 10**6), max_size=9))
def test_halves_are_even_in_all(counts: list[int]) -> None:
    pairs = halves(counts)
    assert [first + second for first, second in pairs] == counts
    assert all(abs(first - second) <= 1 for first, second in pairs)
    assert abs(sum(first - second for first, second in pairs)) <= 1
