"""The paper's three instructions, by name (its equations 6 to 8).

`mvqa`: question and answer in one language. `epvqa`: the model first translates the question into
English, then answers. `bvqa`: question in one language, answer in the other, one of them English.
All wording is in the language files; here is only the order of the parts. To add an instruction,
write its rules and add it to the dictionary.
"""

from __future__ import annotations

from llava.errors import ConfigError, DataError
from lrm_ext.instructions.instruction import (
    ENGLISH,
    FROM_EN,
    TO_EN,
    Instruction,
    ParsedReply,
)
from lrm_ext.instructions.prompt import insert_instruction, split_human_text
from lrm_ext.languages.language import Language
from lrm_ext.languages.registry import get_language


def list_instructions() -> tuple[str, ...]:
    """Names of all instructions."""
    return tuple(_INSTRUCTIONS)


def get_instruction(name: str) -> Instruction:
    """Look an instruction up.

    Raises:
        ConfigError: There is none of that name; the choices are listed.
    """
    if name not in _INSTRUCTIONS:
        raise ConfigError(
            f"unknown instruction {name!r}; choose from: {', '.join(list_instructions())}."
        )
    return _INSTRUCTIONS[name]


def _ask_plain(text: str, language: Language, direction: str | None) -> str:
    return text


def _ask_pivot(text: str, language: Language, direction: str | None) -> str:
    return insert_instruction(text, language.epvqa_instruction, language.format_prompts)


def _ask_bilingual(text: str, language: Language, direction: str | None) -> str:
    """Name the answer language in the question's language.

    The same question is answered in its own language by MVQA: without the name the two would
    contradict each other.
    """
    asking = language if direction == TO_EN else get_language(ENGLISH)
    answer_lang = ENGLISH if direction == TO_EN else language.code
    return insert_instruction(text, asking.answer_in[answer_lang], asking.format_prompts)


def _reply_plain(english_question: str, answer: str, language: Language) -> str:
    return answer


def _reply_pivot(english_question: str, answer: str, language: Language) -> str:
    """The English question without picture and format prompt, then the answer, both marked."""
    english = get_language(ENGLISH)
    question = split_human_text(english_question, english.format_prompts).question.strip()
    if not question:
        raise DataError("the English turn asks nothing that could be translated.")
    separator = "\n" + language.answer_marker
    if separator in question:
        raise DataError(
            f"the English question holds {language.answer_marker!r} at the beginning of a line; "
            "the reply could not be taken apart again. Reword it or set translatable = false."
        )
    gap = " " if language.spaced else ""
    return f"{language.translation_marker} {question}{separator}{gap}{answer.strip()}"


def _parse_plain(reply: str, language: Language) -> ParsedReply:
    answer = reply.strip()
    return ParsedReply(answer) if answer else ParsedReply("", None, False, "empty reply")


def _parse_pivot(reply: str, language: Language) -> ParsedReply:
    """Split a reply at its markers; see `_reply_pivot`.

    A reply with neither marker is an answer given without the translation. One that begins a
    translation and never comes to the answer (cut off, say) has no answer.
    """
    reply = reply.strip()
    if not reply:
        return ParsedReply("", None, False, "empty reply")
    has_translation = reply.startswith(language.translation_marker)
    before, marker, answer = ("\n" + reply).partition("\n" + language.answer_marker)
    before, answer = before.strip(), answer.strip()
    if not has_translation:
        found = answer if marker and not before else reply
        return ParsedReply(found, None, False, "no translation")
    translation = before[len(language.translation_marker) :].strip()
    if not marker:
        return ParsedReply("", translation or None, False, "no answer marker")
    if not translation or not answer:
        missing = "empty answer" if translation else "empty translation"
        return ParsedReply(answer, translation or None, False, missing)
    return ParsedReply(answer, translation)


_INSTRUCTIONS = {
    instruction.name: instruction
    for instruction in (
        Instruction(
            name="mvqa",
            summary="question and answer in the same language",
            directions=(),
            allows_english=True,
            ask_rule=_ask_plain,
            reply_rule=_reply_plain,
            parse_rule=_parse_plain,
        ),
        Instruction(
            name="epvqa",
            summary="translate the question into English first, then answer",
            directions=(),
            allows_english=False,
            ask_rule=_ask_pivot,
            reply_rule=_reply_pivot,
            parse_rule=_parse_pivot,
        ),
        Instruction(
            name="bvqa",
            summary="question in one language, answer in the other, one of them English",
            directions=(TO_EN, FROM_EN),
            allows_english=False,
            ask_rule=_ask_bilingual,
            reply_rule=_reply_plain,
            parse_rule=_parse_plain,
        ),
    )
}
