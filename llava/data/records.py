"""Find the records of a LLaVA data file without keeping the file in memory.

Role: one pass notes where each record begins; later a record costs one seek and one parse.
Input: a JSON array (LLaVA's own form) or JSON Lines, UTF-8. Output: `Entry`s while scanning,
decoded objects afterwards. Non-goals: what a record must hold (`sample.py`).
"""

from __future__ import annotations

import codecs
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from llava.data.sample import SampleError
from llava.errors import DataError

_READ_BYTES = 1 << 20
_BLANKS = " \t\r\n"


@dataclass(frozen=True)
class Entry:
    """One record as the scan met it.

    Attributes:
        start: First byte of the record in the file.
        size: Number of its bytes.
        line: Line that it begins in, from 1.
        value: The decoded object, or the error that its text gave (JSON Lines only).
    """

    start: int
    size: int
    line: int
    value: Any


def scan_records(path: str | Path) -> Iterator[Entry]:
    """Read a data file from front to back, one record at a time.

    A file whose first character is `[` is a JSON array, any other is JSON Lines.

    Raises:
        DataError: The file is missing or empty, or a JSON array is broken. A broken line of JSON
            Lines comes as an `Entry` with an error, because the lines after it can be read.
    """
    path = Path(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: the data file cannot be opened ({error.strerror}).") from error
    with file:
        head = file.read(4096).lstrip(codecs.BOM_UTF8 + _BLANKS.encode())[:1]
        if not head:
            raise DataError(f"{path}: the data file is empty, expected JSON or JSON Lines.")
        file.seek(0)
        if file.read(3) != codecs.BOM_UTF8:
            file.seek(0)
        yield from _scan_array(path, file) if head == b"[" else _scan_lines(path, file)


class RecordIndex:
    """Where the kept records of a file are.

    Holds 32 bytes a record, in a numpy array that forked loader processes share.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._growing = tuple(array("q") for _ in range(4))
        self._table: np.ndarray[Any, np.dtype[np.int64]] | None = None

    def add(self, entry: Entry, has_image: bool) -> None:
        """Keep a record; possible until `freeze`."""
        for column, value in zip(
            self._growing, (entry.start, entry.size, entry.line, has_image), strict=True
        ):
            column.append(value)

    def freeze(self) -> None:
        """End adding."""
        self._table = np.array(self._growing, dtype=np.int64)
        self._growing = tuple(array("q") for _ in range(4))

    def __len__(self) -> int:
        return len(self._growing[0]) if self._table is None else self._table.shape[1]

    def where(self, index: int) -> str:
        """Return `file:line` of a record."""
        assert self._table is not None, "freeze() comes first"
        return f"{self.path}:{self._table[2, index]}"

    def has_image(self, index: int) -> bool:
        """Tell whether a record has a picture, without reading it."""
        assert self._table is not None, "freeze() comes first"
        return bool(self._table[3, index])

    def read(self, index: int) -> Any:
        """Return a record's decoded object."""
        assert self._table is not None, "freeze() comes first"
        start, size = (int(value) for value in self._table[:2, index])
        # Opened anew each time: a handle that forked loaders share would share its position too.
        with self.path.open("rb") as file:
            file.seek(start)
            return json.loads(file.read(size))


def _scan_lines(path: Path, file: IO[bytes]) -> Iterator[Entry]:
    start = file.tell()
    for number, line in enumerate(file, 1):
        if line.strip():
            yield Entry(start, len(line), number, _decode_line(path, line, number))
        start += len(line)


def _decode_line(path: Path, line: bytes, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:  # also what bytes that are not UTF-8 raise
        return SampleError(
            f"{path}:{number}: the line is not JSON ({error}). Expected one object a line.", "json"
        )


def _scan_array(path: Path, file: IO[bytes]) -> Iterator[Entry]:
    text = _ArrayText(path, file)
    text.expect("[")
    if text.peek() == "]":
        return
    while True:
        yield text.take_value()
        if text.peek() == "]":
            return
        text.expect(",")


class _ArrayText:
    """A window on the text of a JSON array that moves forward value by value."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._parse = json.JSONDecoder().raw_decode
        self._window = ""
        self._at = 0
        self._byte = file.tell()
        self._line = 1
        self._ended = False

    def peek(self) -> str:
        """Skip blanks and return the next character, or an empty string at the end."""
        while True:
            to = self._at
            while to < len(self._window) and self._window[to] in _BLANKS:
                to += 1
            self._advance(to)
            if self._at < len(self._window) or self._ended:
                return self._window[self._at : self._at + 1]
            self._fill(_READ_BYTES)

    def expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            raise self._error(f"found {found or 'the end of the file'!r}, expected {character!r}")
        self._advance(self._at + 1)

    def take_value(self) -> Entry:
        self.peek()
        size = _READ_BYTES
        while True:
            try:
                value, end = self._parse(self._window, self._at)
                break
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos > len(self._window) - 16
                if self._ended or not is_cut:
                    raise self._error(error.msg, error.pos) from None
                self._fill(size)
                size *= 2  # a record that is longer than the window is parsed again from its start
        start, line = self._byte, self._line
        self._advance(end)
        return Entry(start, self._byte - start, line, value)

    def _advance(self, to: int) -> None:
        passed = self._window[self._at : to]
        self._byte += len(passed.encode())
        self._line += passed.count("\n")
        self._at = to

    def _fill(self, num_bytes: int) -> None:
        data = self._file.read(num_bytes)
        self._ended = len(data) < num_bytes
        try:
            more = self._decode(data, self._ended)
        except UnicodeDecodeError as error:
            raise self._error(
                f"the text is not UTF-8 ({error.reason})", len(self._window)
            ) from None
        self._window = self._window[self._at :] + more
        self._at = 0

    def _error(self, what: str, position: int | None = None) -> DataError:
        line = self._line + self._window.count("\n", self._at, position or self._at)
        return DataError(
            f"{self._path}:{line}: broken JSON array: {what}. Nothing after it can be read; mend "
            "the file, or write one object a line (JSON Lines)."
        )
