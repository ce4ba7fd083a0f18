"""One question of a benchmark, and how a file of them is read and checked.

In: JSON Lines, one question a line. Out: frozen `Item`s in file order. A line that is not as it
must be is an error with its file and line. Pictures are not opened here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from llava.errors import DataError
from llava.eval.records import OPTION_LETTERS, read_json_lines
from lrm_ext.languages.registry import Language

ANSWER_TYPES: Final = ("yesno", "text", "letter", "caption")
FIELDS: Final = ("question_id", "image", "text", "category", "answer", "lang", "answer_type")
OPTIONAL_TEXTS: Final = ("question", "hint", "group", "image_id", "source_id", "supercategory")
OPTIONAL_LISTS: Final = ("options", "answers")
LETTERS: Final = OPTION_LETTERS


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        question_id: Unique within its file; the same question has the same id in every language.
        image: Picture path as in the file, relative to the benchmark's picture folder.
        text: What the model is asked, without an image token.
        category: The task that it belongs to.
        answer: The expected answer in `lang`; a letter where there are options. Empty where the
            owner of the benchmark keeps the letters back: such a question can be asked, not scored.
        lang: Language code of the question.
        answer_type: `yesno`, `text`, `letter` or `caption`.
        options: Texts of the options A, B, ...
        answers: Every accepted answer of a free question, where there are several.
        question: The question alone, where `text` has options and an instruction, too.
        hint: What is said before the question.
        group: What the rotations of one question share.
        image_id: What questions on the same picture share; `image` if empty.
        source_id: Its id in the benchmark's own files, where that is not unique.
        supercategory: The group of categories that its category belongs to.
        answer_lang: Language that the answer is expected in; `lang` if empty.
    """

    question_id: str
    image: str
    text: str
    category: str
    answer: str
    lang: str
    answer_type: str
    options: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    question: str = ""
    hint: str = ""
    group: str = ""
    image_id: str = ""
    source_id: str = ""
    supercategory: str = ""
    answer_lang: str = ""

    @property
    def unit(self) -> str:
        """What is drawn as one in a bootstrap: the picture, else the question."""
        return self.image_id or self.image or self.group or self.question_id

    def lettered(self) -> dict[str, str]:
        """Option texts by letter."""
        return dict(zip(LETTERS, self.options, strict=False))

    def to_record(self) -> dict[str, Any]:
        """The line of a question file; optional fields only where they say something."""
        values = {key: value for key, value in asdict(self).items() if value or key in FIELDS}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: str) -> Item:
        """Check one decoded line.

        Args:
            record: The JSON object; further keys are left alone.
            where: `file:line`, for messages.

        Raises:
            DataError: A field is missing, empty, not text, or `answer_type` is unknown.
        """
        name = f"{where}: question {record.get('question_id', '?')}"
        if missing := [field for field in FIELDS if field not in record]:
            raise DataError(f"{name}: {', '.join(missing)} missing; expected {', '.join(FIELDS)}")
        values = {field: record[field] for field in FIELDS}
        if isinstance(values["question_id"], int):
            values["question_id"] = str(values["question_id"])
        for field, value in values.items():
            hidden = field == "answer" and record["answer_type"] == "letter" and value == ""
            if not isinstance(value, str) or not (value.strip() or hidden):
                raise DataError(f"{name}: {field} is {value!r}; expected text that is not empty")
        if values["answer_type"] not in ANSWER_TYPES:
            raise DataError(
                f"{name}: answer_type is {values['answer_type']!r}; "
                f"expected one of {', '.join(ANSWER_TYPES)}"
            )
        if "<image>" in values["text"]:
            raise DataError(
                f"{name}: the text holds <image>; the picture is named by `image` alone"
            )
        item = cls(**values, **_optional(record, name))
        if item.answer_type == "letter":
            check_options(item, name)
        return item


