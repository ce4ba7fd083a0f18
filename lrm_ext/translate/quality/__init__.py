"""Measures the quality of translations, as far as a program can.

A `Checker` returns a `RowVerdict` of a text or row in two languages. Each check measures one
number; larger is worse. The language file says what passes (`Thresholds`). A failed check rejects a
row; a failed check of `DOUBTS` makes it suspect.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from llava.data.sample import Turn
from lrm_ext.translate.quality.base import (
    DOUBTS,
    FailedCheck,
    Measured,
    RowVerdict,
    TextPair,
    Thresholds,
    get_thresholds,
)
from lrm_ext.translate.quality.content_checks import (
    check_answer,
    check_meaning,
    check_numbers,
    check_protected,
)
from lrm_ext.translate.quality.form_checks import (
    check_copy,
    check_ending,
    check_language,
    check_length,
    check_mojibake,
    check_near,
    check_order,
    check_repetition,
    check_script,
    check_structure,
    identify,
    is_too_short,
)

__all__ = [
    "CHECKS",
    "DOUBTS",
    "QUALITY_VERSION",
    "Checker",
    "FailedCheck",
    "RowVerdict",
    "Thresholds",
    "get_thresholds",
]

# Increases when the same text may get another verdict; translations store it.
QUALITY_VERSION = 4

Check = Callable[[TextPair, Thresholds], Measured | None]

# In this order; tables show the first check that fails as the reason.
CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "structure": check_structure,
        "mojibake": check_mojibake,
        "script": check_script,
        "copy": check_copy,
        "language": check_language,
        "near": check_near,
        "protected": check_protected,
        "numbers": check_numbers,
        "answer": check_answer,
        "repetition": check_repetition,
        "meaning": check_meaning,
        "length": check_length,
        "ending": check_ending,
    }
)
# Questions and answers repeat within a data set, so results of short pairs are cached.
_MAX_KNOWN = 1 << 13
_MAX_KNOWN_LENGTH = 1000
# Rows whose languages are identified together, which is much faster than one text at a time.
_ROWS_AHEAD = 512


class Checker:
    """Checks translations from English into a language.

    Args:
        target_lang: Code of the language.
        thresholds: What passes; by default the language's own.

    Raises:
        ConfigError: The language is unknown.
    """

    def __init__(self, target_lang: str, thresholds: Thresholds | None = None) -> None:
        self.target_lang = target_lang
        self.thresholds = thresholds or get_thresholds(target_lang)
        self._limits = [(name, self.thresholds.limits[name]) for name in CHECKS]
        self._known: OrderedDict[tuple[str, str], TextPair] = OrderedDict()
        self._ahead: dict[tuple[str, str], TextPair] = {}

    def check_text(self, source: str, target: str) -> RowVerdict:
        """Checks one text."""
        return self._verdict(self._look(source, target).measured)

    def check_rows(self, rows: Sequence[Sequence[tuple[str, str]]]) -> list[RowVerdict]:
        """Checks many rows: the texts of each, one by one and joined.

        Args:
            rows: Each row as pairs of a text and its translation.
        """
        verdicts: list[RowVerdict] = []
        for start in range(0, len(rows), _ROWS_AHEAD):
            some = rows[start : start + _ROWS_AHEAD]
            self._ahead = {
                key: self._pair(key) for row in some for key in row if key not in self._known
            }
            identify(self._ahead.values(), self.thresholds)
            verdicts += [self._verdict(self._worst(row, {})) for row in some]
        self._ahead = {}
        return verdicts

    def check_turns(self, source: Sequence[Turn], target: Sequence[Turn]) -> RowVerdict:
        """Checks the order of a row's turns, each turn, and all turns together."""
        texts = zip((turn.text for turn in source), (turn.text for turn in target), strict=False)
        return self._verdict(self._worst(texts, {"structure": check_order(source, target)}))

    def _worst(
        self, texts: Iterable[tuple[str, str]], worst: dict[str, Measured]
    ) -> dict[str, Measured]:
        pairs = [self._look(source, target) for source, target in texts]
        for pair in pairs:
            _keep_worst(worst, pair.measured)
        if len(pairs) > 1:
            # Turns are short; these checks are also applied to all turns of a row together. A word
            # of a near language that is in no turn is not in the row. The language is checked on
            # the joined turns that are too short to be checked alone.
            is_near = "near" in worst and worst["near"].value > 0
            whole = TextPair.of_all(pairs)
            names = ("near", "meaning", "length") if is_near else ("meaning", "length")
            _keep_worst(worst, self._measure(whole, names))
            if short := [pair for pair in pairs if is_too_short(pair)]:
                _keep_worst(worst, self._measure(TextPair.of_all(short), ("language",)))
        return worst

    def _look(self, source: str, target: str) -> TextPair:
        key = source, target
        pair = self._known.get(key)
        if pair is None:
            pair = self._ahead.get(key) or self._pair(key)
            pair.measured = self._measure(pair, CHECKS)
            if len(source) + len(target) <= _MAX_KNOWN_LENGTH:
                self._known[key] = pair
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        return pair

    def _pair(self, key: tuple[str, str]) -> TextPair:
        return TextPair.of(*key, self.target_lang)

    def _measure(self, pair: TextPair, names: Iterable[str]) -> dict[str, Measured]:
        found = ((name, CHECKS[name](pair, self.thresholds)) for name in names)
        return {name: measured for name, measured in found if measured is not None}

    def _verdict(self, measured: Mapping[str, Measured]) -> RowVerdict:
        ours = [(name, limit, *measured[name]) for name, limit in self._limits if name in measured]
        failed = [
            FailedCheck(n, value, most, said) for n, most, value, said in ours if value > most
        ]
        values = {name: round(float(value), 4) if value else 0.0 for name, _, value, _ in ours}
        return RowVerdict(tuple(failed), values)


def _keep_worst(worst: dict[str, Measured], found: Mapping[str, Measured]) -> None:
    for name, measured in found.items():
        known = worst.get(name)
        if known is None or measured.value > known.value:
            worst[name] = measured
