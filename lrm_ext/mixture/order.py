"""The mixture: index i of epoch e is a row, a language, an instruction and a direction.

Input: a `MixtureSpec` and a corpus. Output: draws, as a pure function of (spec, epoch, index): the
same on every worker and rank, resumable at any index. Every English row is drawn once an epoch, or
as often as the spec says of its corpus. The non-English part is laid out in blocks of languages
and, inside those, of instructions, with exact counts (largest remainder, never sampled); one keyed
permutation shuffles the whole, another the rows of a language.

All languages walk through the same permutation of their rows, each from where the one before it
ends. So where all rows have text in all languages and the ratio is 1, every English row gets
exactly one twin (how we read the paper); no language repeats a row before it has seen all of its
rows, over epochs too, whatever a curriculum makes of its share; and a row's twin is in another
language each epoch.

A permutation is computed, not stored: an alternating Feistel network over the smallest power of two
that holds n (halves of unequal size where needed), walked until it lands below n. Any round
function makes it a bijection; how many rounds are needed to look random depends on n (measured:
eight for n >= 2^16, 24 below). It takes constant time and memory, where a shuffled list of a
hundred million indices would have to be held by every worker. Not for cryptography.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from llava.data.sample import Sample
from llava.errors import ConfigError
from lrm_ext.corpus.store import AnyCorpus, Corpus, JoinedCorpus, ShiftedRows, parts_of
from lrm_ext.instructions.registry import ENGLISH, get_instruction
from lrm_ext.mixture.spec import MixtureSpec, phase_at, shares_of

_MASK_64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MANY_ROUNDS_BELOW = 1 << 16
# What a permutation is for; part of its key.
ORDER_STREAM, ROW_STREAM, ENGLISH_STREAM = 0, 1, 2
PLAIN_INSTRUCTION = "mvqa"
# at an epoch's border a loader is ahead of what is learnt
_EPOCHS_KEPT = 4


def mix64(value: int) -> int:
    """SplitMix64's output function: 64 bits in, 64 well-mixed bits out."""
    value = (value + _GOLDEN) & _MASK_64
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK_64
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK_64
    return value ^ (value >> 31)


