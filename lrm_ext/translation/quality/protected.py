"""Checks `protected` and `numbers`: what must come back to the character, and digits.

`protect.py` says what is protected. The translator has checked each line already; this looks at
whole turns, and at texts that others translated, so the way a language writes quotation marks
and separates thousands is forgiven.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from lrm_ext.translation.protect import damaged_parts
from lrm_ext.translation.quality.pair import Pair
from lrm_ext.translation.quality.thresholds import Thresholds
from lrm_ext.translation.quality.verdict import Measured

_DIGITS = re.compile(r"\d+(?:[.,:/×\u00a0\u202f ]\d{3})*(?:[.,:/×]\d+)*")
_DIGIT = re.compile(r"\d")
_SEPARATORS = re.compile(r"\D")
_QUOTES = "\"'“”„«»‘’「」『』《》 \u00a0\u202f"
_NUMERIC = frozenset({"number", "ordinal"})
# the marks around them are the language's
_LOOSE = frozenset({"quote", "option"})


def check_numbers(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """How many numbers are missing or too much; None if there are none on either side."""
    if not _DIGIT.search(pair.source) and not _DIGIT.search(pair.target):
        return None
    source, target = _numbers(pair.source), _numbers(pair.target)
    if source != target:  # digits of full width are the same digits
        target = _numbers(unicodedata.normalize("NFKC", pair.target))
    if source == target:
        return Measured(0.0, "")
    missing, extra = Counter(source) - Counter(target), Counter(target) - Counter(source)
    listed = [f"missing {n}" for n in missing] + [f"too much {n}" for n in extra]
    return Measured(missing.total() + extra.total(), ", ".join(listed))


def check_protected(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """How many protected parts other than numbers are missing or too much."""
    spans = pair.source_spans
    faults = []
    if spans or "<" in pair.target or "#" in pair.target or ":" in pair.target:
        kinds = {pair.source[span.start : span.end]: span.kind for span in spans}
        for fault in damaged_parts(pair.source, pair.target, spans):
            part = fault.removeprefix("missing ").removeprefix("too much ")
            kind = kinds.get(part)
            if kind in _NUMERIC or (kind is None and part[:1].isdigit()):
                continue  # those are counted by the check of numbers
            if kind in _LOOSE and part.strip(_QUOTES) in pair.target:
                continue
            faults.append(fault)
    elif not spans:
        return None
    return Measured(len(faults), ", ".join(faults))


def _numbers(text: str) -> list[str]:
    """Numbers without what separates their digits, so that 1,000.5 is 1.000,5 and .5 is 0,5."""
    numbers = [_SEPARATORS.sub("", number) for number in _DIGITS.findall(text)]
    return [number.lstrip("0") or "0" for number in numbers]
