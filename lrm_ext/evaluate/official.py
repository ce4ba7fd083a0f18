"""Parts that readers of official benchmark files share: source, rows of tables, their images."""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image

from llava.errors import DataError
from llava.eval.records import read_json_lines, read_text
from llava.files import writing
from llava.images import open_image
from lrm_ext.evaluate.items import LLAVA, QUESTION, Item
from lrm_ext.evaluate.kind import Kind
from lrm_ext.files import leaves_folder
from lrm_ext.languages import get_language
from lrm_ext.languages.registry import Language


@dataclass(frozen=True)
class Source:
    """Official files, and how they are to be read.

    Attributes:
        kind: The benchmark.
        path: File or folder.
        lang: Language that they are in.
        store: Where pictures inside tables go.
        labels: Files with the expected answers, where the questions come without.
        images: Folder of the pictures, where it is not the usual one.
        style: Of the prompt: one of `PROMPT_STYLES`.
    """

    kind: Kind
    path: Path
    lang: str
    store: PictureStore
    labels: Path | None = None
    images: Path | None = None
    style: str = LLAVA

    @property
    def language(self) -> Language:
        """The language's file."""
        return get_language(self.lang)

    def prompt(self, question: str, hint: str = "", options: Sequence[str] = ()) -> str:
        """What the model is asked."""
        if self.style == QUESTION:
            return f"{hint}\n{question}" if hint else question
        return self.kind.prompt(question, hint, options, self.language)


@dataclass(frozen=True)
class Questions:
    """Questions as they were read.

    Attributes:
        items: The questions.
        image_root: Folder that their picture paths are relative to; None for the store's.
    """

    items: tuple[Item, ...]
    image_root: Path | None = None


def cell(row: Mapping[str, Any], name: str, where: str) -> str:
    """A cell that must hold text.

    Raises:
        DataError: It is missing or empty.
    """
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name} is {value!r}; expected text. Found: {', '.join(row)}")
    return value


def is_table(path: Path) -> bool:
    """Whether a path is a table with everything in it: a TSV or Parquet, or a folder of those."""
    if path.is_dir():
        return any(path.glob("*.parquet"))
    return path.suffix.lower() in (".tsv", ".parquet")


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


_MAGIC: Final = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"RIFF", ".webp"),
    (b"BM", ".bmp"),
)
_HASH_CHARS: Final = 20
GAP_PX: Final = 8


@dataclass(frozen=True)
class PictureStore:
    """Where pictures go.

    Attributes:
        folder: The folder; None to name them only, when nothing is to be asked.
        source: A folder that names in cells are relative to.
    """

    folder: Path | None
    source: Path | None = None

    def put(self, cell: Any, where: str) -> str:
        """Store the picture of a cell.

        Args:
            cell: Bytes, base64 text, a name, an object of `bytes` and `path` as Parquet has, or a
                list of one of these.
            where: For messages.

        Returns:
            Path relative to the folder; for a name, its absolute path.

        Raises:
            DataError: The cell holds no picture, or several.
        """
        if isinstance(cell, (list, tuple)):
            if len(cell) != 1:
                raise DataError(f"{where}: {len(cell)} pictures; expected one")
            return self.put(cell[0], where)
        if isinstance(cell, dict):
            if cell.get("bytes"):
                return self._write(cell["bytes"])
            return self.put(cell.get("path"), where)
        if isinstance(cell, bytes) and cell:
            return self._write(cell)
        if not isinstance(cell, str) or not cell.strip():
            raise DataError(f"{where}: no picture, found {str(cell)[:40]!r}")
        if named := self._named(cell):
            return named
        return self._write(self._decode(cell, where))

    def _decode(self, cell: str, where: str) -> bytes:
        try:
            return base64.b64decode(cell, validate=True)
        except binascii.Error as error:
            raise DataError(
                f"{where}: the picture {cell[:40]!r} is neither a file in "
                f"{self.source or 'the folder of pictures (--images)'} nor base64 ({error})"
            ) from error

    def put_joined(self, cells: Sequence[Any], where: str) -> str:
        """Store the pictures of several cells as one, side by side, at the height of the highest.

        Args:
            cells: See `put`; a single one is stored as it is.
            where: For messages.

        Raises:
            DataError: A cell holds no picture.
        """
        contents = [self._content(cell, where) for cell in cells]
        if len(contents) == 1:
            return self._write(contents[0])
        opened = [open_image(content, where) for content in contents]
        height = max(picture.height for picture in opened)
        sizes = [max(1, round(picture.width * height / picture.height)) for picture in opened]
        canvas = Image.new("RGB", (sum(sizes) + GAP_PX * (len(opened) - 1), height), "white")
        left = 0
        for picture, width in zip(opened, sizes, strict=True):
            canvas.paste(picture.resize((width, height)), (left, 0))
            left += width + GAP_PX
        joined = io.BytesIO()
        canvas.save(joined, format="PNG")
        return self._write(joined.getvalue())

    def _content(self, cell: Any, where: str) -> bytes:
        """The bytes of a picture, wherever they are."""
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes) and cell:
            return cell
        if not isinstance(cell, str) or not cell.strip():
            raise DataError(f"{where}: no picture, found {str(cell)[:40]!r}")
        if named := self._named(cell):
            return Path(named).read_bytes()
        return self._decode(cell, where)

    def _named(self, name: str) -> str | None:
        if self.source is None or len(name) > 255 or "://" in name:
            return None
        path = Path(os.path.abspath(self.source / name))
        return str(path) if not leaves_folder(name) and path.is_file() else None

    def _write(self, content: bytes) -> str:
        suffix = next((s for magic, s in _MAGIC if content.startswith(magic)), ".img")
        name = hashlib.sha256(content).hexdigest()[:_HASH_CHARS] + suffix
        if self.folder is not None:
            path = self.folder / name
            if not path.is_file():
                with writing(path) as partial:
                    partial.write_bytes(content)
        return name