def derive_key(*parts: int) -> int:
    """One 64-bit key of several numbers; their order matters."""
    key = 0
    for part in parts:
        key = mix64(key ^ mix64(part & _MASK_64))
    return key


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
        self._keys = tuple(derive_key(*key, r) for r in range(rounds))
        self._key_pairs = tuple(zip(self._keys[::2], self._keys[1::2], strict=True))

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> int:  # type: ignore[override]  # no slices
        """Where `index` goes.

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
        """Where many indices go; the same as `[p[i] for i in indices]`, vectorised.

        Args:
            indices: Integers in 0 .. n-1.

        Returns:
            int64 array of the same shape.
        """
        given = np.asarray(indices, dtype=np.int64)
        if given.size and not (0 <= given.min() and given.max() < self._n):
            raise IndexError(f"indices outside of a permutation of {self._n}")
        values = self._step_many(given.astype(np.uint64))
        outside = values >= self._n
        while outside.any():
            values[outside] = self._step_many(values[outside])
            outside = values >= self._n
        return values.astype(np.int64)

    def _step(self, value: int) -> int:
        """One pass through the network, on the power-of-two domain.

        `mix64` is written out: two calls a round are half of a draw's time.
        """
        high, low = value >> self._low_bits, value & self._low_mask
        for first, second in self._key_pairs:
            mixed = ((low ^ first) + _GOLDEN) & _MASK_64
            mixed = ((mixed ^ (mixed >> 30)) * _MIX_1) & _MASK_64
            mixed = ((mixed ^ (mixed >> 27)) * _MIX_2) & _MASK_64
            high ^= (mixed ^ (mixed >> 31)) & self._high_mask
            mixed = ((high ^ second) + _GOLDEN) & _MASK_64
            mixed = ((mixed ^ (mixed >> 30)) * _MIX_1) & _MASK_64
            mixed = ((mixed ^ (mixed >> 27)) * _MIX_2) & _MASK_64
            low ^= (mixed ^ (mixed >> 31)) & self._low_mask
        return high << self._low_bits | low

    def _step_many(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        shift, low_mask = np.uint64(self._low_bits), np.uint64(self._low_mask)
        high_mask = np.uint64(self._high_mask)
        high, low = values >> shift, values & low_mask
        for number, key in enumerate(self._keys):
            if number % 2 == 0:
                high = high ^ (_mix64_many(low ^ np.uint64(key)) & high_mask)
            else:
                low = low ^ (_mix64_many(high ^ np.uint64(key)) & low_mask)
        return high << shift | low


def _mix64_many(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        values = values + np.uint64(_GOLDEN)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(_MIX_1)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(_MIX_2)
        return values ^ (values >> np.uint64(31))


def apportion(total: int, shares: Sequence[Fraction]) -> list[int]:
    """Split `total` by largest remainder; ties go to the earlier share.

    Args:
        total: What to split, at least 0.
        shares: Positive; only their ratio counts.

    Example:
        >>> apportion(10, [Fraction(1)] * 3)
        [4, 3, 3]
    """
    whole = sum(shares)
    return _round_to(total, [total * share / whole for share in shares])


def apportion_table(row_totals: Sequence[int], shares: Sequence[Fraction]) -> list[list[int]]:
    """Split every row total by the same shares so that the columns come out right, too.

    What a row's rounding owes a column is carried into the next row. So each row adds up to its
    total, and each column adds up to what largest remainder gives it for the sum of all rows
    (exactly if every row is large enough to give each column at least one).

    Args:
        row_totals: One total a row (languages).
        shares: One share a column (instructions); only their ratio counts.

    Returns:
        `[rows][columns]` counts.
    """
    whole = sum(shares)
    owed = [Fraction(0)] * len(shares)
    table = []
    for total in row_totals:
        ideal = [total * share / whole + debt for share, debt in zip(shares, owed, strict=True)]
        row = _round_to(total, ideal)
        owed = [want - got for want, got in zip(ideal, row, strict=True)]
        table.append(row)
    return table


def halves(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Split each count in two; the odd ones go to the first and second half in turn."""
    table = []
    extra_first = True
    for count in counts:
        first = count // 2
        if count % 2:
            first += extra_first
            extra_first = not extra_first
        table.append((first, count - first))
    return table


def _round_to(total: int, ideal: Sequence[Fraction]) -> list[int]:
    """Round non-negative integers out of `ideal`, which adds up to `total`, by remainder."""
    counts = [max(0, math.floor(value)) for value in ideal]
    left = total - sum(counts)
    by_remainder = sorted(range(len(ideal)), key=lambda i: counts[i] - ideal[i])
    for i in by_remainder[: max(0, left)]:
        counts[i] += 1
    for _ in range(-left):  # only where a debt would have made a count negative
        i = max((i for i in range(len(counts)) if counts[i]), key=lambda i: counts[i] - ideal[i])
        counts[i] -= 1
    assert sum(counts) == total
    return counts


@dataclass(frozen=True)
class LanguageBlock:
    """A language's part of an epoch that comes from one corpus.

    Attributes:
        lang: The language.
        start: Its first position.
        count: Samples in the epoch: positions `start` to `start + count - 1`.
        rows: Numbers of the rows that it may have.
        order: The order in which those are drawn.
        first_step: Where in that order the epoch begins; steps count on over epochs.
    """

    lang: str
    start: int
    count: int
    rows: Sequence[int]
    order: Sequence[int]
    first_step: int

    def row(self, position: int) -> int:
        """Row that is drawn at a position."""
        # any len(rows) consecutive steps are different rows
        step = (position - self.start + self.first_step) % len(self.rows)
        return int(self.rows[self.order[step]])


