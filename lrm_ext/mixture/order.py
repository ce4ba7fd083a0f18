"""Maps index i of epoch e to a row, a language, an instruction and a direction.

Input: a `MixtureSpec` and a corpus. Output: draws, as a pure function of (spec, epoch, index): the
same on every worker and rank, resumable at any index. Every English row is drawn once per epoch, or
as often as the spec says for its corpus. The non-English part consists of blocks of languages,
divided into instructions, with exact counts (largest remainder, never sampled). One keyed
permutation shuffles the epoch, another one the rows of a language.

All languages follow the same permutation of their rows, each from where the previous one ends. So
if all rows have text in all languages and the ratio is 1, every English row has exactly one twin,
which is our reading of the paper. No language repeats a row before it has seen all of its rows,
even over epochs and whatever share a curriculum gives it, and the twin of a row is in another
language in each epoch.

A permutation is computed, not stored: an alternating Feistel network over the smallest power of two
that holds n (with halves of unequal size if necessary), repeated until the result is below n. It is
a bijection for any round function; the number of rounds that look random depends on n (measured:
eight for n >= 2^16, 24 below). Time and memory are constant, while a shuffled list of a hundred
million indices would have to be in the memory of every worker. Not for cryptography.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache, reduce
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from llava.data.sample import Sample
from llava.errors import ConfigError
from lrm_ext.corpus.store import AnyCorpus, Corpus, JoinedCorpus, parts_of
from lrm_ext.instructions.registry import get_instruction
from lrm_ext.languages.registry import ENGLISH
from lrm_ext.mixture.spec import MixtureSpec, shares_of

_MASK_64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MANY_ROUNDS_BELOW = 1 << 16
# the purpose of a permutation is part of its key
ORDER_STREAM, ROW_STREAM, ENGLISH_STREAM = 0, 1, 2
PLAIN_INSTRUCTION = "mvqa"
# between two epochs the data loader is ahead of training
_EPOCHS_KEPT = 4


def mix64(value: int) -> int:
    """SplitMix64's output function: 64 bits in, 64 well-mixed bits out."""
    value = (value + _GOLDEN) & _MASK_64
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK_64
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK_64
    return value ^ (value >> 31)


def derive_key(*parts: int) -> int:
    """Derives a 64-bit key from several numbers; their order matters."""
    return reduce(lambda key, part: mix64(key ^ mix64(part & _MASK_64)), parts, 0)


