"""Answers as VLMEvalKit's files (EVAL_SPEC 8): a table with the column `prediction`.

`<model>/T<time>/<model>_<dataset>.xlsx` (or `.tsv`), which the kit scores with `--mode eval
--reuse`. All columns of the benchmark but the picture are there. A question's `index` is the one of
its own file where that is a number that occurs once, else its place.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from llava.errors import ConfigError, DataError
from lrm_ext.benchmarks.items import LETTERS, Item
from lrm_ext.export.answers import Answers
from lrm_ext.export.lmms_eval_logs import file_name
from lrm_ext.files import write_atomically

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


def dataset_name(answers: Answers) -> str:
    """The data set's name in the kit; a small version of one is not that."""
    own = _DATASETS.get((answers.kind.name, answers.lang))
    is_itself = answers.benchmark.replace("-", "_") == answers.kind.name
    return own if own and is_itself else f"{answers.benchmark}_{answers.lang}".replace("-", "_")


def export_vlmevalkit(run: Iterable[Answers], out: Path, form: str = "xlsx") -> list[Path]:
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
        path = folder / f"{model}_{dataset_name(answers)}.{form}"
        write(path, rows_of(answers))
        written.append(path)
    return written


def rows_of(answers: Answers) -> list[dict[str, Any]]:
    """The table, one question a row; every row has the same columns."""
    numbers = _indices(answers.items)
    letters = LETTERS[: max((len(item.options) for item in answers.items), default=0)]
    rows: list[dict[str, Any]] = []
    for number, item in zip(numbers, answers.items, strict=True):
        options = item.lettered()
        row: dict[str, Any] = {"index": number, "question": item.question or item.text}
        if any(one.hint for one in answers.items):
            row["hint"] = item.hint
        row |= {letter: options.get(letter, "") for letter in letters}
        row["answer"] = item.answer
        row["category"] = item.category
        if any(one.supercategory for one in answers.items):
            row["l2-category"] = item.supercategory
        row["image_path"] = item.image
        row["prediction"] = answers.texts[item.question_id]
        rows.append(row)
    return rows


def _indices(items: Sequence[Item]) -> list[int]:
    own = [item.source_id or item.question_id for item in items]
    if len(set(own)) == len(own) and all(text.isdecimal() for text in own):
        return [int(text) for text in own]
    return list(range(len(items)))


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
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
