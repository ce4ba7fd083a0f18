"""A parallel corpus: English rows and their texts in other languages, aligned by row number.

    corpus.toml              sizes, languages and counts; written last
    rows/00000.arrow …       id, image or images, source, task, translatable, English turns
    text/cs/00000.arrow …    the same rows in Czech: turns, status, engine, reason, quality
    text/cs/usable.u32       numbers of the rows that may be sampled in Czech

Row `i` is in shard `i // rows_per_shard`, batch `i % rows_per_shard // rows_per_batch`, so looking
it up takes the same time in a thousand rows and in a hundred million. Shards are Arrow IPC files,
because those can be memory-mapped and Parquet cannot. Opening a corpus reads one small file; shards
are mapped on first use, so workers and ranks share their pages. `JoinedCorpus` reads several
corpora as one. `writer.py` writes corpora; formatting, mixing, tokenizing and opening images happen
elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Union

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llava.data.sample import Turn, images_of
from llava.errors import ConfigError, DataError
from llava.files import convert, leaves_folder, load_toml

META_FILE = "corpus.toml"
ENGLISH = "en"
STATUSES = ("ok", "suspect", "rejected")
MAX_ROWS = 2**32  # row numbers are stored in 32 bits

_TURNS = pa.list_(
    pa.struct([("role", pa.string()), ("text", pa.string()), ("supervised", pa.bool_())])
)
ROW_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        # the image, or several, in the order of their places in the turns
        ("image", pa.string()),
        ("images", pa.list_(pa.string())),
        ("source", pa.string()),
        ("task", pa.string()),
        ("translatable", pa.bool_()),
        ("turns", _TURNS),
    ]
)
# The schema from before a row could have several images.
OLD_ROW_SCHEMA = ROW_SCHEMA.remove(ROW_SCHEMA.get_field_index("images"))
# A map, because checks come and go and users add scores of their own.
TEXT_SCHEMA = pa.schema(
    [
        ("turns", _TURNS),
        ("status", pa.string()),
        ("engine", pa.string()),
        ("reason", pa.string()),
        ("quality", pa.map_(pa.string(), pa.float32())),
    ]
)
# The schema from before quality scores were stored; such texts have none.
OLD_TEXT_SCHEMA = TEXT_SCHEMA.remove(TEXT_SCHEMA.get_field_index("quality"))
# of rows and of texts: old shards are read as new ones, without values in the new column
_NEW_SCHEMAS = ((OLD_ROW_SCHEMA, ROW_SCHEMA), (OLD_TEXT_SCHEMA, TEXT_SCHEMA))
NUM_BYTES = 4
# of quality scores, as many as 32 bits can hold
_DECIMALS = 4
# at the end of a file, enough for the footer of a shard
_END_BYTES = 1 << 16
_DAMAGED = "The corpus is damaged; build or unpack it again."

# Each open shard takes a file descriptor, and the usual limit is 1024.
_MAX_OPEN_SHARDS = 256
_MAX_CACHED_BATCHES = 1024


@dataclass(frozen=True)
class CorpusRow:
    """One English sample and its metadata.

    Attributes:
        id: Id of the sample, as in the LLaVA JSON it came from.
        image: Image path relative to the image root of the corpus, or several in the order of their
            places in the turns; None for a text-only row.
        source: The dataset it came from; every export keeps it, because licences depend on it.
        task: Kind of question, for statistics.
        translatable: False for rows whose meaning does not survive translation (arithmetic,
            geometry); these stay English.
        turns: The English conversation, human first, with alternating roles.
    """

    id: str
    image: str | tuple[str, ...] | None
    source: str | None
    task: str | None
    translatable: bool
    turns: tuple[Turn, ...]

    @property
    def images(self) -> tuple[str, ...]:
        """Paths of the images, in the order of their places; empty for a text-only row."""
        return images_of(self.image)

    def to_arrow(self) -> dict[str, Any]:
        """Returns the plain values of the Arrow columns."""
        several = self.images if len(self.images) > 1 else None
        one = None if several else self.image
        return {**vars(self), "image": one, "images": several, "turns": [*map(vars, self.turns)]}


@dataclass(frozen=True)
class CorpusText:
    """The conversation of a row in another language, with its status.

    Attributes:
        turns: As many turns as in English, with the same roles.
        status: "ok", "suspect" or "rejected"; only "ok" is used for training.
        engine: The engine that translated it, with its version; None for human text.
        reason: Why the status is not "ok".
        quality: The value of each check and score by name; None if nothing was measured.
    """

    turns: tuple[Turn, ...]
    status: str = "ok"
    engine: str | None = None
    reason: str | None = None
    quality: Mapping[str, float] | None = None

    def to_arrow(self) -> dict[str, Any]:
        """Returns the plain values of the Arrow columns."""
        quality = None if self.quality is None else list(self.quality.items())
        return {**vars(self), "turns": [*map(vars, self.turns)], "quality": quality}


@dataclass(frozen=True)
class Meta:
    """The content of `corpus.toml`.

    Attributes:
        num_rows: Rows in the corpus.
        rows_per_shard: Rows in every shard except the last.
        rows_per_batch: Rows in every record batch of a shard except the last.
        image_root: Image folder, relative to the corpus folder or absolute.
        counts: For each language except English, the number of texts with each status, and of
            "usable" ones: status "ok" in a translatable row.
        format_version: Version of the layout on disk.
    """

    num_rows: int
    rows_per_shard: int
    rows_per_batch: int
    image_root: str
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    format_version: Literal[1] = 1

    def dump(self, path: Path) -> None:
        """Writes the file as TOML."""
        lines = [
            f"format_version = {self.format_version}",
            f"num_rows = {self.num_rows}",
            f"rows_per_shard = {self.rows_per_shard}",
            f"rows_per_batch = {self.rows_per_batch}",
            f"image_root = {json.dumps(self.image_root)}",
        ]
        for lang, counts in self.counts.items():
            lines += ["", f"[languages.{lang}]", *(f"{k} = {v}" for k, v in counts.items())]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Meta:
        """Reads and checks the `corpus.toml` of a corpus folder.

        Raises:
            DataError: The file is missing, cannot be parsed, or has another version.
        """
        path = folder / META_FILE
        if not path.is_file():
            hint = "it is missing" if folder.is_dir() else "the folder does not exist"
            raise DataError(
                f"{folder} is not a corpus: expected {META_FILE} in it, but {hint}. A corpus "
                "whose writing was interrupted has none; build or unpack it again."
            )
        try:
            data = load_toml(path)
            meta = convert({"counts": data.pop("languages", {}), **data}, cls, path)
        except ConfigError as error:
            raise DataError(f"{error} Build or unpack the corpus again.") from error
        for lang, counts in meta.counts.items():
            if missing := {*STATUSES, "usable"} - set(counts):
                raise DataError(f"{path}: languages.{lang} lacks {', '.join(sorted(missing))}.")
        return meta


def shard_name(number: int) -> str:
    """Returns the file name of a shard, the same for rows and texts."""
    return f"{number:05d}.arrow"


def batch_images(batch: pa.RecordBatch) -> list[tuple[str, ...]]:
    """Returns the paths of the images of each row of a batch of `ROW_SCHEMA`."""
    columns = (batch.column(name).to_pylist() for name in ("image", "images"))
    return [
        () if one is several is None else (one,) if several is None else tuple(several)
        for one, several in zip(*columns, strict=True)
    ]


def num_images(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Returns the number of images of each row of a batch of `ROW_SCHEMA`."""
    several = pc.fill_null(pc.list_value_length(batch.column("images")), 0)
    has_one = batch.column("image").is_valid()
    return several.to_numpy(zero_copy_only=False) + has_one.to_numpy(zero_copy_only=False)


