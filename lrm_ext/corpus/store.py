"""The parallel corpus: English rows, and their texts in other languages aligned by row number.

Input: a folder as described in `layout.py`. Output: rows and turns by number. Opening reads one
small file; shards are memory-mapped when first touched, so workers and ranks share their pages.
Nothing here formats, mixes, tokenises or opens pictures.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llava.data.sample import Turn
from llava.errors import DataError
from lrm_ext.corpus.layout import (
    ENGLISH,
    META_FILE,
    OLD_TEXT_SCHEMA,
    ROW_SCHEMA,
    STATUSES,
    TEXT_SCHEMA,
    CorpusRow,
    Meta,
    Text,
    quality_from_arrow,
    shard_name,
    turns_from_arrow,
)
from lrm_ext.corpus.row_list import RowList
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.files import leaves_folder

__all__ = ["Corpus", "CorpusRow", "CorpusWriter", "Text"]

log = logging.getLogger(__name__)

# Each open shard holds a file descriptor, and the usual limit is 1024 of them.
_MAX_OPEN_SHARDS = 256
_MAX_CACHED_BATCHES = 1024


class Corpus:
    """A corpus folder, opened for reading.

    Safe to send to data-loader workers: only the path travels, shards are mapped again there.

    Example:
        >>> corpus = Corpus.open("playground/data/emoji_scenes/corpus/finetune")
        >>> corpus.turns("hr", 0)[0].text
    """

    def __init__(self, path: Path, meta: Meta, image_root: Path) -> None:
        self.path = path
        self.image_root = image_root
        self._meta = meta
        self._shards: OrderedDict[tuple[str, int], pa.RecordBatchFileReader] = OrderedDict()
        self._batches: OrderedDict[tuple[str, int, int], pa.RecordBatch] = OrderedDict()

    @classmethod
    def open(cls, path: str | Path, image_root: str | Path | None = None) -> Corpus:
        """Open a corpus folder.

        Args:
            path: The folder that holds `corpus.toml`.
            image_root: Where the pictures are, if not where `corpus.toml` says.

        Raises:
            DataError: The folder is not a corpus, or of another version.
        """
        folder = Path(path)
        meta = Meta.load(folder)
        root = Path(image_root) if image_root is not None else folder / meta.image_root
        return cls(folder, meta, root)

    def __len__(self) -> int:
        """Number of rows."""
        return self._meta.num_rows

    def __reduce__(self) -> tuple[Any, ...]:
        return (Corpus, (self.path, self._meta, self.image_root))

    def __repr__(self) -> str:
        return f"Corpus({str(self.path)!r}, {len(self)} rows, languages {self.languages})"

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the corpus has texts in; English is always the first."""
        return (ENGLISH, *self._meta.counts)

    def fingerprint(self) -> str:
        """A short text that differs for corpora with other rows or texts; the same for copies.

        It comes from the description, and from size and end of each file; an Arrow file ends with a
        list of where its batches lie.
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

    def num_texts(self, lang: str) -> int:
        """Number of rows with accepted text in `lang`; English: all rows."""
        return len(self) if self._check_language(lang) == ENGLISH else self.statuses(lang)["ok"]

    def statuses(self, lang: str) -> dict[str, int]:
        """How many texts in `lang` are "ok", "suspect" and "rejected"."""
        if self._check_language(lang) == ENGLISH:
            return {status: len(self) if status == "ok" else 0 for status in STATUSES}
        return {status: self._meta.counts[lang][status] for status in STATUSES}

    def row(self, index: int) -> CorpusRow:
        """The English row `index`.

        Raises:
            DataError: There is no such row, or its shard is missing or damaged.
        """
        batch, offset = self._locate("rows", index)
        image, source, task = (batch.column(name)[offset].as_py() for name in _OPTIONAL)
        return CorpusRow(
            id=batch.column("id")[offset].as_py(),
            image=image,
            source=source,
            task=task,
            translatable=batch.column("translatable")[offset].as_py(),
            turns=turns_from_arrow(batch.column("turns")[offset].as_py()),
        )

    def row_batches(self) -> Iterator[pa.RecordBatch]:
        """All rows in order, as the columns of `ROW_SCHEMA`.

        Raises:
            DataError: A shard is missing or damaged.
        """
        for start in range(0, len(self), self._meta.rows_per_batch):
            yield self._locate("rows", start)[0]

    def text_batches(self, lang: str) -> Iterator[pa.RecordBatch]:
        """All texts in a language other than English in order, as columns; see `row_batches`.

        Raises:
            DataError: No such language, or a shard is missing or damaged.
        """
        assert self._check_language(lang) != ENGLISH
        for start in range(0, len(self), self._meta.rows_per_batch):
            yield self._locate(f"text/{lang}", start)[0]

    def text(self, lang: str, index: int) -> Text | None:
        """The text of row `index` in `lang` whatever its status; None where there is none.

        Raises:
            DataError: No such language or row, or its shard is missing or damaged.
        """
        if self._check_language(lang) == ENGLISH:
            return Text(self.row(index).turns)
        batch, offset = self._locate(f"text/{lang}", index)
        turns = batch.column("turns")[offset].as_py()
        if turns is None:
            return None
        status, engine, reason, quality = (
            batch.column(name)[offset].as_py() for name in ("status", "engine", "reason", "quality")
        )
        return Text(turns_from_arrow(turns), status, engine, reason, quality_from_arrow(quality))

    def turns(self, lang: str, index: int) -> tuple[Turn, ...] | None:
        """The accepted turns of row `index` in `lang`; None if there are none.

        Raises:
            DataError: No such language or row, or its shard is missing or damaged.
        """
        text = self.text(lang, index)
        return text.turns if text is not None and text.status == "ok" else None

    def usable_rows(self, lang: str) -> npt.NDArray[np.uint32]:
        """Numbers of the rows that may be drawn in `lang`, ascending, memory-mapped.

        Usable means: translatable, with accepted text. English: every row.

        Returns:
            1-D array of uint32.
        """
        if self._check_language(lang) == ENGLISH:
            return np.arange(len(self), dtype=np.uint32)
        rows = self._row_list(lang)
        if not len(rows):
            return np.zeros(0, dtype=np.uint32)
        return np.memmap(rows.path, dtype="<u4", mode="r", shape=(len(rows),))

    def usable(self, lang: str) -> Sequence[int]:
        """The same as `usable_rows`, in constant memory: each number is read when asked for.

        Raises:
            DataError: No such language, or its list is damaged.
        """
        if self._check_language(lang) == ENGLISH:
            return range(len(self))
        rows = self._row_list(lang)
        # ascending and different, so all of them are 0 .. len - 1
        return range(len(self)) if len(rows) == len(self) else rows

    def _row_list(self, lang: str) -> RowList:
        path = self.path / "text" / lang / "usable.u32"
        return RowList(path, self._meta.counts[lang]["usable"])

    def image_path(self, index: int) -> Path | None:
        """Path of the picture of row `index`; None for a text-only row.

        Raises:
            DataError: It would lie outside of the image root.
        """
        batch, offset = self._locate("rows", index)
        image = batch.column("image")[offset].as_py()
        if image is None:
            return None
        if leaves_folder(image):
            raise DataError(
                f"{self.path}: row {index}: picture {image!r} lies outside of {self.image_root}; "
                "expected a path below it."
            )
        return self.image_root / image

    def _check_language(self, lang: str) -> str:
        if lang not in self.languages:
            raise DataError(
                f"{self.path}: no texts in language {lang!r}; there are: "
                f"{', '.join(self.languages)}."
            )
        return lang

    def _locate(self, folder: str, index: int) -> tuple[pa.RecordBatch, int]:
        """Record batch and position in it of a row; `folder` is "rows" or "text/<lang>"."""
        if not 0 <= index < len(self):
            raise DataError(
                f"{self.path}: row {index} asked for, but rows run from 0 to {len(self) - 1}."
            )
        shard, in_shard = divmod(index, self._meta.rows_per_shard)
        number, offset = divmod(in_shard, self._meta.rows_per_batch)
        key = (folder, shard, number)
        batch = self._batches.get(key)
        if batch is None:
            batch = self._shard(folder, shard).get_batch(number)
            num_rows = min(self._meta.rows_per_batch, len(self) - (index - offset))
            if batch.num_rows != num_rows:
                raise DataError(
                    f"{self.path / folder / shard_name(shard)}: batch {number} has "
                    f"{batch.num_rows} rows, expected {num_rows}. The corpus is damaged; build or "
                    "unpack it again."
                )
            if batch.schema == OLD_TEXT_SCHEMA:
                none = pa.nulls(num_rows, TEXT_SCHEMA.field("quality").type)
                batch = pa.RecordBatch.from_arrays([*batch.columns, none], schema=TEXT_SCHEMA)
            _remember(self._batches, key, batch, _MAX_CACHED_BATCHES)
        return batch, offset

    def _shard(self, folder: str, number: int) -> pa.RecordBatchFileReader:
        key = (folder, number)
        reader = self._shards.get(key)
        if reader is None:
            reader = self._open_shard(self.path / folder / shard_name(number), folder, number)
            _remember(self._shards, key, reader, _MAX_OPEN_SHARDS)
        return reader

    def _open_shard(self, path: Path, folder: str, number: int) -> pa.RecordBatchFileReader:
        meta = self._meta
        num_rows = min(meta.rows_per_shard, meta.num_rows - number * meta.rows_per_shard)
        expected = -(-num_rows // meta.rows_per_batch)
        schemas = (ROW_SCHEMA,) if folder == "rows" else (TEXT_SCHEMA, OLD_TEXT_SCHEMA)
        advice = "The corpus is damaged; build or unpack it again."
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except FileNotFoundError as error:
            raise DataError(f"{path}: this shard ({num_rows} rows) is missing. {advice}") from error
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(
                f"{path}: truncated or not an Arrow file: {path.stat().st_size} bytes found, a "
                f"shard of {num_rows} rows expected ({error}). {advice}"
            ) from error
        if reader.num_record_batches != expected or reader.schema not in schemas:
            raise DataError(
                f"{path}: expected {expected} batches for {num_rows} rows, found "
                f"{reader.num_record_batches} with columns {reader.schema.names}. {advice}"
            )
        return reader


# of a file, enough for the footer of a shard
_END_BYTES = 1 << 16
_OPTIONAL = ("image", "source", "task")


def _remember(cache: OrderedDict[Any, Any], key: Any, value: Any, limit: int) -> None:
    """Put `value` into a bounded cache; the oldest entry leaves."""
    cache[key] = value
    if len(cache) > limit:
        cache.popitem(last=False)
