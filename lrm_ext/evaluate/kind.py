"""Decide which answers are right. Pure: questions and texts in, verdicts out.

How an answer is read depends on its question: by yes or no, by the letter of an option, or by
comparing texts. The rules here are the local ones, for any language: a yes/no answer
that does not begin with a yes or a no decides nothing and is wrong. Those of the English scorers
belong to their benchmarks (`mme.py`, `pope.py`, ...), which hand in a judge of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from llava.errors import ConfigError, DataError
from llava.eval.records import without_thinking
from lrm_ext.evaluate.items import Item, RefusedAnswer
from lrm_ext.evaluate.reading import (
    NEUTRAL,
    OTHER,
    UNDECIDED,
    AnswerWords,
    Rule,
    has_words_beside,
    infer_local,
    language_of_prose,
    matches_text,
    parse_yes_no,
    text_key,
    text_language,
)
from lrm_ext.languages.registry import Language

if TYPE_CHECKING:
    from lrm_ext.evaluate.official import Questions, Source

LOCAL: Final = "local"
UNPARSED: Final = frozenset({"other", "unparsed"})
MISSING: Final = "missing"
NUM_SHOWN: Final = 5
_ANSWER: Final = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """What one answer amounts to.

    Attributes:
        key: The question.
        category: Its task.
        answer_type: `yesno`, `text`, `letter` or `caption`.
        gold: The expected answer, as `parsed` would say it.
        parsed: `yes`, `no`, `other`, `unparsed`, a letter, the answer's `text_key`, or `missing`.
        correct: Whether it is the expected answer.
        answer_lang: Its language: a code, `letter` (belongs to none), `undecided` (too short to
            tell) or `other`.
        empty: Whether there was no text at all.
        by_default: It is `yes` only because nothing in it negates.
        ambiguous: A Cyrillic letter was read by its shape and could be another by its place.
        unit: What is drawn as one in a bootstrap: the picture, or the question with its rotations.
        missing: There was no answer; it counts as wrong.
        value: How good it is, 0 to 1, where that is more than right or wrong.
        refused: There was no answer, for a service refused the question; it counts as wrong.
    """

    key: str
    category: str
    answer_type: str
    gold: str
    parsed: str
    correct: bool
    answer_lang: str
    empty: bool
    by_default: bool = False
    ambiguous: bool = False
    unit: str = ""
    missing: bool = False
    value: float | None = None
    refused: bool = False


@dataclass(frozen=True)
class Judgement:
    """How an answer was read; see `Verdict` for the fields."""

    parsed: str
    correct: bool
    answer_lang: str
    by_default: bool = False
    ambiguous: bool = False
    value: float | None = None


@dataclass(frozen=True)
class Reading:
    """What answers in one language are read by.

    Attributes:
        words: How it says yes and no.
        word_letters: Option letters that are words of it.
        native: `text_answers` of the questions in it.
        english: `text_answers` of the English questions.
        english_options: The English options of a question, by its id.
    """

    words: AnswerWords
    word_letters: tuple[str, ...] = ()
    native: frozenset[str] = frozenset()
    english: frozenset[str] = frozenset()
    english_options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def lang(self) -> str:
        """The language's code."""
        return self.words.lang


Judge = Callable[[Item, str, Reading], Judgement]


def gold_of(item: Item, words: AnswerWords) -> str:
    """The expected answer in the form in which answers are compared.

    Raises:
        DataError: The expected answer of a yes/no question is neither in the language nor English,
            or the letter is kept back by the benchmark's owner.
    """
    if item.answer_type in ("text", "caption"):
        return text_key(item.answer)
    if item.answer_type == "letter":
        if not item.answer:
            raise DataError(
                f"question {item.question_id}: its answer is kept back by the benchmark's owner, "
                "so it cannot be scored here; export the answers and upload them there"
            )
        return item.answer
    label = parse_yes_no(item.answer, words).label
    if label not in ("yes", "no"):
        raise DataError(
            f"question {item.question_id} ({item.lang}): the expected answer {item.answer!r} is "
            f"neither yes nor no in the word lists of language {words.lang}"
        )
    return label


