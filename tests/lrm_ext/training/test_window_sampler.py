"""The order of a mixture's samples: every one once, batches of like length, cheap skipping."""

import pytest

from lrm_ext.training.sampler import LengthWindowSampler


def length(index):
    """A scrambled length, other in every epoch."""
    return (index * 37) % 101


def make(num_samples=103, batch_size=4, window=5, seed=0, measure=length):
    return LengthWindowSampler(num_samples, batch_size, measure, window, seed)


def epoch_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("num_samples", [1, 3, 4, 19, 20, 21, 103])
def test_every_sample_once_an_epoch(num_samples):
    sampler = make(num_samples)
    for epoch in (0, 2):
        start = epoch * num_samples
        assert sorted(epoch_of(sampler, epoch)) == list(range(start, start + num_samples))
    assert len(sampler) == num_samples


def test_windows_keep_their_samples():
    order = list(make())
    for start in range(0, 103, 20):
        assert sorted(order[start : start + 20]) == list(range(start, min(start + 20, 103)))


def test_batches_are_of_like_length_and_shuffled():
    order = list(make(num_samples=100))
    batches = [[length(i) for i in order[k : k + 4]] for k in range(0, 20, 4)]
    assert all(batch == sorted(batch) for batch in batches)
    ranges = sorted((batch[0], batch[-1]) for batch in batches)
    assert all(left[1] <= right[0] for left, right in zip(ranges, ranges[1:], strict=False))
    assert [batch[0] for batch in batches] != sorted(batch[0] for batch in batches)


def test_order_is_a_function_of_seed_and_epoch():
    assert list(make()) == list(make())
    assert list(make()) != list(make(seed=1))
    first, second = epoch_of(make(), 0), epoch_of(make(), 1)
    assert [i - 103 for i in second] != first


def test_no_window_keeps_the_order_of_the_mixture():
    assert list(make(window=0)) == list(range(103))


def test_skipping_is_cheap_and_changes_nothing_that_follows():
    measured = []

    def measure(index):
        measured.append(index)
        return length(index)

    whole = epoch_of(make(), 1)
    sampler = make(measure=measure)
    sampler.expect_skip(1, 48)
    resumed = epoch_of(sampler, 1)
    assert resumed[48:] == whole[48:]
    # windows 0 and 1 were skipped wholly
    assert min(measured) == 103 + 40
    assert epoch_of(sampler, 1) == whole


def test_skip_is_for_its_epoch():
    sampler = make()
    sampler.expect_skip(1, 48)
    assert epoch_of(sampler, 0) == list(make())
