"""Checks the form and language of translations, without regard to their content.

`structure`: turns, roles, lines, `<image>` and option letters must be preserved. `mojibake`: text
that was decoded with the wrong encoding, which shows in that it can be undone: its letters, written
in an old encoding, are valid UTF-8, as text that a person wrote practically never is. Lost letters
("?ervená", U+FFFD) count as well. `script`: letters of another script than the language's. `copy`:
text that was not translated. `repetition`: repetitions that the text does not have. `length`,
`ending`: text that was cut off or added. The length of a translation is about a constant times that
of the text, and its variance grows with it (Gale and Church, 1993); the constant and the spread are
in the language file.

`language`: is it in the language that was asked for? Languages that the identifier cannot tell
apart in a sentence (Croatian, Serbian) count as one; `near` looks closer at those: "šta" and "gde"
are Serbian, "ľ" is Slovak and not Czech; the language's file lists them. Under four words the
identifier is not asked, because it would guess.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache

import regex
from fontTools.unicodedata import Scripts

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.sample import Turn
from lrm_ext.languages.identification import log_scores, score_ahead
from lrm_ext.languages.registry import ENGLISH, default_languages, get_language
from lrm_ext.languages.tags import NEUTRAL_SCRIPTS, SCRIPT_PARTS
from lrm_ext.translate.quality.base import (
    EUROPEAN_SCRIPTS,
    Measured,
    TextPair,
    Thresholds,
    words,
)

# What a line begins with: "A.", "(b)", "3)", a bullet or a heading's marks.
_LEAD = re.compile(r"^[ \t]*(\(?[A-Ha-h][.):]|\(?\d{1,3}[.)]|[-*•]|#+)(?=\s)", re.M)
_LETTER = re.compile(r"\(?([A-H])[.)]?\Z")
_LONGEST_LETTER = len("(A).")


def check_structure(pair: TextPair, thresholds: Thresholds) -> Measured | None:
    """Counts structural marks of one text that are missing or too much."""
    source, target = pair.source, pair.target
    faults: list[str] = []
    if source.strip() and not target.strip():
        faults.append("it is empty")
    if source.count("\n") != target.count("\n"):
        faults.append(f"{target.count(chr(10)) + 1} lines, expected {source.count(chr(10)) + 1}")
    if source.count(DEFAULT_IMAGE_TOKEN) != target.count(DEFAULT_IMAGE_TOKEN):
        num = source.count(DEFAULT_IMAGE_TOKEN)
        faults.append(f"{target.count(DEFAULT_IMAGE_TOKEN)} {DEFAULT_IMAGE_TOKEN}, expected {num}")
    leads, others = _LEAD.findall(source), _LEAD.findall(target)
    if leads != others:
        wanted, found = Counter(leads), Counter(others)
        faults += [f"no line begins with {lead}" for lead in wanted - found]
        faults += [f"a line begins with {lead}" for lead in found - wanted]
    letter = _LETTER.match(source) if len(source) <= _LONGEST_LETTER else None
    if letter and len(re.findall(rf"(?<!\w){letter[1]}(?!\w)", target)) != 1:
        faults.append(f"the answer was option {letter[1]}")
    return Measured(len(faults), "; ".join(faults))


def check_order(source: Sequence[Turn], target: Sequence[Turn]) -> Measured:
    """Checks whether both versions of a row have the same turns with the same roles."""
    if len(source) != len(target):
        return Measured(1.0, f"{len(target)} turns, expected {len(source)}")
    roles = [(a.role, b.role) for a, b in zip(source, target, strict=True) if a.role != b.role]
    return Measured(float(len(roles)), f"roles of {len(roles)} turns differ")


_HIGH = range(0x80, 0x100)
# For each encoding, the bytes of its characters, by code point.
_BYTES = [
    {ord(char): byte for byte in _HIGH for char in bytes([byte]).decode(encoding, "ignore")}
    for encoding in ("cp1252", "latin-1", "cp1250", "cp1251")
]
_MADE = frozenset(chr(code) for table in _BYTES for code in table)
_RUN = re.compile(r"[^\x00-\x7f]{2,}")
_MIN_CYRILLIC = 4
_LOST = re.compile(r"\ufffd|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]|\?(?=[^\W\d_])")


def check_mojibake(pair: TextPair, thresholds: Thresholds) -> Measured | None:
    """Counts broken places of a translation."""
    if pair.target.isascii() and "?" not in pair.target:
        return None
    target = pair.target_prose
    faults = [match[0] for match in _LOST.finditer(target)] if _LOST.search(target) else []
    if not target.isascii():
        faults += [
            run
            for run in _RUN.findall(target)
            if undo(run) and run not in pair.source and not _is_short_cyrillic(run)
        ]
    listed = ", ".join(map(repr, dict.fromkeys(faults[:5])))
    return Measured(len(faults), f"broken characters: {listed}")


def _is_short_cyrillic(run: str) -> bool:
    """Returns whether a run may be a Cyrillic word: the Ukrainian no, "Ні", is UTF-8 in cp1251."""
    return len(run) < _MIN_CYRILLIC and all("\u0400" <= letter <= "\u04ff" for letter in run)


def undo(run: str) -> str | None:
    """Recovers text from characters that are wrongly decoded UTF-8; None if they are fine.

    Example:
        >>> undo("Ã¨")
        'è'
    """
    for table in _BYTES if _MADE.issuperset(run) else ():
        with suppress(UnicodeError):
            # a character that an encoding lacks counts as its code point's byte
            text = run.translate(table).encode("latin-1").decode("utf-8")
            if not text.isascii() and len(text) < len(run):
                return text
    return None


# The old encodings of each way of writing Chinese and of the other one.
_CHINESE = {"Hans": ("gb2312", "big5"), "Hant": ("big5", "gb2312")}


def check_script(pair: TextPair, thresholds: Thresholds) -> Measured | None:
    """Returns the share of letters that are not of the language's script.

    Words that occur in the text (names, units) are ignored. Letters that only the other way of
    writing Chinese has count as foreign.
    """
    script = get_language(pair.target_lang).script
    foreign, is_chinese = _foreign_letters(script), script in _CHINESE
    if foreign is None or not pair.target_words:
        return None
    if not foreign.search(pair.target_prose) and not (
        is_chinese and any(is_other_chinese(c, script) for c in set(pair.target_prose))
    ):
        return Measured(0.0, "")
    kept = {word.casefold() for word in _WORD.findall(pair.source)}
    letters = "".join(w for w in _WORD.findall(pair.target_prose) if w.casefold() not in kept)
    if not letters:
        return None
    found = foreign.findall(letters)
    if is_chinese:
        found += [c for c in letters if is_other_chinese(c, script)]
    listed = "".join(dict.fromkeys(found))[:20]
    return Measured(len(found) / len(letters), f"letters that are not {script}: {listed}")


_WORD = re.compile(r"[A-Za-z]+|[^\W\d_]")


@cache
def _foreign_letters(script: str) -> re.Pattern[str] | None:
    """Returns a pattern of the letters of other scripts; None if Unicode has no such script."""
    parts = SCRIPT_PARTS.get(script, frozenset({script}))
    if not parts.issubset(Scripts.NAMES):
        return None
    ends = [*Scripts.RANGES[1:], sys.maxunicode + 1]
    # `regex` has scripts as properties, but searches for them three times as slowly
    own = "".join(
        f"{re.escape(chr(start))}-{re.escape(chr(end - 1))}"
        for start, end, name in zip(Scripts.RANGES, ends, Scripts.VALUES, strict=True)
        if name in parts | NEUTRAL_SCRIPTS
    )
    return re.compile(f"[^\\W\\d_{own}]")


@cache
def is_other_chinese(character: str, script: str) -> bool:
    """Returns whether only the other way of writing Chinese has a character, by old encodings."""
    if script not in _CHINESE:
        return False
    # no bytes if an encoding lacks the character
    own, other = (character.encode(name, "ignore") for name in _CHINESE[script])
    return bool(other) and not own


# "hamburger", "New York" and "Mona Lisa" are the same in many languages; sentences are not.
_MIN_WORDS = 3


def check_copy(pair: TextPair, thresholds: Thresholds) -> Measured | None:
    """Returns the share of words that the translation left unchanged; None if too short.

    Capitalised words inside a sentence are names and are ignored.
    """
    total = len(pair.source_words)
    if total < _MIN_WORDS:
        return None
    target = pair.target_words
    if not get_language(pair.target_lang).spaced:  # its words are letters; find English words
        target = words(pair.target_prose, ENGLISH)
    common = set(pair.source_words).intersection(target)
    if not common:
        return Measured(0.0, "")
    names = {word.casefold() for word in pair.source_prose.split()[1:] if word[0].isupper()}
    source = [word for word in pair.source_words if word not in names]
    total = len(source)
    if total < _MIN_WORDS:
        return None
    left = Counter(word for word in target if word in common)
    same = (Counter(source) & left).total()
    return Measured(same / total, f"{same} of {total} words are those of the text")


_SIZE = 3
_HYPHENATED = regex.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")


def check_repetition(pair: TextPair, thresholds: Thresholds) -> Measured | None:
    """Returns the share of a translation that is repetition, beyond that of the text.

    "Fire! Fire! Fire!" may have two or three repetitions; with six, half of it is too much.
    """
    if not pair.target_words:
        return None
    target = pair.target_words
    if "-" in pair.target_prose and get_language(pair.target_lang).spaced:
        target = _HYPHENATED.findall(pair.target_prose.casefold())  # "kupu-kupu" is one word
    value = repeated_share(target)
    if value:
        in_source = repeated_share(pair.source_words)
        value = max(0.0, (value - in_source) / (1 - in_source))
    return Measured(value, f"{value:.0%} more is said twice than in the text")


def repeated_share(words: Sequence[str]) -> float:
    """Returns the share of words that are repetition.

    Counts runs of three words that occurred before, and texts that consist of one shorter text
    several times, however short.

    Example:
        >>> repeated_share("a dog a dog".split())
        0.5
    """
    num = len(words)
    if num < 2 or len(set(words)) == num:
        return 0.0
    for size in range(1, num // 2 + 1):
        if num % size == 0 and words[:-size] == words[size:]:
            return 1 - size / num
    if num <= _SIZE:
        return 0.0
    runs = num - _SIZE + 1
    distinct = len({tuple(words[i : i + _SIZE]) for i in range(runs)})
    return 1 - distinct / runs


# The length of single words varies much, so this many characters are added to both lengths.
_SOFTENING = 8
# with the full stops of Arabic, Indic and Ethiopic scripts, of Khmer and of Burmese
_ENDS = ".!?…。！？｡۔؟।॥။።፧៕។"
_QUESTIONS = "?？;；؟፧"
_ASKING = "か。"  # a Japanese question needs no question mark
_CLOSERS = "\"'”’»«“‘›‹）)】]」』》*_` \u200e\u200f"


def check_length(pair: TextPair, thresholds: Thresholds) -> Measured | None:
    """Returns by how many standard deviations a translation is too long or too short."""
    source, target = len(pair.source.strip()), len(pair.target.strip())
    if not source or not pair.source_words:
        return None
    value = deviation(source, target, thresholds.length_ratio, thresholds.length_spread)
    word = "long" if value > 0 else "short"
    return Measured(abs(value), f"{target} characters for {source} of the text, too {word}")


def deviation(source: float, target: float, ratio: float, spread: float) -> float:
    """Returns how far a length is from the expected one, in standard deviations."""
    return (target - ratio * source) / (spread * math.sqrt(source + _SOFTENING))


# Standard deviations from the expected length below which a text without full stop may be cut off.
_CUT_OFF = -0.5


def check_ending(pair: TextPair, thresholds: Thresholds) -> Measured | None:
    """Returns 1 if the text ends a sentence and the translation does not, or ends it differently.

    Only texts of three words or more are checked: labels may gain or lose a full stop. A language
    that ends no sentence with a mark is not checked. Outside of Latin, Cyrillic and Greek many
    people omit the full stop of a caption, which counts only if the translation is also short.
    """
    language = get_language(pair.target_lang)
    if len(pair.source_words) < 3 or not language.full_stop:
        return None
    source, target = (text.rstrip(_CLOSERS)[-1:] for text in (pair.source, pair.target))
    if not source or source not in _ENDS:
        return None
    is_same = target and target in (_QUESTIONS if source == "?" else _ENDS + ":：")
    is_same = is_same or (source == "?" and pair.target.rstrip(_CLOSERS).endswith(_ASKING))
    if not is_same and source != "?" and language.script not in EUROPEAN_SCRIPTS:
        sizes = len(pair.source.strip()), len(pair.target.strip())
        ratio, spread = thresholds.length_ratio, thresholds.length_spread
        is_same = deviation(*sizes, ratio, spread) > _CUT_OFF
    return Measured(0.0 if is_same else 1.0, f"the text ends with {source!r}, this with {target!r}")


# The fewest words to identify, or letters if blanks do not separate words.
_MIN_WORDS_IDENTIFIED, _MIN_LETTERS_IDENTIFIED = 4, 6


def is_too_short(pair: TextPair) -> bool:
    """Returns whether a translation is too short to identify its language."""
    is_spaced = get_language(pair.target_lang).spaced
    minimum = _MIN_WORDS_IDENTIFIED if is_spaced else _MIN_LETTERS_IDENTIFIED
    return len(pair.target_words) < minimum


@cache
def _shares_script(lang: str) -> bool:
    script = get_language(lang).script
    return any(get_language(code).script == script for code in default_languages() if code != lang)


def _is_told_by_script(lang: str, thresholds: Thresholds) -> bool:
    """Returns whether no other candidate shares the language's script (see `check_script`)."""
    return not (thresholds.near or thresholds.rivals or _shares_script(lang))


