"""A question taken apart into texts to translate, and put together again in another language.

Input: an English `Item`. Output: a plan of the corpus' kind (`translation/segment.py`), whose turns
are the question's texts, and then the `Item` in the language. Options and answers know the question
that they belong to; letters, yes and no, categories and pictures stay; the request at the end is
looked up in the language's file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.sample import Turn
from llava.errors import DataError
from lrm_ext.benchmarks.items import Item
from lrm_ext.benchmarks.kind import Kind
from lrm_ext.benchmarks.prompts import prompt_for
from lrm_ext.corpus.store import ENGLISH, CorpusRow, Text
from lrm_ext.languages.registry import Language, answer_request, get_language
from lrm_ext.translation.segment import Given, RowPlan, plan_row

HINT: Final = "hint"
QUESTION: Final = "question"
TEXT: Final = "text"
_ASKED: Final = (HINT, QUESTION, TEXT)
# Of these an expected answer is text in the language; of the others it is a letter, yes or no.
_FREE: Final = ("text", "caption")

# From question, hint, options and language to what the model is asked.
Prompt = Callable[[str, str, Sequence[str], Language], str]


class Field(NamedTuple):
    """One text of a question.

    Attributes:
        name: hint, question, text, "option A", ..., "answer 1", ...
        text: What it is in English.
        asked: The question that it belongs to; empty for the question itself.
    """

    name: str
    text: str
    asked: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What is translated once: rotations of a question share it."""
        return self.text, self.asked


@dataclass(frozen=True)
class Parts:
    """A question taken apart.

    Attributes:
        item: The question in English.
        fields: Its texts, each a turn of `plan`.
        plan: What the translator is given.
        prompt: How the prompt is made; None where it is none of ours, so that all of it is
            translated as `text`.
    """

    item: Item
    fields: tuple[Field, ...]
    plan: RowPlan
    prompt: Prompt | None


def take_apart(
    item: Item, kind: Kind, target: str, corrections: Mapping[tuple[str, str], str]
) -> Parts:
    """Take a question apart.

    Args:
        item: The question in English.
        kind: Its benchmark's rules.
        target: Code of the language to translate into.
        corrections: What people wrote, by `Field.key`: no engine is asked for it.
    """
    prompt = _prompt_of(item, kind)
    fields = fields_of(item)
    if prompt is None and item.question:
        fields = (*fields, Field(TEXT, item.text))
    turns = tuple(Turn("human" if f.name in _ASKED else "gpt", f.text) for f in fields)
    row = CorpusRow(item.question_id, None, None, item.category, True, turns)
    plan = plan_row(row, target)
    parts = tuple(
        (Given(corrections[field.key]),) if field.key in corrections else turn
        for field, turn in zip(fields, plan.turns, strict=True)
    )
    return Parts(item, fields, plan._replace(turns=parts), prompt)


def fields_of(item: Item) -> tuple[Field, ...]:
    """The texts of a question that are translated: those that people review, too."""
    question = item.question or item.text
    fields = [Field(HINT, item.hint)] if item.hint else []
    fields.append(Field(QUESTION, question))
    fields += [
        Field(f"option {letter}", text, question) for letter, text in item.lettered().items()
    ]
    if item.answer_type in _FREE and not item.answer_lang:
        texts = dict.fromkeys((item.answer, *item.answers))
        fields += [Field(f"answer {i}", text, question) for i, text in enumerate(texts, 1)]
    return tuple(fields)


def _prompt_of(item: Item, kind: Kind) -> Prompt | None:
    """How the prompt was made, found by making it again in English."""
    english = get_language(ENGLISH)
    answered_in_english: tuple[Prompt, ...] = (_in_english,) if item.answer_lang == ENGLISH else ()
    for make in (_plain, *answered_in_english, kind.prompt, prompt_for, _with_hint):
        if make(item.question or item.text, item.hint, item.options, english) == item.text:
            return make
    return None


def _plain(question: str, hint: str, options: Sequence[str], language: Language) -> str:
    return f"{hint}\n{question}" if hint else question


def _with_hint(question: str, hint: str, options: Sequence[str], language: Language) -> str:
    return f"{_plain(question, hint, options, language)}\n{language.short_answer}"


def _in_english(question: str, hint: str, options: Sequence[str], language: Language) -> str:
    """Of a set whose answers are English in every language; there, English needs no request."""
    request = "" if language.code == ENGLISH else f"{answer_request(language.code, ENGLISH)}\n"
    return f"{_plain(question, hint, options, language)}\n{request}{language.short_answer}"


def put_together(parts: Parts, text: Text, target: str) -> tuple[Item, int]:
    """The question in the language.

    Args:
        parts: The question taken apart.
        text: What became of the plan.
        target: Code of the language.

    Returns:
        The question, and how many of its options got their English behind them because they were
        the same as another one.

    Raises:
        DataError: A text holds an image token.
    """
    item, language = parts.item, get_language(target)
    values: dict[str, str] = {}
    for field, turn in zip(parts.fields, text.turns, strict=True):
        values[field.name] = turn.text
        if DEFAULT_IMAGE_TOKEN in values[field.name]:
            raise DataError(
                f"question {item.question_id}: {field.name} holds {DEFAULT_IMAGE_TOKEN} in "
                f"{target}; the picture is named by `image` alone. Correct it"
            )
    names = [f"option {letter}" for letter in item.lettered()]
    options, num_doubled = _told_apart([values[name] for name in names], item.options)
    asked = values.get(TEXT) or values[QUESTION]
    if parts.prompt is not None:
        asked = parts.prompt(values[QUESTION], values.get(HINT, ""), options, language)
    free = {f.text: values[f.name] for f in parts.fields if f.name.startswith("answer ")}
    made = replace(
        item,
        text=asked,
        lang=target,
        options=options,
        question=values[QUESTION] if item.question else "",
        hint=values.get(HINT, ""),
        answer=free.get(item.answer, item.answer),
        answers=tuple(free.get(answer, answer) for answer in item.answers),
    )
    return made, num_doubled


def _told_apart(texts: Sequence[str], english: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """Options that are the same in the language, and were not in English, get that behind them."""
    groups: dict[str, set[str]] = {}
    for text, source in zip(texts, english, strict=True):
        groups.setdefault(text.strip().casefold(), set()).add(source.strip().casefold())
    told: list[str] = []
    num = 0
    for text, source in zip(texts, english, strict=True):
        is_same = len(groups[text.strip().casefold()]) > 1
        told.append(f"{text} ({source})" if is_same else text)
        num += is_same
    return tuple(told), num
