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
import math
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from llava.data.sample import LlavaRecord, SampleError
from llava.errors import DataError

_CHUNK_BYTES = 1 << 20
_BLANKS = re.compile(r"[ \t\r\n]*")
_ESCAPE = "surrogateescape"
# A literal or escape sequence that is cut by the end of a chunk gives an error before that end.
_LONGEST_TOKEN = 16
_TAIL_BYTES = 64 << 10  # of a chunk; most records are shorter
_BLANK = b" \t\r\n"
_FIRST_KEY = re.compile(rb'\s*\{\s*("[^"]*")')

decode_record = msgspec.json.Decoder(LlavaRecord).decode
# Keys: whether the records are in an array.
decode_raw: Mapping[bool, Callable[[bytes], list[msgspec.Raw]]] = {
    True: msgspec.json.Decoder(list[msgspec.Raw]).decode,
    False: msgspec.json.Decoder(msgspec.Raw).decode_lines,
}


class Entry(msgspec.Struct, gc=False):
    """One record of a file, as `scan_records` yields it.

    Attributes:
        start: First byte of the record in the file.
        size: Number of its bytes.
        line: Line that it begins in, from 1.
        content: Its text, or the decoded object, or the error that its text gave (JSON Lines only).
        record: What it says, if it has LLaVA's own form.
    """

    start: int
    size: int
    line: int
    content: Any
    record: LlavaRecord | None = None

    def load(self) -> Any:
        """Returns the decoded object.

        Raises:
            SampleError: Its text is not JSON.
        """
        if isinstance(self.content, SampleError):
            raise self.content
        return loads(self.content) if type(self.content) is msgspec.Raw else self.content


def loads(text: bytes | msgspec.Raw) -> Any:
    """Decodes JSON; see the module's docstring for bytes that are not UTF-8."""
    return json.loads(bytes(text).decode("utf-8", _ESCAPE))


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
    offset, line, size = reader.offset, reader.line, Path(path).stat().st_size
    with Path(path).open("rb") as file:
        while offset < size:
            file.seek(offset)
            data = file.read(_CHUNK_BYTES)
            is_last = offset + len(data) == size
            body, taken = whole_records(data, is_array, is_last)
            # of an array, `body` has one byte more in front
            entries = _decode_together(body, is_array, offset - is_array, line) if taken else None
            if entries is None:  # unusual, or cut in the wrong place
                reader = RecordReader(Path(path), offset, line, is_array)
                yield from _read_singly(reader, math.inf if is_last else offset + max(taken, 1))
                offset, line = reader.offset, reader.line
            else:
                yield from entries
                offset, line = offset + taken, line + data.count(b"\n", 0, taken)


