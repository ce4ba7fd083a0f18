"""The formats that can be imported, by name.

Input: a name and a path. Output: a `Format`, whose `read` gives LLaVA records one at a time, each
as a function that makes it: one that cannot be made raises `SampleError` and does not end the
others. LLaVA's own JSON is read by columns instead (`columns.py`); `read` is None then.

The requests at a question's end are those of LLaVA-1.5, from the English language file. Tables
(Parquet, Hugging Face datasets on disk) have one column of turns: `conversations`, `messages` or
`texts`; perhaps `id`, `image` or `images`, `lang`, `source`, `task`. An image that is embedded in
the file stays as it is; what becomes of it is the importer's business.
"""

from __future__ import annotations

import csv
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.records import iter_records
from llava.data.sample import UNSUPPORTED_FIELDS, SampleError
from llava.errors import ConfigError, DataError
from lrm_ext.languages.registry import get_language

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# How the Hub names files: train-00000-of-00012.parquet
_SHARD = re.compile(r"(.+)-\d+-of-\d+(?:-\w+)?\.parquet")
_TURN_COLUMNS = ("conversations", "messages", "texts")
_COLUMNS = ("id", "image", "images", *_TURN_COLUMNS, "lang", "source", "task", *UNSUPPORTED_FIELDS)
Record = dict[str, Any]
# `file:line` (or another place), and what makes a LLaVA record whose picture is relative to the
# source, or raises `SampleError`.
Records = Iterator[tuple[str, Callable[[], Record]]]


def short_answer(
    sample_id: Any, image: str, question: str, answer: str, task: str
) -> dict[str, Any]:
    """A question that is answered in a word or phrase."""
    request = get_language("en").short_answer
    return _record(sample_id, image, f"{question.strip()}\n{request}", answer, task)


def choice(
    sample_id: Any,
    image: str,
    question: str,
    options: Sequence[str],
    right: int,
    task: str,
    where: str,
) -> dict[str, Any]:
    """A question that is answered by an option's letter.

    Raises:
        SampleError: The right answer is none of the options.
    """
    if not 0 <= right < len(options) <= len(_LETTERS):
        raise SampleError(
            f"{where}, sample {sample_id!r}: the answer is option {right} of {len(options)}.",
            "structure",
        )
    listed = [f"{letter}. {text}" for letter, text in zip(_LETTERS, options, strict=False)]
    request = get_language("en").option_letter
    text = "\n".join([question.strip(), *listed, request])
    return _record(sample_id, image, text, _LETTERS[right], task)


def caption(sample_id: Any, image: str, request: str, text: str) -> dict[str, Any]:
    """A picture's description."""
    return _record(sample_id, image, request, text, "caption")


def field(record: Any, name: str, where: str, kind: type | tuple[type, ...] = str) -> Any:
    """A value that a source must have.

    Raises:
        SampleError: It is missing or of another type.
    """
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        wanted = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        raise SampleError(
            f"{where}: {name!r} is {value!r:.60}, expected {wanted}; is this the right format?",
            "structure",
        )
    return value


def _record(sample_id: Any, image: str, question: str, answer: str, task: str) -> dict[str, Any]:
    return {
        "id": str(sample_id),
        "image": image,
        "task": task,
        "conversations": [
            {"from": "human", "value": f"{DEFAULT_IMAGE_TOKEN}\n{question}"},
            {"from": "gpt", "value": answer},
        ],
    }


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
                    yield where, partial(_row_record, raw, f"{file.stem}-{number}")
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
            yield f"{path}: row {row_number}", partial(_row_record, row, sample_id)


def _check_columns(names: list[str], where: Path) -> list[str]:
    found = [name for name in _COLUMNS if name in names]
    if not set(_TURN_COLUMNS) & set(found):
        raise DataError(
            f"{where}: no column {' or '.join(f'`{name}`' for name in _TURN_COLUMNS)}; found: "
            f"{', '.join(names)}."
        )
    return found


