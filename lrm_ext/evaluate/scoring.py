"""Scores answers against questions that are at hand or beside them: files of any tool, or none.

`lrm benchmark score` reads a file of answers here, and exports check their tasks by it; the results
of `lrm eval` are opened in `results.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from llava.errors import DataError
from llava.eval.records import read_json_lines
from llava.files import write_atomically
from lrm_ext.evaluate.importing import kind_of, open_questions
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.kind import Kind
from lrm_ext.evaluate.results import Answered, RunResult, ScoreReport, read_answered, reading_of


def score_benchmark(
    kind: Kind,
    items: Sequence[Item],
    texts: Mapping[str, str],
    *,
    lang: str,
    mode: str | None = None,
    allow_missing: bool = False,
    english: Sequence[Item] = (),
) -> ScoreReport:
    """Scores answers that are in no file.

    Args:
        kind: The benchmark's rules.
        items: Its questions.
        texts: Answers by question id.
        lang: The language of the questions.
        mode: How to read answers; by default the kind's own for English, `local` otherwise.
        allow_missing: Count questions without an answer as wrong.
        english: The same questions in English, where they are at hand.

    Raises:
        ConfigError: The mode or language is unknown.
        DataError: The questions are not as the benchmark needs them, or one has no answer.
    """
    answered = Answered(tuple(items), texts, lang)
    reading = reading_of(lang, items, english)
    return RunResult(kind.name, kind, answered, lambda: reading, excused=allow_missing).score(mode)


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
    """Scores a file of answers.

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
    items: Sequence[Item] | None = None
    english: Sequence[Item] = ()
    version = ""
    if data is not None:
        questions = open_questions(name, data, lang or _stated_lang(predictions))
        items, english, version = questions.items, questions.english, questions.version
        lang = questions.lang
    answered = read_answered(
        predictions, kind, lang=lang, items=items, last_wins=last_wins, version=version
    )
    reading = reading_of(answered.lang, answered.items, english)
    result = RunResult(name, kind, answered, lambda: reading, excused=allow_missing)
    report = result.score(mode)
    counts = {**report.counts, "answered_twice": answered.num_twice}
    return replace(report, counts=counts, prompt_id=answered.prompt_id)


def _stated_lang(predictions: Path) -> str:
    """Returns the language of the questions as the first answer states it."""
    try:
        stated = next((record for _, record in read_json_lines(predictions)), {}).get("lang")
    except DataError:
        stated = None  # read_answered names the line
    return stated if isinstance(stated, str) and stated else "en"


def write_scores(report: ScoreReport, path: Path) -> None:
    """Writes the verdicts, a line each."""
    where = {"benchmark": report.benchmark, "lang": report.lang, "mode": report.mode}
    lines = (json.dumps({**asdict(v), **where}, ensure_ascii=False) for v in report.verdicts)
    write_atomically(path, "\n".join(lines))
