"""A text and its translation, with what several checks need of them made once.

Input: two strings and their languages. Output: a `Pair` whose parts are made when first asked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

from lrm_ext.languages.registry import get_language
from lrm_ext.translation.protect import Span, find_spans

_WORD = re.compile(r"[^\W\d_]+")
_LETTER = re.compile(r"[^\W\d_]")


class Pair:
    """A text and its translation.

    Args:
        source: The text.
        target: Its translation.
        source_lang: Code of the text's language.
        target_lang: Code of the translation's language.
    """

    def __init__(self, source: str, target: str, source_lang: str, target_lang: str) -> None:
        self.source = source
        self.target = target
        self.source_lang = source_lang
        self.target_lang = target_lang

    @classmethod
    def of_all(cls, pairs: Sequence[Pair]) -> Pair:
        """All of a row as one text, a line each; what is known of its parts is taken over."""
        whole = cls(
            "\n".join(pair.source for pair in pairs),
            "\n".join(pair.target for pair in pairs),
            pairs[0].source_lang,
            pairs[0].target_lang,
        )
        # set before they are asked for, these take the place of the properties
        whole.__dict__.update(
            source_words=[word for pair in pairs for word in pair.source_words],
            target_words=[word for pair in pairs for word in pair.target_words],
            target_prose="\n".join(pair.target_prose for pair in pairs),
            parts=tuple(pair.target_prose for pair in pairs),
        )
        return whole

    @cached_property
    def source_spans(self) -> list[Span]:
        """The protected parts of the text."""
        return find_spans(self.source)

    @cached_property
    def source_prose(self) -> str:
        """The text with a blank in place of each protected part."""
        return prose(self.source, self.source_spans)

    @cached_property
    def target_prose(self) -> str:
        """The translation with a blank in place of each protected part."""
        return prose(self.target, find_spans(self.target))

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The prose of the translation, of a whole row one for each turn."""
        return (self.target_prose,)

    @cached_property
    def source_words(self) -> list[str]:
        """Words of the text, folded; protected parts are no words."""
        return words(self.source_prose, self.source_lang)

    @cached_property
    def target_words(self) -> list[str]:
        """Words of the translation, folded; letters where no blanks separate words."""
        return words(self.target_prose, self.target_lang)


def prose(text: str, spans: Sequence[Span]) -> str:
    """A text with a blank in place of each of its protected parts."""
    if not spans:
        return text
    pieces: list[str] = []
    end = 0
    for span in spans:
        pieces.append(text[end : span.start])
        end = span.end
    pieces.append(text[end:])
    return " ".join(pieces)


def words(text: str, lang: str) -> list[str]:
    """Words of a text, folded; single letters in a language without blanks between words."""
    pattern = _WORD if get_language(lang).spaced else _LETTER
    return pattern.findall(text.casefold())
