"""Says answers in English, by the table of the `memory` engine read backwards.

Input: an answer. Output: the English that the table has for it, or nothing: no sentence is guessed
at. Letters stand for the options that they name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lrm_ext.corpus.store import ENGLISH
from lrm_ext.evaluate.items import LETTERS
from lrm_ext.languages.registry import get_language
from lrm_ext.translate.engines.memory import known_translations

_END: Final = " .!?。！？"
_MAX_SHOWN: Final = 3


class Glosses:
    """Says short answers in English.

    Args:
        table: Further translations, as the `memory` engine reads them; `{lang}` stands for the
            language's code.
    """

    def __init__(self, table: str | None = None) -> None:
        self._table = table
        self._by_lang: dict[str, dict[str, str]] = {}

    def of(self, text: str, lang: str, options: Sequence[str] = ()) -> str:
        """Returns an answer in English; "" if the table has nothing, or it is English."""
        named = dict(zip(LETTERS, options, strict=False))
        meant = named.get(text.strip(_END), text)
        if lang == ENGLISH:
            return meant if meant != text else ""
        known = self._by_lang.get(lang)
        if known is None:
            known = self._by_lang[lang] = self._read(lang)
        return known.get(_fold(meant), "")

    def _read(self, lang: str) -> dict[str, str]:
        table = None if self._table is None else Path(self._table.replace("{lang}", lang))
        ours, english = get_language(lang), get_language(ENGLISH)
        pairs = [(ours.yes, english.yes), (ours.no, english.no)]
        fixed = ours.fixed_answers
        pairs += [(fixed[n], text) for n, text in english.fixed_answers.items() if n in fixed]
        pairs += [(other, text) for text, other in known_translations(lang, table).items()]
        found: dict[str, dict[str, str]] = {}
        for other, text in pairs:
            found.setdefault(_fold(other), {}).setdefault(_fold(text), text)
        return {
            other: " / ".join(list(texts.values())[:_MAX_SHOWN]) for other, texts in found.items()
        }


def _fold(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip(_END)).casefold()
