"""Checks `protected` and `numbers`: what must come back to the character, and digits.

`protect.py` says what is protected. The translator has checked each line already; this looks at
whole turns, and at texts that others translated, so the way a language writes quotation marks
and separates thousands is forgiven.
"""

from __future__ import annotations

import re
from collections import Counter

from lrm_ext.translation.protect import damaged_parts, find_spans
from lrm_ext.translation.quality.pair import Pair
from lrm_ext.translation.quality.thresholds import Thresholds
from lrm_ext.translation.quality.verdict import Measured

_DIGITS = re.compile(r"\d+(?:[.,:/×\u00a0\u202f ]\d{3})*(?:[.,:/×]\d+)*")
_SEPARATORS = re.compile(r"\D")
_QUOTES = "\"'“”„«»‘’「」『』《》 \u00a0\u202f"
# their letters may change with the sentence: "the 1st", and labels are words in some languages
_LOOSE = frozenset({"number", "ordinal", "quote", "option"})


def check_numbers(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """How many numbers are missing or too much; None if there are none on either side."""
    source, target = _numbers(pair.source), _numbers(pair.target)
    if not source and not target:
        return None
    missing, extra = source - target, target - source
    listed = [f"missing {n}" for n in missing] + [f"too much {n}" for n in extra]
    return Measured(missing.total() + extra.total(), ", ".join(listed))


def check_protected(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """How many protected parts other than numbers are missing or too much."""
    spans = find_spans(pair.source)
    faults = []
    if spans or "<" in pair.target or "#" in pair.target or ":" in pair.target:
        loose = {pair.source[span.start : span.end] for span in spans if span.kind in _LOOSE}
        for fault in damaged_parts(pair.source, pair.target):
            part = fault.removeprefix("missing ").removeprefix("too much ")
            if part in loose and part.strip(_QUOTES) in pair.target:
                continue
            if not (part in loose and _DIGITS.fullmatch(part)) and not part[:1].isdigit():
                faults.append(fault)
    elif not spans:
        return None
    return Measured(len(faults), ", ".join(faults))


def _numbers(text: str) -> Counter[str]:
    """Numbers without what separates their digits, so that 1,000.5 is 1.000,5."""
    if not any(map(str.isdigit, text)):
        return Counter()
    return Counter(_SEPARATORS.sub("", number) for number in _DIGITS.findall(text))
