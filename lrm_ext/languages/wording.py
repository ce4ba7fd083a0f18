"""Are the texts of a language's file in that language, and in nobody else's?

Input: a `Language`, and English or the others. Output: one line a fault.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from fontTools.unicodedata import script as script_of

from lrm_ext.languages.language import Language

_WORD = re.compile(r"[^\W\d_]+")
# Scripts that ISO 15924 names as one and Unicode's characters as several.
_PARTS: Mapping[str, frozenset[str]] = {
    "Hans": frozenset({"Hani"}),
    "Hant": frozenset({"Hani"}),
    "Jpan": frozenset({"Hani", "Hira", "Kana"}),
    "Kore": frozenset({"Hang", "Hani"}),
}
_NEUTRAL = frozenset({"Zyyy", "Zinh", "Zzzz"})
# Old standards that hold the characters of one way of writing Chinese only.
_CHINESE = {"Hans": ("gb2312", "big5"), "Hant": ("big5", "gb2312")}
# A share of 0.9 for another language is no doubt where all sentences are looked at together.
_SURE = 0.9


def texts(language: Language) -> dict[str, str]:
    """The sentences of a file, by their keys; no labels and no single words."""
    return {
        "prompts.short_answer": language.short_answer,
        "prompts.option_letter": language.option_letter,
        **{f"format_prompts.{key}": text for key, text in language.fixed_prompts.items()},
        **{f"short_answers.{key}": text for key, text in language.fixed_answers.items()},
        "instructions.epvqa": language.epvqa_instruction,
        "instructions.answer_marker": language.answer_marker,
        **{f"instructions.answer_in.{key}": text for key, text in language.answer_in.items()},
        "conversation.system": language.system,
    }


def check_untranslated(language: Language, english: Language) -> Iterator[str]:
    """No text is still the English one.

    Short labels of the page (`ui`) and one of yes and no may be the same in both languages.
    """
    if language.code == english.code:
        return
    theirs = texts(english)
    for key, text in texts(language).items():
        if _bare(text) == _bare(theirs.get(key, "")):
            yield f"{key} is {text!r}, as in English; translate it."
    for key, text in language.ui.items():
        if text.count(" ") >= 2 and _bare(text) == _bare(english.ui.get(key, "")):
            yield f"ui.{key} is {text!r}, as in English; translate it."
    if (_bare(language.yes), _bare(language.no)) == (_bare(english.yes), _bare(english.no)):
        yield "answers.yes and answers.no are the English words."


def check_script(language: Language, english: Language) -> Iterator[str]:
    """Words are written in the language's script and in the usual form of its characters.

    What the English text has too ("OCR") may stay.
    """
    from fontTools.unicodedata import Scripts

    if language.script not in {*Scripts.NAMES, *_PARTS} - _NEUTRAL:
        yield f"script is {language.script!r}, expected an ISO 15924 code such as Latn or Cyrl."
        return
    allowed = _PARTS.get(language.script, frozenset({language.script}))
    theirs = texts(english)
    words = {"answers.yes": language.yes, "answers.no": language.no}
    named = {f"ui.{key}": text for key, text in language.ui.items()}
    for key, text in {**texts(language), **words, **named}.items():
        if text != unicodedata.normalize("NFC", text):
            yield f"{key} is not in Unicode's form NFC; type it anew."
        same = set(_WORD.findall(theirs.get(key, "") or english.ui.get(key[3:], "")))
        foreign = {
            word: found for word in _WORD.findall(text) if (found := _scripts(word) - allowed)
        }
        if wrong_words := [word for word in foreign if word not in same]:
            found = frozenset().union(*(foreign[word] for word in wrong_words))
            yield (
                f"{key} has {', '.join(wrong_words)} with letters of script "
                f"{', '.join(sorted(found))}; expected {language.script}."
            )
        if wrong := [letter for letter in text if _is_other_chinese(letter, language.script)]:
            yield f"{key} has {''.join(wrong)!r}, which is not written so in {language.script}."


def check_identity(language: Language, english: Language) -> Iterator[str]:
    """All sentences together look like the language, as far as an identifier knows it."""
    from lrm_ext.translation.quality.base import Thresholds, parse_thresholds
    from lrm_ext.translation.quality.language_id import candidates, probabilities

    try:
        thresholds = parse_thresholds(language.quality, "quality")
    except ValueError:  # reported by another check
        thresholds = Thresholds()
    among = candidates(language.code, thresholds)
    shares = probabilities(" ".join(texts(language).values()), among)
    near = {language.code, language.code.partition("-")[0], *thresholds.near}
    best = max(shares, key=shares.__getitem__, default=language.code)
    if language.code in shares and best not in near and shares[best] > _SURE:
        yield f"the texts look like language {best!r}, not {language.code!r}."


def check_distinct(language: Language, others: Sequence[Language]) -> Iterator[str]:
    """Requests differ from one another and from those of other languages.

    A request that is the same in two languages does not say in which one to answer.
    """
    seen: dict[str, str] = {}
    for code, text in language.answer_in.items():
        if _bare(text) in seen:
            yield (
                f"instructions.answer_in.{code} is {text!r}, the same as for {seen[_bare(text)]!r}."
            )
        seen.setdefault(_bare(text), code)
    if _bare(language.epvqa_instruction) in seen:
        yield "instructions.epvqa is the same as one of instructions.answer_in."
    for name, own, find in (
        ("instructions.epvqa", language.epvqa_instruction, lambda o: o.epvqa_instruction),
        ("conversation.system", language.system, lambda o: o.system),
        (
            f"instructions.answer_in.{language.code}",
            language.answer_in[language.code],
            lambda o: o.answer_in[o.code],
        ),
    ):
        same = [other.code for other in others if _bare(find(other)) == _bare(own)]
        if same:
            yield f"{name} is {own!r}, the same as in {', '.join(same)}; the two must differ."


def _scripts(word: str) -> frozenset[str]:
    return frozenset(map(script_of, word)) - _NEUTRAL


def _is_other_chinese(character: str, script: str) -> bool:
    if script not in _CHINESE or script_of(character) != "Hani":
        return False
    own, other = _CHINESE[script]
    return not _has(character, own) and _has(character, other)


def _has(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _bare(text: str) -> str:
    """Letters and digits alone, folded."""
    return "".join(_WORD.findall(text)).casefold()
