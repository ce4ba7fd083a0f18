"""LLaVA records in columns: Parquet files and Hugging Face datasets on disk.

Input: a `.parquet` file, a folder of them, or a folder of `Dataset.save_to_disk`, with one column
of turns: `conversations` (list of from/value, or role/content), `messages` (role/content, whose
content may be a list of parts), or `texts` (user/assistant). Perhaps `id`, `image` or `images`,
`lang`, `source`, `task`. Output: LLaVA records, read batch by batch. A picture that is embedded in
the file stays a mapping with its `bytes`; what becomes of it is the importer's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import ConfigError, DataError

Records = Iterator[tuple[str, Callable[[], dict[str, Any]]]]

_TURNS = ("conversations", "messages", "texts")
_COLUMNS = ("id", "image", "images", *_TURNS, "lang", "source", "task")
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
                    yield where, partial(_record, raw, f"{file.stem}-{number}")
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
    image = raw.get("image")
    if image is None:
        image = raw.get("images")
    if isinstance(image, list):
        image = image[0] if len(image) == 1 else image or None
    if isinstance(image, dict) and image.get("bytes") is None:
        image = image.get("path")
    record = {key: raw[key] for key in ("id", "lang", "source", "task") if raw.get(key) is not None}
    record.setdefault("id", sample_id)
    turns: list[Any] = next((raw[name] for name in _TURNS if raw.get(name)), [])
    if raw.get("texts") and turns is raw["texts"]:
        _set_pairs(record, turns, image is not None)
    else:
        record["conversations"] = [_turn(turn) for turn in turns]
    return {**record, "image": image} if image is not None else record


def _turn(turn: Any) -> Any:
    if isinstance(turn, dict) and "role" in turn:
        value = turn.get("content")
        if isinstance(value, list):
            value = "\n".join(map(_part, value))
        return {"from": _ROLES.get(turn["role"], turn["role"]), "value": value}
    return turn


def _part(part: Any) -> str:
    """A part of a message: a picture's place, or text."""
    if isinstance(part, dict) and part.get("type") == "image":
        return DEFAULT_IMAGE_TOKEN
    return str(part.get("text") or "") if isinstance(part, dict) else str(part)


def _set_pairs(record: dict[str, Any], texts: list[Any], has_image: bool) -> None:
    """Turns of pairs of `user` and `assistant`, which do not say where the picture is."""
    turns = []
    for number, pair in enumerate(texts):
        start = f"{DEFAULT_IMAGE_TOKEN}\n" if has_image and number == 0 else ""
        turns.append({"from": "human", "value": f"{start}{pair.get('user') or ''}"})
        turns.append({"from": "gpt", "value": pair.get("assistant")})
        if pair.get("source"):
            record.setdefault("source", pair["source"])
    record["conversations"] = turns
