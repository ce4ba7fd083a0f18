"""Score a file of answers, with or without the benchmark's own files beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from llava.errors import DataError
from llava.eval.records import read_json_lines
from llava.files import write_atomically
from lrm_ext.benchmarks.answered import read_answered
from lrm_ext.benchmarks.importing import kind_of, open_questions
from lrm_ext.benchmarks.items import Item
from lrm_ext.benchmarks.scoring import ScoreReport, score_benchmark


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