class LanguagePlan:
    """The non-English part.

    Args:
        spec: Seed, shares and curriculum.
        total: Samples an epoch.
        rows: For each language, the rows that it has in each corpus; some list must hold one.
        times: How often each corpus comes in an epoch of the mixture.

    Raises:
        ConfigError: UniMax is asked for more samples than it allows.
    """

    def __init__(
        self,
        spec: MixtureSpec,
        total: int,
        rows: Mapping[str, Sequence[Sequence[int]]],
        times: Sequence[Fraction],
    ) -> None:
        self.spec = spec
        self._rows = rows
        self._times = times
        shares = spec.languages_in(rows)
        sizes = {lang: sum(self._weights(lang), Fraction(0)) for lang in rows}
        self._counts: list[dict[str, list[int]]] = []
        for phase in spec.curriculum:
            found = shares_of(phase, total, shares, sizes)
            counts = dict(zip(found, apportion(total, list(found.values())), strict=True))
            self._counts.append(
                {lang: apportion(count, self._weights(lang)) for lang, count in counts.items()}
            )
        self._orders = {
            (lang, part): Permutation(
                len(numbers), (spec.seed, ROW_STREAM, *((part,) * (part > 0)))
            )
            for lang, parts in rows.items()
            for part, numbers in enumerate(parts)
        }

    def counts(self, epoch: int) -> dict[str, list[int]]:
        """Samples of each language from each corpus."""
        return self._counts[phase_at(self.spec.curriculum, epoch)]

    def blocks(self, epoch: int) -> list[LanguageBlock]:
        """Lay an epoch out, language by language; a corpus without it has no block."""
        first = self._first_steps(epoch)
        blocks: list[LanguageBlock] = []
        start = 0
        for lang, counts in self.counts(epoch).items():
            for part, count in enumerate(counts):
                numbers = self._rows[lang][part]
                if len(numbers):
                    order, step = self._orders[lang, part], first[lang, part]
                    blocks.append(LanguageBlock(lang, start, count, numbers, order, step))
                    start += count
        return blocks

    def _weights(self, lang: str) -> list[Fraction]:
        parts = zip(self._rows[lang], self._times, strict=True)
        return [len(numbers) * times for numbers, times in parts]

    def _first_steps(self, epoch: int) -> dict[tuple[str, int], int]:
        """Where each language begins in an epoch.

        In epoch 0 that is where the language before it ends; later, so many steps on as it took.
        """
        steps: dict[tuple[str, int], int] = {}
        ends = [0] * len(self._times)
        for lang, counts in self._counts[0].items():
            for part, count in enumerate(counts):
                steps[lang, part] = ends[part]
                ends[part] += count
        phases = self.spec.curriculum
        borders = [phase.from_epoch for phase in phases[1:]]
        for number, phase in enumerate(phases):
            end = min(epoch, borders[number]) if number < len(borders) else epoch
            num_epochs = max(0, end - phase.from_epoch)
            for lang, counts in self._counts[number].items():
                for part, count in enumerate(counts):
                    steps[lang, part] += num_epochs * count
        return steps


class EnglishPlan:
    """The English part: the rows of each corpus as often as the spec says.

    Args:
        spec: Seed and shares of the corpora.
        sizes: Rows of each corpus.

    Raises:
        ConfigError: A corpus would give no sample.
    """

    def __init__(self, spec: MixtureSpec, sizes: Sequence[int]) -> None:
        self.counts = _english_counts(spec, sizes)
        self.times = [Fraction(count, size) for count, size in zip(self.counts, sizes, strict=True)]
        self._sizes = sizes
        # one that comes once is not shuffled twice
        self._orders: list[Sequence[int]] = [
            range(size) if count == size else Permutation(size, (spec.seed, ENGLISH_STREAM, part))
            for part, (count, size) in enumerate(zip(self.counts, sizes, strict=True))
        ]

    def blocks(self, epoch: int) -> list[LanguageBlock]:
        """Lay an epoch out, corpus by corpus."""
        blocks = []
        start = first_row = 0
        for count, size, order in zip(self.counts, self._sizes, self._orders, strict=True):
            rows = range(first_row, first_row + size)
            blocks.append(LanguageBlock(ENGLISH, start, count, rows, order, epoch * count))
            start += count
            first_row += size
        return blocks


