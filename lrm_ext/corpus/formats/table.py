"""The formats that can be imported, by name.

Input: a name or a path. Output: a `Format`, whose `read` gives LLaVA records one at a time. LLaVA's
own JSON is not read through here but by columns (`llava_columns.py`); `read` is None then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.errors import ConfigError
from lrm_ext.corpus.formats import captions, questions, tables

# `file:line` (or another place), and what makes a LLaVA record whose picture is relative to the
# source, or raises `SampleError`.
Records = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


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
        Format("parquet", "columns image; conversations, messages or texts", tables.read_parquet),
        Format("hf", "folder of Dataset.save_to_disk, same columns", tables.read_dataset),
        Format("captions", "JSON, JSONL, TSV or CSV of image and caption", captions.read_captions),
        Format("chartqa", "array of imgname, query, label",
               questions.read_chartqa, "png", "chartqa"),
        Format("docvqa", "data: question, answers, image", questions.read_docvqa, ".", "docvqa"),
        Format("dvqa", "array of question, answer, image", questions.read_dvqa, "images", "dvqa"),
        Format("ai2d", "folder with questions/ and images/", questions.read_ai2d, "images", "ai2d"),
        Format("geoqa", "array of subject or question, choices, label, image",
               questions.read_geoqa, "images", "geoqa"),
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
