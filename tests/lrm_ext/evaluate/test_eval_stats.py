import pytest

from lrm_ext.evaluate.statistics import num_majority_correct, wilson_interval


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (45, 60, 0.6277, 0.8422), (0, 10, 0.0, 0.2775)],
)
def test_wilson_interval_of_the_specification(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_is_symmetric_and_stays_inside():
    low, high = wilson_interval(10, 10)
    assert (1 - high, 1 - low) == pytest.approx(wilson_interval(0, 10))
    assert high <= 1


def test_majority_is_per_task():
    golds = [("a", "yes")] * 3 + [("a", "no")] * 2 + [("b", "3"), ("b", "4"), ("b", "4")]
    assert num_majority_correct(golds) == 3 + 2
