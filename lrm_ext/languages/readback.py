"""Is what the language's file makes a model say read back as it was meant?

Input: a `Language`, and English. Output: one line a fault. The checks run the project's own
formatters and parsers on the file's words.
"""

from __future__ import annotations

import string
from collections.abc import Iterator

from llava.errors import DataError
from lrm_ext.languages.language import Language

_COLONS = (":", "\uff1a")
_QUESTION = "What is it?"


def check_short_answers(language: Language, english: Language) -> Iterator[str]:
    """Yes and no, and every word that counts as one, are read as what they are."""
    from lrm_ext.benchmarks.parse import AnswerWords, Rule, fold, normalise, parse_yes_no, words_of

    local = language.local
    words = AnswerWords.build(
        language.code,
        yes=local.yes,
        no=local.no,
        letters=local.letters,
        english_yes=english.local.yes,
        english_no=english.local.no,
        english_letters=english.local.letters,
        stop=local.stop,
        spaced=language.spaced,
    )
    listed = [("local.yes", word, "yes") for word in local.yes]
    listed += [("local.no", word, "no") for word in local.no]
    rules: tuple[Rule, ...] = ("mme", "pope")
    for key, word, label in (
        ("answers.yes", language.yes, "yes"),
        ("answers.no", language.no, "no"),
        *(
            (f"answers_to.{start}", word, label)
            for start, pair in language.answers_to.items()
            for word, label in zip(pair, ("yes", "no"), strict=True)
        ),
        *listed,
    ):
        is_listed = key.startswith("local.")  # an answer may be several words
        if is_listed and language.spaced and len(words_of(fold(normalise(word)))) != 1:
            yield (
                f"{key} has {word!r}: the first word of an answer decides, so a phrase is never "
                "found; give its first word, if that decides."
            )
            continue
        reads = [parse_yes_no(word, words, rule) for rule in rules]
        if wrong := [read.label for read in reads if read.label != label or read.by_default]:
            found = "neither" if "other" in wrong else repr(wrong[0])
            yield f"{key} has {word!r}, which is read as {found}; is it in local.{label}?"
        elif key.startswith("answers.") and reads[0].answer_lang not in (language.code, "letter"):
            yield (
                f"{key} is {word!r}, which is read as {reads[0].answer_lang!r}; add it to local."
                f"{label}."
            )
    if collisions := sorted({*words.stop} & {*words.yes, *words.no}):
        yield f"local.stop has {', '.join(collisions)}, which also means yes or no."


def check_prompts(language: Language, english: Language) -> Iterator[str]:
    """Requests are one line, are found again at the end of a question, and end as in English."""
    from lrm_ext.instructions.registry import split_human_text

    prompts = language.format_prompts
    for name, prompt in zip(("short_answer", "option_letter"), prompts, strict=True):
        if split_human_text(f"{_QUESTION}\n{prompt}", prompts).format_prompt != prompt:
            yield f"prompts.{name} is not found again as the last line of a question."
    if prompts[0] == prompts[1]:
        yield "prompts.short_answer and prompts.option_letter are the same."
    for key, text in english.fixed_prompts.items():
        own = language.fixed_prompts.get(key, "")
        if own and own.endswith(_COLONS) != text.endswith(_COLONS):
            expected = "a colon" if text.endswith(_COLONS) else "no colon"
            yield f"format_prompts.{key} is {own!r}, expected {expected} at its end."
    for key, answer in language.fixed_answers.items():
        asked = language.fixed_prompts.get(key, answer)
        if answer not in asked:
            yield f"format_prompts.{key} does not quote short_answers.{key}, {answer!r}."
    seen: dict[str, str] = {}
    for key, text in language.fixed_prompts.items():
        if text in seen:
            yield f"format_prompts.{key} is the same as format_prompts.{seen[text]}."
        seen.setdefault(text, key)


def check_instructions(language: Language, english: Language) -> Iterator[str]:
    """Every kind of training sample is read back: translation and answer, or the answer."""
    from lrm_ext.instructions.registry import get_instruction

    lines = {
        "instructions.epvqa": language.epvqa_instruction,
        **{f"instructions.answer_in.{code}": text for code, text in language.answer_in.items()},
    }
    for key, text in lines.items():
        if "\n" in text:
            yield f"{key} has several lines, expected one."
    before, after = language.translation_marker, language.answer_marker
    for key, marker in (("translation_marker", before), ("answer_marker", after)):
        if not marker.endswith(_COLONS):
            yield f"instructions.{key} is {marker!r}, expected a colon at its end."
    if before != english.translation_marker:
        yield (
            f"instructions.translation_marker is {before!r}, expected "
            f"{english.translation_marker!r}: the translation is always English."
        )
    if before.startswith(after) or after.startswith(before):
        yield f"instructions: the markers {before!r} and {after!r} begin alike."
        return
    if language.code == english.code:
        return
    rule = get_instruction("epvqa")
    for answer in (language.yes, language.no, *language.fixed_answers.values(), "7", "A"):
        try:
            reply = rule.reply_rule(_QUESTION, answer, language)
        except DataError as error:
            yield f"instructions: {error}"
            return
        read = rule.parse_rule(reply, language)
        if not read.well_formed or (read.translation, read.answer) != (_QUESTION, answer):
            yield f"instructions: the reply {reply!r} is read as {read.answer!r} ({read.problem})."


def check_option_letters(language: Language, english: Language) -> Iterator[str]:
    """`word_letters` are capital letters of options that are words by themselves."""
    for letter in language.local.word_letters:
        if len(letter) != 1 or not letter.isupper():
            yield f"local.word_letters has {letter!r}, expected one capital letter."
    options = set(string.ascii_uppercase)
    for key, texts in (("answers", (language.yes, language.no)), ("local", _words(language))):
        for text in texts:
            if text.upper() in options and text.upper() not in language.local.word_letters:
                yield (
                    f"{key} has the word {text!r}, which is an option's letter too; add "
                    f"{text.upper()!r} to local.word_letters."
                )
    for letter in language.local.letters:
        if len(letter) != 1:
            yield f"local.letters has {letter!r}, expected one letter."


def _words(language: Language) -> tuple[str, ...]:
    return (*language.local.yes, *language.local.no)
