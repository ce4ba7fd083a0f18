"""Reads the records of JSON files without keeping a file in memory.

Role: `iter_records` gives one object at a time; `scan_records` also where each is, so that a later
look at it costs one seek and one parse (`RecordIndex`).
Input: a JSON array (LLaVA's own form) or JSON Lines, UTF-8. Output: decoded objects, with line and
bytes. A byte that is not UTF-8 comes out as a lone surrogate (Python's `surrogateescape`), so that
it spoils one record and not the file. Non-goals: what a record must hold (`sample.py`).
"""

from __future__ import annotations

import codecs
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llava.data.sample import SampleError
from llava.errors import DataError

_CHUNK_BYTES = 1 << 20
_BLANK = " \t\r\n"
_ESCAPE = "surrogateescape"
# A literal or an escape sequence that a chunk border cuts gives an error before the border.
_LONGEST_TOKEN = 16


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
    """Reads a data file from front to back, one record at a time.

    Raises:
        DataError: The file is missing, empty or UTF-16, or a JSON array is broken. A broken line of
            JSON Lines comes as an `Entry` with an error, because the lines after it can be read.
    """
    reader = RecordReader(Path(path))
    reader.begin()
    is_array = reader.is_array
    if not (is_array or reader.peek()):
        raise DataError(f"{path}: the data file is empty, expected JSON or JSON Lines.")
    while True:
        reader.peek()
        start, line = reader.offset, reader.line
        try:
            found = reader.read()
        except DataError as error:
            if is_array:
                raise DataError(
                    f"{error} Nothing after it can be read; mend the file, or write one object a "
                    "line (JSON Lines)."
                ) from None
            reader.skip_line()
            yield Entry(start, 0, line, SampleError(f"{error} Write one object a line.", "json"))
            continue
        if found is None:
            return
        yield Entry(start, reader.end - start, line, found[1])


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


def iter_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the objects of a JSON array or of JSON Lines, one at a time.

    Args:
        path: A UTF-8 file.

    Yields:
        `file:line` where the object begins, and the object.

    Raises:
        DataError: The file is missing or not JSON; it names file and line.
    """
    reader = RecordReader(Path(path))
    reader.begin()
    while (found := reader.read()) is not None:
        yield found


class RecordReader:
    """Decodes a file of JSON objects piece by piece, and knows where it is.

    Args:
        path: The file.
        offset: Byte at which to begin: 0, or where a record begins.
        line: Line of that byte.
        is_array: Whether that record is in an array.

    Attributes:
        is_array: Whether the objects are in an array; known after `begin`.
        end: Byte after the last object.
    """

    def __init__(self, path: Path, offset: int = 0, line: int = 1, is_array: bool = False) -> None:
        self.is_array = is_array
        self.end = offset
        self._path = path
        self._line = line
        self._offset = offset  # of the character at `_counted` in the buffer
        self._counted = 0
        self._buffer = ""
        self._position = 0
        self._is_first = True
        self._decoder = json.JSONDecoder()
        self._chunks = self._read_chunks(offset)

    @property
    def where(self) -> str:
        """`file:line` of the next character."""
        return f"{self._path}:{self._line}"

    @property
    def line(self) -> int:
        """Line of the next character."""
        return self._line

    @property
    def offset(self) -> int:
        """Byte of the next character."""
        passed = self._buffer[self._counted : self._position]
        self._offset += len(passed.encode("utf-8", _ESCAPE))
        self._counted = self._position
        return self._offset

    def begin(self) -> None:
        """Find out at a file's beginning whether it is an array, and enter it."""
        self.is_array = self.peek() == "["
        if self.is_array:
            self._position += 1

    def read(self) -> tuple[str, dict[str, Any]] | None:
        """Take the next object and what separates it from the one after it.

        Returns:
            Where it begins and the object; None at the end.

        Raises:
            DataError: Something else is there; it names file and line.
        """
        character = self.peek()
        if self.is_array and character == "]" and self._is_first:
            self._end_array()
            return None
        if not character and not self.is_array:
            return None
        where = self.where
        if character != "{":
            found = repr(character) if character else "the end of the file"
            if self.is_array and not character and self._is_first:
                raise DataError(f"{where}: the array does not end; the file is cut short.")
            raise DataError(f"{where}: expected an object {{...}}, found {found}.")
        value = self._read_object()
        self._is_first = self.is_array and not self._take_comma()
        return where, value

    def skip_line(self) -> None:
        """Goes on behind the next line end."""
        while (end := self._buffer.find("\n", self._position)) < 0:
            self._position = len(self._buffer)
            if not self._fill():
                return
        self._position = end + 1
        self._line += 1

    def _take_comma(self) -> bool:
        """Whether another object follows; the array's end is left where it is."""
        character = self.peek()
        if character == ",":
            self._position += 1
            return True
        if character and character != "]":
            raise DataError(f"{self.where}: expected ',' or ']', found {character!r}.")
        return False

    def _end_array(self) -> None:
        self._position += 1
        if rest := self.peek():
            raise DataError(
                f"{self.where}: found {rest!r} after the array, expected the file's end."
            )
        self.is_array = False  # nothing but the end follows

    def peek(self) -> str:
        """Skip blanks and return the next character without taking it; "" at the end."""
        while True:
            start = self._position
            while self._position < len(self._buffer) and self._buffer[self._position] in _BLANK:
                self._position += 1
            self._line += self._buffer.count("\n", start, self._position)
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._fill():
                return ""

    def _read_object(self) -> dict[str, Any]:
        """Take the JSON object that begins at the next character."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                # Perhaps only the rest of the value is missing: an error at the end, or a string
                # that does not end, whose error lies at its beginning.
                cut = error.pos >= len(self._buffer) - _LONGEST_TOKEN or "Unterminated" in error.msg
                if cut and self._fill():
                    continue
                line = self._line + self._buffer.count("\n", self._position, error.pos)
                raise DataError(f"{self._path}:{line}: not valid JSON: {error.msg}.") from error
            self._line += self._buffer.count("\n", self._position, end)
            self._position = end
            self.end = self.offset
            assert isinstance(value, dict)
            return value

    def _fill(self) -> bool:
        chunk = next(self._chunks, "")
        if not chunk:
            return False
        assert self.offset >= 0  # counts what leaves the buffer
        self._buffer = self._buffer[self._position :] + chunk
        self._position = self._counted = 0
        return True

    def _read_chunks(self, offset: int) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(_ESCAPE)
        try:
            with self._path.open("rb") as file:
                head = file.read(len(codecs.BOM_UTF8)) if offset == 0 else b""
                if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise DataError(f"{self._path}: UTF-16, expected UTF-8; convert it (iconv).")
                if head == codecs.BOM_UTF8:
                    self._offset = offset = len(head)
                file.seek(offset)
                while data := file.read(_CHUNK_BYTES):
                    if text := decoder.decode(data):
                        yield text
                if rest := decoder.decode(b"", final=True):
                    yield rest
        except FileNotFoundError as error:
            raise DataError(f"{self._path}: there is no such file.") from error
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read: {error.strerror}") from error