def _row_of(values: Mapping[str, Any]) -> CorpusRow:
    return msgspec.convert({**values, "image": values["image"] or values["images"]}, CorpusRow)


def _text_of(values: Mapping[str, Any]) -> CorpusText | None:
    if values["turns"] is None:
        return None
    quality = values["quality"]
    if quality is not None:
        quality = {name: round(value, _DECIMALS) for name, value in quality}
    return msgspec.convert({**values, "quality": quality}, CorpusText)


class RowList(Sequence[int]):
    """The row numbers in a file.

    Can be pickled for data loader workers and shared with forked ones.

    Args:
        path: The file; an attribute.
        size: Number of row numbers it must hold.

    Raises:
        DataError: The file is missing or has another size.
    """

    def __init__(self, path: Path, size: int) -> None:
        found = path.stat().st_size if path.is_file() else -1
        if found != size * NUM_BYTES:
            what = "it is missing" if found < 0 else f"it has {found}"
            raise DataError(
                f"{path}: expected {size * NUM_BYTES} bytes ({size} rows), {what}. {_DAMAGED}"
            )
        self.path = path
        self._size = size
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> int:  # type: ignore[override]  # no slices
        """Returns the row number at an index.

        Raises:
            IndexError: The index is not in 0 .. len - 1.
            DataError: The file was truncated.
        """
        if not 0 <= index < self._size:
            raise IndexError(f"index {index} of {self._size} rows")
        data = os.pread(self._file, NUM_BYTES, index * NUM_BYTES)
        if len(data) != NUM_BYTES:
            raise DataError(f"{self.path}: was truncated while it was read.")
        return int.from_bytes(data, "little")

    def __reduce__(self) -> tuple[Any, ...]:
        return (RowList, (self.path, self._size))


