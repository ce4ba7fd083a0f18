import pytest

from lrm_ext.evaluate.statistics import num_majority_correct, rater_agreement, wilson_interval


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


def test_agreement_of_two_raters():
    """Values of sklearn's `cohen_kappa_score` and scipy's `spearmanr`."""
    labels = rater_agreement([1, 1, 0, 0], [1, 0, 0, 0], is_scale=False)
    assert (labels.num, labels.equal, labels.kappa, labels.spearman) == (4, 0.75, 0.5, None)
    scores = rater_agreement([1, 2, 4, 5, 5], [1, 3, 3, 5, 1], is_scale=True)
    assert scores.equal == 0.4
    assert scores.kappa == pytest.approx(0.347826087)
    assert scores.spearman == pytest.approx(0.3514797458)


def test_raters_who_say_one_thing_agree_by_chance():
    for is_scale in (False, True):
        same = rater_agreement([1, 1], [1, 1], is_scale=is_scale)
        assert (same.equal, same.kappa, same.spearman) == (1, None, None)
