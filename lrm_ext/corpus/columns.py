"""LLaVA's JSON as Arrow columns, many records at a time, and what Arrow lacks for conversations.

Input: a JSON array or JSON Lines file of LLaVA records. Output: record batches of the corpus' rows,
in order. A few megabytes are decoded at once (msgspec) and checked column by column; a record that
is not plainly right goes through `Sample.from_record`, which mends it or says what is wrong with
it. Memory does not depend on the size of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.drop import DropPolicy
from llava.data.records import RecordReader
from llava.data.sample import ROLES, Sample, SampleError, Turn, has_leading_answer
from lrm_ext.corpus.store import ROW_SCHEMA
from lrm_ext.files import LEAVES_FOLDER, leaves_folder

Flags = npt.NDArray[np.bool_]
CHUNK_BYTES = 4 << 20
_SEARCHED_BYTES = 1 << 16
_LONGEST_BORDER = 64
_BLANK = b" \t\r\n"
_BORDER = re.compile(rb"\}\s*,\s*(?=\{)")
_FIRST_KEY = re.compile(rb'\{\s*"([^"]*)"')


@dataclass(frozen=True)
class Turns:
    """The turns of many rows, end to end.

    Attributes:
        roles: Role of each turn.
        texts: Text of each turn.
        sizes: Turns of each row; 0 for a row without a conversation.
    """

    roles: pa.StringArray
    texts: pa.StringArray
    sizes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, column: pa.ListArray) -> Turns:
        """Take a column of conversations apart."""
        flat = column.flatten()
        sizes = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        return cls(pc.struct_field(flat, "role"), pc.struct_field(flat, "text"), sizes)

    @property
    def places(self) -> npt.NDArray[np.int64]:
        """Number of each turn in its row, from 0."""
        starts = np.cumsum(self.sizes) - self.sizes
        return np.arange(len(self.texts)) - np.repeat(starts, self.sizes)

    def count(self, flags: Flags) -> npt.NDArray[np.int64]:
        """For each row, how many of its turns are flagged."""
        sums = np.concatenate([[0], np.cumsum(flags)])
        ends = np.cumsum(self.sizes)
        return sums[ends] - sums[ends - self.sizes]

    def any(self, flags: Flags) -> Flags:
        """For each row, whether one of its turns is flagged."""
        return self.count(flags) > 0

    def of_role(self, role: str) -> Flags:
        """Which turns are by `role`."""
        return to_flags(pc.equal(self.roles, role))


def to_flags(column: pa.BooleanArray) -> Flags:
    """A column of truth values; null is false."""
    return pc.fill_null(column, False).to_numpy(zero_copy_only=False)


def is_blank(texts: pa.StringArray) -> Flags:
    """Which texts hold nothing but blanks."""
    return to_flags(pc.or_(pc.utf8_is_space(texts), pc.equal(pc.binary_length(texts), 0)))


def leaves_root(images: pa.StringArray) -> Flags:
    """Which picture paths leave their folder; see `leaves_folder`."""
    return to_flags(pc.match_substring_regex(images, LEAVES_FOLDER))


def holds(texts: pa.StringArray, word: str = DEFAULT_IMAGE_TOKEN) -> Flags:
    """Which texts hold a word: one search through all of them, as they lie end to end."""
    if not len(texts):
        return np.zeros(0, dtype=bool)
    _, borders, data = texts.buffers()
    offsets = np.frombuffer(borders, np.int32, len(texts) + 1, texts.offset * 4)
    pattern = re.compile(re.escape(word.encode()))
    found = (match.start() for match in pattern.finditer(data or b"", offsets[0], offsets[-1]))
    starts = np.fromiter(found, np.int64)
    number = np.searchsorted(offsets, starts, side="right") - 1
    is_within = starts + len(word.encode()) <= offsets[number + 1]
    flags = np.zeros(len(texts), dtype=bool)
    flags[number[is_within]] = True
    return flags


class _Turn(msgspec.Struct, gc=False):
    role: str = msgspec.field(name="from")
    text: str = msgspec.field(name="value")
    supervised: bool = True


class _Record(msgspec.Struct, gc=False):
    conversations: list[_Turn]
    id: str | int | None = None
    image: str | list[Any] | None = None
    lang: str | None = None
    source: str | None = None
    task: str | None = None
    images: Any = None
    messages: Any = None
    texts: Any = None
    video: Any = None
    videos: Any = None
    audio: Any = None
    audios: Any = None
    system: Any = None

    @property
    def is_usual(self) -> bool:
        """Whether it has nothing but what LLaVA's own records have."""
        odd = (
            self.images, self.messages, self.texts, self.video, self.videos, self.audio,
            self.audios, self.system,
        )  # fmt: skip
        return self.id is not None and not isinstance(self.image, list) and not any(odd)


