"""SEED-Bench, the part with pictures: multiple choice in nine dimensions.

The paper's figure is the accuracy over all questions, in percent. Names of dimensions come from the
file itself, because two of them were swapped in an earlier release.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from llava.errors import DataError
from llava.eval.records import read_json
from lrm_ext.evaluate.items import LETTERS, Item, option_prompt
from lrm_ext.evaluate.kind import (
    LOCAL,
    Judgement,
    Kind,
    Reading,
    Verdict,
    by_category,
    count_accuracy,
    judge_locally,
    refuse_golds,
    share,
)
from lrm_ext.evaluate.official import Questions, Source, cell, is_table, read_rows
from lrm_ext.evaluate.reading import infer_vlmevalkit

NUM_OPTIONS: Final = 4


def _judge_lmms_eval(item: Item, text: str, reading: Reading) -> Judgement:
    first = text.strip()[:1].upper()
    return judged_letter(item, text, reading, first if first in LETTERS[:NUM_OPTIONS] else None)


def _judge_llava(item: Item, text: str, reading: Reading) -> Judgement:
    return judged_letter(item, text, reading, text if text in LETTERS[:NUM_OPTIONS] else None)


def judge_vlmevalkit(item: Item, text: str, reading: Reading) -> Judgement:
    """VLMEvalKit's exact matching, without a judge."""
    options = item.lettered() or dict.fromkeys(LETTERS[:NUM_OPTIONS], "\0")
    return judged_letter(item, text, reading, infer_vlmevalkit(text, options))


def judged_letter(item: Item, text: str, reading: Reading, letter: str | None) -> Judgement:
    """A letter that one of the English rules read."""
    lang = judge_locally(item, text, reading).answer_lang
    return Judgement(letter or "other", letter == item.answer, lang)


def check(items: Sequence[Item], allow_missing: bool) -> int:
    """Demand that every expected answer is one of the four letters.

    Raises:
        DataError: One is not.
    """
    refuse_golds(items, LETTERS[:NUM_OPTIONS], "seed_bench")
    return 0


def details(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> dict[str, Any]:
    """Accuracy over all questions and by dimension, as proportions."""
    groups = by_category(items, verdicts)
    return {
        "all": share(verdicts),
        "per_dimension": {name: share(group) for name, group in groups.items()},
        "num_per_dimension": {name: len(group) for name, group in groups.items()},
    }


QUESTION_FILE: Final = "SEED-Bench.json"
IMAGE_FOLDER: Final = "SEED-Bench-image"
IMAGE_TYPES: Final = range(1, 10)
_CHOICES: Final = tuple(f"choice_{letter.lower()}" for letter in LETTERS[:NUM_OPTIONS])


def read(source: Source) -> Questions:
    """Read SEED-Bench's questions about pictures.

    Raises:
        DataError: A file is not as it must be.
    """
    if source.path.suffix == ".jsonl":
        return _bundle(source)
    if is_table(source.path):
        return Questions(tuple(_table(source)))
    path = source.path / QUESTION_FILE if source.path.is_dir() else source.path
    return Questions(tuple(_questions(source, path)), _image_root(source, path.parent))


def _image_root(source: Source, folder: Path) -> Path:
    return source.images or folder / IMAGE_FOLDER


def _item(
    source: Source, number: str, image: str, category: str, question: str,
    options: list[str], answer: str, where: str,
) -> Item:  # fmt: skip
    if answer not in LETTERS[:NUM_OPTIONS]:
        raise DataError(f"{where}: the answer is {answer!r}; expected A, B, C or D")
    return Item(
        question_id=number,
        image=image,
        text=source.prompt(question, options=options),
        category=category,
        answer=answer,
        lang=source.lang,
        answer_type="letter",
        options=tuple(options),
        question=question,
        image_id=image,
        source_id=number,
    )


def _questions(source: Source, path: Path) -> Iterator[Item]:
    content = read_json(path, dict)
    types = content.get("question_type")
    if not isinstance(types, dict) or not isinstance(content.get("questions"), list):
        raise DataError(f"{path}: expected an object of questions and question_type")
    names = {int(number): str(name) for name, number in types.items()}
    for number, row in enumerate(content["questions"]):
        where = f"{path}: question {row.get('question_id', number)}"
        if row.get("data_type") not in ("image", "video"):
            raise DataError(
                f"{where}: data_type is {row.get('data_type')!r}; expected image or video"
            )
        if row["data_type"] == "image":
            yield _from_row(source, row, names, cell(row, "data_id", where), where)


def _from_row(
    source: Source, row: Mapping[str, Any], names: Mapping[int, str], image: str, where: str
) -> Item:
    dimension = row.get("question_type_id")
    if not isinstance(dimension, int):
        raise DataError(f"{where}: question_type_id is {dimension!r}; expected a number")
    if names and dimension not in names:
        known = ", ".join(f"{key} {name}" for key, name in sorted(names.items()))
        raise DataError(f"{where}: unknown question_type_id {dimension!r}; known: {known}")
    if not names and dimension not in IMAGE_TYPES:
        raise DataError(f"{where}: question_type_id is {dimension!r}; expected 1 to 9")
    return _item(
        source,
        cell(row, "question_id", where),
        image,
        f"{dimension} {names[dimension]}" if names else f"{dimension}",
        cell(row, "question", where),
        [cell(row, choice, where) for choice in _CHOICES],
        cell(row, "answer", where).strip().upper(),
        where,
    )


def _bundle(source: Source) -> Questions:
    """LLaVA's questions; the letters are in the owner's file."""
    labels = source.labels or source.path.parent / QUESTION_FILE
    gold = {item.question_id: item for item in _questions(source, labels)}
    items: list[Item] = []
    for where, row in read_rows(source.path):
        number = cell(row, "question_id", where)
        if number.startswith("v"):
            continue
        if number not in gold:
            raise DataError(f"{where}: {labels} has no question {number} about a picture")
        items.append(replace(gold[number], source_id=number))
    if len(items) != len(gold):
        raise DataError(
            f"{source.path}: {len(items)} questions about pictures, but {labels} has {len(gold)}; "
            "they are of different versions"
        )
    return Questions(tuple(items), _image_root(source, source.path.parent))


def _table(source: Source) -> Iterator[Item]:
    """Parquet (the owner's fields, pictures in a list) or TSV (VLMEvalKit's)."""
    for where, row in read_rows(source.path):
        if row.get("data_type", "image") != "image":
            continue
        image = source.store.put(row.get("image"), where)
        if "choice_a" in row:
            yield _from_row(source, row, {}, image, where)
        else:
            yield _item(
                source,
                cell(row, "index", where),
                image,
                cell(row, "category", where),
                cell(row, "question", where),
                [cell(row, letter, where) for letter in LETTERS[:NUM_OPTIONS]],
                cell(row, "answer", where).strip().upper(),
                where,
            )


SEED_BENCH: Final = Kind(
    name="seed_bench",
    read=read,
    title="SEED-Bench (image)",
    headline="accuracy",
    maximum=100.0,
    answer_type="letter",
    modes={
        "lmms-eval": _judge_lmms_eval,
        "llava": _judge_llava,
        "vlmevalkit": judge_vlmevalkit,
        LOCAL: judge_locally,
    },
    default_mode="lmms-eval",
    refused={
        "official": "the owner's tool reads no text, it ranks the options by their likelihood; "
        "ask with `lrm eval --rank mean`, and read those answers by lmms-eval or llava"
    },
    prompt=option_prompt,
    check=check,
    count=count_accuracy,
    details=details,
)
