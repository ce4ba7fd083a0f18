"""Checks `protected` and `numbers`: what must come back to the character, and digits.

`protect.py` says what is protected. The translator has checked each line already; this looks at
whole turns, and at texts that others translated, so the way a language writes quotation marks
and separates thousands is forgiven.
"""

from __future__ import annotations

import re
from collections import Counter

from lrm_ext.translation.protect import damaged_parts, find_spans
from lrm_ext.translation.quality.number_words import spelled_numbers
from lrm_ext.translation.quality.pair import QUOTES, Pair
from lrm_ext.translation.quality.thresholds import Thresholds
from lrm_ext.translation.quality.verdict import Measured

_DIGITS = re.compile(r"\d+(?:[.,:/×\u00a0\u202f ]\d{3})*(?:[.,:/×]\d+)*")
_DIGIT = re.compile(r"\d")
_SEPARATORS = re.compile(r"\D")
_CENTS = re.compile(r"[.,]00\Z")
_PARENTHESES = re.compile(r"[(（][^()（）]*[)）]")
_NUMERIC = frozenset({"number", "ordinal"})
_MARKS = re.compile('["“”„«»‘’「」『』《》]')


def check_numbers(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """How many numbers are missing or too much; None if there are none on either side.

    A number in digits on one side may be in words on the other, and one side may say a number again
    in parentheses: "5 cents (€0.05)".
    """
    if not _DIGIT.search(pair.source) and not _DIGIT.search(pair.target):
        return None
    source, target = _numbers(pair.source), _numbers(pair.target)
    if source == target:
        return Measured(0.0, "")
    missing, extra = Counter(source) - Counter(target), Counter(target) - Counter(source)
    missing -= _restated(pair.source)
    extra -= _restated(pair.target)
    if missing or extra:
        in_source = spelled_numbers(pair.source, pair.source_lang)
        in_target = spelled_numbers(pair.target, pair.target_lang)
        spelled = in_target - in_source
        if any(number != 1 and str(number) not in missing for number in spelled):
            del spelled[1]  # where another number is there, the 1 is an article
        missing -= _digits(spelled)
        extra -= _digits(in_source)  # not less those of the translation: its "ein" may be "a"
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
            if kind == "quote" and part.strip(QUOTES) in pair.target:
                continue  # the marks around it are the language's
            faults.append(fault)
        faults += _lost_names(pair)
    else:
        faults = _lost_names(pair)
        if not faults:
            return None
    return Measured(len(faults), ", ".join(faults))


def _lost_names(pair: Pair) -> list[str]:
    """Names in quotation marks for which the translation has neither the name nor a quotation.

    Names that are no text in the image may be translated: “Fuji” is «Фуджи».
    """
    if not _MARKS.search(pair.source) or _MARKS.search(pair.target):
        return []
    quotes = [
        pair.source[span.start : span.end].strip(QUOTES)
        for span in find_spans(pair.source, any_quotation=True)
        if span.kind == "quote" and span not in pair.source_spans
    ]
    return [f"missing {quote}" for quote in quotes if quote.istitle() and quote not in pair.target]


def _restated(text: str) -> Counter[str]:
    """Numbers in parentheses that stand outside of them too."""
    inside = [number for match in _PARENTHESES.findall(text) for number in _numbers(match)]
    outside = _numbers(_PARENTHESES.sub(" ", text)) if inside else []
    return Counter(number for number in inside if number in outside)


def _digits(numbers: Counter[int]) -> Counter[str]:
    return Counter({str(number): count for number, count in numbers.items()})


def _numbers(text: str) -> list[str]:
    """Numbers without what separates their digits, so that 1,000.5 is 1.000,5 and .5 is 0,5.

    Two zeros after the point say nothing: $1.00 is $1.
    """
    numbers = [_SEPARATORS.sub("", _CENTS.sub("", number)) for number in _DIGITS.findall(text)]
    return [number.lstrip("0") or "0" for number in numbers]
