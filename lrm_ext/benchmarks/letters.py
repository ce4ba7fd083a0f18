"""Read which option an answer chooses: the rules of lmms-eval and VLMEvalKit, and our own.

In: what a model wrote and the texts of the options. Out: a letter, or that none can be told. Pure
functions. English rules take Latin letters as they are written; the local rule (EVAL_SPEC 7) knows
scripts, punctuation and letters that are words of the language.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from lrm_ext.benchmarks.items import LETTERS
from lrm_ext.benchmarks.parse import fold, normalise, text_key, words_of

# Affixes in the order in which lmms-eval tries them; each form must stand as a whole word.
_LMMS_FORMS: Final = tuple(
    "{}. {}, {}: {}) {}). ({}) ({}). :{} :{}, :{}. :{}) :{}).".split()
)  # fmt: skip
_LMMS_MAX_WORDS_WITH_ARTICLE: Final = 3
_LMMS_LETTERS: Final = LETTERS[:5]
_KIT_BLANKED: Final = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_KIT_LAST_WORDS: Final = 4
# No word boundary: "the answer is Dog" names D.
_KIT_ANSWER_IS: Final = re.compile(r"answer\s+is(?:\s|\*\*)+([A-Z])", re.IGNORECASE)

# Cyrillic capitals as options: by their shape, else by their place in the Russian alphabet.
_BY_PLACE: Final = dict(
    zip("\u0410\u0411\u0412\u0413\u0414\u0415\u0416\u0417\u0418", LETTERS, strict=False)
)
_BY_SHAPE: Final = dict(
    zip(
        "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425",
        "ABEKMHOPCTX",
        strict=True,
    )
)
_CYRILLIC: Final = _BY_PLACE | _BY_SHAPE
_AMBIGUOUS_CYRILLIC: Final = {c for c, letter in _BY_PLACE.items() if letter != _CYRILLIC[c]}
# Where the options are not known: further letters are read only if they are the whole answer.
_NUM_UNKNOWN_OPTIONS: Final = 5
_NEIGHBOUR: Final = "A-Za-z\u00c0-\u024f\u0370-\u03ff\u0400-\u052f0-9'"
_ALONE: Final = re.compile(
    f"(?<![{_NEIGHBOUR}])([A-Z{''.join(_CYRILLIC)}])(?![{_NEIGHBOUR}\u0300-\u036f])"
)


def infer_lmms_eval(text: str) -> str | None:
    """Letter as lmms-eval infers it, without the options' texts; see `infer_by_text` for those.

    Candidates are A to E, whatever the options are.
    """
    words = text.split()
    bare = [letter for letter in _LMMS_LETTERS if letter in words]
    article = "A" in words and len(words) > _LMMS_MAX_WORDS_WITH_ARTICLE
    if len(bare) == 1 and not article:
        return bare[0]
    for form in _LMMS_FORMS:
        found = [letter for letter in _LMMS_LETTERS if form.format(letter) in words]
        if len(found) == 1:
            return found[0]
    return None


def infer_by_text(text: str, options: Mapping[str, str]) -> str | None:
    """Letter of the only option whose text occurs in an answer, whatever stands around it."""
    found = [letter for letter, option in options.items() if option.lower() in text.lower()]
    return found[0] if len(found) == 1 else None


def infer_vlmevalkit(text: str, options: Mapping[str, str]) -> str | None:
    """Letter as VLMEvalKit's exact matching infers it, without a judge.

    It is the only letter among the words, if its first place is among the last four; else what
    "answer is" names; else the only option whose text occurs in an answer that is not too long.
    """
    words = text.translate(_KIT_BLANKED).split()
    found = [letter for letter in options if letter in words]
    if len(found) == 1 and words.index(found[0]) >= len(words) - _KIT_LAST_WORDS:
        return found[0]
    named = _KIT_ANSWER_IS.search(text)
    if named and named[1].upper() in options:
        return named[1].upper()
    if len(text) > 2 * sum(map(len, options.values())):
        return None
    return infer_by_text(text, options)


@dataclass(frozen=True)
class Choice:
    """What an answer chooses.

    Attributes:
        letter: The option, or None if it cannot be told.
        by: What told it: `letter`, `text` (an option in the language asked in), `english` (the
            English text of an option) or "" where nothing did.
        ambiguous: It was a Cyrillic letter that is one option by its shape, and another by its
            place in the alphabet.
    """

    letter: str | None
    by: str = ""
    ambiguous: bool = False


def infer_local(
    text: str,
    options: Sequence[str],
    word_letters: Sequence[str],
    spaced: bool = True,
    english: Sequence[str] = (),
) -> Choice:
    """Read an option from an answer in any language.

    Args:
        text: What the model wrote.
        options: Texts of A, B, ... in the language of the question.
        word_letters: Letters that are words of the language, too ("A" in Czech: and, but).
        spaced: Whether white space separates words in the language.
        english: The same options in English, read where the language's own do not decide.

    Example:
        >>> infer_local("Respuesta: B", ["un perro", "un gato"], ["A"]).letter
        'B'
    """
    text = normalise(text)
    present = LETTERS[: len(options) or _NUM_UNKNOWN_OPTIONS]
    only = [character for character in text if character.isalnum()]
    if len(only) == 1:
        letter = _CYRILLIC.get(only[0].upper(), only[0].upper())
        if letter in (present if options else LETTERS):
            return Choice(letter, "letter", only[0].upper() in _AMBIGUOUS_CYRILLIC)
        # a figure, or an option of one character
    firm, weak = _standing_alone(text, present, word_letters)
    strong_letters = {_CYRILLIC.get(letter, letter) for letter in firm}
    weak_letters = {_CYRILLIC.get(letter, letter) for letter in weak}
    if strong_letters:
        if len(strong_letters | weak_letters) > 1:
            return Choice(None)
        return Choice(strong_letters.pop(), "letter", not _AMBIGUOUS_CYRILLIC.isdisjoint(firm))
    for by, texts in (("text", options), ("english", english)):
        if named := _only_contained(text, texts, spaced or by == "english"):
            return Choice(named, by)
    return Choice(None)


def _standing_alone(
    text: str, present: Sequence[str], word_letters: Sequence[str]
) -> tuple[set[str], set[str]]:
    """Letters with nothing of a word on either side: those that count, and those that may be words.

    A letter that is a word counts where it is the last word, or has an affix.
    """
    firm: set[str] = set()
    weak: set[str] = set()
    for match in _ALONE.finditer(text):
        letter = match[1]
        if _CYRILLIC.get(letter, letter) not in present:
            continue
        before, after = text[: match.start()].rstrip(), text[match.end() :].lstrip()
        affixed = after[:1] in tuple(".):]") or before[-1:] in ("(", "[")
        is_last = not any(character.isalnum() for character in after)
        is_firm = letter not in word_letters or is_last or (bool(after) and affixed)
        (firm if is_firm else weak).add(letter)
    return firm, weak


def _only_contained(text: str, options: Sequence[str], spaced: bool) -> str | None:
    """Letter of the only option in a text, options that are part of another found one left out."""
    haystack = fold(text)
    keys = [text_key(option) for option in options]
    found = [
        (letter, key)
        for letter, key in zip(LETTERS, keys, strict=False)
        if key and _contains(haystack, key, spaced)
    ]
    widest = [
        (letter, key)
        for letter, key in found
        if not any(key != other and key in other for _, other in found)
    ]
    return widest[0][0] if len(widest) == 1 else None


def _contains(haystack: str, key: str, spaced: bool) -> bool:
    if not spaced:
        return key in haystack
    return re.search(rf"(?<!\w){re.escape(key)}(?!\w)", haystack) is not None


def has_words_beside(text: str, minimum: int) -> bool:
    """Whether an answer has so many words or more, single letters and figures not counted."""
    return (
        sum(len(word) > 1 and not word.isdigit() for word in words_of(normalise(text))) >= minimum
    )
