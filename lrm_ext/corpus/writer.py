"""Writes a corpus folder row by row, in constant memory.

Rows and their texts come in order; `store.py` describes the folder. Everything is written to a
folder next to the target and moved into place at the end, so a run that is killed leaves the old
corpus or none, never half of one.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from llava.data.sample import Turn
from llava.errors import DataError
from llava.files import flush_to_disk
from lrm_ext.corpus.store import (
    ENGLISH,
    MAX_ROWS,
    META_FILE,
    NUM_BYTES,
    ROW_SCHEMA,
    STATUSES,
    TEXT_SCHEMA,
    CorpusRow,
    CorpusText,
    Meta,
    shard_name,
)

log = logging.getLogger(__name__)

_IMAGE = "<image>"


class _ShardWriter:
    """Writes the rows, or the texts of a language, as a sequence of Arrow IPC files.

    Attributes:
        records: Rows that are not written yet, as plain values.
        batches: Rows to write before those, as columns.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        folder.mkdir(parents=True)
        self.records: list[dict[str, Any]] = []
        self.batches: list[pa.RecordBatch] = []
        self._folder = folder
        self._schema = schema
        self._num_shards = 0
        self._file: pa.RecordBatchFileWriter | None = None

    def write(self, ends_shard: bool) -> None:
        """Writes the pending rows as one record batch; at the end of a shard, closes its file."""
        if self.records:
            self.batches.append(pa.RecordBatch.from_pylist(self.records, schema=self._schema))
            self.records = []
        path = self._folder / shard_name(self._num_shards)
        if self.batches:
            if self._file is None:
                self._file = pa.ipc.new_file(str(path), self._schema)
            self._file.write_batch(pa.concat_batches(self.batches))
            self.batches = []
        if ends_shard and self._file is not None:
            self._file.close()
            self._file = None
            flush_to_disk(path)
            self._num_shards += 1