_decode_array = msgspec.json.Decoder(list[_Record]).decode
_decode_lines = msgspec.json.Decoder(_Record).decode_lines


def iter_row_batches(
    path: str | Path, source: str | None, policy: DropPolicy, lang: str = "en"
) -> Iterator[pa.RecordBatch]:
    """Read LLaVA records as rows of a corpus.

    Args:
        path: A UTF-8 file.
        source: Name of the data set, for records that do not say.
        policy: What happens to a record that cannot be used.
        lang: The language that the records must be in.

    Yields:
        Batches of `ROW_SCHEMA`, all rows translatable.

    Raises:
        DataError: The file is missing, or not JSON; or as `policy` raises for a record that is not
            as it must be, naming file, line and sample.
    """
    path = Path(path)
    start = RecordReader(path)
    start.begin()
    offset, line, is_array = start.offset, start.line, start.is_array
    size = path.stat().st_size
    with path.open("rb") as file:
        while offset < size:
            file.seek(offset)
            data = file.read(CHUNK_BYTES)
            is_last = offset + len(data) == size
            body, taken = _whole_records(data, is_array, is_last)
            records = _decode(body, is_array)
            reader = RecordReader(path, offset, line, is_array)
            if records is not None:
                batch = _fast(records, reader, source, policy, lang)
                offset, line = offset + taken, line + data.count(b"\n", 0, taken)
            else:  # unusual, or cut in the wrong place: the slow way finds out
                until = None if is_last else offset + max(taken, 1)
                samples = _slow(reader, until, source, policy, lang)
                batch = batch_of(samples)
                offset, line = reader.offset, reader.line
            if batch.num_rows:
                yield batch


def batch_of(samples: Sequence[Sample]) -> pa.RecordBatch:
    """Rows of samples, one by one checked already; all of them translatable."""
    columns: list[list[Any]] = [[], [], [], [], []]
    turns: list[tuple[str, str, bool]] = []
    lengths = []
    for sample in samples:
        row = (sample.id, sample.image, sample.source, sample.task, True)
        for column, value in zip(columns, row, strict=True):
            column.append(value)
        turns += [(turn.role, turn.text, turn.supervised) for turn in sample.turns]
        lengths.append(len(sample.turns))
    roles = pa.array([turn[0] for turn in turns], pa.string())
    texts = pa.array([turn[1] for turn in turns], pa.string())
    return _batch(columns, lengths, roles, texts, [turn[2] for turn in turns])


def _fast(
    records: list[_Record], reader: RecordReader, source: str | None, policy: DropPolicy, lang: str
) -> pa.RecordBatch:
    """Check and convert records column by column; only the odd ones are looked at by themselves.

    Args:
        records: What was decoded at once.
        reader: Reads them again, with where each begins, if something is wrong with one.
        source: As for `iter_row_batches`, and so are the others.
        policy: What happens to a record that cannot be used.
        lang: The language that the records must be in.
    """
    lengths = [len(record.conversations) for record in records]
    turns = [turn for record in records for turn in record.conversations]
    usual = np.fromiter((record.is_usual for record in records), bool, len(records))
    images = [r.image if is_usual else None for r, is_usual in zip(records, usual, strict=True)]
    roles = pa.array([turn.role for turn in turns], pa.string())
    texts = pa.array([turn.text for turn in turns], pa.string())
    langs = [record.lang for record in records]
    good = usual & _good_rows(lengths, roles, texts, images)
    good &= np.fromiter((one is None or one == lang for one in langs), bool, len(records))
    if not good.all():
        kept = [
            _sample(record, source) if is_good else _one(found[1], found[0], source, policy, lang)
            for record, is_good, found in zip(records, good, iter(reader.read, None), strict=False)
        ]
        policy.report.read[lang] += int(good.sum())
        return batch_of([sample for sample in kept if sample is not None])
    policy.report.read[lang] += len(records)
    columns: list[list[Any]] = [
        [record.id if type(record.id) is str else str(record.id) for record in records],
        images,
        [record.source or source for record in records],
        [record.task for record in records],
        [True] * len(records),
    ]
    return _batch(columns, lengths, roles, texts, [turn.supervised for turn in turns])


def _good_rows(
    lengths: Sequence[int], roles: pa.StringArray, texts: pa.StringArray, images: Sequence[Any]
) -> npt.NDArray[np.bool_]:
    """Which rows are plainly right; the same conditions as `Sample.from_record` demands."""
    turns = Turns(roles, texts, np.asarray(lengths, dtype=np.int64))
    is_human_place = turns.places % 2 == 0
    is_right = np.where(is_human_place, *(turns.of_role(role) for role in ROLES))
    holds_image = holds(texts)
    is_wrong = ~is_right | is_blank(texts) | (holds_image & ~is_human_place)
    is_wrong |= holds(texts, "<video>") | holds(texts, "<audio>")
    column = pa.array(images, pa.string())
    has_image = to_flags(pc.is_valid(column))
    good = (turns.sizes >= 2) & ~turns.any(is_wrong) & (turns.count(holds_image) == has_image)
    return good & ~to_flags(pc.equal(column, "")) & ~leaves_root(column)


