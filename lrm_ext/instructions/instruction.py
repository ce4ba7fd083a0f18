"""What a task instruction is: how it asks, what the model answers, how a reply is read back.

Input: a corpus row with its turns in English and in another language. Output: a `Sample` in
LLaVA's shape, or, the other way, the parts of a model's reply. An instruction holds for a whole
conversation: switching languages inside one would train the confusion that we want to avoid.
Which sample gets which instruction is decided in `lrm_ext.mixture`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llava.data.sample import Sample, Turn
from llava.errors import ConfigError, DataError
from lrm_ext.languages.language import Language
from lrm_ext.languages.registry import get_language

if TYPE_CHECKING:
    from lrm_ext.corpus.store import CorpusRow

ENGLISH = "en"
TO_EN = "to_en"
FROM_EN = "from_en"

# (question, the language that is not English, direction) -> the question as the model gets it
Ask = Callable[[str, Language, str | None], str]
# (English question, answer, language) -> the answer as the model is to give it
Reply = Callable[[str, str, Language], str]


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
    """One task instruction.

    Attributes:
        name: Its name in data and on the command line.
        summary: One line for people.
        directions: For BVQA, which of the two languages asks; empty for the others.
        allows_english: Whether it makes sense in English alone.
        ask_rule: See `ask`.
        reply_rule: Turns a plain answer into the supervised reply.
        parse_rule: See `parse`.
    """

    name: str
    summary: str
    directions: tuple[str, ...]
    allows_english: bool
    ask_rule: Ask
    reply_rule: Reply
    parse_rule: Callable[[str, Language], ParsedReply]

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
        return self.ask_rule(text, get_language(lang), direction)

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
        for i, question in enumerate(questions):
            if question.role == "human":
                made.append(Turn("human", self.ask_rule(question.text, language, direction)))
                continue
            text = self._reply(row, i, answers[i].text, language)
            made.append(Turn("gpt", text, answers[i].supervised))
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
        return self.parse_rule(reply, get_language(lang))

    def _reply(self, row: CorpusRow, index: int, answer: str, language: Language) -> str:
        english = row.turns[index - 1].text if index else ""
        try:
            return self.reply_rule(english, answer, language)
        except DataError as error:
            raise DataError(f"row {row.id!r}, turn {index}, {self.name}: {error}") from error

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
