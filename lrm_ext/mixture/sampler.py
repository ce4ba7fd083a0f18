"""A torch sampler with the mixture's order, for people who bring their own data set.

Input: the language of each item of a data set. Output: indices into it. Every English item comes
once an epoch; the other languages come in exact shares. It knows nothing of instructions: the
items are taken to be formatted already.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from llava.errors import ConfigError
from lrm_ext.instructions.registry import ENGLISH
from lrm_ext.mixture.order import ORDER_STREAM, LanguageBlock, LanguagePlan, Permutation
from lrm_ext.mixture.spec import MixtureSpec


class LanguageMixSampler(Sampler[int]):
    """Draws English items once and items of other languages in the shares of a spec.

    A pure function of (spec, epoch, position), like `Mixture`. Call `set_epoch` before each epoch;
    with several ranks, accelerate and `Trainer` hand the batches out.

    Args:
        langs: Language code of each item of the data set.
        spec: Ratio, shares of languages, curriculum and seed; its instructions and corpora are not
            used.
        epoch: Epoch to begin with.
        start: Position in that epoch to begin at, to resume.

    Raises:
        ConfigError: There is no English item, or none of a language that is asked for.

    Example:
        >>> sampler = LanguageMixSampler(["en", "cs", "en", "hr"], MixtureSpec())
        >>> len(list(sampler))
        4
    """

    def __init__(
        self, langs: Sequence[str], spec: MixtureSpec, epoch: int = 0, start: int = 0
    ) -> None:
        codes = np.asarray(langs)
        there = tuple(dict.fromkeys(str(code) for code in langs))
        self._english = np.flatnonzero(codes == ENGLISH)
        if not len(self._english):
            raise ConfigError(
                f"no English item among {len(codes)} ({', '.join(there) or 'no languages'}): "
                "non_english_ratio counts per English item."
            )
        self._seed = spec.seed
        self._epoch = epoch
        self._start = start
        self._num_others = spec.num_non_english(len(self._english))
        self._plan = self._make_plan(codes, there, spec)

    def __len__(self) -> int:
        """Indices that an epoch has left."""
        return self._size - self._start

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, and begin it at its start if it is another one."""
        if epoch != self._epoch:
            self._start = 0
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = Permutation(self._size, (self._seed, ORDER_STREAM, self._epoch))
        blocks = self._plan.blocks(self._epoch) if self._plan is not None else []
        starts = [block.start for block in blocks]
        for i in range(self._start, self._size):
            yield self._item(order[i], blocks, starts)

    @property
    def _size(self) -> int:
        return len(self._english) + self._num_others

    def _item(self, position: int, blocks: Sequence[LanguageBlock], starts: Sequence[int]) -> int:
        if position < len(self._english):
            return int(self._english[position])
        position -= len(self._english)
        return blocks[bisect_right(starts, position) - 1].row(position)

    def _make_plan(
        self, codes: npt.NDArray[np.str_], there: tuple[str, ...], spec: MixtureSpec
    ) -> LanguagePlan | None:
        if not self._num_others:
            return None
        languages = spec.languages_in(there)
        rows = {lang: np.flatnonzero(codes == lang).astype(np.uint32) for lang in languages}
        if empty := [lang for lang in rows if not len(rows[lang])]:
            listed = ", ".join(f"{lang} {len(items)}" for lang, items in rows.items())
            raise ConfigError(
                f"no item in {', '.join(empty)}, but {self._num_others} non-English samples are "
                f"asked for. Items: {listed}. Take the language out of the mixture or add items."
            )
        if not languages:
            raise ConfigError(
                f"{self._num_others} non-English samples are asked for, but all items are English. "
                "Set non_english_ratio = 0."
            )
        sequences: dict[str, list[Any]] = {lang: [items] for lang, items in rows.items()}
        return LanguagePlan(spec, self._num_others, sequences, [Fraction(1)])