def _english_counts(spec: MixtureSpec, sizes: Sequence[int]) -> list[int]:
    if not spec.corpora:
        return list(sizes)
    assert len(spec.corpora) == len(sizes)
    weights = [share.weight for share in spec.corpora if share.weight is not None]
    if weights:
        counts = apportion(sum(sizes), weights)
    else:
        epochs = [share.epochs or Fraction(0) for share in spec.corpora]
        counts = [
            math.floor(times * size + Fraction(1, 2))
            for times, size in zip(epochs, sizes, strict=True)
        ]
    for share, count, size in zip(spec.corpora, counts, sizes, strict=True):
        if not count:
            raise ConfigError(
                f"{share.path}: of its {size} rows none comes in an epoch of the mixture. Raise "
                "its epochs or weight, or leave the corpus out."
            )
    return counts


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
class InstructionCell:
    """One language, instruction and direction: `count` positions from `start`."""

    block: LanguageBlock
    instruction: str
    direction: str | None
    start: int
    count: int


class Layout:
    """An epoch: its order, and what lies where before it is shuffled.

    Args:
        order: From index to position; English comes first, then the other languages.
        english: Blocks of the English part, from position 0.
        others: Blocks of the non-English part, from position 0 of that.
        spec: Gives the shares of the instructions.
    """

    def __init__(
        self,
        order: Permutation,
        english: list[LanguageBlock],
        others: list[LanguageBlock],
        spec: MixtureSpec,
    ) -> None:
        self.order = order
        self.english = english
        self.others = others
        self.cells = _cells(others, spec)
        self._english_starts = [block.start for block in english]
        self._starts = [cell.start for cell in self.cells]

    def english_draw(self, position: int) -> Draw:
        """The draw at a position of the English part."""
        block = self.english[bisect_right(self._english_starts, position) - 1]
        return Draw(block.row(position), ENGLISH, PLAIN_INSTRUCTION)

    def draw(self, position: int) -> Draw:
        """The draw at a position of the non-English part."""
        cell = self.cells[bisect_right(self._starts, position) - 1]
        block = cell.block
        return Draw(block.row(position), block.lang, cell.instruction, cell.direction)


