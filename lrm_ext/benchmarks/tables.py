"""Rows of any table that benchmarks come in: TSV, CSV, JSON, JSON Lines, Parquet.

In: a file, or a folder of Parquet files. Out: `(place, row)` one at a time; cells of text tables
stay text, so that the word "None" stays a word.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from llava.errors import DataError
from llava.eval.records import read_json_lines, read_text

Row = tuple[str, dict[str, Any]]

SUFFIXES: Final = (".tsv", ".csv", ".json", ".jsonl", ".parquet")
_DELIMITERS: Final = {".tsv": "\t", ".csv": ","}


def read_rows(path: Path, rows_at: str = "") -> Iterator[Row]:
    """Read the rows of a table.

    Args:
        path: The file, or a folder of Parquet files.
        rows_at: Where the rows of a JSON file are: keys joined by dots, each followed by `[]` where
            all members of a list (or all values of an object, under `key`) are meant, such as
            `annotations[].qa_pairs[]`. Fields of outer objects are part of the row.

    Raises:
        DataError: The file is missing, of another type, or damaged.
    """
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise DataError(f"{path}: no Parquet files in this folder")
        for file in files:
            yield from _parquet(file)
        return
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix in _DELIMITERS:
        yield from _delimited(path, _DELIMITERS[suffix])
    elif suffix == ".parquet":
        yield from _parquet(path)
    elif suffix == ".jsonl" or (suffix == ".json" and not rows_at and _is_json_lines(path)):
        yield from read_json_lines(path)
    elif suffix == ".json":
        yield from _json(path, rows_at)
    else:
        raise DataError(f"{path}: expected a file that ends in one of {', '.join(SUFFIXES)}")


def _delimited(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a cell may hold a whole picture
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        header = next(reader, [])
        try:
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if len(cells) != len(header):
                    raise DataError(
                        f"{where}: {len(cells)} cells, but the header names {len(header)}"
                    )
                yield where, dict(zip(header, cells, strict=True))
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 ({error}); convert it first") from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    yield f"{path}: row {number}", row
                    number += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: damaged, or not a Parquet file: {error}") from error


def _is_json_lines(path: Path) -> bool:
    """Whether a file named .json holds one object a line, as POPE's do."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = file.readline()
            second = file.readline()
        return isinstance(json.loads(first), dict) and (not second or second[:1] == "{")
    except ValueError:
        return False


def _json(path: Path, rows_at: str) -> Iterator[Row]:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    found: list[tuple[dict[str, Any], Any]] = [({}, content)]
    for step in rows_at.split(".") if rows_at else ["[]"]:
        found = [pair for outer, value in found for pair in _step(path, outer, value, step)]
    for number, (outer, value) in enumerate(found):
        where = f"{path}: item {number}"
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected an object, found {type(value).__name__}")
        yield where, {**outer, **value}


def _step(
    path: Path, outer: Mapping[str, Any], value: Any, step: str
) -> list[tuple[dict[str, Any], Any]]:
    """Go one step into a JSON value; see `read_rows`."""
    name, is_all = step.removesuffix("[]"), step.endswith("[]")
    if name:
        if not isinstance(value, dict) or name not in value:
            raise DataError(f"{path}: no key {name!r} where the questions should be")
        outer = {**outer, **{k: v for k, v in value.items() if k != name}}
        value = value[name]
    if not is_all:
        return [(dict(outer), value)]
    if isinstance(value, list):
        return [(dict(outer), member) for member in value]
    if isinstance(value, dict):
        return [({**outer, "key": key}, member) for key, member in value.items()]
    raise DataError(f"{path}: expected a list or an object of questions at {step!r}")
