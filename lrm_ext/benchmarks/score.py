"""Decide which answers are right (mode `local`). Pure: questions and texts in, verdicts out.

A yes/no question is read strictly (rule `mme`): an answer that does not begin with a yes or a no
decides nothing and is wrong. Any other answer must equal the expected one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llava.errors import DataError
from lrm_ext.benchmarks.items import Item
from lrm_ext.benchmarks.parse import (
    AnswerWords,
    matches_text,
    parse_yes_no,
    text_key,
    text_language,
)

MODE: Final = "local"


@dataclass(frozen=True)
class Verdict:
    """What one answer amounts to.

    Attributes:
        key: The question.
        category: Its task.
        answer_type: `yesno` or `text`.
        gold: The expected answer, as `parsed` would say it.
        parsed: `yes`, `no`, `other`, or the answer's `text_key`.
        correct: Whether it is the expected answer.
        answer_lang: Its language: a code, `letter` (belongs to none) or `other`.
        empty: Whether there was no text at all.
    """

    key: str
    category: str
    answer_type: str
    gold: str
    parsed: str
    correct: bool
    answer_lang: str
    empty: bool


def gold_of(item: Item, words: AnswerWords) -> str:
    """The expected answer in the form in which answers are compared.

    Raises:
        DataError: The expected answer of a yes/no question is neither in the language nor English.
    """
    if item.answer_type == "text":
        return text_key(item.answer)
    label = parse_yes_no(item.answer, words).label
    if label not in ("yes", "no"):
        raise DataError(
            f"question {item.question_id} ({item.lang}): the expected answer {item.answer!r} is "
            f"neither yes nor no in the word lists of language {item.lang}"
        )
    return label


def text_answers(items: Sequence[Item]) -> frozenset[str]:
    """Every expected free answer, as `text_key`: what the language of an answer is told by."""
    return frozenset(text_key(item.answer) for item in items if item.answer_type == "text")


def score_answers(
    items: Sequence[Item],
    texts: Mapping[str, str],
    words: AnswerWords,
    native: Collection[str],
    english: Collection[str],
) -> list[Verdict]:
    """Score the answers to questions in one language.

    Args:
        items: The questions.
        texts: The answers by question id; answers to other questions are left alone.
        words: How the language says yes and no.
        native: `text_answers` of the language.
        english: `text_answers` of English.

    Returns:
        One verdict per question, in the order of `items`.

    Raises:
        DataError: A question has no answer: nothing is dropped from a denominator.
    """
    if missing := [item.question_id for item in items if item.question_id not in texts]:
        raise DataError(
            f"{len(missing)} of {len(items)} questions in language {words.lang} have no answer "
            f"({', '.join(missing[:5])}...); run `lrm eval` again, it answers what is missing"
        )
    return [_verdict(item, texts[item.question_id], words, native, english) for item in items]


def _verdict(
    item: Item,
    text: str,
    words: AnswerWords,
    native: Collection[str],
    english: Collection[str],
) -> Verdict:
    gold = gold_of(item, words)
    if item.answer_type == "yesno":
        answer = parse_yes_no(text, words)
        parsed, answer_lang, correct = answer.label, answer.answer_lang, answer.label == gold
    else:
        parsed, correct = text_key(text), matches_text(text, item.answer)
        answer_lang = text_language(text, item.lang, native, english)
    return Verdict(
        key=item.question_id,
        category=item.category,
        answer_type=item.answer_type,
        gold=gold,
        parsed=parsed,
        correct=correct,
        answer_lang=answer_lang,
        empty=not text.strip(),
    )
