"""Runs the checks on texts and rows and combines their values."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from llava.data.sample import Turn
from lrm_ext.translate.quality.base import (
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
# Turns are short; these checks are also applied to all turns of a row together. The language is
# checked on the joined turns that are too short to be checked alone.
_OF_ROWS = [(name, CHECKS[name]) for name in ("near", "meaning", "length")]
_OF_OTHER_ROWS = _OF_ROWS[1:]
_OF_SHORT = [("language", check_language)]
_OF_TURNS = list(CHECKS.items())
# Questions and answers repeat within a data set, so results of short pairs are cached.
_MAX_KNOWN = 1 << 13
_MAX_KNOWN_LENGTH = 1000
# Rows whose languages are identified together, which is much faster than one text at a time.
_ROWS_AHEAD = 512


class _Looked(NamedTuple):
    """A pair of texts and its measured values."""

    pair: TextPair
    measured: Mapping[str, Measured]


class Checker:
    """Checks translations from one language into another.

    Args:
        source_lang: Code of the language of the texts.
        target_lang: Code of the language of the translations.
        thresholds: What passes; by default the language's own.

    Raises:
        ConfigError: A language is unknown.
    """

    def __init__(
        self, source_lang: str, target_lang: str, thresholds: Thresholds | None = None
    ) -> None:
        self.source_lang = source_lang
        self.target_lang = target_lang
        self.thresholds = thresholds or get_thresholds(target_lang)
        self._limits = [(name, self.thresholds.limits[name]) for name in CHECKS]
        self._known: OrderedDict[tuple[str, str], _Looked] = OrderedDict()
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
        looked = [self._look(source, target) for source, target in texts]
        for _, measured in looked:
            _keep_worst(worst, measured)
        if len(looked) > 1:
            pairs = [pair for pair, _ in looked]
            # a word of a near language that is in no turn is not in the row
            is_near = "near" in worst and worst["near"].value > 0
            checks = _OF_ROWS if is_near else _OF_OTHER_ROWS
            _keep_worst(worst, _measure(TextPair.of_all(pairs), self.thresholds, checks))
            if short := [pair for pair in pairs if is_too_short(pair)]:
                whole = TextPair.of_all(short)
                _keep_worst(worst, _measure(whole, self.thresholds, _OF_SHORT))
        return worst

    def _look(self, source: str, target: str) -> _Looked:
        key = source, target
        found = self._known.get(key)
        if found is None:
            pair = self._ahead.get(key) or self._pair(key)
            found = _Looked(pair, _measure(pair, self.thresholds, _OF_TURNS))
            if len(source) + len(target) > _MAX_KNOWN_LENGTH:
                return found
            self._known[key] = found
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        return found

    def _pair(self, key: tuple[str, str]) -> TextPair:
        return TextPair(*key, self.source_lang, self.target_lang)

    def _verdict(self, measured: Mapping[str, Measured]) -> RowVerdict:
        ours = [(name, limit, *measured[name]) for name, limit in self._limits if name in measured]
        failed = [
            FailedCheck(n, value, most, said) for n, most, value, said in ours if value > most
        ]
        values = {name: round(float(value), 4) if value else 0.0 for name, _, value, _ in ours}
        return RowVerdict(tuple(failed), values)


def _measure(
    pair: TextPair, thresholds: Thresholds, checks: Iterable[tuple[str, Check]]
) -> dict[str, Measured]:
    return {
        name: measured
        for name, check in checks
        if (measured := check(pair, thresholds)) is not None
    }


def _keep_worst(worst: dict[str, Measured], found: Mapping[str, Measured]) -> None:
    for name, measured in found.items():
        known = worst.get(name)
        if known is None or measured.value > known.value:
            worst[name] = measured