class Corpus:
    """A corpus folder, opened for reading.

    Can be pickled for data loader workers: only the path is sent, and the worker maps the shards.

    Example:
        >>> corpus = Corpus.open("playground/data/emoji_scenes/corpus/finetune")
        >>> corpus.turns("hr", 0)[0].text
    """

    def __init__(self, path: Path, meta: Meta, image_root: Path) -> None:
        self.path = path
        self.image_root = image_root
        self._meta = meta
        self._shard = lru_cache(_MAX_OPEN_SHARDS)(self._open_shard)
        self._batch = lru_cache(_MAX_CACHED_BATCHES)(self._read_batch)

    @classmethod
    def open(cls, path: str | Path, image_root: str | Path | None = None) -> Corpus:
        """Opens a corpus folder.

        Args:
            path: The folder that holds `corpus.toml`.
            image_root: Image folder, if it is not the one that `corpus.toml` names.

        Raises:
            DataError: The folder is not a corpus, or has another version.
        """
        folder = Path(path)
        meta = Meta.load(folder)
        root = Path(image_root) if image_root is not None else folder / meta.image_root
        return cls(folder, meta, root)

    def __len__(self) -> int:
        """Returns the number of rows."""
        return self._meta.num_rows

    def __reduce__(self) -> tuple[Any, ...]:
        return (Corpus, (self.path, self._meta, self.image_root))

    def __repr__(self) -> str:
        return f"Corpus({str(self.path)!r}, {len(self)} rows, languages {self.languages})"

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the corpus has texts in; English always comes first."""
        return (ENGLISH, *self._meta.counts)

    def fingerprint(self) -> str:
        """Returns a short hash that differs for other rows or texts and is the same for copies.

        It covers `corpus.toml`, and the size and the end of each file; an Arrow file ends with the
        offsets of its batches.
        """
        digest = hashlib.sha256((self.path / META_FILE).read_bytes())
        for path in sorted(self.path.glob("*/**/*")):
            if path.suffix in (".arrow", ".u32"):
                size = path.stat().st_size
                digest.update(f"{path.relative_to(self.path).as_posix()} {size} ".encode())
                with path.open("rb") as file:
                    file.seek(max(0, size - _END_BYTES))
                    digest.update(file.read())
        return digest.hexdigest()[:12]

    def statuses(self, lang: str) -> dict[str, int]:
        """Returns how many texts in `lang` are "ok", "suspect" and "rejected"."""
        if self._check_language(lang) == ENGLISH:
            return {status: len(self) if status == "ok" else 0 for status in STATUSES}
        return {status: self._meta.counts[lang][status] for status in STATUSES}

    def row(self, index: int) -> CorpusRow:
        """Returns the English row `index`.

        Raises:
            DataError: There is no such row, or its shard is missing or damaged.
        """
        return _row_of(self._values("rows", index))

    def iter_rows(self) -> Iterator[CorpusRow]:
        """Yields all rows in order, faster than one by one.

        Raises:
            DataError: A shard is missing or damaged.
        """
        for batch in self.row_batches():
            yield from map(_row_of, batch.to_pylist())

    def iter_rows_with_texts(self, lang: str) -> Iterator[tuple[CorpusRow, CorpusText | None]]:
        """Yields all rows in order, each with what `text` returns for it.

        Raises:
            DataError: There is no such language, or a shard is missing or damaged.
        """
        if lang == ENGLISH:
            yield from ((row, CorpusText(row.turns)) for row in self.iter_rows())
        else:
            batches = self.text_batches(lang)
            texts = (_text_of(values) for batch in batches for values in batch.to_pylist())
            yield from zip(self.iter_rows(), texts, strict=True)

    def row_batches(self) -> Iterator[pa.RecordBatch]:
        """Yields all rows in order, as the columns of `ROW_SCHEMA`.

        Raises:
            DataError: A shard is missing or damaged.
        """
        for start in range(0, len(self), self._meta.rows_per_batch):
            yield self._locate("rows", start)[0]

    def text_batches(self, lang: str) -> Iterator[pa.RecordBatch]:
        """Yields all texts in a language other than English in order, as columns of `TEXT_SCHEMA`.

        Raises:
            DataError: There is no such language, or a shard is missing or damaged.
        """
        assert self._check_language(lang) != ENGLISH
        for start in range(0, len(self), self._meta.rows_per_batch):
            yield self._locate(f"text/{lang}", start)[0]

    def text(self, lang: str, index: int) -> CorpusText | None:
        """Returns the text of row `index` in `lang` whatever its status; None if there is none.

        Raises:
            DataError: There is no such language or row, or its shard is missing or damaged.
        """
        if self._check_language(lang) == ENGLISH:
            return CorpusText(self.row(index).turns)
        return _text_of(self._values(f"text/{lang}", index))

    def turns(self, lang: str, index: int) -> tuple[Turn, ...] | None:
        """Returns the accepted turns of row `index` in `lang`; None if there are none.

        Raises:
            DataError: There is no such language or row, or its shard is missing or damaged.
        """
        text = self.text(lang, index)
        return text.turns if text is not None and text.status == "ok" else None

    def usable_rows(self, lang: str) -> npt.NDArray[np.uint32]:
        """Returns the numbers of the rows that may be sampled in `lang`.

        Those are translatable and have an accepted text; in English, all rows.

        Returns:
            1-D array of uint32, ascending, memory-mapped.
        """
        if self._check_language(lang) == ENGLISH:
            return np.arange(len(self), dtype=np.uint32)
        rows = self._row_list(lang)
        if not len(rows):
            return np.zeros(0, dtype=np.uint32)
        return np.memmap(rows.path, dtype="<u4", mode="r", shape=(len(rows),))

    def usable(self, lang: str) -> Sequence[int]:
        """Returns the same as `usable_rows` in constant memory, reading each number on access.

        Raises:
            DataError: There is no such language, or its list is damaged.
        """
        if self._check_language(lang) == ENGLISH:
            return range(len(self))
        rows = self._row_list(lang)
        # distinct and ascending, so a full list is 0 .. len - 1
        return range(len(self)) if len(rows) == len(self) else rows

    def _row_list(self, lang: str) -> RowList:
        path = self.path / "text" / lang / "usable.u32"
        return RowList(path, self._meta.counts[lang]["usable"])

    def image_paths(self, index: int) -> tuple[Path, ...]:
        """Returns the paths of the images of row `index`, in order; empty for a text-only row.

        Raises:
            DataError: A path is outside the image root.
        """
        batch, offset = self._locate("rows", index)
        (images,) = batch_images(batch.slice(offset, 1))
        for image in images:
            if leaves_folder(image):
                raise DataError(
                    f"{self.path}: row {index}: image {image!r} is outside {self.image_root}; "
                    "expected a path below it."
                )
        return tuple(self.image_root / image for image in images)

    def _check_language(self, lang: str) -> str:
        if lang not in self.languages:
            raise DataError(
                f"{self.path}: no texts in language {lang!r}; there are: "
                f"{', '.join(self.languages)}."
            )
        return lang

    def _values(self, folder: str, index: int) -> dict[str, Any]:
        """Returns the plain values of a row in the columns of "rows" or "text/<lang>"."""
        batch, offset = self._locate(folder, index)
        return {name: batch.column(name)[offset].as_py() for name in batch.schema.names}

    def _locate(self, folder: str, index: int) -> tuple[pa.RecordBatch, int]:
        """Finds the record batch of a row and its offset; `folder` is "rows" or "text/<lang>"."""
        if not 0 <= index < len(self):
            raise DataError(
                f"{self.path}: row {index} does not exist; rows run from 0 to {len(self) - 1}."
            )
        shard, in_shard = divmod(index, self._meta.rows_per_shard)
        number, offset = divmod(in_shard, self._meta.rows_per_batch)
        return self._batch(folder, shard, number), offset

    def _read_batch(self, folder: str, shard: int, number: int) -> pa.RecordBatch:
        batch = self._shard(folder, shard).get_batch(number)
        meta = self._meta
        first = shard * meta.rows_per_shard + number * meta.rows_per_batch
        num_rows = min(meta.rows_per_batch, len(self) - first)
        if batch.num_rows != num_rows:
            raise DataError(
                f"{self.path / folder / shard_name(shard)}: batch {number} has {batch.num_rows} "
                f"rows, expected {num_rows}. {_DAMAGED}"
            )
        for old, new in _NEW_SCHEMAS:
            if batch.schema == old:
                columns = [
                    batch.column(f.name) if f in old else pa.nulls(num_rows, f.type) for f in new
                ]
                batch = pa.RecordBatch.from_arrays(columns, schema=new)
        return batch

    def _open_shard(self, folder: str, number: int) -> pa.RecordBatchFileReader:
        path, meta = self.path / folder / shard_name(number), self._meta
        num_rows = min(meta.rows_per_shard, meta.num_rows - number * meta.rows_per_shard)
        expected = -(-num_rows // meta.rows_per_batch)
        schemas = _NEW_SCHEMAS[0 if folder == "rows" else 1]
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except FileNotFoundError as error:
            raise DataError(
                f"{path}: this shard ({num_rows} rows) is missing. {_DAMAGED}"
            ) from error
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(
                f"{path}: truncated or not an Arrow file: {path.stat().st_size} bytes found, a "
                f"shard of {num_rows} rows expected ({error}). {_DAMAGED}"
            ) from error
        if reader.num_record_batches != expected or reader.schema not in schemas:
            raise DataError(
                f"{path}: expected {expected} batches for {num_rows} rows, found "
                f"{reader.num_record_batches} with columns {reader.schema.names}. {_DAMAGED}"
            )
        return reader


class JoinedCorpus:
    """Several corpora that are read as one.

    Args:
        parts: The corpora, in the order in which their rows are numbered.

    Raises:
        DataError: They have more rows than row numbers can address.

    Example:
        >>> both = JoinedCorpus([Corpus.open("captions"), Corpus.open("chats")])
        >>> both.row(len(both.parts[0])) == both.parts[1].row(0)
        True
    """

    def __init__(self, parts: Sequence[Corpus]) -> None:
        assert parts
        self.parts = tuple(parts)
        self.starts = [0, *accumulate(len(part) for part in parts)]
        if len(self) >= MAX_ROWS:
            raise DataError(f"{len(self)} rows in {len(parts)} corpora; at most {MAX_ROWS - 1}.")

    def __len__(self) -> int:
        """Returns the number of rows."""
        return self.starts[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        return (JoinedCorpus, (self.parts,))

    @property
    def path(self) -> Path:
        """Folder of the first corpus; files about all of them are next to it."""
        return self.parts[0].path

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that any of them has texts in; English comes first."""
        return tuple(dict.fromkeys(lang for part in self.parts for lang in part.languages))

    def fingerprint(self) -> str:
        """Returns a short hash that differs for other corpora or another order of them."""
        content = " ".join(part.fingerprint() for part in self.parts)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def row(self, index: int) -> CorpusRow:
        """Returns the English row `index`; see `Corpus.row`."""
        part, own = self._part(index)
        return part.row(own)

    def turns(self, lang: str, index: int) -> tuple[Turn, ...] | None:
        """Returns the accepted turns of row `index` in `lang`; see `Corpus.turns`."""
        part, own = self._part(index)
        return part.turns(lang, own) if lang in part.languages else None

    def image_paths(self, index: int) -> tuple[Path, ...]:
        """Returns the paths of the images of row `index`; see `Corpus.image_paths`."""
        part, own = self._part(index)
        return part.image_paths(own)

    def _part(self, index: int) -> tuple[Corpus, int]:
        if not 0 <= index < len(self):
            raise DataError(f"row {index} does not exist; rows run from 0 to {len(self) - 1}.")
        number = bisect_right(self.starts, index) - 1
        return self.parts[number], index - self.starts[number]


AnyCorpus = Union[Corpus, JoinedCorpus]  # noqa: UP007  # evaluated, and 3.10 has no TypeAlias for it


def parts_of(corpus: AnyCorpus) -> tuple[Corpus, ...]:
    """Returns the corpora that a corpus is made of."""
    return corpus.parts if isinstance(corpus, JoinedCorpus) else (corpus,)