def text_answers(items: Sequence[Item]) -> frozenset[str]:
    """Every expected free answer, as `text_key`: what the language of an answer is told by."""
    return frozenset(
        text_key(answer)
        for item in items
        if item.answer_type == "text"
        for answer in (item.answers or (item.answer,))
    )


def final_answer(text: str) -> str:
    """What a model that reasons aloud answers in the end: without its thoughts and answer tags.

    Example:
        >>> final_answer("<think>A or B?</think> So: <answer>B</answer>")
        'B'
    """
    text = without_thinking(text)
    tagged = _ANSWER.findall(text)
    return str(tagged[-1]).strip() if tagged else text


def judge_locally(item: Item, text: str, reading: Reading, rule: Rule = "mme") -> Judgement:
    """Read an answer by the rules for any language.

    Args:
        item: The question.
        text: What the model wrote.
        reading: The language of the question.
        rule: How a yes/no answer is read whose beginning does not decide: `mme` or `pope`.
    """
    text = final_answer(text)
    if item.answer_type == "letter":
        return _judge_letter(item, text, reading)
    if item.answer_type == "yesno":
        answer = parse_yes_no(text, reading.words, rule)
        correct = answer.label == gold_of(item, reading.words)
        lang = yes_no_language(text, reading)
        return Judgement(answer.label, correct, lang, answer.by_default)
    accepted = item.answers or (item.answer,)
    correct = any(matches_text(text, answer) for answer in accepted)
    answer_lang = text_language(
        text, item.answer_lang or item.lang, reading.native, reading.english
    )
    if answer_lang == OTHER:
        answer_lang = _prose_or(text, reading.lang, OTHER)
    return Judgement(text_key(text), correct, answer_lang)


def yes_no_language(text: str, reading: Reading) -> str:
    """Language of a yes/no answer: by a word of the lists, else by the identifier."""
    lang = parse_yes_no(text, reading.words, "pope").answer_lang
    return _prose_or(text, reading.lang, OTHER) if lang == OTHER else lang


def _judge_letter(item: Item, text: str, reading: Reading) -> Judgement:
    choice = infer_local(
        text,
        item.options,
        reading.word_letters,
        reading.words.spaced,
        reading.english_options.get(item.question_id, ()),
    )
    return Judgement(
        choice.letter or "other",
        choice.letter == item.answer,
        option_language(text, choice.by, reading.lang),
        ambiguous=choice.ambiguous,
    )


def option_language(text: str, by: str, lang: str) -> str:
    """Language of an answer to a multiple-choice question.

    Args:
        text: What the model wrote.
        by: What told the option: `letter`, `text`, `english` or "" (see `Choice`).
        lang: The language that was asked in.
    """
    if has_words_beside(text, 1):
        found = _prose_or(text, lang, "")
        if found:
            return found
    if by == "letter" or not any(character.isalpha() for character in text):
        return NEUTRAL if text.strip() else OTHER
    return {"text": lang, "english": "en"}.get(by, UNDECIDED)


def prose_language(text: str, reading: Reading) -> str:
    """Language of free text: by the identifier, or `undecided`."""
    return language_of_prose(text, reading.lang) if text.strip() else OTHER


def _prose_or(text: str, lang: str, otherwise: str) -> str:
    found = language_of_prose(text, lang)
    return otherwise if found == UNDECIDED else found


