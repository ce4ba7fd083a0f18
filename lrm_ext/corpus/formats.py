"""The formats that can be imported, by name.

`Format.rows` reads the entries of a file one at a time, and `Format.to_record` makes a LLaVA record
of one. An entry that cannot become a record raises `SampleError`, and the others are still read.
LLaVA's own JSON is read by columns instead (`columns.py`); its `rows` is None.

The requests at the end of a question are those of LLaVA-1.5, from the English language file. Tables
(Parquet, Hugging Face datasets on disk) have one column of turns: `conversations`, `messages` or
`texts`, and optionally `id`, `image` or `images`, `lang`, `source`, `task`. An image that is
embedded in the file stays as it is; the importer decides what to do with it.
"""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.records import iter_records
from llava.data.sample import UNSUPPORTED_FIELDS, SampleError
from llava.errors import ConfigError, DataError
from llava.eval.records import read_json
from lrm_ext.languages.registry import ENGLISH, get_language

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BATCH_ROWS = 1024
# File names on the Hub: train-00000-of-00012.parquet
_SHARD = re.compile(r"(.+)-\d+-of-\d+(?:-\w+)?\.parquet")
_TURN_COLUMNS = ("conversations", "messages", "texts")
_COLUMNS = ("id", "image", "images", *_TURN_COLUMNS, "lang", "source", "task", *UNSUPPORTED_FIELDS)
# Location (`file:line` or the like) and content of each entry.
Rows = Iterator[tuple[str, dict[str, Any]]]


def _read_parquet(path: Path) -> Rows:
    """Reads one or several Parquet files, in order of their names.

    Args:
        path: A file, a pattern such as `data/train-*.parquet`, a folder of `*.parquet`, or a
            dataset of the Hub with its files in `data/`.

    Raises:
        DataError: No file is found, `data/` holds several splits, a file is damaged, or a column is
            missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in _find_parquet(path):
        try:
            table = pq.ParquetFile(file)
            columns = _check_columns(table.schema_arrow.names, file)
            yield from _table_rows(
                file, file.stem, table.iter_batches(_BATCH_ROWS, columns=columns)
            )
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{file}: damaged, or not a Parquet file: {error}") from error


def _find_parquet(path: Path) -> list[Path]:
    files = [path]
    if path.is_dir():
        files = sorted(path.glob("*.parquet")) or sorted((path / "data").glob("*.parquet"))
    elif "*" in path.name:
        files = sorted(path.parent.glob(path.name))
    if not files or not files[0].is_file():
        raise DataError(f"{path}: no Parquet file found (nor in its folder data/).")
    splits = sorted({match[1] for file in files if (match := _SHARD.fullmatch(file.name))})
    if path.is_dir() and len(splits) > 1:
        named = files[0].parent / f"{splits[0]}-*.parquet"
        raise DataError(f"{path}: holds the splits {', '.join(splits)}; name one, such as {named}.")
    return files


def _read_dataset(path: Path) -> Rows:
    """Reads a folder written by `datasets.Dataset.save_to_disk`.

    Raises:
        ConfigError: The package `datasets` is missing.
        DataError: The folder holds several splits, cannot be read, or lacks a column.
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
            f"{path}: not a folder of Dataset.save_to_disk: {error}. Fetch a dataset of the Hub "
            "once with datasets.load_dataset(NAME, split=...).save_to_disk(FOLDER)."
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        raise DataError(f"{path}: it holds splits; name one: {', '.join(map(str, loaded))}.")
    columns = _check_columns(loaded.column_names, path)
    batches = loaded.select_columns(columns).with_format("arrow").iter(_BATCH_ROWS)
    yield from _table_rows(path, path.name, batches)


def _check_columns(names: list[str], where: Path) -> list[str]:
    found = [name for name in _COLUMNS if name in names]
    if not set(_TURN_COLUMNS) & set(found):
        raise DataError(
            f"{where}: no column {' or '.join(f'`{name}`' for name in _TURN_COLUMNS)}; found: "
            f"{', '.join(names)}."
        )
    return found


def _table_rows(place: Path, name: str, batches: Iterable[Any]) -> Rows:
    rows = (row for batch in batches for row in batch.to_pylist())
    for number, row in enumerate(rows):
        # a row without an id gets its number in its own file
        found = {"id": f"{name}-{number}", **{k: v for k, v in row.items() if v is not None}}
        yield f"{place}: row {number}", found


