"""A torch sampler with the mixture's order, for other data sets.

Input: the language of each item of a data set. Output: indices into it. Every English item comes
once per epoch; the other languages have exact shares. There are no instructions: items are already
formatted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from llava.errors import ConfigError
from lrm_ext.languages.registry import ENGLISH
from lrm_ext.mixture.order import EpochPlan, refuse_empty
from lrm_ext.mixture.spec import MixtureSpec


class LanguageMixSampler(Sampler[int]):
    """Draws English items once and items of other languages in the shares of a spec.

    The order is a pure function of (spec, epoch, position), as in `Mixture`. Call `set_epoch`
    before each epoch; with several ranks, accelerate and `Trainer` distribute the batches.

    Args:
        langs: Language code of each item of the data set.
        spec: Ratio, shares of languages, curriculum and seed; instructions and corpora are ignored.
        epoch: First epoch.
        start: First position in that epoch, to resume.

    Raises:
        ConfigError: There is no item in English or in a requested language.

    Example:
        >>> sampler = LanguageMixSampler(["en", "cs", "en", "hr"], MixtureSpec())
        >>> len(list(sampler))
        4
    """

    def __init__(
        self, langs: Sequence[str], spec: MixtureSpec, epoch: int = 0, start: int = 0
    ) -> None:
        codes = np.asarray(langs)
        there = tuple(dict.fromkeys(map(str, langs)))
        num_english = int((codes == ENGLISH).sum())
        if not num_english:
            raise ConfigError(
                f"no English item among {len(codes)} ({', '.join(there) or 'no languages'}): "
                "non_english_ratio counts per English item."
            )
        self._epoch, self._start = epoch, start
        num_others = spec.num_non_english(num_english)
        languages = spec.languages_in(there) if num_others else {}
        rows: dict[str, list[Any]] = {
            lang: [np.flatnonzero(codes == lang).astype(np.uint32)]
            for lang in (*languages, ENGLISH)
        }
        counts = {lang: len(rows[lang][0]) for lang in languages}
        refuse_empty(counts, num_others, "no item", "Items", "Add items")
        self._plan = EpochPlan(spec, [num_english], rows)

    def __len__(self) -> int:
        """Remaining indices of the epoch."""
        return self._plan.size - self._start

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch; another epoch begins at its start."""
        if epoch != self._epoch:
            self._start = 0
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        layout = self._plan.layout(self._epoch)
        for i in range(self._start, self._plan.size):
            yield layout.draw(layout.order[i]).row
