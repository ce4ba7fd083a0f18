"""Pictures and their captions.

Input: a JSON array, JSON Lines, or a TSV or CSV file with a header; with `image` and `caption`.
Output: LLaVA records that ask for a description in LLaVA's words, always the same for the same
picture.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from llava.data.records import iter_records
from llava.errors import DataError
from lrm_ext.corpus.formats.build import caption, field
from lrm_ext.languages.registry import get_language

Records = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def read_captions(path: Path) -> Records:
    """`image`, `caption` and perhaps `id`, in objects or columns.

    Raises:
        DataError: The file is missing, or a TSV or CSV file lacks a column.
    """
    prompts = get_language("en").fixed_prompts
    requests = [prompts[key] for key in sorted(prompts) if key.startswith("image_")]
    is_table = path.suffix.lower() in (".tsv", ".csv")
    rows = _table(path) if is_table else iter_records(path)
    for where, raw in rows:
        yield where, partial(_record, raw, where, requests)


def _record(raw: dict[str, Any], where: str, requests: list[str]) -> dict[str, Any]:
    image = field(raw, "image", where)
    request = requests[zlib.crc32(image.encode()) % len(requests)]
    return caption(raw.get("id", image), image, request, field(raw, "caption", where))


def _table(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
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