def _read_captions(path: Path) -> Rows:
    """Reads `image`, `caption` and optionally `id` from objects or columns.

    Raises:
        DataError: The file is missing, or a TSV or CSV file lacks a column.
    """
    ending = path.suffix.lower()
    if ending not in (".tsv", ".csv"):
        yield from iter_records(path)
        return
    is_tsv = ending == ".tsv"
    layout: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if is_tsv else {}
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, **layout)
            if missing := {"image", "caption"} - set(reader.fieldnames or ()):
                raise DataError(
                    f"{path}:1: no column {' and '.join(sorted(missing))}; found "
                    f"{', '.join(reader.fieldnames or ['nothing'])}."
                )
            for row in reader:
                yield f"{path}:{reader.line_num}", row
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file.") from error


def _read_docvqa(path: Path) -> Rows:
    """Reads `{"data": [...]}`."""
    for number, raw in enumerate(_load(path, "data", list)):
        yield f"{path}: data[{number}]", raw


def _read_ai2d(path: Path) -> Rows:
    """Reads a folder with `questions/<image>.json`, whose keys are the questions."""
    files = sorted((path / "questions").glob("*.json"))
    if not files:
        raise DataError(f"{path}: no questions/*.json found; name the folder that AI2D unpacks to.")
    for file in files:
        image = _load(file, "imageName", str)
        for question, entry in _load(file, "questions", dict).items():
            row = {"image": image, "question": question, "entry": entry}
            yield f"{file}: {question!r:.60}", row


def _load(path: Path, key: str, kind: type) -> Any:
    """Returns the value of a key of a small JSON file."""
    return field(read_json(path, dict), key, str(path), kind)


def field(record: Any, name: str, where: str, kind: type | tuple[type, ...] = str) -> Any:
    """Returns a required value of a record.

    Raises:
        SampleError: The value is missing or of another type.
    """
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        wanted = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        raise SampleError(
            f"{where}: {name!r} is {value!r:.60}, expected {wanted}; is this the right format?",
            "structure",
        )
    return value


def _talk(sample_id: Any, image: str, question: str, answer: str, task: str) -> dict[str, Any]:
    """Makes a record of one question about an image."""
    return {
        "id": str(sample_id),
        "image": image,
        "task": task,
        "conversations": [
            {"from": "human", "value": f"{DEFAULT_IMAGE_TOKEN}\n{question}"},
            {"from": "gpt", "value": answer},
        ],
    }


def _short_answer(
    raw: Mapping[str, Any],
    where: str,
    default_id: str,
    *,
    task: str,
    image: str = "image",
    question: str = "question",
    answer: str = "answer",
    id_key: str | None = None,
) -> dict[str, Any]:
    """Makes a record of a short-answer question; the last arguments name its keys."""
    sample_id = default_id if id_key is None else field(raw, id_key, where, (int, str))
    request = get_language(ENGLISH).short_answer
    text = f"{field(raw, question, where).strip()}\n{request}"
    return _talk(sample_id, field(raw, image, where), text, field(raw, answer, where), task)


def _choice(
    sample_id: Any,
    image: str,
    question: str,
    options: Sequence[str],
    right: int,
    task: str,
    where: str,
) -> dict[str, Any]:
    """Makes a record of a multiple-choice question, answered by a letter.

    Raises:
        SampleError: The right answer is none of the options.
    """
    if not 0 <= right < len(options) <= len(_LETTERS):
        raise SampleError(
            f"{where}, sample {sample_id!r}: the answer is option {right} of {len(options)}.",
            "structure",
        )
    listed = [f"{letter}. {text}" for letter, text in zip(_LETTERS, options, strict=False)]
    text = "\n".join([question.strip(), *listed, get_language(ENGLISH).option_letter])
    return _talk(sample_id, image, text, _LETTERS[right], task)


def _llava(raw: Mapping[str, Any], where: str, default_id: str) -> dict[str, Any]:
    """Takes a row with the fields of a LLaVA record; pairs of `texts` may name the source."""
    named = [pair["source"] for pair in raw.get("texts") or () if pair.get("source")]
    return {"source": named[0], **raw} if named else dict(raw)


def _caption(raw: Mapping[str, Any], where: str, default_id: str) -> dict[str, Any]:
    """Converts `{"image", "caption", "id"?}`."""
    prompts = get_language(ENGLISH).fixed_prompts
    requests = [prompts[key] for key in sorted(prompts) if key.startswith("image_")]
    image = field(raw, "image", where)
    request = requests[zlib.crc32(image.encode()) % len(requests)]
    return _talk(raw.get("id", image), image, request, field(raw, "caption", where), "caption")