def check_language(pair: TextPair, thresholds: Thresholds) -> Measured | None:
    """Returns how much likelier another language is, as a power of e; None if too short.

    The value is 0 if the likeliest language is the translation's own or a near one.
    """
    if is_too_short(pair) or _is_told_by_script(pair.target_lang, thresholds):
        return None
    scores = log_scores(pair.parts)
    if pair.target_lang not in scores:
        return None  # the identifier does not know the language
    own = max([scores[code] for code in (pair.target_lang, *thresholds.near) if code in scores])
    others = _foreign(pair.target_lang, thresholds.near, thresholds.rivals)
    best = max(others, key=lambda code: scores.get(code, own), default=pair.target_lang)
    value = max(0.0, scores.get(best, own) - own)
    return Measured(value, f"looks like {best!r}, expected {pair.target_lang!r}")


def identify(pairs: Iterable[TextPair], thresholds: Thresholds) -> None:
    """Identifies the languages of many translations at once, ahead of `check_language`."""
    score_ahead(
        part
        for pair in pairs
        if not _is_told_by_script(pair.target_lang, thresholds)
        for part in pair.parts
    )


@cache
def _foreign(lang: str, near: tuple[str, ...], rivals: tuple[str, ...]) -> tuple[str, ...]:
    others = dict.fromkeys((*default_languages(), *rivals))
    return tuple(code for code in others if code != lang and code not in near)


def check_near(pair: TextPair, thresholds: Thresholds) -> Measured | None:
    """Returns the share of words that only a near language has.

    Words that occur in the text, too, are names and are ignored.
    """
    if not pair.target_words or not (thresholds.foreign_letters or thresholds.foreign_words):
        return None
    found = thresholds.foreign_words.intersection(pair.target_words)
    text = pair.target_prose.casefold()
    if letters := [letter for letter in thresholds.foreign_letters if letter in text]:
        found |= {word for word in pair.target_words if not set(letters).isdisjoint(word)}
    if found:
        found = found.difference(pair.source_words)
    if not found:
        return Measured(0.0, "")
    foreign = [word for word in pair.target_words if word in found]
    listed = ", ".join(dict.fromkeys(foreign))
    return Measured(len(foreign) / len(pair.target_words), f"words of a near language: {listed}")
