"""The order of a mixture's samples: every one once an epoch, dealt to any number of ranks."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrm_ext.training.dataset import LengthWindowSampler, PackedSampler


def length(index):
    """A scrambled length, other in every epoch."""
    assert index >= 0
    return (index * 37) % 101


def make(num_samples=103, step_size=4, window=5, seed=0, measure=length):
    return LengthWindowSampler(num_samples, step_size, measure, window, seed)


def epoch_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def learnt(order):
    """What a step learns from, in no order."""
    return sorted(index for index in order if index >= 0)


@pytest.mark.parametrize("num_samples", [1, 3, 4, 19, 20, 21, 103])
def test_every_sample_once_an_epoch(num_samples):
    sampler = make(num_samples)
    for epoch in (0, 2):
        start = epoch * num_samples
        order = epoch_of(sampler, epoch)
        assert learnt(order) == list(range(start, start + num_samples))
        assert len(sampler) == len(order) == -(-num_samples // 4) * 4


def test_windows_keep_their_samples():
    order = list(make())
    for start in range(0, 103, 20):
        assert learnt(order[start : start + 20]) == list(range(start, min(start + 20, 103)))


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
    assert list(make(window=0))[:103] == list(range(103))


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


@pytest.mark.parametrize("make_sampler", [make, lambda n: PackedSampler(n, 4, length, 2)])
def test_an_epochs_last_step_is_filled_with_its_shortest_sample(make_sampler):
    last = list(make_sampler(101))[100:]
    (sample,) = learnt(last)
    assert sorted(last) == [~sample] * 3 + [sample]


def test_packed_steps_are_those_of_the_mixture_and_balanced():
    sampler = PackedSampler(96, 24, length, batch_size=6)
    order = epoch_of(sampler, 1)
    for start in range(0, 96, 24):
        step = order[start : start + 24]
        assert sorted(step) == list(range(96 + start, 96 + start + 24))
        tokens = [sum(map(length, step[k : k + 6])) for k in range(0, 24, 6)]
        assert max(tokens) < 1.2 * min(tokens)


@pytest.fixture(scope="module")
def bench():
    """`tools/bench/packing.py`, which has lengths shaped like those of LLaVA-1.5's mix."""
    path = Path(__file__).parents[3] / "tools" / "bench" / "packing.py"
    spec = importlib.util.spec_from_file_location("bench_packing", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("batch_size", "window"), [(16, 0), (4, 16), (2, 16)])
def test_nearly_all_positions_are_real(bench, batch_size, window):
    """Waiting for the longest row of a micro-step counts as padding."""
    lengths = [abs(length) for length in bench.mix_lengths(4096)]
    sampler = PackedSampler(4096, 8 * batch_size, lengths.__getitem__, batch_size, window)
    order = list(sampler)
    assert bench.share_of(order, lengths, batch_size, sum) > 0.95
    padded = bench.share_of(range(4096), lengths, batch_size, lambda b: len(b) * max(b))
    assert padded < 0.7


@settings(deadline=None, max_examples=60)
@given(
    num_samples=st.integers(1, 500),
    deal=st.sampled_from([(8, 1, 3), (4, 6, 1), (2, 3, 4), (24, 1, 1), (1, 24, 1)]),
    other=st.sampled_from([(8, 3, 1), (4, 1, 6), (2, 12, 1), (3, 8, 1), (12, 1, 2)]),
    cut=st.floats(0, 1),
    is_packed=st.booleans(),
    window=st.sampled_from([0, 3]),
)
def test_going_on_with_other_ranks_loses_and_repeats_nothing(
    num_samples, deal, other, cut, is_packed, window
):
    """Ranks take batches in turn, as accelerate deals them; 24 samples make a step."""

    def steps(batch_size, ranks, accumulated):
        assert batch_size * ranks * accumulated == 24
        if is_packed:
            sampler = PackedSampler(num_samples, 24, length, batch_size, window)
        else:
            sampler = LengthWindowSampler(num_samples, 24, length, window)
        order = list(sampler)
        batches = [order[k : k + batch_size] for k in range(0, len(order), batch_size)]
        assert len(batches) % ranks == 0
        by_rank = [batches[rank::ranks] for rank in range(ranks)]
        for k in range(0, len(by_rank[0]), accumulated):
            yield [
                index for mine in by_rank for batch in mine[k : k + accumulated] for index in batch
            ]

    before, after = list(steps(*deal)), list(steps(*other))
    num_done = int(cut * len(before))
    seen = [index for step in before[:num_done] + after[num_done:] for index in step]
    assert learnt(seen) == list(range(num_samples))
    assert [learnt(step) for step in before] == [learnt(step) for step in after]


def test_skip_is_for_its_epoch():
    sampler = make()
    sampler.expect_skip(1, 48)
    assert epoch_of(sampler, 0) == list(make())
