"""Check `answer`: yes stays yes, no stays no."""

from __future__ import annotations

import re

from lrm_ext.languages.registry import get_language
from lrm_ext.translation.quality.pair import Pair
from lrm_ext.translation.quality.thresholds import Thresholds
from lrm_ext.translation.quality.verdict import Measured

_YES_NO = re.compile(r"(yes|no)\b", re.IGNORECASE)
_WORDS = re.compile(r"[^\W_]+")


def check_answer(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """1 if an answer that says yes says no in translation, or the other way; else 0.

    Only answers that are, or begin with, "yes" or "no" and a mark are judged, and only where the
    language's file lists the word that the translation begins with.
    """
    if pair.source_lang != "en":
        return None
    match = _YES_NO.match(pair.source)
    if match is None or pair.source[match.end() : match.end() + 1].isspace():
        return None
    rest = pair.source[match.end() :].strip(" .,!")
    said = polarity(pair.target, pair.target_lang)
    if said is None:
        # a sentence may say it in other words; a bare answer cannot
        return None if rest else Measured(1.0, f"the text says {match[0]!r}, this neither")
    return Measured(float(said != match[0].lower()), f"the text says {match[0]!r}, this {said!r}")


def polarity(text: str, lang: str) -> str | None:
    """What an answer begins with: "yes", "no", or None."""
    language = get_language(lang)
    folded = text.casefold().strip()
    for word, meaning in ((language.yes, "yes"), (language.no, "no")):
        if folded.startswith(word.casefold()) and not folded[len(word) : len(word) + 1].isalpha():
            return meaning
    first = _WORDS.search(folded)
    word = first[0] if first else ""
    local = language.local
    for entries, meaning in ((local.yes, "yes"), (local.no, "no")):
        if word in entries or (not language.spaced and word.startswith(tuple(entries))):
            return meaning
    return None