class Mixture:
    """A mixture spec applied to a corpus.

    Args:
        spec: What to mix.
        corpus: What to mix it from; several corpora are joined in the order of the spec.

    Raises:
        ConfigError: The corpus is empty, has no usable text in a language that is asked for, or is
            none of those that the spec names.

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
        english = EnglishPlan(spec, [len(part) for part in parts])
        self.num_english = sum(english.counts)
        self.num_non_english = spec.num_non_english(self.num_english)
        self._english = english
        self._others: LanguagePlan | None = None
        if self.num_non_english:
            languages = tuple(spec.languages_in(corpus.languages))
            rows = self._usable_rows(languages)
            self._others = LanguagePlan(spec, self.num_non_english, rows, english.times)
        self._layouts: OrderedDict[int, Layout] = OrderedDict()

    @property
    def left_out(self) -> tuple[str, ...]:
        """Languages of the corpus that the spec's `languages` do not name."""
        if not self.spec.languages:
            return ()
        taken = {ENGLISH, *self.spec.languages}
        return tuple(lang for lang in self.corpus.languages if lang not in taken)

    @classmethod
    def open(
        cls, spec: MixtureSpec, corpus: Corpus | None = None, image_root: str | None = None
    ) -> Mixture:
        """Apply a spec to the corpora that it names, or to the one that is given.

        Args:
            spec: What to mix.
            corpus: The corpus, if the spec names none.
            image_root: Where the pictures of the spec's corpora are, if not where those say.

        Raises:
            ConfigError: Both name a corpus, or none does; or as for the class.
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
        """Samples an epoch."""
        return self.num_english + self.num_non_english

    def __reduce__(self) -> tuple[type[Mixture], tuple[MixtureSpec, AnyCorpus]]:
        # Row lists are opened again in a worker instead of being sent there.
        return (Mixture, (self.spec, self.corpus))

    def layout(self, epoch: int = 0) -> Layout:
        """What lies where in an epoch."""
        layout = self._layouts.get(epoch)
        if layout is None:
            order = Permutation(len(self), (self.spec.seed, ORDER_STREAM, epoch))
            others = self._others.blocks(epoch) if self._others is not None else []
            layout = Layout(order, self._english.blocks(epoch), others, self.spec)
            self._layouts[epoch] = layout
            if len(self._layouts) > _EPOCHS_KEPT:
                self._layouts.popitem(last=False)
        return layout

    def draw(self, index: int, epoch: int = 0) -> Draw:
        """What sample `index` of an epoch is.

        Raises:
            IndexError: The index is not in 0 .. len - 1.
        """
        layout = self._layouts.get(epoch) or self.layout(epoch)
        position = layout.order[index]
        if position < self.num_english:
            return layout.english_draw(position)
        return layout.draw(position - self.num_english)

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The formatted sample that `index` of an epoch stands for."""
        return self.make_sample(self.draw(index, epoch))

    def make_sample(self, draw: Draw) -> Sample:
        """Fetch a draw's row and format it by its instruction."""
        row = self.corpus.row(draw.row)
        turns = row.turns if draw.lang == ENGLISH else self.corpus.turns(draw.lang, draw.row)
        instruction = get_instruction(draw.instruction)
        return instruction.format(row, turns, draw.lang, draw.direction)

    def _usable_rows(self, languages: tuple[str, ...]) -> dict[str, list[Sequence[int]]]:
        """Rows of each language, by corpus; a language without any is an error with all counts."""
        rows: dict[str, list[Sequence[int]]] = {lang: [] for lang in languages}
        start = 0
        for part in parts_of(self.corpus):
            for lang in languages:
                own = part.usable(lang) if lang in part.languages else ()
                rows[lang].append(ShiftedRows(own, start) if start else own)
            start += len(part)
        counts = {lang: sum(map(len, parts)) for lang, parts in rows.items()}
        empty = [lang for lang, count in counts.items() if not count]
        if empty or not languages:
            listed = ", ".join(f"{lang} {count}" for lang, count in counts.items()) or "none"
            raise ConfigError(
                f"{self.corpus.path}: no usable text in {', '.join(empty) or 'any other language'}"
                f", but {self.num_non_english} non-English samples are asked for. Usable rows "
                f"(accepted text, translatable) of {start}: {listed}. Translate the corpus, take "
                "the language out of the mixture, or set non_english_ratio = 0."
            )
        return rows


def _cells(blocks: Sequence[LanguageBlock], spec: MixtureSpec) -> tuple[InstructionCell, ...]:
    """Lay the instructions out inside the blocks; some cells may be empty."""
    names = tuple(spec.instructions)
    counts = apportion_table([block.count for block in blocks], tuple(spec.instructions.values()))
    split = {
        name: halves([row[i] for row in counts])
        for i, name in enumerate(names)
        if get_instruction(name).directions
    }
    cells: list[InstructionCell] = []
    start = 0
    for b, block in enumerate(blocks):
        for i, name in enumerate(names):
            directions = get_instruction(name).directions or (None,)
            sizes = split[name][b] if name in split else (counts[b][i],)
            for direction, size in zip(directions, sizes, strict=True):
                cells.append(InstructionCell(block, name, direction, start, size))
                start += size
    return tuple(cells)
