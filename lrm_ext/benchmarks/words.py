"""The word lists for reading answers, from the language files."""

from __future__ import annotations

from functools import cache

from lrm_ext.benchmarks.parse import AnswerWords
from lrm_ext.languages import get_language

_ENGLISH = "en"


@cache
def answer_words(lang: str) -> AnswerWords:
    """How a language says yes and no, with the English words that count everywhere.

    Raises:
        ConfigError: There is no such language (the choices are listed), or its file is at fault.
    """
    language = get_language(lang)
    own, english = language.local, get_language(_ENGLISH).local
    return AnswerWords.build(
        lang,
        yes=own.yes,
        no=own.no,
        letters=own.letters,
        english_yes=english.yes,
        english_no=english.no,
        english_letters=english.letters,
        stop=own.stop,
        spaced=language.spaced,
    )
