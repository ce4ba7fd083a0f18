"""Score the files of answers: from questions and predictions to `scores.jsonl` and `report.json`.

Needs no model: a change of the rules is a new run of this alone. The rules themselves are in
`lrm_ext.benchmarks`; here they are applied to files, counted and put into records.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Final

import lrm_ext
from llava.eval.records import read_json_lines
from llava.files import write_atomically, writing
from llava.mm_utils import get_model_name_from_path
from lrm_ext.benchmarks.fidelity import fidelity
from lrm_ext.benchmarks.items import Item
from lrm_ext.benchmarks.kinds import find_kind
from lrm_ext.benchmarks.score import MODE, UNPARSED, Verdict, judge_answers, judge_locally
from lrm_ext.evaluation.headline import score_headlines
from lrm_ext.evaluation.predictions import read_predictions
from lrm_ext.evaluation.questions import QuestionSet
from lrm_ext.evaluation.report import (
    ENGLISH,
    BenchmarkResult,
    EvalReport,
    Example,
    ExampleAnswer,
    GroupScore,
    LanguageResult,
)
from lrm_ext.evaluation.results import reading_of
from lrm_ext.evaluation.runner import EvalConfig
from lrm_ext.evaluation.statistics import num_majority_correct, wilson_interval
from lrm_ext.files import write_atomically, writing
from lrm_ext.languages import get_language

SCORES_FILE: Final = "scores.jsonl"
CLOSED: Final = ("yesno", "letter")
EXAMPLES_DIR: Final = "examples"
EXAMPLE_LANGUAGES: Final[tuple[str, ...]] = ("en", "hr", "zh")
NUM_EXAMPLE_LANGUAGES: Final = 3
_PACKAGES: Final = ("torch", "transformers", "tokenizers", "pillow", "numpy")


def score_run(config: EvalConfig, sets: Sequence[QuestionSet], command: str) -> EvalReport:
    """Score all answers of a run and write `scores.jsonl`, `report.json` and the example pictures.

    Args:
        config: The run.
        sets: Its questions, as `run_evaluation` returned them.
        command: The command line, for the report.

    Raises:
        DataError: A question has no answer.
    """
    results: list[BenchmarkResult] = []
    lines: list[str] = []
    for name, group in itertools.groupby(sets, key=lambda qs: qs.benchmark.name):
        members = list(group)
        languages: list[LanguageResult] = []
        verdicts_by_lang: dict[str, list[Verdict]] = {}
        for qs in members:
            result, verdicts, blind_verdicts = _score_language(config, qs)
            languages.append(result)
            verdicts_by_lang[qs.lang] = verdicts
            lines += [_score_line(v, qs, False) for v in verdicts]
            lines += [_score_line(v, qs, True) for v in blind_verdicts or ()]
        examples = _examples(config, members, verdicts_by_lang)
        results.append(BenchmarkResult(name, tuple(languages), examples))
    write_atomically(config.results_dir / SCORES_FILE, "".join(lines))
    report = EvalReport(
        model_path=str(config.model_path),
        model_id=get_model_name_from_path(str(config.model_path)),
        mode=MODE,
        limit=config.limit,
        command=command,
        environment=_environment(),
        benchmarks=tuple(results),
    )
    report.write(config.results_dir)
    return report


def _score_language(
    config: EvalConfig, qs: QuestionSet
) -> tuple[LanguageResult, list[Verdict], list[Verdict] | None]:
    has_english = ENGLISH in qs.benchmark.languages()
    english = qs.benchmark.read(ENGLISH) if has_english else []
    reading = reading_of(qs.lang, qs.benchmark.read(qs.lang), english)
    kind = find_kind(qs.benchmark.kind or "")
    judge = kind.modes[MODE] if kind else judge_locally
    path = qs.path(config.predictions_dir, blind=False)
    texts = read_predictions(path)
    verdicts = judge_answers(qs.items, texts, reading, judge, qs.unasked)
    blind_texts = read_predictions(qs.path(config.predictions_dir, blind=True))
    blind_verdicts = None
    # A blind run that was interrupted says nothing yet.
    if all(i.question_id in blind_texts or i.question_id in qs.unasked for i in qs.items):
        blind_verdicts = judge_answers(qs.items, blind_texts, reading, judge, qs.unasked)
    cut = _cut_keys(path)

    def group(keep: Iterable[bool]) -> GroupScore | None:
        chosen = list(keep)
        if not any(chosen):
            return None
        return tally(
            list(itertools.compress(verdicts, chosen)),
            None if blind_verdicts is None else list(itertools.compress(blind_verdicts, chosen)),
            qs.items[0].answer_lang or qs.lang,
            cut,
        )

    tasks = dict.fromkeys(verdict.category for verdict in verdicts)
    total = group(True for _ in verdicts)
    assert total is not None, "a question set is never empty"
    language = get_language(qs.lang)
    result = LanguageResult(
        lang=qs.lang,
        name=language.name,
        native_name=language.native_name,
        sha256=qs.sha256,
        total=total,
        yesno=group(v.answer_type == "yesno" for v in verdicts),
        text=group(v.answer_type == "text" for v in verdicts),
        tasks={
            task: score
            for task in tasks
            if (score := group(v.category == task for v in verdicts)) is not None
        },
        yesno_tasks=tuple(dict.fromkeys(v.category for v in verdicts if v.answer_type == "yesno")),
        headlines=score_headlines(qs, kind, texts, blind_texts, english, cut) if kind else (),
    )
    return result, verdicts, blind_verdicts


def tally(
    verdicts: Sequence[Verdict],
    blind: Sequence[Verdict] | None,
    lang: str,
    cut_keys: frozenset[str] = frozenset(),
) -> GroupScore:
    """Count a group of verdicts.

    Args:
        verdicts: At least one.
        blind: The verdicts on the same questions without the picture.
        lang: The language that answers are expected in.
        cut_keys: Questions whose answer reached the length limit.
    """
    n = len(verdicts)
    num_correct = sum(verdict.correct for verdict in verdicts)
    accuracy = num_correct / n
    low, high = wilson_interval(num_correct, n)
    graded = [verdict.value for verdict in verdicts if verdict.value is not None]
    if graded:
        # captions are neither right nor wrong; their interval is in the headline
        low = high = accuracy = sum(graded) / n
    own, decided = fidelity((verdict.answer_lang for verdict in verdicts), lang)
    return GroupScore(
        num_questions=n,
        accuracy=accuracy,
        low=low,
        high=high,
        blind_accuracy=None if blind is None else sum(v.correct for v in blind) / n,
        majority=num_majority_correct((v.category, v.gold) for v in verdicts) / n,
        num_unparsed=sum(v.answer_type in CLOSED and v.parsed in UNPARSED for v in verdicts),
        num_empty=sum(verdict.empty for verdict in verdicts),
        num_cut=sum(verdict.key in cut_keys for verdict in verdicts),
        num_missing=sum(verdict.missing for verdict in verdicts),
        num_refused=sum(verdict.refused for verdict in verdicts),
        fidelity=own / decided if decided else None,
    )


def _cut_keys(path: Path) -> frozenset[str]:
    records = (record for _, record in read_json_lines(path))
    return frozenset(r["key"] for r in records if r.get("finish_reason") == "length")


def _score_line(verdict: Verdict, qs: QuestionSet, blind: bool) -> str:
    where = {"benchmark": qs.benchmark.name, "lang": qs.lang, "blind": blind, "mode": MODE}
    return json.dumps({**asdict(verdict), **where}, ensure_ascii=False) + "\n"


def _environment() -> dict[str, str]:
    versions = {"lrm_ext": lrm_ext.__version__, "python": platform.python_version()}
    return versions | {name: version(name) for name in _PACKAGES}


def _examples(
    config: EvalConfig,
    sets: Sequence[QuestionSet],
    verdicts: Mapping[str, Sequence[Verdict]],
) -> tuple[Example, ...]:
    """The first yes/no question and the first free one on another picture, in three languages.

    They are chosen by their place in the file, never by how well they were answered.
    """
    by_lang = {qs.lang: qs for qs in sets}
    preferred = [lang for lang in EXAMPLE_LANGUAGES if lang in by_lang]
    preferred += [lang for lang in by_lang if lang not in preferred]
    languages = preferred[:NUM_EXAMPLE_LANGUAGES]
    first = by_lang[languages[0]]
    chosen: list[Item] = []
    for answer_type in ("yesno", "text"):
        seen = {item.image for item in chosen}
        candidates = [
            item
            for item in first.items
            if item.answer_type == answer_type and item.question_id not in first.unasked
        ]
        chosen += [item for item in candidates if item.image not in seen][:1]
    return tuple(
        _example(config, item, number, [by_lang[lang] for lang in languages], verdicts)
        for number, item in enumerate(chosen, 1)
    )


def _example(
    config: EvalConfig,
    item: Item,
    number: int,
    sets: Sequence[QuestionSet],
    verdicts: Mapping[str, Sequence[Verdict]],
) -> Example:
    answers: list[ExampleAnswer] = []
    for qs in sets:
        same = next((other for other in qs.items if other.question_id == item.question_id), None)
        if same is None:
            continue
        text = read_predictions(qs.path(config.predictions_dir, blind=False))[same.question_id]
        correct = next(v.correct for v in verdicts[qs.lang] if v.key == same.question_id)
        answers.append(ExampleAnswer(qs.lang, same.text, text, same.answer, correct))
    source = sets[0].benchmark.image_path(item.image)
    file = f"{EXAMPLES_DIR}/{sets[0].benchmark.name}-{number}{source.suffix}"
    with writing(config.results_dir / file) as partial:
        shutil.copyfile(source, partial)
    return Example(os.path.relpath(source), file, tuple(answers))