def _docvqa(raw: Mapping[str, Any], where: str, default_id: str) -> dict[str, Any]:
    """Converts `{"questionId", "question", "image", "answers"}`, taking the first answer."""
    answers = field(raw, "answers", where, list)
    asked = {**raw, "answers[0]": answers[0] if answers else None}
    return _short_answer(
        asked, where, default_id, task="document", answer="answers[0]", id_key="questionId"
    )


def _ai2d(raw: Mapping[str, Any], where: str, default_id: str) -> dict[str, Any]:
    """Converts an entry of `_read_ai2d`."""
    entry = raw["entry"]
    options, right = (
        field(entry, "answerTexts", where, list),
        field(entry, "correctAnswer", where, int),
    )
    sample_id = field(entry, "questionId", where)
    return _choice(sample_id, raw["image"], raw["question"], options, right, "diagram", where)


def _geoqa(raw: Mapping[str, Any], where: str, default_id: str) -> dict[str, Any]:
    """Converts `{"id"?, "subject" or "question", "choices", "label", "image"}`, or a record."""
    if "conversations" in raw:
        return {"task": "geometry", **raw}
    options = [str(option) for option in field(raw, "choices", where, list)]
    question = field(raw, "question" if "question" in raw else "subject", where)
    image, right = field(raw, "image", where), field(raw, "label", where, int)
    named = raw.get("id", default_id)
    return _choice(named, image, question, options, right, "geometry", where)


@dataclass(frozen=True)
class Format:
    """A format of datasets on disk.

    Attributes:
        name: Name on the command line.
        summary: Description in one line.
        rows: Reads the entries at a path; None for LLaVA's own JSON.
        to_record: Makes a LLaVA record of an entry, with an image path relative to the source. Its
            other arguments are the location of the entry, for messages, and an id for entries
            without one.
        images: Image folder relative to the folder of the source, where records do not name it;
            None if image paths are relative to the image root of the corpus.
        source: Source of rows that do not name one; None for the name of the file.
    """

    name: str
    summary: str
    rows: Callable[[Path], Rows] | None = None
    to_record: Callable[[Mapping[str, Any], str, str], dict[str, Any]] = _llava
    images: str | None = None
    source: str | None = None


FORMATS = {
    format.name: format
    for format in (
        Format("llava", "JSON array or JSON Lines of LLaVA records; LLaVA-1.5's mix"),
        Format("sharegpt4v", "ShareGPT4V, ShareGPT4V-PT (LLaVA records)", source="sharegpt4v"),
        Format("parquet", "columns image; conversations, messages or texts", _read_parquet),
        Format("hf", "folder of Dataset.save_to_disk, same columns", _read_dataset),
        Format("captions", "JSON, JSONL, TSV or CSV of image and caption",
               _read_captions, _caption),
        Format("chartqa", "array of imgname, query, label", iter_records,
               partial(_short_answer, task="chart", image="imgname", question="query",
                       answer="label"),
               "png", "chartqa"),
        Format("docvqa", "data: question, answers, image", _read_docvqa, _docvqa, ".", "docvqa"),
        Format("dvqa", "array of question, answer, image", iter_records,
               partial(_short_answer, task="chart", id_key="question_id"), "images", "dvqa"),
        Format("ai2d", "folder with questions/ and images/", _read_ai2d, _ai2d, "images", "ai2d"),
        Format("geoqa", "array of subject or question, choices, label, image",
               iter_records, _geoqa, "images", "geoqa"),
    )
}  # fmt: skip

_SUFFIXES = {
    ".json": "llava",
    ".jsonl": "llava",
    ".parquet": "parquet",
    ".tsv": "captions",
    ".csv": "captions",
}


def split_source(text: str) -> tuple[Format, Path]:
    """Parses `[FORMAT:]PATH`; without a format, the file name extension decides.

    Raises:
        ConfigError: The format is unknown or cannot be inferred.
    """
    name, colon, path = text.partition(":")
    if not colon or Path(text).exists():
        path, ending = text, Path(text).suffix
        is_saved = (Path(text) / "dataset_info.json").is_file()
        name = "hf" if is_saved else _SUFFIXES.get(ending.lower(), "")
        if not name:
            raise ConfigError(
                f"{text}: the format cannot be told from the ending {ending!r}; write "
                f"FORMAT:{text} with one of: {', '.join(FORMATS)}."
            )
    if name not in FORMATS:
        raise ConfigError(f"{text!r}: unknown format {name!r}; choose from: {', '.join(FORMATS)}.")
    return FORMATS[name], Path(path)
