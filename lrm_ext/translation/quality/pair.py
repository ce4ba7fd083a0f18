"""A text and its translation, with what several checks need of them made once.

Input: two strings and their languages. Output: a `Pair`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain

from lrm_ext.languages.registry import get_language
from lrm_ext.translation.protect import Span, find_spans, plain_characters
from lrm_ext.translation.quality.number_words import ROMAN

_WORD = re.compile(r"[^\W\d_]+")
_LETTER = re.compile(r"[^\W\d_]")
QUOTES = "\"'“”„«»‘’「」『』《》 \u00a0\u202f"


class Pair:
    """A text and its translation.

    Attributes:
        source: The text.
        target: Its translation, with letters and digits of full width as those of ASCII.
        source_lang: Code of the text's language.
        target_lang: Code of the translation's language.
        source_spans: The protected parts of the text.
        source_prose: The text with a blank in place of each protected part.
        target_prose: The same of the translation, without Roman numerals.
        source_words: Words of the text, folded; protected parts are no words.
        target_words: The same of the translation; letters where no blanks separate words.
        parts: The prose of the translation; of a whole row that of each turn.
        known_words: Which words of the text the lexicon knows, and whether the translation has
            them, by key; None until the check of meaning has looked.
    """

    # plain attributes: properties that are made when asked for cost more than what they save
    def __init__(self, source: str, target: str, source_lang: str, target_lang: str) -> None:
        self.source = source
        self.target = target = plain_characters(target)
        self.source_lang = source_lang
        self.target_lang = target_lang
        self.source_spans = find_spans(source)
        self.source_prose = prose(source, self.source_spans)
        # "siglo XIX" is no word of another script or language
        self.target_prose = ROMAN.sub(" ", prose(target, _copied_spans(target, source)))
        self.source_words = words(self.source_prose, source_lang)
        self.target_words = words(self.target_prose, target_lang)
        self.parts: tuple[str, ...] = (self.target_prose,)
        self.known_words: dict[str, bool] | None = None

    @classmethod
    def of_all(cls, pairs: Sequence[Pair]) -> Pair:
        """All of a row as one text, a line each; what is known of its parts is taken over."""
        whole = cls.__new__(cls)
        whole.source = "\n".join([pair.source for pair in pairs])
        whole.target = "\n".join([pair.target for pair in pairs])
        whole.source_lang, whole.target_lang = pairs[0].source_lang, pairs[0].target_lang
        whole.source_spans = ()
        whole.source_prose = "\n".join([pair.source_prose for pair in pairs])
        whole.parts = tuple([pair.target_prose for pair in pairs])
        whole.target_prose = "\n".join(whole.parts)
        whole.source_words = list(chain.from_iterable([pair.source_words for pair in pairs]))
        whole.target_words = list(chain.from_iterable([pair.target_words for pair in pairs]))
        found: dict[str, bool] = {}
        for pair in pairs:
            if pair.known_words is None:
                whole.known_words = None
                break
            for key, is_there in pair.known_words.items():
                if is_there or key not in found:
                    found[key] = is_there
        else:
            whole.known_words = found
        return whole


def _copied_spans(target: str, source: str) -> Sequence[Span]:
    """The protected parts of a translation; quotations only if their words are the text's."""
    spans = find_spans(target, any_quotation=True)
    return [
        span
        for span in spans
        if span.kind != "quote" or target[span.start : span.end].strip(QUOTES) in source
    ]


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
