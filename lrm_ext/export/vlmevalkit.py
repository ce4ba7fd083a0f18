"""Answers as VLMEvalKit's files: a table with the column `prediction`.

`<model>/T<time>/<model>_<dataset>.xlsx` (or `.tsv`), which the kit scores with `--mode eval
--reuse`. All columns of the benchmark but the image are there, with the kit's labels (`Yes`, `No`).
A question's `index` is that of the kit's own TSV if the benchmark was imported from it. Else it is
the benchmark's number if that is unique (MMBench), or the question's place from 0 (SEED-Bench).
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from llava.errors import ConfigError, DataError
from llava.files import write_atomically, writing
from lrm_ext.evaluate.items import LETTERS
from lrm_ext.export.answers import ExportedResult, file_name

FORMATS: Final = ("xlsx", "tsv")
# What the kit calls its data sets, by kind and language; others are named after both.
_DATASETS: Final = {
    ("mme", "en"): "MME",
    ("pope", "en"): "POPE",
    ("seed_bench", "en"): "SEEDBench_IMG",
    ("mmbench", "en"): "MMBench_DEV_EN",
    ("mmbench", "zh"): "MMBench_DEV_CN",
}
_MAX_CELL_CHARS: Final = 32_767
# the kit compares with what it reads out of an answer, in this spelling
_LABELS: Final = {"yes": "Yes", "no": "No"}

log = logging.getLogger(__name__)


def export_vlmevalkit(run: Iterable[ExportedResult], out: Path, form: str = "xlsx") -> list[Path]:
    """Write the tables.

    Args:
        run: Answers of one model.
        out: The kit's work folder.
        form: One of `FORMATS`.

    Returns:
        The files.

    Raises:
        ConfigError: An unknown form, or openpyxl is not installed.
        DataError: A text does not fit into a cell.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format is {form!r}; expected one of {', '.join(FORMATS)}")
    write = _write_xlsx if form == "xlsx" else _write_tsv
    written: list[Path] = []
    every = list(run)
    model = file_name(every[0].model)
    folder = out / model / f"T{max(answers.written for answers in every):%Y%m%d-%H%M%S}"
    for answers in every:
        result = answers.result
        own = answers.name_in(_DATASETS)
        name = own or f"{result.benchmark}_{result.lang}".replace("-", "_")
        path = folder / f"{model}_{name}.{form}"
        if own and not answers.is_in_order and not _own_numbers(answers):
            log.warning(
                "%s: the kit numbers the questions by their place in the benchmark, which the "
                "answers do not tell; give --benchmark-dir", path,
            )  # fmt: skip
        write(path, rows_of(answers))
        written.append(path)
    return written


def rows_of(answers: ExportedResult) -> list[dict[str, Any]]:
    """The table, one question a row; every row has the same columns."""
    result = answers.result
    numbers = _own_numbers(answers) or range(len(result.items))
    letters = LETTERS[: max((len(item.options) for item in result.items), default=0)]
    rows: list[dict[str, Any]] = [
        {
            "index": number,
            "question": item.question or item.text,
            "hint": item.hint,
            **{**dict.fromkeys(letters, ""), **item.lettered()},
            "answer": _LABELS.get(item.answer.lower(), item.answer),
            "category": item.category,
            "l2-category": item.supercategory,
            "image_path": item.image,
            "prediction": result.texts[item.question_id],
        }
        for number, item in zip(numbers, result.items, strict=True)
    ]
    unused = {name for name in ("hint", "l2-category") if not any(row[name] for row in rows)}
    rows = [{name: text for name, text in row.items() if name not in unused} for row in rows]
    return _joined(rows) if result.kind.name == "pope" else rows


def _own_numbers(answers: ExportedResult) -> list[int]:
    """The numbers that the questions' own file gives them; empty if they cannot be the index."""
    own = [item.source_id or item.question_id for item in answers.result.items]
    if not all(text.isdecimal() for text in own):
        return []
    numbers = [int(text) for text in own]
    if answers.result.kind.name == "pope":
        # in the kit's TSV, a question that several categories share is one row
        asked = {
            (n, i.image_id, i.text) for n, i in zip(numbers, answers.result.items, strict=True)
        }
        return numbers if len(asked) == len(set(numbers)) else []
    if answers.result.kind.name == "seed_bench" and set(numbers) != set(range(len(numbers))):
        # the ids of SEED-Bench.json; the kit counts the questions about images
        return []
    return numbers if len(set(numbers)) == len(numbers) else []


def _joined(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for a question that several categories share, as in the kit's POPE.

    Raises:
        DataError: It has different answers.
    """
    by_index: dict[int, dict[str, Any]] = {}
    for row in rows:
        first = by_index.setdefault(row["index"], row)
        if first is not row:
            if first["prediction"] != row["prediction"]:
                raise DataError(
                    f"question {row['index']} is answered {first['prediction']!r} in "
                    f"{first['category']} and {row['prediction']!r} in {row['category']}; the kit "
                    "has one row for both"
                )
            first["category"] += f",{row['category']}"
    return list(by_index.values())


def _write_tsv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, file.getvalue())


def _write_xlsx(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    try:
        openpyxl = import_module("openpyxl")
        illegal = import_module("openpyxl.cell.cell").ILLEGAL_CHARACTERS_RE
    except ImportError as error:
        raise ConfigError(
            "xlsx files are written with openpyxl: pip install 'lrm-llava[excel]', or take "
            "--format tsv"
        ) from error
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(list(rows[0]))
    for number, row in enumerate(rows, 2):
        for column, (name, value) in enumerate(row.items(), 1):
            text = str(value)
            if len(text) > _MAX_CELL_CHARS or illegal.search(text):
                raise DataError(
                    f"{path}: {name} of index {row['index']} has {len(text)} characters or ones "
                    f"that a cell cannot hold (at most {_MAX_CELL_CHARS}); take --format tsv"
                )
            cell = sheet.cell(number, column, value)
            if isinstance(value, str):
                # a text that begins with "=" is no formula
                cell.data_type = "s"
    with writing(path) as partial:
        book.save(partial)