class Permutation(Sequence[int]):
    """The permutation of 0 .. n-1 that belongs to a key.

    Args:
        n: How many indices.
        key: Parts of the key, such as (seed, purpose, epoch).

    Example:
        >>> sorted(Permutation(5, (0, 0)))
        [0, 1, 2, 3, 4]
    """

    def __init__(self, n: int, key: Sequence[int]) -> None:
        assert n >= 0
        self._n = n
        bits = max(1, (n - 1).bit_length())
        self._low_bits = bits - bits // 2
        self._low_mask = (1 << self._low_bits) - 1
        self._high_mask = (1 << (bits // 2)) - 1
        rounds = 24 if n < _MANY_ROUNDS_BELOW else 8
        self._keys = [(derive_key(*key, r), derive_key(*key, r + 1)) for r in range(0, rounds, 2)]

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> int:  # type: ignore[override]  # no slices
        """Returns the image of an index.

        Raises:
            IndexError: It is not in 0 .. n-1.
        """
        if not 0 <= index < self._n:
            raise IndexError(f"index {index} of a permutation of {self._n}")
        value = self._step(index)
        while value >= self._n:
            value = self._step(value)
        return value

    def take(self, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Returns the images of many indices; a vectorized `[p[i] for i in indices]`.

        Args:
            indices: Integers in 0 .. n-1.

        Returns:
            int64 array of the same shape.
        """
        given = np.asarray(indices, dtype=np.int64)
        if given.size and not (0 <= given.min() and given.max() < self._n):
            raise IndexError(f"indices outside of a permutation of {self._n}")
        values = self._step(given.astype(np.uint64))
        while (outside := values >= self._n).any():
            values[outside] = self._step(values[outside])
        return values.astype(np.int64)

    def _step(self, value: Any) -> Any:
        """Passes an int, or an array of uint64, through the network once.

        `mix64` is inlined, because two calls per round would take half of a draw's time.
        """
        high, low = value >> self._low_bits, value & self._low_mask
        for first, second in self._keys:
            mixed = ((low ^ first) + _GOLDEN) & _MASK_64
            mixed = ((mixed ^ (mixed >> 30)) * _MIX_1) & _MASK_64
            mixed = ((mixed ^ (mixed >> 27)) * _MIX_2) & _MASK_64
            high ^= (mixed ^ (mixed >> 31)) & self._high_mask
            mixed = ((high ^ second) + _GOLDEN) & _MASK_64
            mixed = ((mixed ^ (mixed >> 30)) * _MIX_1) & _MASK_64
            mixed = ((mixed ^ (mixed >> 27)) * _MIX_2) & _MASK_64
            low ^= (mixed ^ (mixed >> 31)) & self._low_mask
        return high << self._low_bits | low


def apportion(total: int, shares: Sequence[Fraction]) -> list[int]:
    """Splits `total` by largest remainder; ties go to the earlier share.

    Args:
        total: The number to split, at least 0.
        shares: Positive numbers; only their ratio counts.

    Example:
        >>> apportion(10, [Fraction(1)] * 3)
        [4, 3, 3]
    """
    return apportion_table([total], shares)[0]


def apportion_table(row_totals: Sequence[int], shares: Sequence[Fraction]) -> list[list[int]]:
    """Splits every row total by the same shares so that the columns are right, too.

    The rounding error of a column is carried to the next row. So each row adds up to its total, and
    each column to what largest remainder gives it for the sum of all rows (exactly, if every row is
    large enough to give each column at least one).

    Args:
        row_totals: One total per row (language).
        shares: One share per column (instruction); only their ratio counts.

    Returns:
        `[rows][columns]` counts.
    """
    whole = sum(shares)
    table: list[list[int]] = []
    owed = [Fraction(0)] * len(shares)
    for total in row_totals:
        owed = [total * share / whole + debt for share, debt in zip(shares, owed, strict=True)]
        row = [max(0, math.floor(value)) for value in owed]
        while sum(row) != total:
            # the sum is too large only if a debt would have made a count negative
            one = 1 if sum(row) < total else -1
            places = [i for i, count in enumerate(row) if count + one >= 0]
            row[max(places, key=lambda i: one * (owed[i] - row[i]))] += one
        owed = [want - got for want, got in zip(owed, row, strict=True)]
        table.append(row)
    return table


def halves(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Splits each count in two; odd ones favor the first and the second half in turn."""
    ends = pairwise(-(-total // 2) for total in accumulate(counts, initial=0))
    firsts = [end - start for start, end in ends]
    return [(first, count - first) for first, count in zip(firsts, counts, strict=True)]


@dataclass(frozen=True)
class Run:
    """Consecutive positions of an epoch with one language and, once divided, one instruction.

    Attributes:
        lang: The language.
        start: Its first position in the unshuffled epoch.
        count: Samples in the epoch, at positions `start` to `start + count - 1`.
        rows: Numbers of its rows in the corpus that they come from.
        first_row: Number of that corpus's first row among the rows of all corpora.
        order: The order in which the rows are drawn.
        first_step: Where in that order the run begins; steps continue over epochs.
        instruction: Name of the instruction.
        direction: "to_en" or "from_en" for BVQA, else None.
    """

    lang: str
    start: int
    count: int
    rows: Sequence[int]
    first_row: int
    order: Sequence[int]
    first_step: int
    instruction: str = PLAIN_INSTRUCTION
    direction: str | None = None

    def row(self, position: int) -> int:
        """Returns the row of a position."""
        # any len(rows) consecutive steps are different rows
        step = (position - self.start + self.first_step) % len(self.rows)
        return self.first_row + int(self.rows[self.order[step]])


class EpochPlan:
    """Plans how many samples each language takes from each corpus, and which rows.

    Args:
        spec: Seed, ratio, shares and curriculum.
        english_counts: English samples per epoch from each corpus.
        rows: Rows of each language, English included, in each corpus, numbered within it.
            Every language must have at least one.
        first_rows: Number of the first row of each corpus among the rows of all corpora.

    Attributes:
        size: Samples per epoch.

    Raises:
        ConfigError: UniMax is asked for more samples than it allows.
    """

    def __init__(
        self,
        spec: MixtureSpec,
        english_counts: Sequence[int],
        rows: Mapping[str, Sequence[Sequence[int]]],
        first_rows: Sequence[int] = (0,),
    ) -> None:
        self._spec, self._rows, self._first_rows = spec, rows, first_rows
        # rows of a corpus that comes k times per epoch count k times
        times = [
            Fraction(count, len(own))
            for count, own in zip(english_counts, rows[ENGLISH], strict=True)
        ]
        weights = {
            lang: [len(own) * time for own, time in zip(parts, times, strict=True)]
            for lang, parts in rows.items()
            if lang != ENGLISH
        }
        total = spec.num_non_english(sum(english_counts)) if weights else 0
        sizes = {lang: sum(parts, Fraction(0)) for lang, parts in weights.items()}
        # samples from each corpus, by phase and language
        self._counts: list[dict[str, list[int]]] = []
        for phase in spec.curriculum:
            shares = shares_of(phase, total, spec.languages_in(weights), sizes) if weights else {}
            counts = apportion(total, list(shares.values()))
            others = {
                lang: apportion(count, weights[lang])
                for lang, count in zip(shares, counts, strict=True)
            }
            self._counts.append({ENGLISH: [*english_counts], **others})
        self.size = sum(english_counts) + total

    def layout(self, epoch: int = 0) -> Layout:
        """Returns the order and the contents of an epoch."""
        order = Permutation(self.size, (self._spec.seed, ORDER_STREAM, epoch))
        return Layout(order, self._blocks(epoch), self._spec)

    def _blocks(self, epoch: int) -> list[Run]:
        """Returns a run for each language and corpus that has rows in it, English first.

        In epoch 0 a language begins in the order of its rows where the previous one ends; later it
        continues where it stopped.
        """
        borders = [*(phase.from_epoch for phase in self._spec.curriculum), epoch]
        spans = [max(0, min(epoch, end) - start) for start, end in pairwise(borders)]
        blocks: list[Run] = []
        start = 0
        first_ends = [0] * len(self._rows[ENGLISH])
        phase = sum(phase.from_epoch <= epoch for phase in self._spec.curriculum) - 1
        for lang, counts in self._counts[phase].items():
            for part, count in enumerate(counts):
                rows = self._rows[lang][part]
                if not len(rows):
                    continue
                drawn = [counts_of[lang][part] for counts_of in self._counts]
                step = sum(map(operator.mul, spans, drawn))
                if lang != ENGLISH:
                    step += first_ends[part]
                    first_ends[part] += drawn[0]
                order = self._order(lang, part)
                blocks.append(Run(lang, start, count, rows, self._first_rows[part], order, step))
                start += count
        return blocks

    def _order(self, lang: str, part: int) -> Sequence[int]:
        """Returns the order of a language's rows in a corpus, the same in all epochs."""
        size = len(self._rows[lang][part])
        if lang != ENGLISH:
            return Permutation(size, (self._spec.seed, ROW_STREAM, *((part,) * (part > 0))))
        if self._counts[0][ENGLISH][part] == size:
            return range(size)  # rows that come once need no second shuffle
        return Permutation(size, (self._spec.seed, ENGLISH_STREAM, part))


def refuse_empty(
    counts: Mapping[str, int], num_asked: int, nothing: str, counted: str, remedy: str
) -> None:
    """Checks that there is something to draw in each language that takes part.

    Args:
        counts: Number of items by language, without English.
        num_asked: Non-English samples per epoch.
        nothing: For the error: what a language lacks.
        counted: What `counts` counts.
        remedy: What the user can do, besides taking the language out.

    Raises:
        ConfigError: A language has nothing, or there is none.
    """
    if num_asked and not all(counts.values() or [0]):
        empty = [lang for lang, count in counts.items() if not count]
        listed = ", ".join(f"{lang} {count}" for lang, count in counts.items())
        raise ConfigError(
            f"{nothing} in {', '.join(empty) or 'any other language'}, but {num_asked} non-English "
            f"samples are asked for. {counted}: {listed or 'none besides English'}. {remedy}, take "
            "the language out of the mixture, or set non_english_ratio = 0."
        )


def _english_counts(spec: MixtureSpec, sizes: Sequence[int]) -> list[int]:
    """Returns the English samples per epoch from corpora of the given sizes.

    Raises:
        ConfigError: A corpus would give no sample.
    """
    if not spec.corpora:
        return list(sizes)
    weights = [share.weight for share in spec.corpora if share.weight is not None]
    counts = (
        apportion(sum(sizes), weights)
        if weights
        else [
            math.floor((share.epochs or 0) * size + Fraction(1, 2))
            for share, size in zip(spec.corpora, sizes, strict=True)
        ]
    )
    for share, count, size in zip(spec.corpora, counts, sizes, strict=True):
        if not count:
            raise ConfigError(
                f"{share.path}: of its {size} rows none comes in an epoch of the mixture. Raise "
                "its epochs or weight, or leave the corpus out."
            )
    return counts


@dataclass(frozen=True)
class Draw:
    """The sample of an index.

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


class Layout:
    """The order of an epoch, and the language and instruction of each position.

    Args:
        order: Maps indices to positions.
        blocks: A run for each language and corpus, English first.
        spec: Shares of the instructions.
    """

    def __init__(self, order: Permutation, blocks: list[Run], spec: MixtureSpec) -> None:
        self.order, self.blocks = order, blocks
        self.runs = _divide(blocks, spec)
        self._starts = [run.start for run in self.runs]

    def draw(self, position: int) -> Draw:
        """Returns the draw of a position."""
        run = self.runs[bisect_right(self._starts, position) - 1]
        return Draw(run.row(position), run.lang, run.instruction, run.direction)


def _divide(blocks: Sequence[Run], spec: MixtureSpec) -> list[Run]:
    """Divides the blocks into instructions; some runs may be empty."""
    runs = [block for block in blocks if block.lang == ENGLISH]
    others = blocks[len(runs) :]
    shares = spec.instructions
    table = apportion_table([block.count for block in others], tuple(shares.values()))
    directions = [get_instruction(name).directions or (None,) for name in shares]
    columns = [
        halves(column) if len(ways) > 1 else [(count,) for count in column]
        for ways, column in zip(directions, zip(*table, strict=True), strict=bool(table))
    ]
    for number, block in enumerate(others):
        past = 0
        for name, ways, column in zip(shares, directions, columns, strict=True):
            for direction, count in zip(ways, column[number], strict=True):
                runs.append(
                    replace(
                        block,
                        start=block.start + past,
                        count=count,
                        first_step=block.first_step + past,
                        instruction=name,
                        direction=direction,
                    )
                )
                past += count
    return runs


class Mixture:
    """A mixture spec applied to a corpus.

    Args:
        spec: The mixture.
        corpus: The corpus; several corpora are joined in the order of the spec.

    Raises:
        ConfigError: The corpus is empty, lacks usable text in a requested language, or does not
            match the corpora of the spec.

    Example:
        >>> mixture = Mixture(MixtureSpec.from_toml("mixture.toml"), Corpus.open("corpus"))
        >>> mixture.draw(7, epoch=0)
        Draw(row=12, lang='hr', instruction='bvqa', direction='to_en')
    """

    def __init__(self, spec: MixtureSpec, corpus: AnyCorpus) -> None:
        self.spec = spec
        self.corpus = corpus
        parts = parts_of(corpus)
        if spec.corpora and len(spec.corpora) != len(parts):
            raise ConfigError(
                f"the mixture names {len(spec.corpora)} corpora, but is applied to {len(parts)}; "
                "leave [[corpora]] out to choose another corpus."
            )
        if empty := [str(part.path) for part in parts if not len(part)]:
            raise ConfigError(f"{', '.join(empty)}: the corpus has no rows; nothing can be mixed.")
        counts = _english_counts(spec, [len(part) for part in parts])
        self.num_english = sum(counts)
        self.num_non_english = spec.num_non_english(self.num_english)
        languages = spec.languages_in(corpus.languages) if self.num_non_english else {}
        rows: dict[str, list[Sequence[int]]] = {
            lang: [part.usable(lang) if lang in part.languages else () for part in parts]
            for lang in languages
        }
        refuse_empty(
            {lang: sum(map(len, own)) for lang, own in rows.items()},
            self.num_non_english,
            f"{corpus.path}: no usable text",
            f"Usable rows (accepted text, translatable) of {len(corpus)}",
            "Translate the corpus",
        )
        rows[ENGLISH] = [range(len(part)) for part in parts]
        starts = list(accumulate(map(len, parts), initial=0))
        # the layout of an epoch
        self.layout = lru_cache(_EPOCHS_KEPT)(EpochPlan(spec, counts, rows, starts).layout)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Languages of the corpus that are not in the spec's `languages`."""
        taken = {ENGLISH, *(self.spec.languages or self.corpus.languages)}
        return tuple(lang for lang in self.corpus.languages if lang not in taken)

    @classmethod
    def open(
        cls, spec: MixtureSpec, corpus: Corpus | None = None, image_root: str | None = None
    ) -> Mixture:
        """Applies a spec to the corpora that it names, or to the given one.

        Args:
            spec: The mixture.
            corpus: The corpus, if the spec names none.
            image_root: Image folder of the spec's corpora, in place of their own.

        Raises:
            ConfigError: Both name a corpus, or neither does; see also `Mixture`.
            DataError: A folder is not a corpus.
        """
        if spec.corpora and corpus is not None:
            named = ", ".join(str(share.path) for share in spec.corpora)
            raise ConfigError(
                f"the mixture names its corpora ({named}), and {corpus.path} was given, too; leave "
                "one of them out."
            )
        if corpus is not None:
            return cls(spec, corpus)
        if not spec.corpora:
            raise ConfigError("no corpus: give one, or name them in the mixture ([[corpora]]).")
        parts = [Corpus.open(share.path, image_root) for share in spec.corpora]
        return cls(spec, parts[0] if len(parts) == 1 else JoinedCorpus(parts))

    def __len__(self) -> int:
        """Samples per epoch."""
        return self.num_english + self.num_non_english

    def __reduce__(self) -> tuple[type[Mixture], tuple[MixtureSpec, AnyCorpus]]:
        # workers open row lists themselves
        return (Mixture, (self.spec, self.corpus))

    def draw(self, index: int, epoch: int = 0) -> Draw:
        """Returns the draw of an index.

        Raises:
            IndexError: The index is not in 0 .. len - 1.
        """
        layout = self.layout(epoch)
        return layout.draw(layout.order[index])

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Returns the formatted sample of an index."""
        return self.make_sample(self.draw(index, epoch))

    def make_sample(self, draw: Draw) -> Sample:
        """Reads a draw's row and formats it by its instruction."""
        row = self.corpus.row(draw.row)
        turns = row.turns if draw.lang == ENGLISH else self.corpus.turns(draw.lang, draw.row)
        instruction = get_instruction(draw.instruction)
        return instruction.format(row, turns, draw.lang, draw.direction)
