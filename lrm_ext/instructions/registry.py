"""Implements the paper's three instructions (equations 6 to 8): format, ask, and read a reply.

`mvqa`: question and answer in one language. `epvqa`: the model first translates the question into
English, then answers. `bvqa`: question in one language, answer in another, one of them English. All
wording is in the language files; this module only orders the parts. To add an instruction, derive a
class from `Instruction` and add it to `_INSTRUCTIONS`.

Input: a corpus row with its turns in English and in another language. Output: a `Sample` in LLaVA's
format; or, given a reply of a model, its parts. An instruction applies to a whole conversation,
because switching languages within one would train the confusion that the paper wants to avoid.
`lrm_ext.mixture` decides which sample gets which instruction.

A human turn consists of `<image>` (at the beginning or at the end, once or several times), the
question, in which there may be further ones, and a response-format prompt such as "Answer the
question using a single word or phrase." As in LLaVA's training, the format prompt stays last, so an
instruction goes before it; the images stay in place.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.sample import Sample, Turn
from llava.errors import ConfigError, DataError
from lrm_ext.languages.registry import ENGLISH, Language, answer_request, get_language

if TYPE_CHECKING:
    from lrm_ext.corpus.store import CorpusRow

_HUMAN_TURN = re.compile(r"((?:<image>[ \n]?)*)(.*?)((?:[ \n]?<image>)*)", re.DOTALL)
TO_EN = "to_en"
FROM_EN = "from_en"


@dataclass(frozen=True)
class HumanText:
    """The parts of a human turn; `str()` joins them again.

    Attributes:
        head: `<image>` with its newline, or several, if the turn begins with it, else "".
        question: The question, which may have several lines.
        format_prompt: The response-format prompt, or "".
        tail: `<image>` with the newline before it, or several, if the turn ends with it, else "".
    """

    head: str
    question: str
    format_prompt: str
    tail: str

    def __str__(self) -> str:
        lines = [part for part in (self.question, self.format_prompt) if part]
        return self.head + "\n".join(lines) + self.tail


def split_human_text(text: str, format_prompts: Collection[str]) -> HumanText:
    r"""Splits a human turn into its parts.

    Args:
        text: Text of the turn.
        format_prompts: The response-format prompts of the turn's language. One is recognized only
            if it is the whole last line, after a question.

    Example:
        >>> split_human_text("<image>\nA duck?\nYes or no.", ["Yes or no."]).question
        'A duck?'
    """
    match = _HUMAN_TURN.fullmatch(text)
    assert match is not None  # the pattern matches every text
    head, body, tail = match.groups()
    question, newline, last = body.rpartition("\n")
    if newline and question and last in format_prompts:
        return HumanText(head, question, last, tail)
    return HumanText(head, body, "", tail)


def insert_instruction(text: str, instruction: str, format_prompts: Collection[str]) -> str:
    r"""Inserts an instruction as a line after the question, before a response-format prompt.

    Example:
        >>> insert_instruction("<image>\nA duck?\nOne word.", "In Czech.", ["One word."])
        '<image>\nA duck?\nIn Czech.\nOne word.'
    """
    parts = split_human_text(text, format_prompts)
    question = f"{parts.question}\n{instruction}" if parts.question else instruction
    return str(replace(parts, question=question))


def name_images(texts: Sequence[str]) -> list[str]:
    r"""Names images inside the questions of a conversation, for replies, which hold no images.

    Example:
        >>> name_images(["<image>\nA duck?", "Yes.", "Is it the one in <image>?"])
        ['<image>\nA duck?', 'Yes.', 'Is it the one in image 2?']
    """
    named: list[str] = []
    number = 0
    for text in texts:
        match = _HUMAN_TURN.fullmatch(text)
        assert match is not None  # the pattern matches every text
        head, body, tail = match.groups()
        number += head.count(DEFAULT_IMAGE_TOKEN)
        first, *rest = body.split(DEFAULT_IMAGE_TOKEN)
        body = first + "".join(f"image {number + i}{text}" for i, text in enumerate(rest, start=1))
        number += len(rest) + tail.count(DEFAULT_IMAGE_TOKEN)
        named.append(head + body + tail)
    return named


@dataclass(frozen=True)
class ParsedReply:
    """A reply of a model, parsed by the rules of its instruction.

    Attributes:
        answer: The answer; "" if the reply has none.
        translation: The question in English (EP-VQA only); None if the reply has none.
        well_formed: Whether all parts are in their places.
        problem: Category of the error; None if the reply is well formed.
    """

    answer: str
    translation: str | None = None
    well_formed: bool = True
    problem: str | None = None


@dataclass(frozen=True)
class Instruction:
    """A task instruction.

    This class leaves question and answer unchanged, as MVQA does; the other instructions override
    `write_prompt`, `write_reply` or `read_reply`.

    Attributes:
        name: Name in data and on the command line.
        summary: Description in one line.
        directions: For BVQA, which language is asked in; empty for the others.
        allows_english: Whether the instruction applies to English alone.
    """

    name: str
    summary: str
    directions: tuple[str, ...] = ()
    allows_english: bool = False

    def write_prompt(self, text: str, language: Language, direction: str | None) -> str:
        """Returns the prompt for a question; `language` is the one that is not English."""
        return text

    def write_reply(self, english_question: str, answer: str, language: Language) -> str:
        """Returns the reply that the model is trained to give.

        Raises:
            DataError: The instruction does not fit this question.
        """
        return answer

    def read_reply(self, reply: str, language: Language) -> ParsedReply:
        """Parses a reply, which is stripped and not empty."""
        return ParsedReply(reply)

    def ask(self, text: str, lang: str, direction: str | None = None) -> str:
        """Converts a question into the prompt of this instruction.

        Args:
            text: The human turn in `lang`, or in English for "from_en". `<image>` and a
                response-format prompt stay in place.
            lang: The language that is not English (English is allowed for MVQA).
            direction: "to_en" or "from_en" for BVQA, else None.

        Raises:
            ConfigError: Language or direction is unknown, or English is not allowed.
        """
        self._check(lang, direction)
        return self.write_prompt(text, get_language(lang), direction)

    def format(
        self,
        row: CorpusRow,
        turns: tuple[Turn, ...] | None,
        lang: str,
        direction: str | None = None,
    ) -> Sample:
        """Creates the training sample of a row.

        Args:
            row: The row, with its English turns.
            turns: Turns of the row in `lang`; may be None for English.
            lang: The language that is not English (English is allowed for MVQA).
            direction: "to_en" or "from_en" for BVQA, else None.

        Returns:
            A sample whose `lang` is the language of its *answers* (English for BVQA "to_en"). The
            system text of a template names this language, and losses are reported by it.

        Raises:
            ConfigError: As in `ask`.
            DataError: There are no turns in `lang`, or they do not match the English ones.
        """
        self._check(lang, direction)
        if turns is None and lang == ENGLISH:
            turns = row.turns
        if turns is None or [t.role for t in turns] != [t.role for t in row.turns]:
            found = "none" if turns is None else f"{len(turns)} turns"
            raise DataError(
                f"row {row.id!r}: {self.name} needs accepted text in {lang!r} for its "
                f"{len(row.turns)} turns, found {found}."
            )
        language = get_language(lang)
        spoken = name_images([turn.text for turn in row.turns])
        questions = row.turns if direction == FROM_EN else turns
        answers = row.turns if direction == TO_EN else turns
        made: list[Turn] = []
        for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            if question.role == "human":
                made.append(Turn("human", self.write_prompt(question.text, language, direction)))
                continue
            try:
                text = self.write_reply(spoken[i - 1] if i else "", answer.text, language)
            except DataError as error:
                raise DataError(f"row {row.id!r}, turn {i}, {self.name}: {error}") from error
            made.append(Turn("gpt", text, answer.supervised))
        parts = [lang, self.name, *([direction] if direction else [])]
        return Sample(
            id=row.id if lang == ENGLISH else f"{row.id}@{'.'.join(parts)}",
            image=row.image,
            turns=tuple(made),
            lang=ENGLISH if direction == TO_EN else lang,
            task=row.task,
            source=row.source,
            instruction=self.name,
        )

    def parse(self, reply: str, lang: str) -> ParsedReply:
        """Parses the reply of a model to a prompt of this instruction in `lang`.

        A missing part is reported, never guessed.

        Raises:
            ConfigError: The language is unknown.
        """
        language, reply = get_language(lang), reply.strip()
        if not reply:
            return ParsedReply("", None, False, "empty reply")
        return self.read_reply(reply, language)

    def _check(self, lang: str, direction: str | None) -> None:
        get_language(lang)
        if lang == ENGLISH and not self.allows_english:
            raise ConfigError(
                f"{self.name} pairs English with another language; lang is 'en'. Use mvqa for "
                "English."
            )
        expected = self.directions or (None,)
        if direction not in expected:
            choices = ", ".join(self.directions) or "none"
            raise ConfigError(f"{self.name}: direction is {direction!r}; choose from: {choices}.")


class _Pivot(Instruction):
    """EP-VQA: translate the question into English, then answer."""

    def write_prompt(self, text: str, language: Language, direction: str | None) -> str:
        return insert_instruction(text, language.epvqa_instruction, language.format_prompts)

    def write_reply(self, english_question: str, answer: str, language: Language) -> str:
        """Returns the English question (without image and format prompt) and the answer, marked."""
        english = get_language(ENGLISH)
        question = split_human_text(english_question, english.format_prompts).question.strip()
        if not question:
            raise DataError("the English turn asks nothing that could be translated.")
        separator = "\n" + language.answer_marker
        if separator in question:
            raise DataError(
                f"the English question holds {language.answer_marker!r} at the beginning of a "
                "line; the reply could not be taken apart again. Reword it or set "
                "translatable = false."
            )
        # a full-width colon brings its own space
        gap = "" if language.answer_marker.endswith("\uff1a") else " "
        return f"{language.translation_marker} {question}{separator}{gap}{answer.strip()}"

    def read_reply(self, reply: str, language: Language) -> ParsedReply:
        """Splits a reply at its markers; see `write_reply`.

        A reply without markers is an answer without a translation. A reply that starts a
        translation but has no answer marker, because it was cut off for example, has no answer.
        """
        before, marker, answer = ("\n" + reply).partition("\n" + language.answer_marker)
        before, answer = before.strip(), answer.strip()
        if not reply.startswith(language.translation_marker):
            found = answer if marker and not before else reply
            return ParsedReply(found, None, False, "no translation")
        translation = before[len(language.translation_marker) :].strip()
        if not marker:
            return ParsedReply("", translation or None, False, "no answer marker")
        if not translation or not answer:
            missing = "empty answer" if translation else "empty translation"
            return ParsedReply(answer, translation or None, False, missing)
        return ParsedReply(answer, translation)


class _Bilingual(Instruction):
    """BVQA: question in one language, answer in the other."""

    def write_prompt(self, text: str, language: Language, direction: str | None) -> str:
        """Adds a request, in the question's language, that names the language of the answer.

        MVQA answers the same question in its own language; without the request, the two
        instructions would contradict each other.
        """
        asking = language if direction == TO_EN else get_language(ENGLISH)
        answer_lang = ENGLISH if direction == TO_EN else language.code
        request = answer_request(asking.code, answer_lang)
        return insert_instruction(text, request, asking.format_prompts)


_MVQA = Instruction("mvqa", "question and answer in the same language", allows_english=True)
_EPVQA = _Pivot("epvqa", "translate the question into English first, then answer")
_BVQA = _Bilingual(
    "bvqa", "question in one language, answer in the other, one of them English", (TO_EN, FROM_EN)
)
_INSTRUCTIONS = {instruction.name: instruction for instruction in (_MVQA, _EPVQA, _BVQA)}


def list_instructions() -> tuple[str, ...]:
    """Returns the names of all instructions."""
    return tuple(_INSTRUCTIONS)


def get_instruction(name: str) -> Instruction:
    """Returns an instruction.

    Raises:
        ConfigError: The name is unknown; the choices are listed.
    """
    if name not in _INSTRUCTIONS:
        raise ConfigError(
            f"unknown instruction {name!r}; choose from: {', '.join(list_instructions())}."
        )
    return _INSTRUCTIONS[name]
