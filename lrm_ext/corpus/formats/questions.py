"""Question sets of the paper's fine-tuning data as they are distributed.

Input: the file (or folder) of ChartQA, DocVQA, DVQA, AI2D or GeoQA. Output: LLaVA records whose
pictures are relative to the set's picture folder, each as a function that makes it: one that cannot
be made raises `SampleError` and does not end the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from llava.data.records import iter_records
from llava.errors import DataError
from lrm_ext.corpus.formats.build import choice, field, short_answer

Record = dict[str, Any]
Records = Iterator[tuple[str, Callable[[], Record]]]


def read_chartqa(path: Path) -> Records:
    """`[{"imgname", "query", "label"}]`."""
    for number, (where, raw) in enumerate(iter_records(path)):
        yield where, partial(_chartqa, raw, where, f"{path.stem}-{number}")


def _chartqa(raw: Record, where: str, sample_id: str) -> Record:
    image, question = field(raw, "imgname", where), field(raw, "query", where)
    return short_answer(sample_id, image, question, field(raw, "label", where), "chart")


def read_dvqa(path: Path) -> Records:
    """`[{"question_id", "question", "answer", "image"}]`."""
    for where, raw in iter_records(path):
        yield where, partial(_dvqa, raw, where)


def _dvqa(raw: Record, where: str) -> Record:
    sample_id, image = field(raw, "question_id", where, (int, str)), field(raw, "image", where)
    question, answer = field(raw, "question", where), field(raw, "answer", where)
    return short_answer(sample_id, image, question, answer, "chart")


def read_docvqa(path: Path) -> Records:
    """`{"data": [{"questionId", "question", "image", "answers"}]}`; the first answer is taken."""
    content = _load(path)
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise DataError(f"{path}: expected an object with a list `data`; is this DocVQA's file?")
    for number, raw in enumerate(content["data"]):
        where = f"{path}: data[{number}]"
        yield where, partial(_docvqa, raw, where)


def _docvqa(raw: Record, where: str) -> Record:
    answers = field(raw, "answers", where, list)
    answer = field({"answers[0]": answers[0] if answers else None}, "answers[0]", where)
    sample_id, image = field(raw, "questionId", where, (int, str)), field(raw, "image", where)
    return short_answer(sample_id, image, field(raw, "question", where), answer, "document")


def read_ai2d(path: Path) -> Records:
    """A folder with `questions/<picture>.json`: questions with `answerTexts`, `correctAnswer`."""
    files = sorted((path / "questions").glob("*.json"))
    if not files:
        raise DataError(f"{path}: no questions/*.json found; name the folder that AI2D unpacks to.")
    for file in files:
        content = _load(file)
        if not isinstance(content, dict) or not isinstance(content.get("questions"), dict):
            raise DataError(f"{file}: expected an object with `questions`; is this AI2D's file?")
        for question, raw in content["questions"].items():
            where = f"{file}: {question!r:.60}"
            yield where, partial(_ai2d, content, question, raw, where)


def _ai2d(content: Record, question: str, raw: Record, where: str) -> Record:
    image, options = field(content, "imageName", where), field(raw, "answerTexts", where, list)
    right, sample_id = field(raw, "correctAnswer", where, int), field(raw, "questionId", where)
    return choice(sample_id, image, question, options, right, "diagram", where)


def read_geoqa(path: Path) -> Records:
    """`[{"id"?, "subject" or "question", "choices", "label", "image"}]`, or LLaVA records of it."""
    for number, (where, raw) in enumerate(iter_records(path)):
        yield where, partial(_geoqa, raw, where, f"{path.stem}-{number}")


def _geoqa(raw: Record, where: str, sample_id: str) -> Record:
    if "conversations" in raw:
        return {"task": "geometry", **raw}
    options = [str(option) for option in field(raw, "choices", where, list)]
    question = field(raw, "question" if "question" in raw else "subject", where)
    image, right = field(raw, "image", where), field(raw, "label", where, int)
    named = raw.get("id", sample_id)
    return choice(named, image, question, options, right, "geometry", where)


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig", errors="surrogateescape"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file.") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
