"""LLaVA's JSON in, a corpus out.

Input: a JSON array or JSON Lines file of LLaVA records in English, and, where there are any, files
of the same records in other languages. Output: a corpus folder. Files are read piece by piece, so
their size does not matter. Other formats, and the way back, are not here.
"""

from __future__ import annotations

import codecs
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from llava.data.sample import Sample
from llava.errors import DataError
from lrm_ext.corpus.layout import ENGLISH, CorpusRow
from lrm_ext.corpus.writer import CorpusWriter

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_BLANK = " \t\r\n"

# Tells from an English sample whether its meaning survives translation.
IsTranslatable = Callable[[Sample], bool]


def iter_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the objects of a JSON array or of JSON Lines, one at a time.

    Args:
        path: A UTF-8 file.

    Yields:
        `file:line` where the object begins, and the object.

    Raises:
        DataError: The file is missing, not UTF-8 or not JSON; it names file and line.
    """
    path = Path(path)
    reader = _Reader(path)
    is_array = reader.peek() == "["
    if is_array:
        reader.skip(1)
    first = True
    while (character := reader.peek()) and not (is_array and character == "]"):
        if is_array and not first:
            if character != ",":
                raise DataError(f"{reader.where}: expected ',' or ']', found {character!r}.")
            reader.skip(1)
            character = reader.peek()
        where = reader.where
        if character != "{":
            found = repr(character) if character else "the end of the file"
            raise DataError(f"{where}: expected an object {{...}}, found {found}.")
        yield where, reader.read_object()
        first = False
    if not is_array:
        return
    if not character:
        raise DataError(f"{reader.where}: the array does not end; the file is cut short.")
    reader.skip(1)
    if rest := reader.peek():
        raise DataError(f"{reader.where}: found {rest!r} after the array, expected the file's end.")


def import_llava(
    english: str | Path,
    out: str | Path,
    *,
    translations: Mapping[str, str | Path] | None = None,
    image_root: str = "images",
    source: str | None = None,
    is_translatable: IsTranslatable | None = None,
    overwrite: bool = False,
) -> int:
    """Make a corpus of LLaVA records.

    Args:
        english: The English records.
        out: The corpus folder to make.
        translations: For a language, a file with the same records in the same order.
        image_root: Folder of the pictures as seen from `out`, or absolute.
        source: Name of the data set, for records that do not say.
        is_translatable: Which rows may be drawn in other languages; left out, all.
        overwrite: Replace a corpus that is at `out`.

    Returns:
        Number of rows.

    Raises:
        DataError: A record is not as it must be, is not English, or a translation is not of the
            same record; it names file, line and sample. Nothing is written then.
    """
    files = dict(translations or {})
    with CorpusWriter(out, files, image_root=image_root, overwrite=overwrite) as writer:
        num_rows = 0
        streams = [iter_records(english), *(iter_records(path) for path in files.values())]
        for records in zip_longest(*streams):
            if None in records:
                names = [str(english), *map(str, files.values())]
                short = [n for n, record in zip(names, records, strict=True) if record is None]
                raise DataError(
                    f"{', '.join(short)}: ends after {num_rows} records, the others go on. "
                    "Translations need the same records in the same order."
                )
            samples = [Sample.from_record(record, where) for where, record in records]
            _check_same(samples, [where for where, _ in records], tuple(files))
            row = _row_of(samples[0], source, is_translatable)
            turns = [sample.turns for sample in samples[1:]]
            writer.append(row, dict(zip(files, turns, strict=True)))
            num_rows += 1
    log.info("%s: %d rows in en%s", out, num_rows, "".join(f", {lang}" for lang in files))
    return num_rows


def _row_of(
    sample: Sample, source: str | None, is_translatable: IsTranslatable | None
) -> CorpusRow:
    return CorpusRow(
        id=sample.id,
        image=sample.image,
        source=sample.source or source,
        task=sample.task,
        translatable=is_translatable is None or is_translatable(sample),
        turns=sample.turns,
    )


def _check_same(samples: list[Sample], wheres: list[str], langs: tuple[str, ...]) -> None:
    """Demand that a row's records are about the same thing, each in its language."""
    english = samples[0]
    for sample, where, lang in zip(samples, wheres, (ENGLISH, *langs), strict=True):
        if sample.lang not in (None, lang):
            raise DataError(
                f"{where}, sample {sample.id!r}: lang is {sample.lang!r}, expected {lang!r}."
            )
        if (sample.id, sample.image) != (english.id, english.image):
            raise DataError(
                f"{where}: sample {sample.id!r} with picture {sample.image!r}, expected the "
                f"translation of {english.id!r} with {english.image!r} ({wheres[0]})."
            )


class _Reader:
    """Decodes a file of JSON objects piece by piece, and knows the line it is at."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._line = 1
        self._buffer = ""
        self._position = 0
        self._decoder = json.JSONDecoder()
        self._chunks = self._read_chunks()

    @property
    def where(self) -> str:
        """`file:line` of the next character."""
        return f"{self._path}:{self._line}"

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

    def skip(self, count: int) -> None:
        """Take characters that are not line ends."""
        self._position += count

    def read_object(self) -> dict[str, Any]:
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
        self._buffer = self._buffer[self._position :] + chunk
        self._position = 0
        return True

    def _read_chunks(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        try:
            with self._path.open("rb") as file:
                while data := file.read(_CHUNK_BYTES):
                    if text := decoder.decode(data):
                        yield text
                decoder.decode(b"", final=True)
        except FileNotFoundError as error:
            raise DataError(f"{self._path}: there is no such file.") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{self.where}: not UTF-8 from here on: {error}") from error


# A literal or an escape sequence that a chunk border cuts gives an error before the border.
_LONGEST_TOKEN = 16