def _decode_together(body: bytes, is_array: bool, offset: int, line: int) -> list[Entry] | None:
    """Decodes records whose text begins at a byte and line of the file; None if it is not JSON."""
    try:
        texts = decode_raw[is_array](body)
    except msgspec.DecodeError:
        return None
    entries, counted, end = [], 0, 0
    for text in texts:
        try:
            record = decode_record(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            record = None
            if not bytes(text).startswith(b"{"):
                return None
        start = body.index(b"{", end)
        line += body.count(b"\n", counted, start)
        counted, end = start, start + len(memoryview(text))
        entries.append(Entry(offset + start, end - start, line, text, record))
    return entries


def _read_singly(reader: RecordReader, until: float) -> Iterator[Entry]:
    """Reads records one by one, until one begins at byte `until` or later."""
    is_array = reader.is_array
    while reader.offset < until:
        reader.peek()
        start, line = reader.offset, reader.line
        try:
            found = reader.read()
        except DataError as error:
            if is_array:
                raise DataError(
                    f"{error} Nothing after it can be read; fix the file, or write one object a "
                    "line (JSON Lines)."
                ) from None
            reader.skip_line()
            yield Entry(start, 0, line, SampleError(f"{error} Write one object a line.", "json"))
            continue
        if found is None:
            return
        yield Entry(start, reader.end - start, line, found[1])


class RecordIndex(Sequence[Any]):
    """The kept records of a file. It holds their positions and reads a record on access.

    Holds 16 bytes a record, in arrays that forked loader processes share.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._starts = array("Q")  # twice that, plus 1 for a record with an image
        self._sizes, self._lines = array("I"), array("I")

    def add(self, entry: Entry, has_image: bool) -> None:
        """Keeps a record."""
        self._starts.append(2 * entry.start + has_image)
        self._sizes.append(entry.size)
        self._lines.append(entry.line)

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        """Returns `file:line` of a record."""
        return f"{self.path}:{self._lines[index]}"

    def has_image(self, index: int) -> bool:
        """Tells whether a record has an image, without reading it."""
        return bool(self._starts[index] % 2)

    def __getitem__(self, index: Any) -> Any:
        """Returns a record's decoded object, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        # Opened anew each time: a handle that forked loaders share would share its position too.
        with self.path.open("rb") as file:
            file.seek(self._starts[index] // 2)
            return loads(file.read(self._sizes[index]))


def whole_records(data: bytes, is_array: bool, is_last: bool) -> tuple[bytes, int]:
    """Finds the complete records in a chunk of a file.

    A turn begins like a record, with a brace after a comma, but with another key.

    Args:
        data: The chunk; it begins with a record.
        is_array: Whether the records are in an array.
        is_last: Whether the file ends with the chunk.

    Returns:
        The text of the records, which cannot be decoded if none were found, and the number of bytes
        of `data` that it takes, separator included.
    """
    cut = len(data)
    if not is_last and is_array:
        cut = 0
        if first := _FIRST_KEY.match(data):
            border = re.compile(rb"\}\s*,\s*(?=\{\s*" + re.escape(first[1]) + rb")")
            # the last border is near the end, unless a record is longer than the tail
            for start in (max(0, len(data) - _TAIL_BYTES), 0):
                if borders := [match.end() for match in border.finditer(data, start)]:
                    cut = borders[-1]
                    break
    elif not is_last:
        cut = data.rfind(b"\n") + 1
    body = data[:cut].rstrip(_BLANK)
    if not is_array:
        return body, cut
    end = b"]" if is_last else b","
    return b"[" + body[:-1] + b"]" if body.endswith(end) else b"", cut


def iter_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads the objects of a JSON array or of JSON Lines, one at a time.

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
    """Decodes a file of JSON objects chunk by chunk, and knows where it is.

    Args:
        path: The file.
        offset: Byte at which to begin: 0, or where a record begins.
        line: Line of that byte.
        is_array: Whether that record is in an array.

    Attributes:
        is_array: Whether the objects are in an array; known after `begin`.
        line: Line of the next character.
        offset: Byte of the next character.
        end: Byte after the last object.
    """

    def __init__(self, path: Path, offset: int = 0, line: int = 1, is_array: bool = False) -> None:
        self.is_array = is_array
        self.line = line
        self.offset = self.end = offset
        self._path = path
        self._buffer = ""
        self._position = 0  # of the next character
        self._may_end = True  # whether the array may end here: it is empty, or no comma came before
        self._decoder = json.JSONDecoder()
        self._chunks = self._read_chunks(offset)

    def begin(self) -> None:
        """Detects at the start of a file whether it is an array, and enters it."""
        self.is_array = self.peek() == "["
        self._advance(self._position + self.is_array)

    def read(self) -> tuple[str, dict[str, Any]] | None:
        """Reads the next object and the separator that follows it.

        Returns:
            Where it begins and the object; None at the end.

        Raises:
            DataError: Something else is there; it names file and line.
        """
        character = self.peek()
        where = f"{self._path}:{self.line}"
        if self.is_array and self._may_end and character == "]":
            self._end_array()
            return None
        if not self.is_array and not character:
            return None
        if self.is_array and self._may_end and not character:
            raise DataError(f"{where}: the array does not end; the file is cut short.")
        if character != "{":
            found = repr(character) if character else "the end of the file"
            raise DataError(f"{where}: expected an object {{...}}, found {found}.")
        value = self._read_object()
        self._may_end = self.is_array and not self._take_comma()
        return where, value

    def skip_line(self) -> None:
        """Skips to the start of the next line."""
        while (end := self._buffer.find("\n", self._position)) < 0:
            self._advance(len(self._buffer))
            if not self._fill():
                return
        self._advance(end + 1)

    def peek(self) -> str:
        """Skips blanks and returns the next character without taking it; "" at the end."""
        while True:
            blanks = _BLANKS.match(self._buffer, self._position)
            assert blanks is not None
            self._advance(blanks.end())
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._fill():
                return ""

    def _advance(self, end: int) -> None:
        """Takes the characters before `end`, and counts their bytes and lines."""
        passed = self._buffer[self._position : end]
        self.offset += len(passed.encode("utf-8", _ESCAPE))
        self.line += passed.count("\n")
        self._position = end

    def _take_comma(self) -> bool:
        """Tells whether another object follows; the end of the array is not consumed."""
        character = self.peek()
        if character not in (",", "]", ""):
            raise DataError(f"{self._path}:{self.line}: expected ',' or ']', found {character!r}.")
        self._advance(self._position + (character == ","))
        return character == ","

    def _end_array(self) -> None:
        self._advance(self._position + 1)
        if rest := self.peek():
            where = f"{self._path}:{self.line}"
            raise DataError(f"{where}: found {rest!r} after the array, expected the file's end.")
        self.is_array = False  # only the end of the file follows

    def _read_object(self) -> dict[str, Any]:
        """Reads the JSON object that begins at the next character."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
                break
            except json.JSONDecodeError as error:
                # Perhaps only the rest of the value is missing: an error at the end, or a string
                # that does not end, whose error is reported at its beginning.
                cut = error.pos >= len(self._buffer) - _LONGEST_TOKEN or "Unterminated" in error.msg
                if not (cut and self._fill()):
                    line = self.line + self._buffer.count("\n", self._position, error.pos)
                    where = f"{self._path}:{line}"
                    raise DataError(f"{where}: not valid JSON: {error.msg}.") from error
        self._advance(end)
        self.end = self.offset
        assert isinstance(value, dict)
        return value

    def _fill(self) -> bool:
        chunk = next(self._chunks, "")
        if chunk:
            self._buffer, self._position = self._buffer[self._position :] + chunk, 0
        return bool(chunk)

    def _read_chunks(self, offset: int) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(_ESCAPE)
        try:
            with self._path.open("rb") as file:
                head = file.read(len(codecs.BOM_UTF8)) if offset == 0 else b""
                if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise DataError(f"{self._path}: UTF-16, expected UTF-8; convert it (iconv).")
                if head == codecs.BOM_UTF8:
                    self.offset = offset = len(head)
                file.seek(offset)
                while data := file.read(_CHUNK_BYTES):
                    if text := decoder.decode(data):
                        yield text
                yield decoder.decode(b"", final=True)
        except FileNotFoundError as error:
            raise DataError(f"{self._path}: there is no such file.") from error
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read: {error.strerror}") from error