class CorpusWriter:
    """Writes a corpus; a context manager.

    The folder appears at the end of the `with` block; an exception in it discards what was written.

    Args:
        path: The folder to create.
        languages: Languages that may have texts; English may be omitted, since every row has it.
        image_root: Image folder relative to `path`.
        overwrite: Replace a corpus that is already at `path`.
        rows_per_shard: Rows per file; a multiple of `rows_per_batch`.
        rows_per_batch: Rows that are buffered and written together.

    Raises:
        DataError: `path` exists and `overwrite` is not set.

    Example:
        >>> with CorpusWriter("corpus", ["cs"]) as writer:
        ...     writer.append(row, {"cs": czech_turns})
    """

    def __init__(
        self,
        path: str | Path,
        languages: Iterable[str],
        *,
        image_root: str = "images",
        overwrite: bool = False,
        rows_per_shard: int = 1 << 18,
        rows_per_batch: int = 1 << 11,
    ) -> None:
        assert rows_per_shard % rows_per_batch == 0
        self.path = Path(path)
        self.languages = tuple(dict.fromkeys(lang for lang in languages if lang != ENGLISH))
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._image_root = image_root
        self._overwrite = overwrite
        self._rows_per_shard = rows_per_shard
        self._rows_per_batch = rows_per_batch
        self._num_rows = 0
        self._check_target()
        if self._partial.exists():
            log.info("removing %s, left by an interrupted run", self._partial)
            shutil.rmtree(self._partial)
        self._rows = _ShardWriter(self._partial / "rows", ROW_SCHEMA)
        folders = {lang: self._partial / "text" / lang for lang in self.languages}
        self._texts = {lang: _ShardWriter(f, TEXT_SCHEMA) for lang, f in folders.items()}
        self._usable = {lang: (f / "usable.u32").open("wb") for lang, f in folders.items()}
        self._counts = {lang: dict.fromkeys((*STATUSES, "usable"), 0) for lang in self.languages}

    @property
    def work_dir(self) -> Path:
        """The folder until it is complete; other files written to it are moved with it."""
        return self._partial

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._usable.values():
            file.close()
        if kind is None:
            self._finish()
        else:
            shutil.rmtree(self._partial, ignore_errors=True)

    def append(self, row: CorpusRow, texts: Mapping[str, CorpusText | Sequence[Turn]]) -> None:
        """Adds a row and its texts; plain turns count as accepted.

        Raises:
            DataError: The writer was not opened for a language, or accepted turns differ from the
                English ones in number, roles or position of `<image>`.
        """
        assert self._num_rows < MAX_ROWS
        given = {
            lang: t if isinstance(t, CorpusText) else CorpusText(tuple(t))
            for lang, t in texts.items()
        }
        for lang, text in given.items():
            self._check_text(row, lang, text)
        self._rows.records.append(row.to_arrow())
        for lang, file in self._texts.items():
            file.records.append(self._text_record(row, lang, given.get(lang)))
        self._advance(1)

    def append_rows(self, rows: pa.RecordBatch) -> None:
        """Adds many rows that have English text only.

        Args:
            rows: Columns of `ROW_SCHEMA`, checked like samples.
        """
        assert not self.languages and rows.schema == ROW_SCHEMA
        assert not self._rows.records, "rows of append() come after those of append_rows()"
        while len(rows):
            room = self._rows_per_batch - self._num_rows % self._rows_per_batch
            self._rows.batches.append(rows.slice(0, room))
            self._advance(min(room, len(rows)))
            rows = rows.slice(room)

    def _finish(self) -> None:
        """Finishes the files, writes `corpus.toml` and moves the folder into place."""
        self._write(ends_shard=True)
        for file in self._usable.values():
            flush_to_disk(Path(file.name))
        sizes = (self._num_rows, self._rows_per_shard, self._rows_per_batch)
        Meta(*sizes, self._image_root, self._counts).dump(self._partial / META_FILE)
        flush_to_disk(self._partial / META_FILE)
        self._check_target()
        # at no point is half a corpus at the target
        old = self.path.with_name(self.path.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if self.path.exists():
            self.path.rename(old)
        self._partial.rename(self.path)
        shutil.rmtree(old, ignore_errors=True)

    def _advance(self, count: int) -> None:
        """Counts rows, and writes them when a batch or a shard is full."""
        self._num_rows += count
        if self._num_rows % self._rows_per_batch == 0:
            self._write(ends_shard=self._num_rows % self._rows_per_shard == 0)

    def _write(self, ends_shard: bool) -> None:
        for shards in (self._rows, *self._texts.values()):
            shards.write(ends_shard)

    def _text_record(self, row: CorpusRow, lang: str, text: CorpusText | None) -> dict[str, Any]:
        if text is None:
            return dict.fromkeys(TEXT_SCHEMA.names)
        counts = self._counts[lang]
        counts[text.status] += 1
        if text.status == "ok" and row.translatable:
            counts["usable"] += 1
            self._usable[lang].write(self._num_rows.to_bytes(NUM_BYTES, "little"))
        return text.to_arrow()

    def _check_text(self, row: CorpusRow, lang: str, text: CorpusText) -> None:
        where = f"{self.path}: row {self._num_rows} (id {row.id!r}), language {lang!r}"
        if lang == ENGLISH:
            if text.turns != row.turns:
                raise DataError(f"{where}: English text differs from the turns of the row.")
            return
        if lang not in self._texts:
            raise DataError(
                f"{where}: this corpus was opened for {', '.join(self.languages) or 'no language'};"
                " name every language when opening the writer."
            )
        if text.status not in STATUSES:
            raise DataError(f"{where}: status {text.status!r}, expected one of {STATUSES}.")
        if text.status == "ok" and _shape(text.turns) != _shape(row.turns):
            raise DataError(
                f"{where}: turns (role, number of {_IMAGE}) are {_shape(text.turns)}, in English "
                f"{_shape(row.turns)}. Fix the text or give it status 'rejected'."
            )

    def _check_target(self) -> None:
        if not self.path.exists():
            return
        if not self._overwrite:
            raise DataError(
                f"{self.path} exists already; name another folder, or replace it with --overwrite"
            )
        if not (self.path / META_FILE).is_file() and any(self.path.iterdir()):
            raise DataError(f"{self.path} exists and is not a corpus; it will not be overwritten.")


def _shape(turns: Sequence[Turn]) -> list[tuple[str, int]]:
    return [(turn.role, turn.text.count(_IMAGE)) for turn in turns]
