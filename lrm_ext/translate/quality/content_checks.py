"""Checks the content of translations: protected parts, numbers, yes and no, and words.

`protected`, `numbers`: protected parts (`protect.py`) and digits must be preserved. The translator
has checked each line already; these checks look at whole turns, and at texts that others
translated, so they allow a language's own quotation marks and thousands separators. Numbers may be
written in words or Roman numerals: "9th" may become "deveti". The `[numbers]` table of a language
file has the words for numbers, with `*` where other letters may follow (inflection, ordinals).

`answer`: yes stays yes, no stays no.

`meaning`: is this a translation of this text, or of another one? The check looks for the words of
the text that the lexicon knows in the translation. One missing word says little (there are
synonyms); many missing words and none found mean that rows were mixed up. A language's lexicon is
`data/<lang>.json`, which `tools/build_lexicon.py` makes from Unicode CLDR's names and keywords of
1,900 emoji: mostly visible things, colours, places and actions. Stems are compared, because
languages inflect words. A language without a file has no lexicon.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import regex

from lrm_ext.languages.registry import ENGLISH, get_language
from lrm_ext.translate.protect import damaged_parts, find_spans
from lrm_ext.translate.quality.base import (
    EUROPEAN_SCRIPTS,
    QUOTES,
    ROMAN,
    Measured,
    TextPair,
    Thresholds,
)

_DIGITS = re.compile(r"\d+(?:[.,:/×٫٬’\u00a0\u202f ]\d{3})*(?:[.,:/×٫]\d+)*")
_DIGIT = re.compile(r"\d")
_SEPARATORS = re.compile(r"\D")
_OWN_LETTER = re.compile(r"(?<!\w)[^\W\d_\x00-\x7f](?!\w)")
_ARTICLE = re.compile(r"\b(?:an?|one|single)\b", re.IGNORECASE)
_CENTS = re.compile(r"[.,٫]00\Z")
_PARENTHESES = re.compile(r"[(（][^()（）]*[)）]")
_NUMERIC = frozenset({"number", "ordinal"})
_MARKS = re.compile(f"[{QUOTES.replace(chr(39), '').strip()}]")


def check_numbers(pair: TextPair, thresholds: Thresholds) -> Measured | None:
    """Counts numbers that are missing or too much; None if neither text has any.

    A number in digits in one text may be in words in the other, and a text may repeat a number in
    parentheses: "5 cents (€0.05)".
    """
    if not _DIGIT.search(pair.source) and not _DIGIT.search(pair.target):
        return None
    source, target = _numbers(pair.source), _numbers(pair.target)
    if source == target:
        return Measured(0.0, "")
    missing, extra = Counter(source) - Counter(target), Counter(target) - Counter(source)
    missing -= _restated(pair.source)
    extra -= _restated(pair.target)
    if extra["1"] and not _is_european(pair.target_lang) and _ARTICLE.search(pair.source):
        del extra["1"]  # "a cup" is 1 with a word for its kind in Thai and Japanese
    if missing or extra:
        in_source = spelled_numbers(pair.source, ENGLISH)
        in_target = spelled_numbers(pair.target, pair.target_lang)
        spelled = in_target - in_source
        if any(number != 1 and str(number) not in missing for number in spelled):
            del spelled[1]  # if there is another number, the 1 is an article
        missing -= _digits(spelled)
        # not less `in_target`: an "ein" in the translation may be an article
        extra -= _digits(in_source)
    listed = [f"missing {n}" for n in missing] + [f"too much {n}" for n in extra]
    return Measured(missing.total() + extra.total(), ", ".join(listed))


def _is_european(lang: str) -> bool:
    return get_language(lang).script in EUROPEAN_SCRIPTS


def check_protected(pair: TextPair, thresholds: Thresholds) -> Measured | None:
    """Counts protected parts other than numbers that are missing or too much."""
    spans, target = pair.source_spans, pair.target
    is_marked = bool(spans) or "<" in target or "#" in target or ":" in target
    kinds = {pair.source[span.start : span.end]: span.kind for span in spans}
    faults: list[str] = []
    for fault in damaged_parts(pair.source, target, spans) if is_marked else ():
        part = fault.removeprefix("missing ").removeprefix("too much ")
        kind = kinds.get(part)
        if kind in _NUMERIC or (kind is None and part[:1].isdigit()):
            continue  # counted by `check_numbers`
        if kind == "quote" and part.strip(QUOTES) in target:
            continue  # with the quotation marks of the language
        if kind == "option" and f"letter {part}" in pair.source and _OWN_LETTER.search(target):
            continue  # "the letter B" is another one in another alphabet
        faults.append(fault)
    faults += _lost_names(pair)
    return Measured(len(faults), ", ".join(faults)) if faults or is_marked else None


def _lost_names(pair: TextPair) -> list[str]:
    """Returns quoted names that the translation neither has nor quotes.

    Names that are not text in the image may be translated, “Fuji” becomes «Фуджи», and are written
    without marks or in parentheses in other scripts.
    """
    if not _MARKS.search(pair.source) or _MARKS.search(pair.target):
        return []
    if "(" in pair.target or "（" in pair.target or get_language(pair.target_lang).script != "Latn":
        return []
    quotes = [
        pair.source[span.start : span.end].strip(QUOTES)
        for span in find_spans(pair.source, any_quotation=True)
        if span.kind == "quote" and span not in pair.source_spans
    ]
    return [f"missing {quote}" for quote in quotes if quote.istitle() and quote not in pair.target]


def _restated(text: str) -> Counter[str]:
    """Counts numbers in parentheses that occur outside of them, too."""
    inside = [number for match in _PARENTHESES.findall(text) for number in _numbers(match)]
    outside = _numbers(_PARENTHESES.sub(" ", text)) if inside else []
    return Counter(number for number in inside if number in outside)


def _digits(numbers: Counter[int]) -> Counter[str]:
    return Counter({str(number): count for number, count in numbers.items()})


def _numbers(text: str) -> list[str]:
    """Returns numbers without separators, so that 1,000.5 equals 1.000,5 and .5 equals 0,5.

    Two zeros after the decimal point are dropped: $1.00 equals $1.
    """
    numbers = [_SEPARATORS.sub("", _CENTS.sub("", number)) for number in _DIGITS.findall(text)]
    return [number.lstrip("0") or "0" for number in numbers]


_WORD = regex.compile(r"[^\W\d_]+(?:[-‐][^\W\d_]+)*")
# Between two words of one number: "twenty-five", "vingt et un", "dvadeset i pet".
_GAP = regex.compile(r"[\s‐-]*(?:[^\W\d_]{1,3}[\s‐-]+)?")
# Letters that join two numbers in one word: "einundzwanzig", "soixante-et-onze".
_MAX_JOINT = 4
_ROMAN_ONES = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")
_ROMAN_NUMERALS = {"X" * (n // 10) + _ROMAN_ONES[n % 10]: n for n in range(1, 40)}


class _Part(NamedTuple):
    """A word of a number: its value and position."""

    value: int
    start: int
    end: int


def spelled_numbers(text: str, lang: str) -> Counter[int]:
    """Counts the numbers in a text that are in words of its language or in Roman numerals.

    Args:
        text: The text.
        lang: Code of its language; without a `[numbers]` table only Roman numerals are counted.

    Example:
        >>> spelled_numbers("Drugi svjetski rat, XX. stoljeće", "hr")
        Counter({20: 1, 2: 1})
    """
    romans = (match[1] or match[2] for match in ROMAN.finditer(text))
    found = Counter(_ROMAN_NUMERALS[roman] for roman in romans if roman in _ROMAN_NUMERALS)
    is_spaced = get_language(lang).spaced
    text = text.casefold()
    groups: list[list[_Part]] = []
    for part in _parts(text, lang, is_spaced):
        if groups and _continues(text, groups[-1][-1], part, is_spaced):
            groups[-1].append(part)
        else:
            groups.append([part])
    found.update(map(_value, groups))
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
    """Splits a word into the numbers that it consists of; None if it is not a number."""
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
    """Returns, by first letter, literals, whether letters may follow, and values; longest first."""
    entries: dict[str, list[tuple[str, bool, int]]] = {}
    for number, words in get_language(lang).numbers.items():
        for word in words.casefold().split():
            literal = word.removesuffix("*")
            entries.setdefault(literal[0], []).append((literal, literal != word, int(number)))
    for some in entries.values():
        some.sort(key=lambda entry: -len(entry[0]))
    return entries


def _continues(text: str, before: _Part, after: _Part, is_spaced: bool) -> bool:
    """Returns whether two parts are adjacent and form one number."""
    gap = text[before.end : after.start]
    is_joined = len(gap) <= (_MAX_JOINT if is_spaced else 0) and not any(map(str.isspace, gap))
    is_next = is_joined or (is_spaced and _GAP.fullmatch(gap) is not None)
    return is_next and _can_follow(before.value, after.value, is_joined)


def _can_follow(before: int, after: int, is_joined: bool) -> bool:
    """Returns whether the second of two adjacent numbers continues the first."""
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


_YES_NO = re.compile(r"(yes|no)\b", re.IGNORECASE)
_WORDS = regex.compile(r"[^\W_]+")


def check_answer(pair: TextPair, thresholds: Thresholds) -> Measured | None:
    """Returns 1 if a yes became a no in translation, or the other way round; else 0.

    Only answers that are "yes" or "no", or begin with one and punctuation, are judged, and only if
    the language file lists the first word of the translation.
    """
    match = _YES_NO.match(pair.source)
    if match is None or pair.source[match.end() : match.end() + 1].isspace():
        return None
    rest = pair.source[match.end() :].strip(" .,!")
    said = polarity(pair.target, pair.target_lang)
    if said is None:
        # a sentence may say it in other words, a bare answer may not
        return None if rest else Measured(1.0, f"the text says {match[0]!r}, this neither")
    return Measured(float(said != match[0].lower()), f"the text says {match[0]!r}, this {said!r}")


def polarity(text: str, lang: str) -> str | None:
    """Returns whether an answer begins with "yes" or "no"; None if with neither."""
    language = get_language(lang)
    folded = text.casefold().strip()
    skipped = language.local.stop if language.spaced else ()
    word = next((word for word in _WORDS.findall(folded) if word not in skipped), "")
    sides = ((language.yes, language.local.yes, "yes"), (language.no, language.local.no, "no"))
    for said, _, meaning in sides:
        if folded.startswith(said.casefold()) and not _WORDS.match(folded, len(said)):
            return meaning
    for _, entries, meaning in sides:
        if word in entries or (not language.spaced and word.startswith(entries)):
            return meaning
    return None


# Words that every text about an image has, and words for places ("top", "left"), which languages
# express in ways that the lexicon does not know.
_SAY_NOTHING = frozenset(
    "a an the and or not no yes do doe did is are was were be been has have had can could "
    "will would may might should must there here this that these those it its he she they you "
    "your we our i my what which who where when how why any some all one two three see seen "
    "show shown look visible appear contain feature depict picture image photo photograph "
    "scene view please describe short brief sentence word answer question top bottom left "
    "right upper lower up down in on at of to from with by for as into over under out off so "
    "than then too very also only just more most other such like about".split()
)


def check_meaning(pair: TextPair, thresholds: Thresholds) -> Measured | None:
    """Returns missing words as a share of the known ones plus one; None if no word is known.

    The added one keeps one or two missing words from weighing as much as five.
    """
    lexicon = get_lexicon(pair.target_lang)
    if lexicon is None:
        return None
    found = pair.known_words
    if found is None:
        keys = set(map(english_key, pair.source_words)) - _SAY_NOTHING
        known = keys & lexicon.keys()
        there = units(pair.target_words, get_language(pair.target_lang).spaced) if known else set()
        found = {key: not lexicon[key].isdisjoint(there) for key in known}
        pair.known_words = found
    if not found:
        return None
    if all(found.values()):
        return Measured(0.0, "")
    missing = sorted([key for key, is_there in found.items() if not is_there])
    listed = ", ".join(missing[:8])
    return Measured(
        len(missing) / (len(found) + 1), f"{len(missing)} of {len(found)} words not there: {listed}"
    )


DATA_DIR = Path(__file__).parent / "data"
_MIN_STEM, _MAX_STEM = 3, 6
# Last letters of a word that inflection may change.
_BENT = 2


@cache
def get_lexicon(lang: str) -> dict[str, frozenset[str]] | None:
    """Returns the stems of a language by English key (`english_key`); None without a lexicon."""
    path = DATA_DIR / f"{lang}.json"
    if not path.is_file():
        return None
    return msgspec.json.decode(path.read_bytes(), type=dict[str, frozenset[str]])


@lru_cache(maxsize=1 << 15)
def english_key(word: str) -> str:
    """Returns a folded English word without a plural ending.

    Example:
        >>> english_key("foxes"), english_key("berries"), english_key("cars"), english_key("glass")
        ('fox', 'berry', 'car', 'glass')
    """
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "xes", "sses", "zes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def stem(word: str) -> str:
    """Returns roughly the part of a word that inflection does not change.

    Example:
        >>> stem("rajčica"), stem("slon"), stem("pas")
        ('rajči', 'slo', 'pas')
    """
    return word[: min(_MAX_STEM, max(_MIN_STEM, len(word) - _BENT))]


def units(words: Sequence[str], is_spaced: bool) -> set[str]:
    """Returns all possible stems in a translation.

    These are the prefixes of each word or, if blanks do not separate words, each letter and each
    pair of adjacent letters.
    """
    if not is_spaced:
        return {*words, *map("".join, pairwise(words))}
    return {word[:size] for size in range(_MIN_STEM, _MAX_STEM + 1) for word in words}
