"""Judges answers by the rules of a kind of benchmark: questions and texts in, verdicts out.

How an answer is read depends on its question: by yes or no, by the letter of an option, or by
comparing texts. The rules here are the local ones, for any language: a yes/no answer
that does not begin with a yes or a no decides nothing and is wrong. The rules of the English
scorers belong to their benchmarks (`mme.py`, `pope.py`, ...).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import regex
from numpy.typing import NDArray

from llava.errors import ConfigError, DataError
from llava.eval.records import without_thinking
from lrm_ext.evaluate.items import Item, RefusedAnswer, check_options
from lrm_ext.evaluate.reading import (
    NEUTRAL,
    OTHER,
    AnswerWords,
    Rule,
    infer_local,
    last_numbers,
    matches_text,
    normalise,
    parse_yes_no,
    text_key,
    text_language,
    words_of,
)
from lrm_ext.languages.identification import confusable, identify, probabilities
from lrm_ext.languages.registry import default_languages, list_languages

if TYPE_CHECKING:
    from lrm_ext.evaluate.official import Files

LOCAL: Final = "local"
OFFICIAL: Final = "official"
JUDGE: Final = "judge:"
"""Begins the modes of a judge, `judge:RUBRIC:MODEL`: no rule reads those, verdicts are stored."""
UNDECIDED_REPLY: Final = "undecided: "  # and why a reply of a judge decides nothing
PAIR_OUTCOMES: Final = ("win", "loss", "tie", "flip")
"""Of an answer against another; a flip is a tie, because the judge changes with their order."""
UNPARSED: Final = frozenset({"other", "unparsed"})
MISSING: Final = "missing"
NUM_SHOWN: Final = 5
UNDECIDED: Final = "undecided"  # an answer too short to tell its language
MIN_WORDS: Final = 4
MIN_LETTERS_UNSPACED: Final = 6
_LETTER: Final = regex.compile(r"(?=\w)\X")  # with its marks
_UNSPACED: Final = re.compile("[\u2e80-\u9fff\u0e00-\u0e7f]")  # Chinese, Japanese, Thai
# What says nothing about the language of an answer.
SILENT: Final = frozenset({NEUTRAL, UNDECIDED, MISSING})
_ANSWER: Final = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Judgement:
    """The reading of an answer.

    Attributes:
        parsed: `yes`, `no`, `other`, `unparsed`, a letter, the answer's `text_key`, or `missing`.
        correct: Whether it is the expected answer.
        answer_lang: Its language: a code, `letter` (belongs to none), `undecided` (too short to
            tell) or `other`.
        by_default: It is `yes` only because nothing in it negates.
        ambiguous: A Cyrillic letter was read by its shape and could be another by its place.
        value: How good it is, 0 to 1, if that is more than right or wrong.
        guessed: It could not be read, and an owner's rule guessed a letter.
    """

    parsed: str
    correct: bool
    answer_lang: str
    by_default: bool = False
    ambiguous: bool = False
    value: float | None = None
    guessed: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict(Judgement):
    """The judgement on the answer to a question, and what was expected.

    Attributes:
        key: The question.
        category: Its task.
        answer_type: `yesno`, `text`, `letter`, `caption` or `number`.
        gold: The expected answer, as `parsed` would say it.
        empty: Whether there was no text at all.
        unit: The unit of the bootstrap: the image, or the question with its rotations.
        missing: There was no answer; it counts as wrong.
        refused: There was no answer because a service refused the question; it counts as wrong.
    """

    key: str
    category: str
    answer_type: str
    gold: str
    empty: bool
    unit: str = ""
    missing: bool = False
    refused: bool = False


@dataclass(frozen=True)
class Reading:
    """The words and texts that answers in one language are read by.

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
AnswerLine = tuple[str, Mapping[str, Any]]
"""What an answer calls its question, and the line of its file."""


