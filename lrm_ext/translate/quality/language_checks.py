"""Checks `language` and `near`: is a translation in the language that was asked for?

Languages that the identifier cannot tell apart in a sentence (Croatian, Serbian) count as one;
`near` looks closer at those: "šta" and "gde" are Serbian, "ľ" is Slovak and not Czech; the
language's file lists them. Under four words the identifier is not asked, for it would guess.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from lrm_ext.languages.identification import log_scores, score_ahead
from lrm_ext.languages.registry import get_language, list_languages
from lrm_ext.translate.quality.base import Measured, TextPair, Thresholds

MIN_WORDS = 4
MIN_LETTERS_UNSPACED = 6


def is_too_short(pair: TextPair) -> bool:
    """Whether the language of a translation cannot be told from it alone."""
    return len(pair.target_words) < _minimum(pair.target_lang)


@cache
def _others_of_script(lang: str) -> bool:
    script = get_language(lang).script
    return any(get_language(code).script == script for code in list_languages() if code != lang)


def _is_told_by_script(lang: str, thresholds: Thresholds) -> bool:
    """Whether no other candidate is written like the language: the check of script is enough."""
    return not (thresholds.near or thresholds.rivals or _others_of_script(lang))


def _minimum(lang: str) -> int:
    return MIN_WORDS if get_language(lang).spaced else MIN_LETTERS_UNSPACED


def check_language(pair: TextPair, thresholds: Thresholds) -> Measured | None:
    """How much likelier another language is, as a power of e; None if too short.

    0 if the translation's own language is the likeliest, or one that cannot be told from it.
    """
    if is_too_short(pair) or _is_told_by_script(pair.target_lang, thresholds):
        return None
    scores = log_scores(pair.parts)
    if pair.target_lang not in scores:
        return None  # the identifier does not know the language
    own = max([scores[code] for code in (pair.target_lang, *thresholds.near) if code in scores])
    best, foreign = pair.target_lang, own
    for code in _foreign(pair.target_lang, thresholds.near, thresholds.rivals):
        if scores.get(code, own) > foreign:
            best, foreign = code, scores[code]
    if best == pair.target_lang:
        return Measured(0.0, "")
    return Measured(foreign - own, f"looks like {best!r}, expected {pair.target_lang!r}")


def identify(pairs: Iterable[TextPair], thresholds: Thresholds) -> None:
    """Look at the languages of many translations at once, so that `check_language` knows them."""
    score_ahead(
        part
        for pair in pairs
        if not _is_told_by_script(pair.target_lang, thresholds)
        for part in pair.parts
    )


@cache
def _foreign(lang: str, near: tuple[str, ...], rivals: tuple[str, ...]) -> tuple[str, ...]:
    others = dict.fromkeys((*list_languages(), *rivals))
    return tuple(code for code in others if code != lang and code not in near)


def check_near(pair: TextPair, thresholds: Thresholds) -> Measured | None:
    """The share of words that a near language has and this one has not.

    Words that stand in the text too are names; they are not counted.
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
