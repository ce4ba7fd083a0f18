"""Tabulates a mixture: counts, rows and, optionally, lengths.

Input: a `Mixture`. Output: one `MixtureTableRow` per language and instruction, and one `Simulated`
per language over several epochs. Equal shares of samples are unequal shares of tokens, because
languages differ by up to a factor of two in tokens for the same text; so both are shown.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from llava.data.sample import Sample

if TYPE_CHECKING:
    from lrm_ext.mixture.order import Mixture, Run

CountTokens = Callable[[Sample], int]


@dataclass(frozen=True)
class MixtureTableRow:
    """One language and instruction in an epoch of a mixture.

    Attributes:
        lang: Language.
        instruction: Instruction; both directions of BVQA together.
        count: Samples per epoch.
        characters: Mean characters per sample, if measured.
        tokens: Mean tokens per sample, if measured.
    """

    lang: str
    instruction: str
    count: int
    characters: float | None = None
    tokens: float | None = None


@dataclass(frozen=True)
class Simulated:
    """A language over several epochs of a mixture.

    Attributes:
        lang: Language.
        count: Samples.
        num_rows: Distinct corpus rows among them; the other samples repeat one.
        num_usable: Usable rows.
        most_often: Draws of the most frequent row.
    """

    lang: str
    count: int
    num_rows: int
    num_usable: int
    most_often: int


def make_table(
    mixture: Mixture,
    count_tokens: CountTokens | None = None,
    num_measured: int = 100,
    epoch: int = 0,
) -> list[MixtureTableRow]:
    """Tabulates an epoch, English first, in the order of the mixture's spec.

    Without a curriculum, counts are the same in every epoch.

    Args:
        mixture: The mixture.
        count_tokens: Returns the length of a sample in tokens; None measures no lengths.
        num_measured: Samples to measure per row of the table, evenly spaced.
        epoch: The epoch.
    """
    layout = mixture.layout(epoch)
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in layout.runs:
        groups[run.lang, run.instruction].append(run)
    rows = []
    for (lang, instruction), runs in groups.items():
        means: tuple[float, ...] = ()
        if count_tokens is not None:
            draws = map(layout.draw, _positions(runs, num_measured))
            means = _mean_lengths(map(mixture.make_sample, draws), count_tokens)
        count = sum(run.count for run in runs)
        rows.append(MixtureTableRow(lang, instruction, count, *means))
    return rows


def simulate(mixture: Mixture, epochs: Sequence[int]) -> list[Simulated]:
    """Computes what each language gets in consecutive epochs, English first.

    No sample is drawn. A block goes through all of its rows before it repeats one, so the counts
    determine the result, for any number of rows.
    """
    # samples and rows in each corpus, by language
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for blocks in zip(*(mixture.layout(epoch).blocks for epoch in epochs), strict=True):
        found[blocks[0].lang].append((sum(each.count for each in blocks), len(blocks[0].rows)))
    return [
        Simulated(
            lang,
            count=sum(drawn for drawn, _ in parts),
            num_rows=sum(map(min, parts)),
            num_usable=sum(size for _, size in parts),
            most_often=max(-(-drawn // size) for drawn, size in parts),
        )
        for lang, parts in found.items()
    ]


def _positions(runs: Sequence[Run], num_measured: int) -> Iterator[int]:
    """Yields at most `num_measured` positions, evenly spaced over some runs."""
    ends = list(accumulate(run.count for run in runs))
    number = min(ends[-1], num_measured)
    for i in (i * ends[-1] // number for i in range(number)):
        place = bisect_right(ends, i)
        yield runs[place].start + runs[place].count - (ends[place] - i)


def _mean_lengths(samples: Iterable[Sample], count_tokens: CountTokens) -> tuple[float, ...]:
    """Returns mean characters and tokens; nothing without samples."""
    lengths = [
        (sum(len(turn.text) for turn in sample.turns), count_tokens(sample)) for sample in samples
    ]
    return tuple(np.mean(lengths, axis=0).tolist()) if lengths else ()