def gold_of(item: Item, words: AnswerWords) -> str:
    """Returns the expected answer in the form in which answers are compared.

    Raises:
        DataError: The expected answer of a yes/no question is neither in the language nor English,
            or none is there: the benchmark's owner keeps it back, or lets a judge compare.
    """
    if not item.answer:
        raise DataError(
            f"question {item.question_id}: its answer is kept back by the benchmark's owner, "
            "so it cannot be scored here; export the answers and upload them there, or have open "
            "ones judged (`lrm benchmark judge`)"
        )
    if item.answer_type in ("text", "caption", "number"):
        return text_key(item.answer)
    if item.answer_type == "letter":
        return item.answer
    label = parse_yes_no(item.answer, words).label
    if label not in ("yes", "no"):
        raise DataError(
            f"question {item.question_id} ({item.lang}): the expected answer {item.answer!r} is "
            f"neither yes nor no in the word lists of language {words.lang}"
        )
    return label


def text_answers(items: Sequence[Item]) -> frozenset[str]:
    """Returns every expected free answer, as `text_key`: they tell the language of an answer."""
    return frozenset(
        text_key(answer)
        for item in items
        if item.answer_type == "text"
        for answer in (item.answers or (item.answer,))
    )


def final_answer(text: str) -> str:
    """Returns what a model that reasons aloud answers in the end, without thoughts and tags.

    Example:
        >>> final_answer("<think>A or B?</think> So: <answer>B</answer>")
        'B'
    """
    text = without_thinking(text)
    tagged = _ANSWER.findall(text)
    return str(tagged[-1]).strip() if tagged else text


def judge_locally(item: Item, text: str, reading: Reading, rule: Rule = "mme") -> Judgement:
    """Reads an answer by the rules for any language.

    Args:
        item: The question.
        text: What the model wrote.
        reading: The language of the question.
        rule: How a yes/no answer is read whose beginning does not decide: `mme` or `pope`.
    """
    text, lang = final_answer(text), reading.lang
    if item.answer_type == "letter":
        english = reading.english_options.get(item.question_id, ())
        words = reading.words
        choice = infer_local(
            text, item.options, reading.word_letters, words.spaced, english, words.labels
        )
        parsed, correct = choice.letter or "other", choice.letter == item.answer
        answer_lang = _option_language(text, choice.by, lang)
        return Judgement(parsed, correct, answer_lang, ambiguous=choice.ambiguous)
    if item.answer_type == "yesno":
        answer = parse_yes_no(text, reading.words, rule)
        correct = answer.label == gold_of(item, reading.words)
        answer_lang = parse_yes_no(text, reading.words, "pope").answer_lang
        if answer_lang == OTHER:
            answer_lang = _prose_or(text, lang, OTHER)
        return Judgement(answer.label, correct, answer_lang, answer.by_default)
    written_in = item.answer_lang or item.lang
    if item.answer_type == "number":
        numbers = last_numbers(text, written_in)
        correct = bool(numbers & last_numbers(item.answer))
        parsed = str(min(numbers)) if numbers else OTHER
        return Judgement(parsed, correct, _prose_or(text, lang, NEUTRAL))
    golds = item.answers or (item.answer,)
    correct = any(matches_text(text, answer, written_in) for answer in golds)
    answer_lang = text_language(text, written_in, reading.native, reading.english)
    if answer_lang == OTHER:
        answer_lang = _prose_or(text, lang, OTHER)
    return Judgement(text_key(text), correct, answer_lang)


def judge_by(
    parse: Callable[..., str | None],
    item: Item,
    text: str,
    reading: Reading,
    undecided: str = "other",
) -> Judgement:
    """Reads an answer by a rule for English; give the first argument with `functools.partial`.

    Args:
        parse: The rule: from an answer, and the options by letter if the question has a letter for
            an answer, to what it says, or None.
        item: The question.
        text: What the model wrote.
        reading: The language of the question.
        undecided: What is recorded of an answer that says nothing.
    """
    found = parse(text, item.lettered()) if item.answer_type == "letter" else parse(text)
    lang = judge_locally(item, text, reading).answer_lang
    return Judgement(found or undecided, found == gold_of(item, reading.words), lang)


def _option_language(text: str, by: str, lang: str) -> str:
    """Returns the language of an answer to a multiple-choice question.

    Args:
        text: What the model wrote.
        by: What told the option: `letter`, `text`, `english` or "" (see `Choice`).
        lang: The language that was asked in.
    """
    has_words = any(len(w) > 1 and not w.isdigit() for w in words_of(normalise(text)))
    if has_words and (found := _prose_or(text, lang, "")):
        return found
    if by == "letter" or not any(map(str.isalpha, text)):
        return NEUTRAL if text.strip() else OTHER
    return {"text": lang, "english": "en"}.get(by, UNDECIDED)


