"""In which language is a free answer? Asked only where word lists do not tell.

py3langid is right on 998 of 1,000 cuts of four words when it may choose among ten languages only,
and guesses on single words (MULTILINGUAL.md 3.2). So the candidates are the languages that the
project has, and a text of fewer than four words is `undecided`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from lrm_ext.benchmarks.parse import NEUTRAL, OTHER, normalise, words_of
from lrm_ext.languages import list_languages

UNDECIDED: Final = "undecided"
MIN_WORDS: Final = 4
MIN_LETTERS_UNSPACED: Final = 6
# What says nothing about the language of an answer.
SILENT: Final = frozenset({NEUTRAL, UNDECIDED, "missing"})
_ENGLISH: Final = "en"


def language_of_prose(text: str, lang: str) -> str:
    """Tell whether prose is in the language that was asked in.

    Args:
        text: An answer.
        lang: The language that was asked in.

    Returns:
        `lang`, `en`, `other`, or `undecided` where the text is too short or its language is none
        that the identifier knows.
    """
    text = normalise(text)
    words = [word for word in words_of(text) if not word.isdigit()]
    if not any(map(_is_unspaced, words)):
        enough = len(words) >= MIN_WORDS
    else:
        enough = sum(len(word) for word in words) >= MIN_LETTERS_UNSPACED
    if not enough:
        return UNDECIDED
    from lrm_ext.translation.quality.language_id import probabilities

    shares = probabilities(" ".join(words), (*list_languages(), lang))
    if lang not in shares:
        return UNDECIDED
    best = max(shares, key=shares.__getitem__)
    return best if best in (lang, _ENGLISH) else OTHER


def _is_unspaced(word: str) -> bool:
    """Whether a word is written in the letters of a language without spaces."""
    return any("\u2e80" <= c <= "\u9fff" or "\u3040" <= c <= "\u30ff" for c in word) or any(
        "\u0e00" <= c <= "\u0e7f" for c in word
    )


def fidelity(answer_langs: Iterable[str], lang: str) -> tuple[int, int]:
    """How many answers are in the language of the question, of how many that have a language."""
    decided = [found for found in answer_langs if found not in SILENT]
    return decided.count(lang), len(decided)
