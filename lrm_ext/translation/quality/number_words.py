"""Reads the numbers that a text has in words or Roman numerals: "9th" may be "deveti" elsewhere.

The words of a language are in the `[numbers]` table of its file: by number, what it is called, with
`*` where other letters may follow (inflection, ordinals). Numbers are put together from them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from lrm_ext.languages.registry import get_language

_WORD = re.compile(r"[^\W\d_]+(?:[-‐][^\W\d_]+)*")
# Between two words of one number: "twenty-five", "vingt et un", "dvadeset i pet".
_GAP = re.compile(r"[\s‐-]*(?:[^\W\d_]{1,3}[\s‐-]+)?")
# Letters that join two numbers in one word: "einundzwanzig", "soixante-et-onze".
_MAX_JOINT = 4
# Up to 39: centuries, kings and wars have no more; suffixes as in "XIXe" and "IIIrd".
ROMAN = re.compile(r"(?<![\w.])(?:([IVX]{2,7})[a-zè]{0,3}|([IVX]))(?!\w)")
_ROMAN_FORM = re.compile(r"X{0,3}(?:IX|IV|V?I{0,3})")
_ROMAN_DIGITS = {"I": 1, "V": 5, "X": 10}


class _Part(NamedTuple):
    """A word of a number: its value, and where it stands."""

    value: int
    start: int
    end: int


def spelled_numbers(text: str, lang: str) -> Counter[int]:
    """Count the numbers that a text has in words of its language or in Roman numerals.

    Args:
        text: The text.
        lang: Code of its language; without a `[numbers]` table only Roman numerals are read.

    Example:
        >>> spelled_numbers("Drugi svjetski rat, XX. stoljeće", "hr")
        Counter({2: 1, 20: 1})
    """
    found = Counter(_roman(m[1] or m[2]) for m in ROMAN.finditer(text))
    del found[0]
    group: list[_Part] = []
    is_spaced = get_language(lang).spaced
    text = text.casefold()
    for part in _parts(text, lang, is_spaced):
        if group and not _continues(text, group[-1], part, is_spaced):
            found[_value(group)] += 1
            group = []
        group.append(part)
    if group:
        found[_value(group)] += 1
    return found


def _parts(text: str, lang: str, is_spaced: bool) -> Iterator[_Part]:
    if is_spaced:
        for match in _WORD.finditer(text):
            yield from _take_apart(match[0], match.start(), lang) or ()
        return
    at = 0
    while at < len(text):
        for literal, _, value in _entries(lang).get(text[at], ()):
            if text.startswith(literal, at):
                yield _Part(value, at, at + len(literal))
                at += len(literal)
                break
        else:
            at += 1


def _take_apart(word: str, start: int, lang: str) -> list[_Part] | None:
    """The numbers that a word is made of; None if it is no number."""
    for literal, is_open, value in _entries(lang).get(word[0], ()):
        if not word.startswith(literal):
            continue
        first = _Part(value, start, start + len(literal))
        rest = word[len(literal) :]
        for skipped in range(min(_MAX_JOINT + 1, len(rest))):
            more = _take_apart(rest[skipped:], first.end + skipped, lang)
            if more and _can_follow(value, more[0].value, is_joined=True):
                return [first, *more]
        if not rest or is_open or rest[0] in "-‐":
            return [first]
    return None


@cache
def _entries(lang: str) -> dict[str, list[tuple[str, bool, int]]]:
    """What begins with a letter: the literal, whether letters may follow, the value; long first."""
    entries: dict[str, list[tuple[str, bool, int]]] = {}
    for number, words in get_language(lang).numbers.items():
        for word in words.casefold().split():
            literal = word.removesuffix("*")
            entries.setdefault(literal[0], []).append((literal, literal != word, int(number)))
    for some in entries.values():
        some.sort(key=lambda entry: -len(entry[0]))
    return entries


def _continues(text: str, before: _Part, after: _Part, is_spaced: bool) -> bool:
    """Whether two parts stand next to each other and make one number."""
    gap = text[before.end : after.start]
    is_joined = len(gap) <= (_MAX_JOINT if is_spaced else 0) and not any(map(str.isspace, gap))
    is_next = is_joined or (is_spaced and _GAP.fullmatch(gap) is not None)
    return is_next and _can_follow(before.value, after.value, is_joined)


def _can_follow(before: int, after: int, is_joined: bool) -> bool:
    """Whether the second of two neighbouring numbers belongs to the first."""
    if before >= 100:
        return after < before or after >= 1000
    if after >= 100:
        return True
    if before >= 20:
        return before % 10 == 0 and after < 20
    if before == 10:
        return is_joined and after < 10
    return is_joined and 0 < before < 10 and after % 10 == 0


def _value(group: list[_Part]) -> int:
    total = rest = 0
    for value, _, _ in group:
        if value >= 1000:
            total, rest = ((total + rest) or 1) * value, 0
        elif value == 100 or (value == 10 and 0 < rest < 10):
            total, rest = total + (rest or 1) * value, 0
        else:
            rest += value
    return total + rest


def _roman(text: str) -> int:
    if not _ROMAN_FORM.fullmatch(text):
        return 0
    digits = [_ROMAN_DIGITS[letter] for letter in text]
    return sum(
        -digit if digit < after else digit
        for digit, after in zip(digits, [*digits[1:], 0], strict=True)
    )
