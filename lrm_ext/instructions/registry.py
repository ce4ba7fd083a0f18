"""The paper's three instructions (its equations 6 to 8): format a sample, ask, read a reply.

`mvqa`: question and answer in one language. `epvqa`: the model first translates the question into
English, then answers. `bvqa`: question in one language, answer in the other, one of them English.
All wording is in the language files; here is only the order of the parts. To add an instruction,
derive a class from `Instruction` and add it to `_INSTRUCTIONS`.

Input: a corpus row with its turns in English and in another language. Output: a `Sample` in
LLaVA's shape, or, the other way, the parts of a model's reply. An instruction holds for a whole
conversation: switching languages inside one would train the confusion that we want to avoid.
Which sample gets which instruction is decided in `lrm_ext.mixture`.

A human turn is, in this order: `<image>` (or at the very end), the question, a response-format
prompt such as "Answer the question using a single word or phrase." The format prompt stays last,
as LLaVA trains it, so an instruction goes before it; the image stays where it was.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llava.data.sample import Sample, Turn
from llava.errors import ConfigError, DataError
from lrm_ext.languages.registry import Language, get_language

if TYPE_CHECKING:
    from lrm_ext.corpus.store import CorpusRow

_HUMAN_TURN = re.compile(r"(<image>\n?|)(.*?)(\n?<image>|)", re.DOTALL)
ENGLISH = "en"
TO_EN = "to_en"
FROM_EN = "from_en"


@dataclass(frozen=True)
class HumanText:
    """The parts of a human turn; `str()` puts them together again.

    Attributes:
        head: `<image>` with its newline if the turn begins with it, else "".
        question: What is asked; may have several lines.
        format_prompt: The response-format prompt, "" if there is none.
        tail: `<image>` with the newline before it if the turn ends with it, else "".
    """

    head: str
    question: str
    format_prompt: str
    tail: str

    def __str__(self) -> str:
        lines = [part for part in (self.question, self.format_prompt) if part]
        return self.head + "\n".join(lines) + self.tail


def split_human_text(text: str, format_prompts: Collection[str]) -> HumanText:
    r"""Take a human turn apart.

    Args:
        text: The turn's text.
        format_prompts: The response-format prompts of the turn's language. One is recognised only
            if it is the whole last line and something is asked before it.

    Example:
        >>> split_human_text("<image>\nA duck?\nYes or no.", ["Yes or no."]).question
        'A duck?'
    """
    match = _HUMAN_TURN.fullmatch(text)
    assert match is not None  # it fits every text
    head, body, tail = match.groups()
    question, newline, last = body.rpartition("\n")
    if newline and question and last in format_prompts:
        return HumanText(head, question, last, tail)
    return HumanText(head, body, "", tail)


def insert_instruction(text: str, instruction: str, format_prompts: Collection[str]) -> str:
    r"""Put an instruction on its own line after the question, before a response-format prompt.

    Example:
        >>> insert_instruction("<image>\nA duck?\nOne word.", "In Czech.", ["One word."])
        '<image>\nA duck?\nIn Czech.\nOne word.'
    """
    parts = split_human_text(text, format_prompts)
    question = f"{parts.question}\n{instruction}" if parts.question else instruction
    return str(replace(parts, question=question))


@dataclass(frozen=True)
class ParsedReply:
    """A model's reply, read by the rules of the instruction that asked for it.

    Attributes:
        answer: The answer; "" if the reply has none.
        translation: The question in English (EP-VQA only), None if the reply has none.
        well_formed: Whether all parts were found where they must be.
        problem: What is wrong, for counting; None if well formed.
    """

    answer: str
    translation: str | None = None
    well_formed: bool = True
    problem: str | None = None


@dataclass(frozen=True)
class Instruction:
    """A task instruction; this class keeps question and answer as they are, as MVQA does.

    Another instruction overrides `_ask`, `_reply` or `_parse`.

    Attributes:
        name: Its name in data and on the command line.
        summary: One line for people.
        directions: For BVQA, which of the two languages asks; empty for the others.
        allows_english: Whether it makes sense in English alone.
    """

    name: str
    summary: str
    directions: tuple[str, ...] = ()
    allows_english: bool = False

    def _ask(self, text: str, language: Language, direction: str | None) -> str:
        """Return a question as the model gets it; `language` is the one that is not English."""
        return text

    def _reply(self, english_question: str, answer: str, language: Language) -> str:
        """Return an answer as the model is to give it.

        Raises:
            DataError: The instruction cannot be used for this question.
        """
        return answer

    def _parse(self, reply: str, language: Language) -> ParsedReply:
        """Read a reply; blanks around it are gone, and it is not empty."""
        return ParsedReply(reply)

    def ask(self, text: str, lang: str, direction: str | None = None) -> str:
        """Turn a question into the prompt that this instruction trains.

        Args:
            text: The human turn in the question's language: `lang`, or English with "from_en".
                `<image>` and a response-format prompt stay where they are.
            lang: The language that is not English (or English, for MVQA).
            direction: "to_en" or "from_en" for BVQA, else None.

        Raises:
            ConfigError: Unknown language or direction, or English where it makes no sense.
        """
        self._check(lang, direction)
        return self._ask(text, get_language(lang), direction)

    def format(
        self,
        row: CorpusRow,
        turns: tuple[Turn, ...] | None,
        lang: str,
        direction: str | None = None,
    ) -> Sample:
        """Make the training sample of a row.

        Args:
            row: The row, with its English turns.
            turns: The row's turns in `lang`; for English the row's own, or None.
            lang: The language that is not English (or English, for MVQA).
            direction: "to_en" or "from_en" for BVQA, else None.

        Returns:
            A sample whose `lang` is the language of its *answers* (English for BVQA "to_en"):
            the one that a template's system sentence states and that losses are reported by.

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
        questions = row.turns if direction == FROM_EN else turns
        answers = row.turns if direction == TO_EN else turns
        made: list[Turn] = []
        for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            if question.role == "human":
                made.append(Turn("human", self._ask(question.text, language, direction)))
                continue
            try:
                text = self._reply(row.turns[i - 1].text if i else "", answer.text, language)
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
        """Read a model's reply to a prompt of this instruction in `lang`.

        A part that is missing is reported, never guessed.

        Raises:
            ConfigError: Unknown language.
        """
        language, reply = get_language(lang), reply.strip()
        if not reply:
            return ParsedReply("", None, False, "empty reply")
        return self._parse(reply, language)

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
    """EP-VQA."""

    def _ask(self, text: str, language: Language, direction: str | None) -> str:
        return insert_instruction(text, language.epvqa_instruction, language.format_prompts)

    def _reply(self, english_question: str, answer: str, language: Language) -> str:
        """The English question without image and format prompt, then the answer, both marked."""
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
        gap = " " if language.spaced else ""
        return f"{language.translation_marker} {question}{separator}{gap}{answer.strip()}"

    def _parse(self, reply: str, language: Language) -> ParsedReply:
        """Split a reply at its markers; see `_reply`.

        A reply with neither marker is an answer given without the translation. One that begins a
        translation and never comes to the answer (cut off, say) has no answer.
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
    """BVQA."""

    def _ask(self, text: str, language: Language, direction: str | None) -> str:
        """Name the answer language in the question's language.

        The same question is answered in its own language by MVQA: without the name the two would
        contradict each other.
        """
        asking = language if direction == TO_EN else get_language(ENGLISH)
        answer_lang = ENGLISH if direction == TO_EN else language.code
        return insert_instruction(text, asking.answer_in[answer_lang], asking.format_prompts)


_MVQA = Instruction("mvqa", "question and answer in the same language", allows_english=True)
_EPVQA = _Pivot("epvqa", "translate the question into English first, then answer")
_BVQA = _Bilingual(
    "bvqa", "question in one language, answer in the other, one of them English", (TO_EN, FROM_EN)
)
_INSTRUCTIONS = {instruction.name: instruction for instruction in (_MVQA, _EPVQA, _BVQA)}


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
