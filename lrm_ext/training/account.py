"""What happened to the samples of a mixture, per language, over all loader processes.

Input: events, from the process that trains and from its loader's workers. Output: counts, a report,
and a refusal when a language, or all together, lose more than is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import get_worker_info

from llava.errors import DataError

ENCODED, CUT, TOO_LONG, READ, BROKEN = "encoded", "cut", "too long", "read", "broken picture"
_EVENTS = (ENCODED, CUT, TOO_LONG, READ, BROKEN)
# counted where a sample is encoded: by whoever plans steps, and again by the workers
_OF_ENCODING = (ENCODED, CUT, TOO_LONG)
_MAX_WORKERS = 64
# a rate says little about fewer samples than this
_MIN_SEEN = 200


class Account:
    """Counts of events, in memory that workers share.

    Args:
        languages: Those of the mixture.
        max_drop_rate: Share of the samples, overall and in each language, that may be lost; at 0
            none.
    """

    def __init__(self, languages: Sequence[str], max_drop_rate: float) -> None:
        self._langs = tuple(languages)
        self.max_drop_rate = max_drop_rate
        # a row for each process, so that none waits for another
        self._counts = torch.zeros(
            _MAX_WORKERS, len(self._langs), len(_EVENTS), dtype=torch.int64
        ).share_memory_()

    def count(self, event: str, lang: str) -> None:
        """Count an event."""
        worker = get_worker_info()
        row = 0 if worker is None else 1 + worker.id % (_MAX_WORKERS - 1)
        self._counts[row, self._langs.index(lang), _EVENTS.index(event)] += 1

    def number(self, event: str, lang: str | None = None) -> int:
        """How often something happened, in a language or in all."""
        column = self._counts[:, :, _EVENTS.index(event)]
        by_lang = column.sum(0)
        if event in _OF_ENCODING:
            # both sides encode the same samples; the one that had more of them counts
            encoded = self._counts[:, :, 0].sum(1)
            by_lang = column[0] if encoded[0] >= encoded[1:].sum() else column[1:].sum(0)
        return int(by_lang.sum() if lang is None else by_lang[self._langs.index(lang)])

    def lose(self, event: str, lang: str, what: str, advice: str) -> None:
        """Count a sample that is lost.

        Args:
            event: `TOO_LONG` or `BROKEN`.
            lang: The sample's language.
            what: Which sample, and what is wrong with it.
            advice: What to do about it.

        Raises:
            DataError: None may be lost, or there are too many.
        """
        self.count(event, lang)
        rate = self.max_drop_rate
        if rate == 0:
            raise DataError(f"{what}. {advice}, or tolerate a share of such with --max_drop_rate.")
        whole = ENCODED if event == TOO_LONG else READ
        of_all = self.number(event) / max(self.number(whole), 1)
        num_of_lang = self.number(whole, lang)
        of_lang = self.number(event, lang) / max(num_of_lang, 1)
        if num_of_lang >= _MIN_SEEN and max(of_all, of_lang) > rate:
            raise DataError(f"{what}; more than --max_drop_rate {rate:.1%}\n{self.report()}")

    def report(self) -> str:
        """All counts, a line for each language that something happened to."""
        head = f"{self.number(ENCODED)} samples encoded"
        lines = [", ".join([head, *(f"{self.number(e)} {e}" for e in (CUT, TOO_LONG, BROKEN))])]
        for event in (CUT, TOO_LONG, BROKEN):
            whole = READ if event == BROKEN else ENCODED
            lines += [
                f"  {event:<14} {lang:<4} {count:>8} of {self.number(whole, lang)}"
                for lang in self._langs
                if (count := self.number(event, lang))
            ]
        return "\n".join(lines)
