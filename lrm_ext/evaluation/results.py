"""From questions and answers to the report of one benchmark in one language. Pure.

Every figure stands beside its denominator: how many questions there are, how many were answered,
and how many answers were empty, cut off, undecided or read by default.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llava.errors import DataError
from llava.eval.records import read_json_lines
from lrm_ext.benchmarks.fidelity import UNDECIDED, fidelity
from lrm_ext.benchmarks.importing import kind_of, open_questions
from lrm_ext.benchmarks.items import Item
from lrm_ext.benchmarks.kind import Kind, UnitCounts
from lrm_ext.benchmarks.score import (
    MISSING,
    UNPARSED,
    Reading,
    Verdict,
    judge_answers,
    text_answers,
)
from lrm_ext.benchmarks.words import answer_words
from lrm_ext.evaluation.predictions import read_answered
from lrm_ext.files import write_atomically
from lrm_ext.languages import get_language


@dataclass(frozen=True)
class ScoreReport:
    """The score of one benchmark in one language.

    Attributes:
        benchmark: Name.
        kind: Whose rules it follows.
        version: Of the questions, as far as it is known.
        lang: Language of the questions.
        mode: How answers were read.
        headline: The figure of the paper's tables, in its unit.
        headline_name: What it is.
        details: All other figures.
        counts: How many questions, answers, and answers of each doubtful sort.
        fidelity: Share of answers in the language of the question, and of how many.
        verdicts: On each question.
        units: The counts behind the headline.
        right_by_question: Whether each question is right; with rotations, whether all of them are.
        prompt_id: Which prompt the questions were asked with, as far as it is known.
    """

    benchmark: str
    kind: str
    version: str
    lang: str
    mode: str
    headline: float
    headline_name: str
    details: Mapping[str, Any]
    counts: Mapping[str, Any]
    fidelity: Mapping[str, Any]
    verdicts: tuple[Verdict, ...]
    units: UnitCounts
    right_by_question: Mapping[str, bool]
    prompt_id: str = ""

    def to_json(self) -> dict[str, Any]:
        """The report as one flat object."""
        return {
            "benchmark": self.benchmark,
            "kind": self.kind,
            "version": self.version,
            "prompt_id": self.prompt_id,
            "lang": self.lang,
            "mode": self.mode,
            "headline": self.headline,
            "headline_name": self.headline_name,
            **self.details,
            "counts": dict(self.counts),
            "fidelity": dict(self.fidelity),
        }


def reading_of(lang: str, items: Sequence[Item], english: Sequence[Item] = ()) -> Reading:
    """What answers in a language are read by.

    Args:
        lang: The language of the questions.
        items: All questions in it, which its short answers are known from.
        english: The same questions in English, where they are at hand.

    Raises:
        ConfigError: There is no such language.
    """
    return Reading(
        words=answer_words(lang),
        word_letters=get_language(lang).local.word_letters,
        native=text_answers(items),
        english=text_answers(english),
        english_options={item.question_id: item.options for item in english if item.options},
    )


def score_benchmark(
    kind: Kind,
    items: Sequence[Item],
    texts: Mapping[str, str],
    *,
    lang: str,
    mode: str | None = None,
    english: Sequence[Item] = (),
    allow_missing: bool | Collection[str] = False,
    cut_keys: Collection[str] = (),
    version: str = "",
    name: str = "",
) -> ScoreReport:
    """Score the answers to a benchmark's questions in one language.

    Args:
        kind: The benchmark's rules.
        items: Its questions.
        texts: Answers by question id.
        lang: The language of the questions.
        mode: How to read answers; by default the kind's own for English, `local` otherwise.
        english: The questions in English, where they are at hand.
        allow_missing: Count questions without an answer as wrong: any, or these.
        cut_keys: Questions whose answer reached the length limit.
        version: Of the questions.
        name: Of the benchmark, where it is not the kind's.

    Raises:
        ConfigError: The mode or language is unknown.
        DataError: The questions are not as the benchmark needs them, or one has no answer.
    """
    mode = kind.mode_for(lang, mode)
    num_missing = kind.check(items, bool(allow_missing))
    reading = reading_of(lang, items, english)
    verdicts = judge_answers(items, texts, reading, kind.modes[mode], allow_missing)
    units = kind.count(items, verdicts, mode)
    return ScoreReport(
        benchmark=name or kind.name,
        kind=kind.name,
        version=version,
        lang=lang,
        mode=mode,
        headline=units.score(),
        headline_name=kind.headline,
        details=kind.details(items, verdicts, mode),
        counts=count_answers(verdicts, num_missing, cut_keys),
        fidelity=count_fidelity(verdicts, items[0].answer_lang or lang),
        verdicts=tuple(verdicts),
        units=units,
        right_by_question=kind.right_by_question(items, verdicts),
    )


def count_answers(
    verdicts: Sequence[Verdict], num_missing: int = 0, cut_keys: Collection[str] = ()
) -> dict[str, Any]:
    """How many questions and answers there are, and of each doubtful sort.

    Args:
        verdicts: On every question that is known.
        num_missing: Questions that are not even known, but must exist.
        cut_keys: Questions whose answer reached the length limit.
    """
    missing = sum(verdict.missing for verdict in verdicts)
    refused = sum(verdict.refused for verdict in verdicts)
    return {
        "questions": len(verdicts) + num_missing,
        "answered": len(verdicts) - missing - refused,
        "missing": missing + num_missing,
        # only models behind a service have any
        **({"refused": refused} if refused else {}),
        "empty": sum(verdict.empty for verdict in verdicts),
        "cut": sum(verdict.key in cut_keys for verdict in verdicts),
        "unparsed": sum(verdict.parsed in UNPARSED for verdict in verdicts),
        "default_yes": sum(verdict.by_default for verdict in verdicts),
        "ambiguous_cyrillic": sum(verdict.ambiguous for verdict in verdicts),
        "answer_lang": dict(
            Counter(v.answer_lang for v in verdicts if v.answer_lang != MISSING).most_common()
        ),
    }


def count_fidelity(verdicts: Sequence[Verdict], lang: str) -> dict[str, Any]:
    """Share of answers in the language of the question, apart from whether they are right."""
    langs = [verdict.answer_lang for verdict in verdicts]
    own, decided = fidelity(langs, lang)
    return {
        "share": own / decided if decided else None,
        "in_language": own,
        "decided": decided,
        "undecided": langs.count(UNDECIDED),
    }


def score_file(
    name: str,
    predictions: Path,
    *,
    data: Path | None = None,
    mode: str | None = None,
    lang: str | None = None,
    allow_missing: bool = False,
    last_wins: bool = False,
) -> ScoreReport:
    """Score a file of answers.

    Args:
        name: The benchmark.
        predictions: The answers.
        data: Its folder, or its official files; None where the answers say what was expected.
        mode: How to read the answers.
        lang: Language of the questions, where the answers do not say it.
        allow_missing: Count questions without an answer as wrong.
        last_wins: Of several answers to a question the last counts.

    Raises:
        ConfigError: The benchmark or mode is unknown.
        DataError: Answers or questions are not as they must be.
    """
    kind = kind_of(name)
    if data is None:
        answered = read_answered(predictions, kind, lang=lang, last_wins=last_wins)
        english: tuple[Item, ...] = ()
    else:
        questions = open_questions(name, data, lang or _stated_lang(predictions))
        answered = read_answered(
            predictions,
            kind,
            lang=questions.lang,
            items=questions.items,
            last_wins=last_wins,
            version=questions.version,
        )
        english = questions.english
    report = score_benchmark(
        kind,
        answered.items,
        answered.texts,
        lang=answered.lang,
        mode=mode,
        english=english,
        allow_missing=allow_missing,
        cut_keys=answered.cut_keys,
        version=answered.version,
        name=name,
    )
    counts = {**report.counts, "answered_twice": answered.num_twice}
    return replace(report, counts=counts, prompt_id=answered.prompt_id)


def _stated_lang(predictions: Path) -> str:
    """The language that the first answer says it is to a question in."""
    try:
        stated = next((record for _, record in read_json_lines(predictions)), {}).get("lang")
    except DataError:
        stated = None  # read_answered names the line
    return stated if isinstance(stated, str) and stated else "en"


def write_scores(report: ScoreReport, path: Path) -> None:
    """Write what was made of each answer, a line each."""
    where = {"benchmark": report.benchmark, "lang": report.lang, "mode": report.mode}
    lines = (json.dumps({**asdict(v), **where}, ensure_ascii=False) for v in report.verdicts)
    write_atomically(path, "\n".join(lines))
