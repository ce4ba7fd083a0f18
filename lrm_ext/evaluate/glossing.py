"""Says answers in English, by the table of the `memory` engine read backwards.

Input: an answer. Output: the English that the table has for it, or nothing: no sentence is guessed
at. Letters stand for the options that they name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from lrm_ext.corpus.store import ENGLISH
from lrm_ext.evaluate.items import LETTERS
from lrm_ext.languages.registry import any_language, get_language
from lrm_ext.translate.engines.memory import known_translations

_END: Final = " .!?。！？"
_MAX_SHOWN: Final = 3


def gloss(text: str, lang: str, options: Sequence[str] = (), table: str | None = None) -> str:
    """Returns an answer in English; "" if the table has nothing, or it is English.

    Args:
        text: The answer.
        lang: Its language.
        options: Texts of the options that letters stand for.
        table: Further translations, as the `memory` engine reads them; `{lang}` stands for the
            language's code.
    """
    meant = dict(zip(LETTERS, options, strict=False)).get(text.strip(_END), text)
    if lang == ENGLISH:
        return meant if meant != text else ""
    return _english_of(lang, table).get(_fold(meant), "")


@cache
def _english_of(lang: str, table: str | None) -> dict[str, str]:
    """Returns the known answers in a language, folded, with their English."""
    path = None if table is None else Path(table.replace("{lang}", lang))
    ours, english = any_language(lang), get_language(ENGLISH)
    pairs = [(ours.yes, english.yes), (ours.no, english.no)]
    fixed = ours.fixed_answers
    pairs += [(fixed[n], text) for n, text in english.fixed_answers.items() if n in fixed]
    pairs += [(other, text) for text, other in known_translations(lang, path).items()]
    found: dict[str, dict[str, str]] = {}
    for other, text in pairs:
        found.setdefault(_fold(other), {}).setdefault(_fold(text), text)
    return {other: " / ".join([*texts.values()][:_MAX_SHOWN]) for other, texts in found.items()}


def _fold(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip(_END)).casefold()
