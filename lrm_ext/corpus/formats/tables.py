"""LLaVA records in columns: Parquet files and Hugging Face datasets on disk.

Input: a `.parquet` file, several, a folder of them or of a data set of the Hub, or a folder of
`Dataset.save_to_disk`, with one column of turns: `conversations`, `messages` or `texts`. Perhaps
`id`, `image` or `images`, `lang`, `source`, `task`. Output: records for `Sample.from_record`, read
batch by batch. An image that is embedded in the file stays as it is; what becomes of it is the
importer's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from llava.data.sample import UNSUPPORTED_FIELDS
from llava.errors import ConfigError, DataError

Records = Iterator[tuple[str, Callable[[], dict[str, Any]]]]

# How the Hub names files: train-00000-of-00012.parquet
_SHARD = re.compile(r"(.+)-\d+-of-\d+(?:-\w+)?\.parquet")
_TURNS = ("conversations", "messages", "texts")
_COLUMNS = ("id", "image", "images", *_TURNS, "lang", "source", "task", *UNSUPPORTED_FIELDS)


def read_parquet(path: Path) -> Records:
    """Reads one Parquet file, several, or those of a folder, in order of their names.

    Args:
        path: A file, a pattern such as `data/train-*.parquet`, a folder of `*.parquet`, or one of
            a data set of the Hub, whose files are in `data/`.

    Raises:
        DataError: None is found, `data/` holds several splits, one is damaged, or a column is
            missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in _find_parquet(path):
        try:
            table = pq.ParquetFile(file)
            columns = _check_columns(table.schema_arrow.names, file)
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                for raw in batch.to_pylist():
                    where = f"{file}: row {number}"
                    yield where, partial(_record, raw, f"{file.stem}-{number}")
                    number += 1
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{file}: damaged, or not a Parquet file: {error}") from error


def _find_parquet(path: Path) -> list[Path]:
    files = [path]
    if path.is_dir():
        files = sorted(path.glob("*.parquet")) or sorted((path / "data").glob("*.parquet"))
    elif "*" in path.name:
        files = sorted(path.parent.glob(path.name))
    if not files or not files[0].is_file():
        raise DataError(f"{path}: no Parquet file is there (nor in its folder data/).")
    splits = sorted({match[1] for file in files if (match := _SHARD.fullmatch(file.name))})
    if path.is_dir() and len(splits) > 1:
        named = files[0].parent / f"{splits[0]}-*.parquet"
        raise DataError(f"{path}: holds the splits {', '.join(splits)}; name one, such as {named}.")
    return files


def read_dataset(path: Path) -> Records:
    """A folder of `datasets.Dataset.save_to_disk`.

    Raises:
        ConfigError: The package `datasets` is missing.
        DataError: It holds several splits, cannot be read, or lacks a column.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            "Hugging Face datasets need the package datasets: pip install 'lrm-llava[translate]'"
        ) from error
    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a folder of Dataset.save_to_disk: {error}. A data set of the hub is "
            "fetched once by datasets.load_dataset(NAME, split=...).save_to_disk(FOLDER)."
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        raise DataError(f"{path}: it holds splits; name one: {', '.join(map(str, loaded))}.")
    columns = _check_columns(loaded.column_names, path)
    for number, raw in enumerate(loaded.select_columns(columns).with_format("arrow").iter(1024)):
        for offset, row in enumerate(raw.to_pylist()):
            row_number = number * 1024 + offset
            sample_id = f"{path.name}-{row_number}"
            yield f"{path}: row {row_number}", partial(_record, row, sample_id)


def _check_columns(names: list[str], where: Path) -> list[str]:
    found = [name for name in _COLUMNS if name in names]
    if not set(_TURNS) & set(found):
        raise DataError(
            f"{where}: no column {' or '.join(f'`{name}`' for name in _TURNS)}; found: "
            f"{', '.join(names)}."
        )
    return found


def _record(raw: dict[str, Any], sample_id: str) -> dict[str, Any]:
    """A row as a LLaVA record; `sample_id` is for one that has none."""
    record = {"id": sample_id, **{key: value for key, value in raw.items() if value is not None}}
    pairs = record.get("texts") or ()
    if source := next((pair["source"] for pair in pairs if pair.get("source")), None):
        record.setdefault("source", source)
    return record
