"""Where a translation lies while it is made, and how it becomes part of the corpus.

    text/.<lang>.work/job.json         what is being made; another job starts anew
    text/.<lang>.work/parts/00000…     one record batch each, renamed into place when complete
    text/<lang>/00000.arrow …          shards, usable.u32 and translation.json at the end

Input: record batches by number, in any order. Output: the same bytes whatever was interrupted: the
shards are put together from all parts, moved into place, and `corpus.toml` is replaced last.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llava.errors import DataError
from lrm_ext.corpus.store import (
    META_FILE,
    STATUSES,
    TEXT_SCHEMA,
    Corpus,
    CorpusRow,
    Meta,
    shard_name,
)

DESCRIPTION_FILE = "translation.json"
NOT_TRANSLATABLE = "not translatable"


def text_dir(corpus: Path, lang: str) -> Path:
    """Folder of a language's texts."""
    return corpus / "text" / lang


def read_description(folder: Path) -> dict[str, Any] | None:
    """How a folder of texts was made: None if it was not made by translation."""
    try:
        found = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def locked(path: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold a lock that dies with the process.

    Raises:
        DataError: Somebody else holds it, and `wait` is not set.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise DataError(
                f"{path}: another run is at work on the {what}; wait for it, or end it."
            ) from error
        yield


class PartStore:
    """The parts of one language of one corpus.

    Args:
        corpus: The corpus.
        target: Code of the language.
        job: What makes the texts what they are; parts made by another job are not used.
    """

    def __init__(self, corpus: Corpus, target: str, job: Mapping[str, Any]) -> None:
        self.corpus = corpus
        self.target = target
        self.job = dict(job)
        self._meta = Meta.load(corpus.path)
        self._work = corpus.path / "text" / f".{target}.work"
        self._final = text_dir(corpus.path, target)
        shards, rest = divmod(self._meta.num_rows, self._meta.rows_per_shard)
        self._per_shard = self._meta.rows_per_shard // self._meta.rows_per_batch
        self.num_parts = shards * self._per_shard + -(-rest // self._meta.rows_per_batch)

    def is_complete(self) -> bool:
        """Whether this very job was finished; one that was killed while finishing is finished."""
        description = read_description(self._final)
        if description is None or {k: description.get(k) for k in self.job} != self.job:
            return False
        self._announce(description["counts"])
        shutil.rmtree(self._work, ignore_errors=True)
        return True

    def exists(self) -> bool:
        """Whether there are texts in the language already, whoever made them."""
        return self._final.exists()

    def begin(self) -> None:
        """Start, or go on where the same job was cut short."""
        with _disk_errors(self._work):
            job = self._work / "job.json"
            if not job.is_file() or job.read_text(encoding="utf-8") != _dump(self.job):
                shutil.rmtree(self._work, ignore_errors=True)
                (self._work / "parts").mkdir(parents=True)
                _write(job, _dump(self.job).encode())
            for path in (self._work / "parts").glob("*.tmp"):
                path.unlink()

    def missing(self) -> list[int]:
        """Numbers of the parts that are not done."""
        return [n for n in range(self.num_parts) if not self.is_done(n)]

    def is_done(self, number: int) -> bool:
        """Whether a part is there."""
        return self._part(number).is_file()

    def row_numbers(self, number: int) -> range:
        """The rows of a part."""
        start = number * self._meta.rows_per_batch
        return range(start, min(start + self._meta.rows_per_batch, self._meta.num_rows))

    def rows(self, number: int) -> Iterator[tuple[int, CorpusRow]]:
        """The English rows of a part, with their numbers."""
        return ((i, self.corpus.row(i)) for i in self.row_numbers(number))

    def write(self, number: int, batch: pa.RecordBatch) -> None:
        """Write a part; if two do so at once, both write the same.

        Raises:
            DataError: The disk is full, or the folder cannot be written.
        """
        assert batch.num_rows == len(self.row_numbers(number))
        path = self._part(number)
        # workers on several machines may have the same process number
        partial = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
        with _disk_errors(path):
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, TEXT_SCHEMA) as file:
                file.write_batch(batch)
            _sync(partial)
            partial.rename(path)

    def commit(self) -> Counter[str]:
        """Put all parts together and make them part of the corpus.

        Returns:
            Rows by status and by reason.

        Raises:
            DataError: The disk is full, or a part is damaged.
        """
        out = self._work / "out"
        with _disk_errors(out):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            counts = self._assemble(out)
            description = {**self.job, "counts": dict(sorted(counts.items()))}
            _write(out / DESCRIPTION_FILE, _dump(description).encode())
            if self._final.exists():
                shutil.rmtree(self._work / "old", ignore_errors=True)
                self._final.rename(self._work / "old")
            out.rename(self._final)
            _sync(self._final.parent)
            self._announce(counts)
            shutil.rmtree(self._work)
        return counts

    def _assemble(self, out: Path) -> Counter[str]:
        counts: Counter[str] = Counter({**dict.fromkeys(STATUSES, 0), "usable": 0})
        rows = self.corpus.row_batches()
        with (out / "usable.u32").open("wb") as usable:
            for first in range(0, self.num_parts, self._per_shard):
                path = out / shard_name(first // self._per_shard)
                last = min(first + self._per_shard, self.num_parts)
                with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, TEXT_SCHEMA) as file:
                    for number in range(first, last):
                        batch = self._read(number)
                        file.write_batch(batch)
                        flags = next(rows).column("translatable").to_pylist()
                        numbers = _count(batch, flags, counts) + self.row_numbers(number).start
                        usable.write(numbers.astype("<u4").tobytes())
                _sync(path)
            usable.flush()
            os.fsync(usable.fileno())
        return counts

    def _read(self, number: int) -> pa.RecordBatch:
        path = self._part(number)
        try:
            batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: damaged ({error}); delete it and run again.") from error
        if batch.num_rows != len(self.row_numbers(number)) or batch.schema != TEXT_SCHEMA:
            raise DataError(f"{path}: not a part of this corpus; delete it and run again.")
        return batch

    def _announce(self, counts: Mapping[str, int]) -> None:
        """Write the language into `corpus.toml`; several languages may finish at once."""
        path = self.corpus.path / META_FILE
        with locked(self.corpus.path / ".lock", "corpus", wait=True):
            meta = Meta.load(self.corpus.path)
            ours = {name: counts[name] for name in (*STATUSES, "usable")}
            if meta.counts.get(self.target) == ours:
                return
            # by name: the order does not depend on who finishes first
            languages = dict(sorted({**meta.counts, self.target: ours}.items()))
            partial = path.with_suffix(".tmp")
            replace(meta, counts=languages).dump(partial)
            _sync(partial)
            partial.rename(path)

    def _part(self, number: int) -> Path:
        return self._work / "parts" / shard_name(number)


def _count(batch: pa.RecordBatch, is_translatable: Sequence[bool], counts: Counter[str]) -> Any:
    """Count a part's rows; return the offsets of those that are usable, as an array."""
    statuses = batch.column("status").to_pylist()
    for status, reason in zip(statuses, batch.column("reason").to_pylist(), strict=True):
        counts[status or NOT_TRANSLATABLE] += 1
        if status not in (None, "ok"):
            counts[f"{status}: {(reason or '').partition(':')[0]}"] += 1
    usable = [s == "ok" and may_be for s, may_be in zip(statuses, is_translatable, strict=True)]
    offsets = np.flatnonzero(usable)
    counts["usable"] += len(offsets)
    return offsets


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error}. Nothing is lost: make room and run again."
        ) from error


def _dump(data: Mapping[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _write(path: Path, data: bytes) -> None:
    partial = path.with_suffix(".tmp")
    partial.write_bytes(data)
    _sync(partial)
    partial.rename(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