def _prose_or(text: str, lang: str, otherwise: str) -> str:
    found = language_of_prose(text, lang)
    return otherwise if found == UNDECIDED else found


def language_of_prose(text: str, lang: str) -> str:
    """Tells whether prose is in the language that was asked in.

    Args:
        text: An answer.
        lang: The language that was asked in.

    Returns:
        `lang` (also for a language that cannot be told apart from it), `en`, `other`, or
        `undecided` if the text is too short or nothing decides, or the language has no file.
    """
    if lang not in list_languages():
        return UNDECIDED
    words = [word for word in words_of(normalise(text)) if not word.isdigit()]
    prose = " ".join(words)
    if _UNSPACED.search(prose):
        enough = len(_LETTER.findall(prose)) >= MIN_LETTERS_UNSPACED
    else:
        enough = len(words) >= MIN_WORDS
    if not enough:
        return UNDECIDED
    among = (*default_languages(), lang)
    shares = probabilities(prose, among)
    # a language that py3langid does not know is told by the words of its file
    best = max(shares, key=shares.__getitem__) if lang in shares else identify(prose, among)
    if not best:
        return UNDECIDED
    if best in (lang, *confusable(lang).near):
        return lang
    return best if best == "en" else OTHER


def fidelity(answer_langs: Iterable[str], lang: str) -> tuple[int, int]:
    """Counts answers in the language of the question, and all that have a language."""
    decided = [found for found in answer_langs if found not in SILENT]
    return decided.count(lang), len(decided)


