"""LLaVA records in columns: Parquet files and Hugging Face datasets on disk.

Input: a `.parquet` file, a folder of them, or a folder of `Dataset.save_to_disk`, with columns
`conversations` (list of from/value, or role/content) and perhaps `id`, `image`, `lang`, `source`,
`task`. Output: LLaVA records, read batch by batch. Pictures are referenced by path; embedded ones
are not taken out here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from llava.data.sample import SampleError
from llava.errors import ConfigError, DataError

Records = Iterator[tuple[str, Callable[[], dict[str, Any]]]]

_COLUMNS = ("id", "image", "conversations", "messages", "lang", "source", "task")
_ROLES = {"user": "human", "assistant": "gpt", "human": "human", "gpt": "gpt"}


def read_parquet(path: Path) -> Records:
    """One Parquet file, or all `*.parquet` of a folder in order of their names.

    Raises:
        DataError: None is found, one is damaged, or a column is missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise DataError(f"{path}: no Parquet file is there.")
    for file in files:
        try:
            table = pq.ParquetFile(file)
            columns = _check_columns(table.schema_arrow.names, file)
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                for raw in batch.to_pylist():
                    where = f"{file}: row {number}"
                    yield where, partial(_record, raw, where)
                    number += 1
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{file}: damaged, or not a Parquet file: {error}") from error


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
        raise DataError(f"{path}: not a folder of Dataset.save_to_disk: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        raise DataError(f"{path}: it holds splits; name one: {', '.join(map(str, loaded))}.")
    columns = _check_columns(loaded.column_names, path)
    for number, raw in enumerate(loaded.select_columns(columns).with_format("arrow").iter(1024)):
        for offset, row in enumerate(raw.to_pylist()):
            where = f"{path}: row {number * 1024 + offset}"
            yield where, partial(_record, row, where)


def _check_columns(names: list[str], where: Path) -> list[str]:
    found = [name for name in _COLUMNS if name in names]
    if "conversations" not in found and "messages" not in found:
        raise DataError(
            f"{where}: no column `conversations` or `messages`; found: {', '.join(names)}."
        )
    return found


def _record(raw: dict[str, Any], where: str) -> dict[str, Any]:
    image = raw.get("image")
    if isinstance(image, dict):
        image = _referenced(image, where)
    if isinstance(image, list):
        image = image[0] if len(image) == 1 else image or None
    turns = raw.get("conversations") or raw.get("messages") or []
    record = {key: raw[key] for key in ("id", "lang", "source", "task") if raw.get(key) is not None}
    record["conversations"] = [_turn(turn) for turn in turns]
    return {**record, "image": image} if image is not None else record


def _turn(turn: Any) -> Any:
    if isinstance(turn, dict) and "role" in turn:
        return {"from": _ROLES.get(turn["role"], turn["role"]), "value": turn.get("content")}
    return turn


def _referenced(image: dict[str, Any], where: str) -> str:
    """The path of a picture column's value.

    Raises:
        SampleError: The picture is in the file, not beside it.
    """
    if image.get("bytes") is not None or not image.get("path"):
        raise SampleError(
            f"{where}: the picture is embedded in the file; a corpus refers to pictures by path. "
            "Save the pictures to a folder first and give their names in `image`.",
            "embedded_picture",
        )
    return str(image["path"])