def _optional(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in (*OPTIONAL_TEXTS, "answer_lang"):
        values[field] = record.get(field, "")
        if not isinstance(values[field], str):
            raise DataError(f"{name}: {field} is {values[field]!r}; expected text")
    for field in OPTIONAL_LISTS:
        found = record.get(field, [])
        if not isinstance(found, list) or not all(isinstance(t, str) and t.strip() for t in found):
            raise DataError(f"{name}: {field} is {found!r}; expected a list of texts")
        values[field] = tuple(found)
    return values


def check_options(item: Item, name: str) -> None:
    """Refuse a multiple-choice question that cannot be answered.

    Raises:
        DataError: There are too few options or too many, or the letter names none of them.
    """
    if not 2 <= len(item.options) <= len(LETTERS):
        raise DataError(f"{name}: {len(item.options)} options; expected 2 to {len(LETTERS)}")
    if item.answer and item.answer not in LETTERS[: len(item.options)]:
        raise DataError(
            f"{name}: the answer is {item.answer!r}; "
            f"expected one of {', '.join(LETTERS[: len(item.options)])}"
        )


REFUSED_REASON: Final = "refused"  # `finish_reason` of a question that a service refused


class RefusedAnswer(str):
    """The text of a question that a service refused: empty, but no empty answer.

    It is a string because whoever shows or exports answers has nothing else to do about it; what
    scores them counts it, and never reads a yes or a no into its emptiness.
    """

    __slots__ = ()


def text_of(record: Mapping[str, Any], text: str) -> str:
    """The text of a recorded answer, told apart where the question was refused."""
    return RefusedAnswer() if record.get("finish_reason") == REFUSED_REASON else text


def read_items(path: Path, lang: str) -> list[Item]:
    """Read the questions of one language.

    Raises:
        DataError: The file is missing or empty, a line is wrong, an id occurs twice, or a question
            is marked with another language.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected the questions in language {lang}")
    items: list[Item] = []
    seen: dict[str, str] = {}
    for where, record in read_json_lines(path):
        item = Item.from_record(record, where)
        if item.lang != lang:
            raise DataError(
                f"{where}: question {item.question_id}: lang is {item.lang}, expected {lang}"
            )
        if item.question_id in seen:
            raise DataError(
                f"{where}: question {item.question_id}: "
                f"{seen[item.question_id]} has this id already"
            )
        seen[item.question_id] = where
        items.append(item)
    if not items:
        raise DataError(f"{path}: no questions in it")
    return items


def limit_items(items: Sequence[Item], limit: int | None) -> list[Item]:
    """Take about `limit` questions: whole pictures, the same ones in every language.

    Pictures are taken in the order of a hash of their path, so that a file that is sorted by task
    still gives every task; the questions stay in file order.

    Args:
        items: All questions.
        limit: How many are wanted at least; None for all.
    """
    if limit is None or limit >= len(items):
        return list(items)
    per_image: dict[str, int] = {}
    for item in items:
        per_image[item.image] = per_image.get(item.image, 0) + 1
    chosen: set[str] = set()
    num_items = 0
    for image in sorted(per_image, key=lambda image: hashlib.sha256(image.encode()).digest()):
        if num_items >= limit:
            break
        chosen.add(image)
        num_items += per_image[image]
    return [item for item in items if item.image in chosen]


LLAVA: Final = "llava"
QUESTION: Final = "question"
PROMPT_STYLES: Final = {
    LLAVA: "question, options and request, as LLaVA asks",
    QUESTION: "the question alone, for models that were never trained on those requests",
}


def short_answer_prompt(
    question: str, hint: str, options: Sequence[str], language: Language
) -> str:
    """The question and LLaVA's request for a short answer, in its language."""
    return f"{question}\n{language.short_answer}"


def option_prompt(question: str, hint: str, options: Sequence[str], language: Language) -> str:
    """Hint, question, lettered options and LLaVA's request for a letter, in its language."""
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)]
    first = [hint] if hint else []
    return "\n".join([*first, question, *lines, language.option_letter])


def prompt_for(question: str, hint: str, options: Sequence[str], language: Language) -> str:
    """LLaVA's prompt for a question with options, or without."""
    make = option_prompt if options else short_answer_prompt
    return make(question, hint, options, language)
