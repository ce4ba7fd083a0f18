"""Reads official benchmark files: what the kinds share. Tables, their images, and labels.

A kind says in `Files` how a row of a table and the owner's own files become questions; which of the
two a path is, and how LLaVA's question files find their labels, is decided here.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import io
import json
import os
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from PIL import Image

from llava.errors import DataError
from llava.eval.records import read_json, read_json_lines
from llava.files import leaves_folder, writing
from llava.images import open_image
from lrm_ext.evaluate.items import LLAVA, PROMPT_STYLES, Item
from lrm_ext.languages import get_language
from lrm_ext.languages.registry import Language

Row = tuple[str, dict[str, Any]]
"""`file:line` and the cells of a row by column."""


@dataclass(frozen=True)
class Source:
    """Files of a benchmark, and how they are to be read.

    Attributes:
        path: File or folder.
        lang: Language that they are in.
        store: Where images inside tables go.
        labels: Files with the expected answers, if the questions come without.
        images: Folder of the images, if it is not the usual one.
        style: Of the prompt: one of `PROMPT_STYLES`.
    """

    path: Path
    lang: str
    store: ImageStore
    labels: Path | None = None
    images: Path | None = None
    style: str = LLAVA

    @property
    def folder(self) -> Path:
        """The folder that the files are in."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def language(self) -> Language:
        """The language's file."""
        return get_language(self.lang)

    def item(
        self,
        question_id: str,
        image: str,
        question: str,
        answer: str,
        answer_type: str,
        options: Sequence[str] = (),
        hint: str = "",
        **more: str,
    ) -> Item:
        """Makes a question with its prompt; see `Item` for the fields."""
        return Item(
            question_id=question_id,
            image=image,
            text=PROMPT_STYLES[self.style](question, hint, options, self.language),
            answer=answer,
            lang=self.lang,
            answer_type=answer_type,
            options=tuple(options),
            question=question,
            hint=hint,
            **{"source_id": question_id, **more},  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Questions:
    """Questions as they were read.

    Attributes:
        items: The questions.
        image_root: Folder that their image paths are relative to; None for the store's.
    """

    items: tuple[Item, ...]
    image_root: Path | None = None


@dataclass(frozen=True)
class Files:
    """The readers of the official files of a benchmark.

    Attributes:
        read_table: Makes questions from the rows of a table, with an image in each.
        read_own: Reads the owner's files, which lie beside their images; None if there are none.
        labels: Name of the owner's files beside LLaVA's question file, which has no answers.
        item_key: What a question of the owner's shares with its row in LLaVA's question file.
        row_key: The same from that row, also by its `file:line`; None for a row to leave out.
        is_whole: LLaVA's question file asks all that the owner's files have.
    """

    read_table: Callable[[Source, Iterator[Row]], Iterable[Item]]
    read_own: Callable[[Source, Path], Questions] | None = None
    labels: str = ""
    item_key: Callable[[Item], Hashable] = lambda item: item.question_id
    row_key: Callable[[Source, dict[str, Any], str], Hashable | None] = lambda source, row, where: (
        cell(row, "question_id", where)
    )
    is_whole: bool = True

    def read(self, source: Source) -> Questions:
        """Reads a table, the owner's own files, or LLaVA's question file.

        Raises:
            DataError: A file is not as it must be, or questions and labels do not match.
        """
        if self.read_own is None or is_table(source.path):
            return Questions(tuple(self.read_table(source, read_rows(source.path))))
        if source.path.suffix != ".jsonl":
            return self.read_own(source, source.path)
        labels = source.labels or source.path.parent / self.labels
        own = self.read_own(source, labels)
        known = {self.item_key(item): item for item in own.items}
        items: list[Item] = []
        for where, row in read_rows(source.path):
            key = self.row_key(source, row, where)
            if key is not None and key not in known:
                raise DataError(f"{where}: {labels} has no question {key!r}")
            if key is not None:
                items.append(replace(known[key], source_id=cell(row, "question_id", where)))
        asked = Counter(item.category for item in items)
        for category, number in Counter(item.category for item in own.items).items():
            if self.is_whole and asked[category] != number:
                raise DataError(
                    f"{labels}: {number} labels in {category}, but {asked[category]} questions; "
                    "use the release of the labels that the question file was made from"
                )
        return Questions(tuple(items), own.image_root)


def cell(row: Mapping[str, Any], name: str, where: str) -> str:
    """Returns a cell that must hold text.

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
    """Tells whether a path is a table with everything in it: TSV, Parquet, or a folder of those."""
    if path.is_dir():
        return any(path.glob("*.parquet"))
    return path.suffix.lower() in (".tsv", ".parquet")


IMAGE_SUFFIXES: Final = (".jpg", ".png", ".jpeg", ".JPG", ".PNG")
SUFFIXES: Final = (".tsv", ".csv", ".json", ".jsonl", ".parquet")
_DELIMITERS: Final = {".tsv": "\t", ".csv": ","}


def read_rows(path: Path, rows_at: str = "", columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Reads the rows of a table.

    Args:
        path: The file, or a folder of Parquet files.
        rows_at: Where the rows of a JSON file are: keys joined by dots, each followed by `[]` where
            all members of a list (or all values of an object, under `key`) are meant, such as
            `annotations[].qa_pairs[]`. Fields of outer objects are part of the row.
        columns: Read these alone, where a file lets one, to spare the images.

    Raises:
        DataError: The file is missing, of another type, or damaged.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise DataError(f"{path}: no Parquet files in this folder")
        for file in files:
            yield from _parquet(file, columns)
    elif not path.is_file():
        raise DataError(f"{path}: no such file")
    elif suffix in _DELIMITERS:
        yield from _delimited(path, _DELIMITERS[suffix])
    elif suffix == ".parquet":
        yield from _parquet(path, columns)
    elif suffix == ".jsonl" or (suffix == ".json" and not rows_at and _is_json_lines(path)):
        yield from read_json_lines(path)
    elif suffix == ".json":
        yield from _json(path, rows_at)
    else:
        raise DataError(f"{path}: expected a file that ends in one of {', '.join(SUFFIXES)}")


def _delimited(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a cell may hold a whole image
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


def _parquet(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            batches = table.iter_batches(batch_size=64, columns=columns)
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from ((f"{path}: row {number}", row) for number, row in enumerate(rows))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: damaged, or not a Parquet file: {error}") from error


def _is_json_lines(path: Path) -> bool:
    """Tells whether a file named .json holds one object a line, as POPE's do."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first, second = file.readline(), file.readline()
        return isinstance(json.loads(first), dict) and second[:1] in ("", "{")
    except ValueError:
        return False


def _json(path: Path, rows_at: str) -> Iterator[Row]:
    found: list[tuple[dict[str, Any], Any]] = [({}, read_json(path, object))]
    for step in rows_at.split(".") if rows_at else ["[]"]:
        found = [pair for outer, value in found for pair in _step(path, outer, value, step)]
    for number, (outer, value) in enumerate(found):
        where = f"{path}: item {number}"
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected an object, found {type(value).__name__}")
        yield where, {**outer, **value}


def _step(
    path: Path, outer: dict[str, Any], value: Any, step: str
) -> list[tuple[dict[str, Any], Any]]:
    """Goes one step into a JSON value; see `read_rows`."""
    name, is_all = step.removesuffix("[]"), step.endswith("[]")
    if name:
        if not isinstance(value, dict) or name not in value:
            raise DataError(f"{path}: no key {name!r} where the questions should be")
        outer = {**outer, **{k: v for k, v in value.items() if k != name}}
        value = value[name]
    if not is_all:
        return [(outer, value)]
    if isinstance(value, dict):
        return [({**outer, "key": key}, member) for key, member in value.items()]
    if isinstance(value, list):
        return [(outer, member) for member in value]
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
class ImageStore:
    """Writes the images of tables to files, named by their content.

    Attributes:
        folder: The folder; None to name them only, if nothing is to be asked.
        source: A folder that names in cells are relative to; it may be inside a ZIP file.
    """

    folder: Path | None
    source: Path | zipfile.Path | None = None

    def put(self, cell: Any, where: str) -> str:
        """Stores the image of a cell.

        Args:
            cell: Bytes, base64 text, a name, an object of `bytes` and `path` as Parquet has, or a
                list of one of these.
            where: For messages.

        Returns:
            Path relative to the folder; for a name, its absolute path.

        Raises:
            DataError: The cell holds no image, or several.
        """
        if isinstance(cell, (list, tuple)):
            if len(cell) != 1:
                raise DataError(f"{where}: {len(cell)} images; expected one")
            cell = cell[0]
        found = self._find(cell, where)
        return self._write(found) if isinstance(found, bytes) else str(found)

    def put_joined(self, cells: Sequence[Any], where: str) -> str:
        """Stores the images of several cells as one, side by side, at the height of the highest.

        Args:
            cells: See `put`; a single one is stored as it is.
            where: For messages.

        Raises:
            DataError: A cell holds no image.
        """
        found = [self._find(cell, where) for cell in cells]
        contents = [one if isinstance(one, bytes) else one.read_bytes() for one in found]
        if len(contents) == 1:
            return self._write(contents[0])
        joined = io.BytesIO()
        join_images([open_image(one, where) for one in contents]).save(joined, format="PNG")
        return self._write(joined.getvalue())

    def _find(self, cell: Any, where: str) -> bytes | Path:
        """Returns the content of an image, or the file that a cell names."""
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes) and cell:
            return cell
        if not isinstance(cell, str) or not cell.strip():
            raise DataError(f"{where}: no image, found {str(cell)[:40]!r}")
        if self.source and len(cell) <= 255 and "://" not in cell and not leaves_folder(cell):
            path = self.source / cell
            if path.is_file():
                return Path(os.path.abspath(path)) if isinstance(path, Path) else path.read_bytes()
        try:
            return base64.b64decode(cell, validate=True)
        except binascii.Error as error:
            raise DataError(
                f"{where}: the image {cell[:40]!r} is neither a file in "
                f"{self.source or 'the folder of images (--images)'} nor base64 ({error})"
            ) from error

    def _write(self, content: bytes) -> str:
        suffix = next((s for magic, s in _MAGIC if content.startswith(magic)), ".img")
        name = hashlib.sha256(content).hexdigest()[:_HASH_CHARS] + suffix
        if self.folder is not None and not (self.folder / name).is_file():
            with writing(self.folder / name) as partial:
                partial.write_bytes(content)
        return name


def image_folder(path: Path) -> Path | zipfile.Path | None:
    """Opens a folder of images, which may be inside a ZIP file: `data.zip/images`.

    Returns:
        The folder; None if there is none.

    Raises:
        DataError: The ZIP file is damaged.
    """
    if path.is_dir():
        return path
    for archive in (path, *path.parents):
        if archive.suffix.lower() == ".zip" and archive.is_file():
            inner = "" if archive == path else path.relative_to(archive).as_posix() + "/"
            try:
                folder = zipfile.Path(archive, inner)
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(f"{archive}: damaged, or no ZIP file: {error}") from error
            return folder if folder.is_dir() else None
    return None


def join_images(images: Sequence[Image.Image]) -> Image.Image:
    """Puts images side by side, at the height of the highest; a single one stays as it is."""
    if len(images) == 1:
        return images[0]
    height = max(image.height for image in images)
    sizes = [max(1, round(image.width * height / image.height)) for image in images]
    canvas = Image.new("RGB", (sum(sizes) + GAP_PX * (len(images) - 1), height), "white")
    left = 0
    for image, width in zip(images, sizes, strict=True):
        canvas.paste(image.resize((width, height)), (left, 0))
        left += width + GAP_PX
    return canvas
