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
    """

    def __init__(self, path: Path, offset: int = 0, line: int = 1, is_array: bool = False) -> None:
        self.is_array = is_array
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
        self.is_array = self._peek() == "["
        if self.is_array:
            self._position += 1

    def read(self) -> tuple[str, dict[str, Any]] | None:
        """Take the next object and what separates it from the one after it.

        Returns:
            Where it begins and the object; None at the end.

        Raises:
            DataError: Something else is there; it names file and line.
        """
        character = self._peek()
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

    def _take_comma(self) -> bool:
        """Whether another object follows; the array's end is left where it is."""
        character = self._peek()
        if character == ",":
            self._position += 1
            return True
        if character and character != "]":
            raise DataError(f"{self.where}: expected ',' or ']', found {character!r}.")
        return False

    def _end_array(self) -> None:
        self._position += 1
        if rest := self._peek():
            raise DataError(
                f"{self.where}: found {rest!r} after the array, expected the file's end."
            )
        self.is_array = False  # nothing but the end follows

    def _peek(self) -> str:
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