def _row_record(raw: dict[str, Any], sample_id: str) -> dict[str, Any]:
    """A row as a LLaVA record; `sample_id` is for one that has none."""
    record = {"id": sample_id, **{key: value for key, value in raw.items() if value is not None}}
    pairs = record.get("texts") or ()
    if source := next((pair["source"] for pair in pairs if pair.get("source")), None):
        record.setdefault("source", source)
    return record


def read_captions(path: Path) -> Records:
    """`image`, `caption` and perhaps `id`, in objects or columns.

    Raises:
        DataError: The file is missing, or a TSV or CSV file lacks a column.
    """
    prompts = get_language("en").fixed_prompts
    requests = [prompts[key] for key in sorted(prompts) if key.startswith("image_")]
    is_table = path.suffix.lower() in (".tsv", ".csv")
    rows = _caption_table(path) if is_table else iter_records(path)
    for where, raw in rows:
        yield where, partial(_caption_record, raw, where, requests)


def _caption_record(raw: dict[str, Any], where: str, requests: list[str]) -> dict[str, Any]:
    image = field(raw, "image", where)
    request = requests[zlib.crc32(image.encode()) % len(requests)]
    return caption(raw.get("id", image), image, request, field(raw, "caption", where))


def _caption_table(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if path.suffix.lower() == ".csv":
                reader = csv.DictReader(file)
            else:
                reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            missing = {"image", "caption"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(
                    f"{path}:1: no column {' and '.join(sorted(missing))}; found "
                    f"{', '.join(reader.fieldnames or ['nothing'])}."
                )
            for row in reader:
                yield f"{path}:{reader.line_num}", row
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file.") from error


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


@dataclass(frozen=True)
class Format:
    """One way in which a data set lies on disk.

    Attributes:
        name: On the command line.
        summary: What it looks like, in a line.
        read: From a path to records; None for LLaVA's own JSON.
        pictures: Folder of the pictures as seen from the file's (or given) folder, where records
            do not say it; None where they are relative to the corpus' image root.
        source: Written into rows that do not name theirs; None: the file's name.
    """

    name: str
    summary: str
    read: Callable[[Path], Records] | None = None
    pictures: str | None = None
    source: str | None = None


FORMATS = {
    format.name: format
    for format in (
        Format("llava", "JSON array or JSON Lines of LLaVA records; LLaVA-1.5's mix"),
        Format("sharegpt4v", "ShareGPT4V, ShareGPT4V-PT (LLaVA records)", source="sharegpt4v"),
        Format("parquet", "columns image; conversations, messages or texts", read_parquet),
        Format("hf", "folder of Dataset.save_to_disk, same columns", read_dataset),
        Format("captions", "JSON, JSONL, TSV or CSV of image and caption", read_captions),
        Format("chartqa", "array of imgname, query, label",
               read_chartqa, "png", "chartqa"),
        Format("docvqa", "data: question, answers, image", read_docvqa, ".", "docvqa"),
        Format("dvqa", "array of question, answer, image", read_dvqa, "images", "dvqa"),
        Format("ai2d", "folder with questions/ and images/", read_ai2d, "images", "ai2d"),
        Format("geoqa", "array of subject or question, choices, label, image",
               read_geoqa, "images", "geoqa"),
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
    """Read `[FORMAT:]PATH`; without a format the file's ending tells it.

    Raises:
        ConfigError: The format is unknown, or cannot be told.
    """
    name, colon, path = text.partition(":")
    if colon and not Path(text).exists():
        if name not in FORMATS:
            raise ConfigError(
                f"{text!r}: unknown format {name!r}; choose from: {', '.join(FORMATS)}."
            )
        return FORMATS[name], Path(path)
    whole = Path(text)
    if whole.is_dir() and (whole / "dataset_info.json").is_file():
        return FORMATS["hf"], whole
    if whole.suffix.lower() not in _SUFFIXES:
        raise ConfigError(
            f"{text}: the format cannot be told from the ending {whole.suffix!r}; write "
            f"FORMAT:{text} with one of: {', '.join(FORMATS)}."
        )
    return FORMATS[_SUFFIXES[whole.suffix.lower()]], whole
