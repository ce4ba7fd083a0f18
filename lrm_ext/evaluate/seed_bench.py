"""SEED-Bench, the part with images: multiple choice in nine dimensions.

The paper's figure is the accuracy over all questions, in percent. Names of dimensions come from the
file itself, because two of them were swapped in an earlier release.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from llava.errors import DataError
from llava.eval.records import read_json
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.kind import (
    LOCAL,
    Kind,
    Verdict,
    count_accuracy,
    judge_by,
    judge_locally,
    share,
    shares_by,
)
from lrm_ext.evaluate.official import Files, Questions, Row, Source, cell
from lrm_ext.evaluate.reading import infer_vlmevalkit

FOUR: Final = ("A", "B", "C", "D")
QUESTION_FILE: Final = "SEED-Bench.json"
IMAGE_FOLDER: Final = "SEED-Bench-image"
IMAGE_TYPES: Final = dict.fromkeys(range(1, 10), "")
_CHOICES: Final = ("choice_a", "choice_b", "choice_c", "choice_d")


def parse_lmms_eval(text: str, options: Mapping[str, str]) -> str | None:
    """Reads the first character, as lmms-eval does."""
    first = text.strip()[:1].upper()
    return first if first in FOUR else None


def parse_llava(text: str, options: Mapping[str, str]) -> str | None:
    """Reads a letter and nothing else, as LLaVA's script does."""
    return text if text in FOUR else None


def details(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> dict[str, Any]:
    """Returns the accuracy over all questions and by dimension, as proportions."""
    return {
        "all": share(v.correct for v in verdicts),
        **shares_by("dimension", ((v.category, v.correct) for v in verdicts)),
    }


def _item(
    source: Source, row: Mapping[str, Any], image: str, where: str,
    id_column: str, option_columns: Sequence[str], category: str,
) -> Item:  # fmt: skip
    return source.item(
        cell(row, id_column, where),
        image,
        cell(row, "question", where),
        cell(row, "answer", where).strip().upper(),
        "letter",
        [cell(row, column, where) for column in option_columns],
        category=category,
        image_id=image,
    )


def _read_own(source: Source, path: Path) -> Questions:
    path = path / QUESTION_FILE if path.is_dir() else path
    content = read_json(path, dict)
    types = content.get("question_type")
    if not isinstance(types, dict) or not isinstance(content.get("questions"), list):
        raise DataError(f"{path}: expected an object of questions and question_type")
    names = {int(number): str(name) for name, number in types.items()}
    items: list[Item] = []
    for number, row in enumerate(content["questions"]):
        where = f"{path}: question {row.get('question_id', number)}"
        if row.get("data_type") not in ("image", "video"):
            raise DataError(
                f"{where}: data_type is {row.get('data_type')!r}; expected image or video"
            )
        if row["data_type"] == "image":
            image, category = cell(row, "data_id", where), _dimension(row, names, where)
            items.append(_item(source, row, image, where, "question_id", _CHOICES, category))
    return Questions(tuple(items), source.images or source.folder / IMAGE_FOLDER)


def _dimension(row: Mapping[str, Any], names: Mapping[int, str], where: str) -> str:
    number: Any = row.get("question_type_id")
    if number not in names:
        known = ", ".join(f"{key} {name}".strip() for key, name in sorted(names.items()))
        raise DataError(f"{where}: unknown question_type_id {number!r}; known: {known}")
    return f"{number} {names[number]}".strip()


def _row_key(source: Source, row: dict[str, Any], where: str) -> Hashable | None:
    number = cell(row, "question_id", where)
    return None if number.startswith("v") else number  # a question about a video


def _read_table(source: Source, rows: Iterable[Row]) -> Iterator[Item]:
    """Reads Parquet (the owner's fields, images in a list) or TSV (VLMEvalKit's)."""
    for where, row in rows:
        if row.get("data_type", "image") == "image":
            image = source.store.put(row.get("image"), where)
            if "choice_a" in row:
                category = _dimension(row, IMAGE_TYPES, where)
                yield _item(source, row, image, where, "question_id", _CHOICES, category)
            else:
                category = cell(row, "category", where)
                yield _item(source, row, image, where, "index", FOUR, category)


SEED_BENCH: Final = Kind(
    name="seed_bench",
    title="SEED-Bench (image)",
    headline="accuracy",
    maximum=100.0,
    answer_type="letter",
    modes={
        "lmms-eval": partial(judge_by, parse_lmms_eval),
        "llava": partial(judge_by, parse_llava),
        "vlmevalkit": partial(judge_by, infer_vlmevalkit),
        LOCAL: judge_locally,
    },
    default_mode="lmms-eval",
    refused={
        "official": "the owner's tool reads no text, it ranks the options by their likelihood; "
        "ask with `lrm eval --rank mean`, and read those answers by lmms-eval or llava"
    },
    golds=FOUR,
    count=count_accuracy,
    details=details,
    files=Files(read_table=_read_table, read_own=_read_own, labels=QUESTION_FILE, row_key=_row_key),
)