def judge_answers(
    items: Sequence[Item],
    texts: Mapping[str, str],
    reading: Reading,
    judge: Judge = judge_locally,
    allow_missing: bool | Collection[str] = False,
) -> list[Verdict]:
    """Judges the answers to questions in one language.

    Args:
        items: The questions.
        texts: The answers by question id; answers to other questions are ignored.
        reading: What answers in the language are read by.
        judge: The rule.
        allow_missing: A question without an answer is wrong, not an error: any, or these.

    Returns:
        One verdict per question, in the order of `items`.

    Raises:
        DataError: A question has no answer: nothing is dropped from a denominator.
    """
    excused = () if isinstance(allow_missing, bool) else allow_missing
    ids = [item.question_id for item in items]
    missing = [key for key in ids if key not in texts and key not in excused]
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
    found = Judgement(MISSING, False, MISSING)
    if text is not None and not refused:
        found = judge(item, text, reading)
        if reading.lang not in list_languages():
            found = replace(found, answer_lang=UNDECIDED)
    return Verdict(
        **vars(found),
        key=item.question_id,
        category=item.category,
        answer_type=item.answer_type,
        gold=gold,
        empty=text is not None and not refused and not text.strip(),
        unit=item.unit,
        missing=text is None,
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
        """Returns the score itself."""
        return float(self.combine(self.counts.sum(axis=0)))


@dataclass(frozen=True)
class Kind:
    """A benchmark's rules.

    Attributes:
        name: As on the command line.
        title: Its name in tables.
        headline: What the number in the paper's tables is.
        maximum: The best possible headline of the whole benchmark.
        answer_type: Of its questions.
        modes: Judges by mode; `local` is for any language.
        default_mode: For English; other languages are read by `local`.
        count: From verdicts (and items beside them, and the mode) to counts.
        details: All other scores, by name, from the same arguments.
        outcomes: Whether each question is right, if a question is more than one verdict.
        aliases: Modes that are the same as another.
        headlines: What the number is in modes where it is another.
        beside: Modes that are reported beside `local` in every language.
        refused: Modes that cannot be had from texts, and why.
        golds: The letters that are expected answers; empty if the benchmark has no letters.
        check_together: Refuses questions that do not belong together as they must; its second
            argument says whether missing ones are allowed. Returns their number.
        skipped: Questions that must exist beside some that were answered, if the answers are all
            that is known.
        keys_of: Question ids, if the answers are all that is known: from what they call their
            question, and their lines.
        wording_of: What the line of an answer shares with its question, as `image_id` and
            `question`, where the ids differ; None if it has nothing but the id.
        complete: Fills in what an answer does not say about its question.
        files: How its official files are read; None for a kind that mapping files use.
    """

    name: str
    title: str
    headline: str
    maximum: float
    answer_type: str
    modes: Mapping[str, Judge]
    default_mode: str
    count: Callable[[Sequence[Item], Sequence[Verdict], str], UnitCounts]
    details: Callable[[Sequence[Item], Sequence[Verdict], str], dict[str, Any]]
    outcomes: Callable[[Sequence[Item], Sequence[Verdict]], dict[str, bool]] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    headlines: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    golds: Collection[str] = ()
    check_together: Callable[[Sequence[Item], bool], int] = lambda items, allow_missing: 0
    skipped: Callable[[Sequence[Item]], list[Item]] = lambda items: []
    keys_of: Callable[[Sequence[AnswerLine]], list[str]] = lambda lines: [key for key, _ in lines]
    wording_of: Callable[[str, Mapping[str, Any]], tuple[str, str] | None] = lambda key, line: None
    complete: Callable[[Item], Item] = lambda item: item
    files: Files | None = None

    def check(self, items: Sequence[Item], allow_missing: bool = False) -> int:
        """Checks letters and options, and what the benchmark itself demands.

        Returns:
            How many questions are known to be missing; 0 unless they are allowed to be.

        Raises:
            DataError: A question is not as the benchmark needs it.
        """
        for item in items:
            name = f"{self.name}: question {item.question_id}"
            if self.golds and item.answer and item.answer not in self.golds:
                known = ", ".join(self.golds)
                raise DataError(
                    f"{name}: the expected answer is {item.answer!r}; expected one of {known}"
                )
            if item.options and item.answer_type == "letter":
                check_options(item, name)
        return self.check_together(items, allow_missing)

    def right_by_question(
        self, items: Sequence[Item], verdicts: Sequence[Verdict]
    ) -> dict[str, bool]:
        """Returns whether each question is right, by its id."""
        if self.outcomes is not None:
            return self.outcomes(items, verdicts)
        return {verdict.key: verdict.correct for verdict in verdicts}

    def reads_locally(self, lang: str) -> bool:
        """Tells whether `local` reads answers in a language; captions are compared in any."""
        return lang in list_languages() or self.answer_type == "caption"

    def mode_for(self, lang: str, wanted: str | None = None) -> str:
        """Returns the mode in which answers in a language are read.

        Args:
            lang: Language of the questions.
            wanted: What the user asked for; by default the kind's own for English, the owner's for
                a language that `local` does not read, and `local` for others.

        Raises:
            ConfigError: There is no such mode, it needs more than texts, or words of the language.
        """
        mode = wanted or (self.default_mode if lang == "en" else LOCAL)
        if mode == LOCAL and not self.reads_locally(lang):
            if wanted or OFFICIAL not in self.beside:
                raise ConfigError(
                    f"{lang} has no language file here, so `{LOCAL}` cannot read its answers: "
                    "only the rule of the set's owner, if its mapping names one (`official`), or a "
                    f"judge can. `lrm languages add {lang}` drafts a file"
                )
            mode = OFFICIAL
        if mode.startswith(JUDGE):
            return mode
        mode = self.aliases.get(mode, mode)
        if mode in self.refused:
            raise ConfigError(f"{self.name} cannot be scored in mode {mode}: {self.refused[mode]}")
        if mode not in self.modes:
            known = ", ".join(dict.fromkeys((*self.modes, *self.aliases)))
            raise ConfigError(f"{self.name} has no mode {mode!r}; choose from {known}")
        return mode


def judged_kind(kind: Kind, mode: str) -> Kind:
    """Returns a kind that counts the verdicts of a judge; what it left undecided is left out.

    Args:
        kind: The kind of the benchmark.
        mode: `judge:RUBRIC:MODEL`.
    """
    rubric, _, model = mode.removeprefix(JUDGE).partition(":")
    return replace(
        kind,
        headline=f"score by {model} ({rubric})",
        maximum=100.0,
        default_mode=mode,
        count=_count_judged,
        details=_judged_details,
        outcomes=None,
    )


def _count_judged(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> UnitCounts:
    """Sums marks and what they are out of.

    Raises:
        DataError: Nothing is decided.
    """
    units = gather(
        ((v.unit, "", dict(enumerate(_marks(v)))) for v in verdicts), 2, _judged_percentage
    )
    if not units.counts[:, 1].any():
        raise DataError(f"{mode}: the judge decided on none of {len(verdicts)} answers")
    return units


def _marks(verdict: Verdict) -> tuple[float, float]:
    """Returns the mark of an answer, and the mark that is 100 percent."""
    if verdict.parsed.startswith(UNDECIDED_REPLY):
        return 0.0, 0.0
    own, slash, reference = verdict.parsed.partition("/")  # of an answer and its reference
    if slash:
        return float(own), float(reference)
    return float(verdict.correct) if verdict.value is None else verdict.value, 1.0


def _judged_percentage(sums: Array) -> Array:
    """Turns (mark, out of) into percent; a draw of the bootstrap may have nothing decided."""
    return 100.0 * sums[..., 0] / np.maximum(sums[..., 1], 1.0)


def _judged_details(
    items: Sequence[Item], verdicts: Sequence[Verdict], mode: str
) -> dict[str, Any]:
    """Returns how many answers are decided, why others are not, and marks by category."""
    said = Counter(v.parsed for v in verdicts)
    undecided = {
        parsed.removeprefix(UNDECIDED_REPLY): number
        for parsed, number in said.items()
        if parsed.startswith(UNDECIDED_REPLY)
    }
    decided = [v for v in verdicts if not v.parsed.startswith(UNDECIDED_REPLY)]
    by_category = gather(
        ((v.category, "", dict(enumerate(_marks(v)))) for v in decided), 2, _judged_percentage
    )
    per_category = by_category.combine(by_category.counts) / 100
    return {
        "judged": {
            "decided": len(decided),
            "of": len(verdicts),
            "undecided": undecided,
            "outcomes": {outcome: said[outcome] for outcome in PAIR_OUTCOMES if outcome in said},
        },
        "per_category": dict(zip(by_category.units, per_category.tolist(), strict=True)),
        "num_per_category": dict(Counter(v.category for v in decided)),
    }


def refuse_categories(items: Iterable[Item], known: Sequence[str], name: str) -> None:
    """Demands that every question is of a known category.

    Raises:
        DataError: One is not.
    """
    if unknown := sorted({item.category for item in items} - set(known)):
        raise DataError(f"{name}: unknown category {', '.join(unknown)}; known: {', '.join(known)}")


def gather(
    rows: Iterable[tuple[str, str, Mapping[int, float]]],
    num_columns: int,
    combine: Callable[[Array], Array],
) -> UnitCounts:
    """Sums contributions by unit.

    Args:
        rows: (unit, stratum, amount by column) of each question.
        num_columns: K.
        combine: See `UnitCounts`.
    """
    sums: dict[str, Array] = defaultdict(lambda: np.zeros(num_columns))
    strata: dict[str, str] = {}
    for unit, stratum, amounts in rows:
        strata[unit] = stratum
        for column, amount in amounts.items():
            sums[unit][column] += amount
    units = tuple(sorted(strata))
    counts = np.array([sums[unit] for unit in units]).reshape(len(units), num_columns)
    return UnitCounts(units, tuple(strata[unit] for unit in units), counts, combine)


def count_accuracy(
    items: Sequence[Item], verdicts: Sequence[Verdict], mode: str = LOCAL
) -> UnitCounts:
    """Counts right answers; the score is their share, in percent."""
    rows = ((v.unit, "", {0: float(v.correct), 1: 1.0}) for v in verdicts)
    return gather(rows, 2, percentage)


def percentage(sums: Array) -> Array:
    """Turns (right, all) into percent."""
    return 100.0 * sums[..., 0] / sums[..., 1]


def share(right: Iterable[bool]) -> float:
    """Returns the share of right answers."""
    found = list(right)
    return sum(found) / len(found)


def shares_by(name: str, right: Iterable[tuple[str, bool]]) -> dict[str, Any]:
    """Returns shares of right answers by group, and how many answers each group has.

    Args:
        name: What the groups are: `category` makes `per_category` and `num_per_category`.
        right: The group of each answer and whether it is right.
    """
    groups: dict[str, list[bool]] = defaultdict(list)
    for group, is_right in right:
        groups[group].append(is_right)
    return {
        f"per_{name}": {group: share(found) for group, found in groups.items()},
        f"num_per_{name}": {group: len(found) for group, found in groups.items()},
    }
