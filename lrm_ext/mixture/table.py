"""What a mixture realises, as a table: counts, shares, rows, and lengths where wanted.

Input: a `Mixture`. Output: one `TableRow` per language and instruction. Equal shares of samples
are unequal shares of tokens: languages differ by up to a factor of two in tokens for the same
text (MULTILINGUAL 4), which is why both are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from llava.data.sample import Sample
from lrm_ext.instructions.instruction import ENGLISH
from lrm_ext.mixture.mixture import PLAIN_INSTRUCTION, Draw

if TYPE_CHECKING:
    from lrm_ext.mixture.mixture import Cell, Mixture

CountTokens = Callable[[Sample], int]


@dataclass(frozen=True)
class TableRow:
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


def make_table(
    mixture: Mixture, count_tokens: CountTokens | None = None, num_measured: int = 100
) -> list[TableRow]:
    """Tabulate an epoch, English first, in the order of the mixture's spec.

    Counts hold for every epoch; lengths are means over draws of epoch 0.

    Args:
        mixture: The mixture.
        count_tokens: Length of a sample in tokens; left out, lengths are not measured.
        num_measured: Samples to measure per row of the table, spread evenly over its draws.
    """
    english = mixture.num_english
    measured: tuple[float | None, float | None, int] = (None, None, 0)
    if count_tokens is not None:
        draws = (Draw(i, ENGLISH, PLAIN_INSTRUCTION) for i in _spread(english, num_measured))
        measured = _measure(mixture, draws, count_tokens)
    share = english / len(mixture)
    rows = [TableRow(ENGLISH, PLAIN_INSTRUCTION, english, share, english, english, *measured)]
    for _, group in groupby(_cells(mixture), key=lambda cell: (cell.block.lang, cell.instruction)):
        rows.append(_row_of(mixture, list(group), count_tokens, num_measured))
    return rows


def _cells(mixture: Mixture) -> Sequence[Cell]:
    return mixture.cells if mixture.num_non_english else ()


def _row_of(
    mixture: Mixture, cells: Sequence[Cell], count_tokens: CountTokens | None, num_measured: int
) -> TableRow:
    first = cells[0]
    count = sum(cell.count for cell in cells)
    usable = len(first.block.rows)
    measured: tuple[float | None, float | None, int] = (None, None, 0)
    if count_tokens is not None and count:
        positions = (first.start + i for i in _spread(count, num_measured))
        measured = _measure(mixture, map(mixture.draw_at, positions), count_tokens)
    return TableRow(
        lang=first.block.lang,
        instruction=first.instruction,
        count=count,
        share=count / len(mixture),
        num_rows=min(count, usable),
        num_usable=usable,
        characters=measured[0],
        tokens=measured[1],
        num_measured=measured[2],
    )


def _spread(count: int, num_measured: int) -> list[int]:
    """At most `num_measured` of 0 .. count - 1, evenly."""
    number = min(count, num_measured)
    return [i * count // number for i in range(number)]


def _measure(
    mixture: Mixture, draws: Iterator[Draw], count_tokens: CountTokens
) -> tuple[float, float, int]:
    """Mean characters and tokens, and over how many samples."""
    lengths = []
    for draw in draws:
        sample = mixture.make_sample(draw)
        characters = sum(len(turn.text) for turn in sample.turns)
        lengths.append((characters, count_tokens(sample)))
    means = np.mean(lengths, axis=0)
    return float(means[0]), float(means[1]), len(lengths)
