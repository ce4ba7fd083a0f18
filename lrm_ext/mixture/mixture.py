"""The mixture: index i of epoch e is a row, a language, an instruction and a direction.

Input: a `MixtureSpec` and a corpus. Output: draws, as a pure function of (spec, epoch, index): the
same on every worker and rank, resumable at any index. Every English row is drawn once an epoch.
The non-English part is laid out in blocks of languages and, inside those, of instructions, with
exact counts; one keyed permutation shuffles the whole, another the rows of a language.

All languages walk through the same permutation of their rows, each from where the one before it
ends. So where all rows have text in all languages and the ratio is 1, every English row gets
exactly one twin (how we read the paper); no language repeats a row before it has seen all of its
rows, over epochs too; and a row's twin is in another language each epoch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llava.data.sample import Sample
from llava.errors import ConfigError
from lrm_ext.instructions.instruction import ENGLISH
from lrm_ext.instructions.registry import get_instruction
from lrm_ext.mixture.counts import apportion, apportion_table, halves
from lrm_ext.mixture.permutation import Permutation
from lrm_ext.mixture.spec import MixtureSpec

if TYPE_CHECKING:
    from lrm_ext.corpus.store import Corpus
    from lrm_ext.mixture.table import TableRow

# What a permutation is for; part of its key.
ORDER_STREAM, ROW_STREAM = 0, 1
PLAIN_INSTRUCTION = "mvqa"


@dataclass(frozen=True)
class Draw:
    """What sample an index stands for.

    Attributes:
        row: Row number in the corpus.
        lang: The non-English language, or "en" for a plain English sample.
        instruction: Name of the instruction.
        direction: "to_en" or "from_en" for BVQA, else None.
    """

    row: int
    lang: str
    instruction: str
    direction: str | None = None


@dataclass(frozen=True)
class Block:
    """A language's part: positions `start` to `start + count - 1` of the non-English part.

    Attributes:
        lang: The language.
        start: Its first position.
        count: Samples an epoch.
        rows: Numbers of the rows that have text in it.
        order: The order in which those are drawn.
    """

    lang: str
    start: int
    count: int
    rows: npt.NDArray[np.uint32]
    order: Permutation

    def row(self, position: int, epoch: int) -> int:
        """Row that is drawn at a position of the non-English part."""
        # Any len(rows) consecutive steps are different rows; an epoch goes on where the last ended.
        step = (position + epoch * self.count) % len(self.rows)
        return int(self.rows[self.order[step]])


@dataclass(frozen=True)
class Cell:
    """One language, instruction and direction: `count` positions from `start`."""

    block: Block
    instruction: str
    direction: str | None
    start: int
    count: int


def make_blocks(
    total: int,
    languages: Mapping[str, Fraction],
    rows: Mapping[str, npt.NDArray[np.uint32]],
    seed: int,
) -> list[Block]:
    """Lay out `total` samples in languages by their shares, one block after the other."""
    blocks: list[Block] = []
    start = 0
    for lang, count in zip(languages, apportion(total, list(languages.values())), strict=True):
        order = Permutation(len(rows[lang]), (seed, ROW_STREAM))
        blocks.append(Block(lang, start, count, rows[lang], order))
        start += count
    return blocks


class Mixture:
    """A mixture spec applied to a corpus.

    Args:
        spec: What to mix.
        corpus: What to mix it from.

    Raises:
        ConfigError: The corpus is empty, or has no usable text in a language that is asked for.

    Example:
        >>> mixture = Mixture(MixtureSpec.from_toml("mixture.toml"), Corpus.open("corpus"))
        >>> mixture.draw(7, epoch=0)
        Draw(row=12, lang='hr', instruction='bvqa', direction='to_en')
    """

    def __init__(self, spec: MixtureSpec, corpus: Corpus) -> None:
        self.spec = spec
        self.corpus = corpus
        self.num_english = len(corpus)
        if not self.num_english:
            raise ConfigError(f"{corpus.path}: the corpus has no rows; nothing can be mixed.")
        self.num_non_english = spec.num_non_english(self.num_english)
        self._orders: dict[int, Permutation] = {}
        if self.num_non_english:
            assert self.cells

    def __len__(self) -> int:
        """Samples an epoch."""
        return self.num_english + self.num_non_english

    def __reduce__(self) -> tuple[type[Mixture], tuple[MixtureSpec, Corpus]]:
        # Row lists are mapped again in a worker instead of being sent there.
        return (Mixture, (self.spec, self.corpus))

    def draw(self, index: int, epoch: int = 0) -> Draw:
        """What sample `index` of an epoch is.

        Raises:
            IndexError: The index is not in 0 .. len - 1.
        """
        order = self._orders.get(epoch)
        if order is None:
            order = Permutation(len(self), (self.spec.seed, ORDER_STREAM, epoch))
            self._orders = {epoch: order}
        position = order[index]
        if position < self.num_english:
            return Draw(position, ENGLISH, PLAIN_INSTRUCTION)
        return self.draw_at(position - self.num_english, epoch)

    def draw_at(self, position: int, epoch: int = 0) -> Draw:
        """The draw at a position of the non-English part, before shuffling."""
        cell = self.cells[bisect_right(self._starts, position) - 1]
        row = cell.block.row(position, epoch)
        return Draw(row, cell.block.lang, cell.instruction, cell.direction)

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The formatted sample that `index` of an epoch stands for."""
        return self.make_sample(self.draw(index, epoch))

    def make_sample(self, draw: Draw) -> Sample:
        """Fetch a draw's row and format it by its instruction."""
        row = self.corpus.row(draw.row)
        turns = row.turns if draw.lang == ENGLISH else self.corpus.turns(draw.lang, draw.row)
        instruction = get_instruction(draw.instruction)
        return instruction.format(row, turns, draw.lang, draw.direction)

    def table(
        self, count_tokens: Callable[[Sample], int] | None = None, num_measured: int = 100
    ) -> list[TableRow]:
        """What an epoch consists of, per language and instruction; see `table.make_table`."""
        from lrm_ext.mixture.table import make_table

        return make_table(self, count_tokens, num_measured)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The non-English part in the order in which it is laid out; some may be empty."""
        blocks = self._blocks()
        names = tuple(self.spec.instructions)
        shares = tuple(self.spec.instructions.values())
        counts = apportion_table([block.count for block in blocks], shares)
        split = {
            name: halves([row[i] for row in counts])
            for i, name in enumerate(names)
            if get_instruction(name).directions
        }
        cells: list[Cell] = []
        start = 0
        for b, block in enumerate(blocks):
            for i, name in enumerate(names):
                directions = get_instruction(name).directions or (None,)
                sizes = split[name][b] if name in split else (counts[b][i],)
                for direction, size in zip(directions, sizes, strict=True):
                    cells.append(Cell(block, name, direction, start, size))
                    start += size
        return tuple(cells)

    @cached_property
    def _starts(self) -> list[int]:
        return [cell.start for cell in self.cells]

    def _blocks(self) -> list[Block]:
        languages = self.spec.languages_in(self.corpus.languages)
        usable = self._usable_rows(tuple(languages))
        return make_blocks(self.num_non_english, languages, usable, self.spec.seed)

    def _usable_rows(self, languages: tuple[str, ...]) -> dict[str, npt.NDArray[np.uint32]]:
        """Rows of each language; a language without any is an error that shows all counts."""
        corpus = self.corpus
        rows = {lang: corpus.usable_rows(lang) for lang in languages if lang in corpus.languages}
        counts = {lang: len(rows.get(lang, ())) for lang in languages}
        empty = [lang for lang, count in counts.items() if not count]
        if empty or not languages:
            listed = ", ".join(f"{lang} {count}" for lang, count in counts.items()) or "none"
            raise ConfigError(
                f"{corpus.path}: no usable text in {', '.join(empty) or 'any other language'}, but "
                f"{self.num_non_english} non-English samples are asked for. Usable rows (accepted "
                f"text, translatable) of {len(corpus)}: {listed}. Translate the corpus, take the "
                "language out of the mixture, or set non_english_ratio = 0."
            )
        return rows