def score_answers(
    items: Sequence[Item],
    texts: Mapping[str, str],
    words: AnswerWords,
    native: Collection[str],
    english: Collection[str],
) -> list[Verdict]:
    """Score the answers to questions in one language by the local rules.

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
    reading = Reading(words, native=frozenset(native), english=frozenset(english))
    return judge_answers(items, texts, reading, judge_locally)


def judge_answers(
    items: Sequence[Item],
    texts: Mapping[str, str],
    reading: Reading,
    judge: Judge,
    allow_missing: bool | Collection[str] = False,
) -> list[Verdict]:
    """Score the answers to questions in one language.

    Args:
        items: The questions.
        texts: The answers by question id; answers to other questions are left alone.
        reading: What answers in the language are read by.
        judge: The rule.
        allow_missing: A question without an answer is wrong, not an error: any, or these.

    Returns:
        One verdict per question, in the order of `items`.

    Raises:
        DataError: A question has no answer: nothing is dropped from a denominator.
    """
    excused = () if isinstance(allow_missing, bool) else allow_missing
    missing = [
        item.question_id
        for item in items
        if item.question_id not in texts and item.question_id not in excused
    ]
    if missing and allow_missing is not True:
        shown = ", ".join(missing[:NUM_SHOWN]) + ("..." if len(missing) > NUM_SHOWN else "")
        raise DataError(
            f"{len(missing)} of {len(items)} questions in language {reading.lang} have no answer "
            f"({shown}); run `lrm eval` again, it answers what is missing (or count them as wrong: "
            "`lrm benchmark score --allow-missing`)"
        )
    return [_verdict(item, texts.get(item.question_id), reading, judge) for item in items]


def _verdict(item: Item, text: str | None, reading: Reading, judge: Judge) -> Verdict:
    gold = gold_of(item, reading.words)
    refused = isinstance(text, RefusedAnswer)
    if text is None or refused:
        found = Judgement(MISSING, False, MISSING)
    else:
        found = judge(item, text, reading)
    return Verdict(
        key=item.question_id,
        category=item.category,
        answer_type=item.answer_type,
        gold=gold,
        parsed=found.parsed,
        correct=found.correct,
        answer_lang=found.answer_lang,
        empty=text is not None and not refused and not text.strip(),
        by_default=found.by_default,
        ambiguous=found.ambiguous,
        unit=item.unit,
        missing=text is None,
        value=found.value,
        refused=refused,
    )


Array = NDArray[np.float64]


@dataclass(frozen=True)
class UnitCounts:
    """The counts that a score is computed from.

    Attributes:
        units: Names, sorted.
        strata: Of each unit: units are drawn within their stratum.
        counts: [U, K], in the columns that `combine` expects.
        combine: From sums over units [..., K] to scores [...], in the paper's unit.
    """

    units: tuple[str, ...]
    strata: tuple[str, ...]
    counts: Array
    combine: Callable[[Array], Array]

    def score(self) -> float:
        """The score itself."""
        return float(self.combine(self.counts.sum(axis=0)))


@dataclass(frozen=True)
class Kind:
    """A benchmark's rules.

    Attributes:
        name: As on the command line.
        title: As people call it.
        headline: What the number in the paper's tables is.
        maximum: The best possible headline of the whole benchmark.
        answer_type: Of its questions.
        modes: Judges by mode; `local` is for any language.
        outcomes: Whether each question is right, where a question is more than one verdict.
        aliases: Modes that are the same as another.
        default_mode: For English; other languages are read by `local`.
        refused: Modes that cannot be had from texts, and why.
        prompt: From question, hint, options and language to what the model is asked.
        check: Refuses questions that do not belong together as they must; its second argument
            says whether missing ones are allowed (they count as wrong).
        count: From verdicts (and items beside them, and the mode) to counts.
        details: All other figures, by name, from the same arguments.
        skipped: Questions that must exist beside some that were answered, where the answers are
            all that is known.
        read: Reads its official files; None for a kind that mapping files use.
    """

    name: str
    title: str
    headline: str
    maximum: float
    answer_type: str
    modes: Mapping[str, Judge]
    default_mode: str
    prompt: Callable[[str, str, Sequence[str], Language], str]
    check: Callable[[Sequence[Item], bool], int]
    count: Callable[[Sequence[Item], Sequence[Verdict], str], UnitCounts]
    details: Callable[[Sequence[Item], Sequence[Verdict], str], dict[str, Any]]
    outcomes: Callable[[Sequence[Item], Sequence[Verdict]], dict[str, bool]] | None = None
    skipped: Callable[[Sequence[Item]], list[Item]] = lambda items: []
    read: Callable[[Source], Questions] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def right_by_question(
        self, items: Sequence[Item], verdicts: Sequence[Verdict]
    ) -> dict[str, bool]:
        """Whether each question is right, by its id."""
        if self.outcomes is not None:
            return self.outcomes(items, verdicts)
        return {verdict.key: verdict.correct for verdict in verdicts}

    def mode_for(self, lang: str, wanted: str | None = None) -> str:
        """The mode in which answers in a language are read.

        Args:
            lang: Language of the questions.
            wanted: What the user asked for.

        Raises:
            ConfigError: There is no such mode, or it needs more than texts.
        """
        mode = wanted or (self.default_mode if lang == "en" else LOCAL)
        mode = self.aliases.get(mode, mode)
        if mode in self.refused:
            raise ConfigError(f"{self.name} cannot be scored in mode {mode}: {self.refused[mode]}")
        if mode not in self.modes:
            known = ", ".join(dict.fromkeys((*self.modes, *self.aliases)))
            raise ConfigError(f"{self.name} has no mode {mode!r}; choose from {known}")
        return mode


def pair_up(items: Sequence[Item], verdicts: Sequence[Verdict]) -> list[tuple[Item, Verdict]]:
    """Items with their verdicts; our own mistake if they differ in number."""
    return list(zip(items, verdicts, strict=True))


def gather(
    rows: Sequence[tuple[str, str, Mapping[int, float]]],
    num_columns: int,
    combine: Callable[[Array], Array],
) -> UnitCounts:
    """Sum contributions by unit.

    Args:
        rows: (unit, stratum, amount by column) of each question.
        num_columns: K.
        combine: See `UnitCounts`.
    """
    strata: dict[str, str] = {}
    for unit, stratum, _ in rows:
        strata[unit] = stratum
    units = sorted(strata)
    place = {unit: number for number, unit in enumerate(units)}
    counts = np.zeros((len(units), num_columns))
    for unit, _, amounts in rows:
        for column, amount in amounts.items():
            counts[place[unit], column] += amount
    return UnitCounts(tuple(units), tuple(strata[unit] for unit in units), counts, combine)


def count_accuracy(
    items: Sequence[Item], verdicts: Sequence[Verdict], mode: str = LOCAL
) -> UnitCounts:
    """Counts of right answers; the score is their share, in percent."""
    rows = [(v.unit, "", {0: float(v.correct), 1: 1.0}) for v in verdicts]
    return gather(rows, 2, percentage)


def percentage(sums: Array) -> Array:
    """From (right, all) to percent."""
    result: Array = 100.0 * sums[..., 0] / sums[..., 1]
    return result


def share(verdicts: Sequence[Verdict]) -> float:
    """Share of right answers."""
    return sum(verdict.correct for verdict in verdicts) / len(verdicts)


def by_category(items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """Verdicts by category, in the order in which categories occur."""
    groups: dict[str, list[Verdict]] = {}
    for item, verdict in pair_up(items, verdicts):
        groups.setdefault(item.category, []).append(verdict)
    return groups


def refuse_golds(items: Sequence[Item], allowed: Sequence[str], name: str) -> None:
    """Demand that every expected answer is one of a few.

    Raises:
        DataError: One is not.
    """
    for item in items:
        if item.answer not in allowed and item.answer:
            raise DataError(
                f"{name}: question {item.question_id}: the expected answer is {item.answer!r}; "
                f"expected one of {', '.join(allowed)}"
            )
