"""Tabulates a mixture: counts, shares, rows and, optionally, lengths.

Input: a `Mixture`. Output: one `MixtureTableRow` per language and instruction, or one `Simulated`
per language over several epochs. Equal shares of samples are unequal shares of tokens, because
languages differ by up to a factor of two in tokens for the same text; so both are shown.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

import numpy as np

from llava.data.sample import Sample

if TYPE_CHECKING:
    from lrm_ext.mixture.order import Draw, InstructionCell, Mixture

CountTokens = Callable[[Sample], int]


@dataclass(frozen=True)
class MixtureTableRow:
    """One language and instruction in an epoch of a mixture.

    Attributes:
        lang: Language.
        instruction: Instruction; both directions of BVQA together.
        count: Samples per epoch.
        share: Their share of all samples.
        num_rows: Distinct corpus rows among them.
        num_usable: Usable rows in this language.
        characters: Mean characters per sample, if measured.
        tokens: Mean tokens per sample, if measured.
        num_measured: Number of measured samples.
    """

    lang: str
    instruction: str
    count: int
    share: float
    num_rows: int
    num_usable: int
    characters: float | None = None
    tokens: float | None = None
    num_measured: int = 0


@dataclass(frozen=True)
class Simulated:
    """A language over several epochs of a mixture.

    Attributes:
        lang: Language.
        count: Samples.
        num_rows: Distinct corpus rows among them.
        num_usable: Usable rows.
        num_repeats: Samples of a row that was drawn before.
        most_often: Draws of the most frequent row.
        tokens: Tokens of all samples, estimated from means per instruction, if measured.
    """

    lang: str
    count: int
    num_rows: int
    num_usable: int
    num_repeats: int
    most_often: int
    tokens: float | None = None


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
    groups: dict[tuple[str, str], list[InstructionCell]] = defaultdict(list)
    for cell in layout.cells:
        groups[cell.block.lang, cell.instruction].append(cell)
    rows = []
    for (lang, instruction), cells in groups.items():
        # the steps of a block's cells are consecutive, also those of two directions
        drawn = [list(own) for _, own in groupby(cells, key=lambda cell: id(cell.block))]
        parts = [(sum(cell.count for cell in own), len(own[0].block.rows)) for own in drawn]
        count = sum(number for number, _ in parts)
        draws = map(layout.draw, _positions(cells, num_measured))
        rows.append(
            MixtureTableRow(
                lang,
                instruction,
                count,
                count / len(mixture),
                sum(map(min, parts)),
                sum(size for _, size in parts),
                *_measure(mixture, draws, count_tokens),
            )
        )
    return rows


def simulate(
    mixture: Mixture,
    epochs: Sequence[int],
    count_tokens: CountTokens | None = None,
    num_measured: int = 100,
) -> list[Simulated]:
    """Computes what each language gets in consecutive epochs, English first.

    Only measured samples are drawn. A block goes through all of its rows before it repeats one, so
    the counts determine the result, for any number of rows.
    """
    # samples and rows in each corpus, by language
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for blocks in zip(*(mixture.layout(epoch).blocks for epoch in epochs), strict=True):
        found[blocks[0].lang].append((sum(each.count for each in blocks), len(blocks[0].rows)))
    tokens: dict[str, float] = defaultdict(float)
    for epoch in epochs if count_tokens is not None else ():
        for row in make_table(mixture, count_tokens, num_measured, epoch):
            tokens[row.lang] += (row.tokens or 0) * row.count
    result = []
    for lang, parts in found.items():
        count, num_rows = sum(drawn for drawn, _ in parts), sum(map(min, parts))
        result.append(
            Simulated(
                lang,
                count,
                num_rows,
                sum(size for _, size in parts),
                count - num_rows,
                max(-(-drawn // size) for drawn, size in parts),
                tokens[lang] if count_tokens is not None else None,
            )
        )
    return result


def _positions(cells: Sequence[InstructionCell], num_measured: int) -> Iterator[int]:
    """Yields at most `num_measured` positions, evenly spaced over some cells."""
    ends = list(accumulate(cell.count for cell in cells))
    number = min(ends[-1], num_measured)
    for i in (i * ends[-1] // number for i in range(number)):
        place = bisect_right(ends, i)
        yield cells[place].start + cells[place].count - (ends[place] - i)


def _measure(
    mixture: Mixture, draws: Iterable[Draw], count_tokens: CountTokens | None
) -> tuple[float | None, float | None, int]:
    """Returns mean characters and tokens, and the number of samples."""
    if count_tokens is None:
        return None, None, 0
    samples = map(mixture.make_sample, draws)
    lengths = [
        (sum(len(turn.text) for turn in sample.turns), count_tokens(sample)) for sample in samples
    ]
    if not lengths:
        return None, None, 0
    characters, tokens = np.mean(lengths, axis=0)
    return float(characters), float(tokens), len(lengths)
