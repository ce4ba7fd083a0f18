"""Who gives how many samples in an epoch, and in which order rows are walked through.

Input: a `MixtureSpec`, the total of the non-English part, and the rows of each language in each
corpus. Output: `Block`s, a language of a corpus each, one after the other. Counts are exact. An
epoch begins where the one before it ended, so that no language repeats a row before it has seen all
of its rows, whatever a curriculum makes of its share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from llava.errors import ConfigError
from lrm_ext.instructions.instruction import ENGLISH
from lrm_ext.mixture.counts import apportion
from lrm_ext.mixture.curriculum import phase_at, shares_of
from lrm_ext.mixture.permutation import Permutation
from lrm_ext.mixture.spec import MixtureSpec

# What a permutation is for; part of its key.
ORDER_STREAM, ROW_STREAM, ENGLISH_STREAM = 0, 1, 2


@dataclass(frozen=True)
class Block:
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

    def blocks(self, epoch: int) -> list[Block]:
        """Lay an epoch out, language by language; a corpus without it has no block."""
        first = self._first_steps(epoch)
        blocks: list[Block] = []
        start = 0
        for lang, counts in self.counts(epoch).items():
            for part, count in enumerate(counts):
                numbers = self._rows[lang][part]
                if len(numbers):
                    order, step = self._orders[lang, part], first[lang, part]
                    blocks.append(Block(lang, start, count, numbers, order, step))
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

    def blocks(self, epoch: int) -> list[Block]:
        """Lay an epoch out, corpus by corpus."""
        blocks = []
        start = first_row = 0
        for count, size, order in zip(self.counts, self._sizes, self._orders, strict=True):
            rows = range(first_row, first_row + size)
            blocks.append(Block(ENGLISH, start, count, rows, order, epoch * count))
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
