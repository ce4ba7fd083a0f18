"""What a mixture realises, as a table: counts, shares, rows, and lengths where wanted.

Input: a `Mixture`. Output: one `TableRow` per language and instruction, or one `Simulated` per
language over several epochs. Equal shares of samples are unequal shares of tokens: languages differ
by up to a factor of two in tokens for the same text (MULTILINGUAL 4), which is why both are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llava.data.sample import Sample
from lrm_ext.instructions.registry import ENGLISH
from lrm_ext.mixture.order import PLAIN_INSTRUCTION, Draw

if TYPE_CHECKING:
    from lrm_ext.mixture.order import InstructionCell, LanguageBlock, Mixture

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
) -> list[TableRow]:
    """Tabulate an epoch, English first, in the order of the mixture's spec.

    Without a curriculum, counts hold for every epoch.

    Args:
        mixture: The mixture.
        count_tokens: Length of a sample in tokens; left out, lengths are not measured.
        num_measured: Samples to measure per row of the table, spread evenly over its draws.
        epoch: The epoch.
    """
    layout = mixture.layout(epoch)
    english = [layout.english_draw(i) for i in _spread(mixture.num_english, num_measured)]
    measured = _measure(mixture, english, count_tokens)
    rows = [
        TableRow(
            ENGLISH,
            PLAIN_INSTRUCTION,
            mixture.num_english,
            mixture.num_english / len(mixture),
            _num_rows(layout.english),
            sum(len(block.rows) for block in layout.english),
            *measured,
        )
    ]
    groups: dict[tuple[str, str], list[InstructionCell]] = {}
    for cell in layout.cells:
        groups.setdefault((cell.block.lang, cell.instruction), []).append(cell)
    for (lang, instruction), cells in groups.items():
        count = sum(cell.count for cell in cells)
        measured = (None, None, 0)
        if count:
            positions = _positions(cells, num_measured)
            measured = _measure(mixture, map(layout.draw, positions), count_tokens)
        blocks = {id(cell.block): cell.block for cell in cells}.values()
        rows.append(
            TableRow(
                lang,
                instruction,
                count,
                count / len(mixture),
                # steps of a cell follow each other, and so do those of a block's two directions
                sum(
                    min(sum(cell.count for cell in cells if cell.block is block), len(block.rows))
                    for block in blocks
                ),
                sum(len(block.rows) for block in blocks),
                *measured,
            )
        )
    return rows


def simulate(
    mixture: Mixture,
    num_epochs: int,
    count_tokens: CountTokens | None = None,
    num_measured: int = 100,
) -> list[Simulated]:
    """What each language gets in the first epochs, English first.

    Nothing is drawn but what is measured: a block walks through all of its rows before it repeats
    one, from where its last epoch ended, so counts say it all, for any number of rows.
    """
    counts: Counter[tuple[str, int]] = Counter()
    usable: dict[tuple[str, int], int] = {}
    tokens: dict[str, float] = {}
    for epoch in range(num_epochs):
        layout = mixture.layout(epoch)
        for key, block in _keyed([*layout.english, *layout.others]):
            counts[key] += block.count
            usable[key] = len(block.rows)
        if count_tokens is not None:
            for row in make_table(mixture, count_tokens, num_measured, epoch):
                tokens[row.lang] = tokens.get(row.lang, 0.0) + (row.tokens or 0) * row.count
    found = []
    for lang in dict.fromkeys(lang for lang, _ in counts):
        parts = [(counts[key], usable[key]) for key in counts if key[0] == lang]
        count = sum(drawn for drawn, _ in parts)
        num_rows = sum(min(part) for part in parts)
        found.append(
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
    return found


def rows_by_language(mixture: Mixture, epoch: int = 0) -> dict[str, tuple[int, int]]:
    """Different rows of each language in an epoch, and rows that it could have."""
    layout = mixture.layout(epoch)
    blocks: dict[str, list[LanguageBlock]] = {}
    for block in (*layout.english, *layout.others):
        blocks.setdefault(block.lang, []).append(block)
    return {
        lang: (_num_rows(own), sum(len(block.rows) for block in own))
        for lang, own in blocks.items()
    }


def _keyed(blocks: Sequence[LanguageBlock]) -> Iterator[tuple[tuple[str, int], LanguageBlock]]:
    """Blocks with a name that is the same in every epoch: the language, and a number in it."""
    numbers: Counter[str] = Counter()
    for block in blocks:
        yield (block.lang, numbers[block.lang]), block
        numbers[block.lang] += 1


def _num_rows(blocks: Iterable[LanguageBlock]) -> int:
    return sum(min(block.count, len(block.rows)) for block in blocks)


def _positions(cells: Sequence[InstructionCell], num_measured: int) -> list[int]:
    """Positions spread evenly over some cells."""
    places = [(cell.start, cell.count) for cell in cells]
    found = []
    for i in _spread(sum(count for _, count in places), num_measured):
        number = 0
        while i >= places[number][1]:
            i -= places[number][1]
            number += 1
        found.append(places[number][0] + i)
    return found


def _spread(count: int, num_measured: int) -> list[int]:
    """At most `num_measured` of 0 .. count - 1, evenly."""
    number = min(count, num_measured)
    return [i * count // number for i in range(number)]


def _measure(
    mixture: Mixture, draws: Iterable[Draw], count_tokens: CountTokens | None
) -> tuple[float | None, float | None, int]:
    """Mean characters and tokens, and over how many samples."""
    if count_tokens is None:
        return None, None, 0
    lengths = []
    for draw in draws:
        sample = mixture.make_sample(draw)
        characters = sum(len(turn.text) for turn in sample.turns)
        lengths.append((characters, count_tokens(sample)))
    means = np.mean(lengths, axis=0)
    return float(means[0]), float(means[1]), len(lengths)
