"""What a mixture realises, as a table: counts, shares, rows, and lengths where wanted.

Input: a `Mixture`. Output: one `MixtureTableRow` per language and instruction, or one `Simulated`
per language over several epochs. Equal shares of samples are unequal shares of tokens: languages
differ by up to a factor of two in tokens for the same text, which is why both are shown.
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
    """What a mixture realises for one language and instruction.

    Attributes:
        lang: Language.
        instruction: Instruction; both directions of BVQA together.
        count: Samples an epoch.
        share: Their share in all samples.
        num_rows: Different corpus rows among them.
        num_usable: Rows that could be drawn in this language.
        characters: Mean characters of a sample, if measured.
        tokens: Mean tokens of a sample, if measured.
        num_measured: Samples that the means are taken over.
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
    """What a language gets over epochs.

    Attributes:
        lang: Language.
        count: Samples.
        num_rows: Different corpus rows among them.
        num_usable: Rows that could be drawn.
        num_repeats: Samples of a row that was drawn before.
        most_often: How often the row comes that comes most often.
        tokens: Tokens of all samples, from means per instruction, if measured.
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
    """Tabulate an epoch, English first, in the order of the mixture's spec.

    Without a curriculum, counts hold for every epoch.

    Args:
        mixture: The mixture.
        count_tokens: Length of a sample in tokens; left out, lengths are not measured.
        num_measured: Samples to measure per row of the table, spread evenly over its draws.
        epoch: The epoch.
    """
    layout = mixture.layout(epoch)
    groups: dict[tuple[str, str], list[InstructionCell]] = defaultdict(list)
    for cell in layout.cells:
        groups[cell.block.lang, cell.instruction].append(cell)
    rows = []
    for (lang, instruction), cells in groups.items():
        # steps of a cell follow each other, and so do those of a block's two directions
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
    """What each language gets in consecutive epochs, English first.

    Nothing is drawn but what is measured: a block walks through all of its rows before it repeats
    one, from where its last epoch ended, so counts say it all, for any number of rows.
    """
    # for each language, its samples and rows in each corpus
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
    """At most so many positions, spread evenly over some cells."""
    ends = list(accumulate(cell.count for cell in cells))
    number = min(ends[-1], num_measured)
    for i in (i * ends[-1] // number for i in range(number)):
        place = bisect_right(ends, i)
        yield cells[place].start + cells[place].count - (ends[place] - i)


def _measure(
    mixture: Mixture, draws: Iterable[Draw], count_tokens: CountTokens | None
) -> tuple[float | None, float | None, int]:
    """Mean characters and tokens, and over how many samples."""
    samples = map(mixture.make_sample, draws if count_tokens is not None else ())
    lengths = [
        (sum(len(turn.text) for turn in sample.turns), count_tokens(sample)) for sample in samples
    ]
    if not lengths:
        return None, None, 0
    characters, tokens = np.mean(lengths, axis=0)
    return float(characters), float(tokens), len(lengths)
