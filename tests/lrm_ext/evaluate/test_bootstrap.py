import math

import numpy as np
import pytest

from llava.errors import DataError
from lrm_ext.evaluate.kind import gather, percentage
from lrm_ext.evaluate.statistics import (
    bootstrap_interval,
    detectable,
    difference,
    holm,
    mcnemar,
    num_needed,
    replicate,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"), [(10, 2, 0.038574), (30, 12, 0.007916), (5, 5, 1.0), (0, 0, 1.0)]
)
def test_mcnemar_of_the_specification(only_a, only_b, p):
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a) == pytest.approx(p, abs=5e-7)


def test_mcnemar_of_thousands():
    assert 0 < mcnemar(3000, 3200) < 0.02
    # beside the normal approximation
    z = (3200 - 3000 - 1) / math.sqrt(6200)
    assert mcnemar(3000, 3200) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


def test_holm_of_the_specification():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def shares(right, total=1, unit="u{:03d}"):
    rows = [(unit.format(i), "", {0: float(r), 1: float(total)}) for i, r in enumerate(right)]
    return gather(rows, 2, percentage)


def test_the_interval_is_that_of_a_share():
    right = [1] * 120 + [0] * 80
    low, high = bootstrap_interval(shares(right))
    wide_low, wide_high = wilson_interval(120, 200)
    assert (low, high) == pytest.approx((100 * wide_low, 100 * wide_high), abs=1)


def test_questions_on_one_image_are_drawn_together():
    """Twice the questions on the same images, answered alike, tell nothing more."""
    right = [1] * 60 + [0] * 40
    twice = [(f"u{i:03d}", "", {0: 2.0 * r, 1: 2.0}) for i, r in enumerate(right)]
    assert bootstrap_interval(gather(twice, 2, percentage)) == bootstrap_interval(shares(right))


def test_order_and_seed():
    right = [1, 0, 1, 1, 0, 0, 1, 0]
    rows = [(f"u{i}", "", {0: float(r), 1: 1.0}) for i, r in enumerate(right)]
    one = replicate([gather(rows, 2, percentage)], seed=3, num_replicates=50)
    other = replicate([gather(rows[::-1], 2, percentage)], seed=3, num_replicates=50)
    assert np.array_equal(one, other)
    third = replicate([gather(rows, 2, percentage)], seed=4, num_replicates=50)
    assert not np.array_equal(one, third)


def test_strata_keep_their_sizes():
    rows = [(f"{s}{i}", s, {column: float(i == 0), column + 1: 1.0})
            for s, column in (("a", 0), ("b", 2)) for i in range(3)]  # fmt: skip
    counts = gather(rows, 4, lambda sums: sums[..., 1] + 10 * sums[..., 3])
    assert set(replicate([counts], num_replicates=200)[0]) == {33.0}


def test_pairs_are_compared_on_the_same_draws():
    a, b = shares([1] * 50 + [0] * 50), shares([1] * 60 + [0] * 40)
    scores = replicate([a, b])
    found = difference(b.score() - a.score(), scores[1] - scores[0])
    assert found.value == 10 and found.p < 0.01 and found.low > 0
    # paired: much tighter than the two intervals on their own
    assert found.high - found.low < 15
    assert difference(0.0, np.zeros(1000)).p == 1


def test_p_is_about_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(0)
    ps = []
    for seed in range(60):
        a, b = (shares(rng.random(80) < 0.6) for _ in range(2))
        scores = replicate([a, b], seed, 400)
        ps.append(difference(b.score() - a.score(), scores[1] - scores[0]).p)
    assert 0.3 < np.mean(ps) < 0.7 and np.mean(np.array(ps) < 0.05) < 0.15


def test_other_images_are_refused():
    with pytest.raises(DataError, match="6 images .* in one of them only"):
        replicate([shares([1, 0, 1]), shares([1, 0, 1], unit="v{}")])


def test_how_many_questions_it_takes():
    assert num_needed(100, 0.0, 1.0) is None and num_needed(100, 2.0, 0.0) is None
    # (1.96 + 0.84) standard errors are what it takes
    assert num_needed(100, detectable(1.0), 1.0) == 100
    assert num_needed(100, detectable(1.0) / 2, 1.0) == pytest.approx(400, abs=1)
