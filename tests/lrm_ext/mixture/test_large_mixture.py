"""A hundred million rows cost what a thousand cost, and any number of readers see one order."""

from __future__ import annotations

import pickle
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from lrm_ext.corpus.store import Corpus, Meta
from lrm_ext.mixture import Draw, Mixture, MixtureSpec
from lrm_ext.mixture.table import make_table
from lrm_ext.training.dataset import LengthWindowSampler, PackedSampler

# which rows a language has
EVERY = {"cs": 1, "de": 2, "hr": 1000}
HUNDRED_MILLION = 10**8


class SparseCorpus(Corpus):
    """A corpus of any size without files."""

    def __reduce__(self) -> tuple[type[SparseCorpus], tuple[Path, Meta, Path]]:
        return (SparseCorpus, (self.path, self._meta, self.image_root))

    def usable(self, lang: str) -> Sequence[int]:
        return range(0, len(self), EVERY[lang])


def sparse(num_rows: int) -> SparseCorpus:
    counts = {lang: {"usable": len(range(0, num_rows, every))} for lang, every in EVERY.items()}
    return SparseCorpus(Path("nowhere"), Meta(num_rows, 1 << 18, 1 << 11, "", counts), Path())


def spread(mixture: Mixture, number: int) -> list[int]:
    return [i * 7919 * 104729 % len(mixture) for i in range(number)]


def test_memory_does_not_depend_on_size() -> None:
    peaks = []
    for num_rows in (10**4, HUNDRED_MILLION):
        tracemalloc.start()
        mixture = Mixture(MixtureSpec(), sparse(num_rows))
        for index in spread(mixture, 2000):
            mixture.draw(index, epoch=3)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 1 << 20


def test_counts_are_exact_and_rows_in_their_language() -> None:
    mixture = Mixture(MixtureSpec(), sparse(HUNDRED_MILLION))
    counts = Counter[str]()
    for row in make_table(mixture):
        counts[row.lang] += row.count
    assert counts == {"en": 10**8, "cs": 33_333_334, "de": 33_333_333, "hr": 33_333_333}
    for index in spread(mixture, 500):
        draw = mixture.draw(index)
        assert 0 <= draw.row < 10**8
        assert draw.row % EVERY.get(draw.lang, 1) == 0


def test_sixty_four_readers_give_the_order_of_one() -> None:
    mixture = Mixture(MixtureSpec(), sparse(HUNDRED_MILLION))
    readers = [pickle.loads(pickle.dumps(mixture)) for _ in range(64)]
    indices = spread(mixture, 640)
    assert [readers[k % 64].draw(i) for k, i in enumerate(indices)] == [
        mixture.draw(i) for i in indices
    ]


def test_first_draws_of_a_large_mixture_are_fixed() -> None:
    """What a run that is resumed sees next; see `spec.SCHEME_VERSION`."""
    mixture = Mixture(MixtureSpec(), sparse(HUNDRED_MILLION))
    assert [mixture.draw(i, 1) for i in (0, 1, 123_456_789)] == GOLDEN


GOLDEN = [
    Draw(row=22482090, lang="en", instruction="mvqa"),
    Draw(row=2211675, lang="en", instruction="mvqa"),
    Draw(row=39159000, lang="hr", instruction="mvqa"),
]


def length(index: int) -> int:
    return (index * 37) % 101 + 1


@settings(deadline=None, max_examples=30)
@given(
    num_rows=st.integers(1, 2000),
    ratio=st.sampled_from([0, 0.7, 1.0, 1.5]),
    ranks=st.lists(st.integers(0, 10), min_size=1, max_size=4),
    cuts=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    epoch=st.integers(0, 2),
    is_packed=st.booleans(),
)
def test_any_ranks_one_after_the_other_see_an_epoch_once(
    num_rows: int,
    ratio: float,
    ranks: list[int],
    cuts: list[float],
    epoch: int,
    is_packed: bool,
) -> None:
    """A run that is stopped and goes on with 1 to 1,024 ranks; 1,024 samples make a step."""
    spec = MixtureSpec(non_english_ratio=Fraction(str(ratio)))
    mixture = Mixture(spec, sparse(num_rows))
    num_steps = -(-len(mixture) // 1024)
    borders = [0, *sorted(int(cut * num_steps) for cut in cuts[1 : len(ranks)]), num_steps]
    seen: list[int] = []
    for exponent, first, end in zip(ranks, borders[:-1], borders[1:], strict=True):
        num_ranks = 1 << exponent
        batch_size = 1024 // num_ranks
        if is_packed:
            sampler = PackedSampler(len(mixture), 1024, length, batch_size)
        else:
            sampler = LengthWindowSampler(len(mixture), 1024, length, window=2)
        sampler.set_epoch(epoch)
        sampler.expect_skip(epoch, first * 1024)
        order = list(sampler)[first * 1024 : end * 1024]
        batches = [order[k : k + batch_size] for k in range(0, len(order), batch_size)]
        # each rank has every num_ranks-th batch
        for rank in range(num_ranks):
            seen += [index for batch in batches[rank::num_ranks] for index in batch if index >= 0]
    start = epoch * len(mixture)
    assert sorted(seen) == list(range(start, start + len(mixture)))
    counts = Counter(mixture.draw(index - start, epoch).lang for index in seen)
    expected = Counter[str]()
    for row in make_table(mixture):
        expected[row.lang] += row.count
    assert counts == +expected