def _batch(
    columns: Sequence[Sequence[Any]],
    lengths: Sequence[int],
    roles: pa.Array,
    texts: pa.Array,
    supervised: Sequence[bool],
) -> pa.RecordBatch:
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    struct_type = ROW_SCHEMA.field("turns").type.value_type
    struct = pa.StructArray.from_arrays(
        [roles, texts, pa.array(supervised, pa.bool_())],
        fields=list(struct_type),
    )
    turns = pa.ListArray.from_arrays(offsets, struct, type=ROW_SCHEMA.field("turns").type)
    arrays = [
        pa.array(column, field.type) for column, field in zip(columns, ROW_SCHEMA, strict=False)
    ]
    return pa.RecordBatch.from_arrays([*arrays, turns], schema=ROW_SCHEMA)


def _sample(record: _Record, source: str | None) -> Sample:
    """A record that was found right."""
    assert not isinstance(record.image, list)
    turns = tuple(Turn(turn.role, turn.text, turn.supervised) for turn in record.conversations)
    return Sample(
        str(record.id),
        record.image,
        turns,
        record.lang,
        record.task,
        record.source or source,
    )


def _one(
    record: Any, where: str, source: str | None, policy: DropPolicy, lang: str
) -> Sample | None:
    """Check one record by itself; None if it is dropped."""
    try:
        sample = Sample.from_record(record, where)
        check_sample(sample, where, lang)
    except SampleError as error:
        error.lang = lang  # what the others are counted as
        policy.drop(error)
        return None
    policy.keep(lang)
    if has_leading_answer(record):
        policy.note("leading answer", lang)
    return sample if sample.source else replace(sample, source=source)


def check_sample(sample: Sample, where: str, lang: str) -> None:
    """Check what a corpus demands beyond `Sample.from_record`.

    Raises:
        SampleError: The sample is in another language, or its picture would lie outside of the
            pictures' folder.
    """
    if sample.lang not in (None, lang):
        raise SampleError(
            f"{where}, sample {sample.id!r}: lang is {sample.lang!r}, expected {lang!r}.",
            "other_language",
        )
    if sample.image is not None and leaves_folder(sample.image):
        raise SampleError(
            f"{where}, sample {sample.id!r}: picture {sample.image!r} would lie outside of the "
            "pictures' folder; expected a path below it.",
            "outside_root",
        )


def _slow(
    reader: RecordReader, until: int | None, source: str | None, policy: DropPolicy, lang: str
) -> list[Sample]:
    """Check records one by one, up to one that begins at byte `until` or later, or the end."""
    samples = []
    while (until is None or reader.offset < until) and (found := reader.read()) is not None:
        where, record = found
        if (sample := _one(record, where, source, policy, lang)) is not None:
            samples.append(sample)
    return samples


def _decode(body: bytes | None, is_array: bool) -> list[_Record] | None:
    """Decode whole records; None if they are not as usual."""
    if body is None:
        return None
    try:
        return _decode_array(b"[" + body + b"]") if is_array else _decode_lines(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _whole_records(data: bytes, is_array: bool, is_last: bool) -> tuple[bytes | None, int]:
    """The records that are whole in a piece of a file, as far as can be told quickly.

    Args:
        data: Begins with a record.
        is_array: Whether records are separated by commas.
        is_last: Whether the file ends with it.

    Returns:
        The records, None if they are not found; and how many bytes of `data` they take with what
        separates them from the next.
    """
    if is_last:
        body = data.rstrip(_BLANK)
        if is_array and not body.endswith(b"]"):
            return None, len(data)
        return (body.removesuffix(b"]") if is_array else body), len(data)
    cut = _border(data) if is_array else data.rfind(b"\n") + 1
    if cut == 0:
        return None, 0
    body = data[:cut].rstrip(_BLANK)
    return (body.removesuffix(b",") if is_array else body), cut


def _border(data: bytes) -> int:
    """Where a record begins near the end of `data`; 0 if that is not found.

    A turn begins like a record, with a brace after a comma; but with another key.
    """
    first = _FIRST_KEY.match(data.lstrip(_BLANK))
    if first is None:
        return 0
    end = len(data)
    while end > 0:
        start = max(0, end - _SEARCHED_BYTES)
        for border in reversed(list(_BORDER.finditer(data, start, end))):
            key = _FIRST_KEY.match(data, border.end())
            if key and key.group(1) == first.group(1):
                return border.end()
        end = start + _LONGEST_BORDER if start else 0  # a border may lie across
    return 0
