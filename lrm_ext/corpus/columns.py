"""Reads LLaVA's JSON into Arrow columns, and finds rows that are not as they must be.

Input: a JSON array or JSON Lines file of LLaVA records. Output: record batches of corpus rows, in
order. A few megabytes are decoded at once (msgspec) and checked column by column. A record that
does not pass goes through `Sample.from_record`, which repairs it or says what is wrong. Memory does
not depend on the size of the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.records import RecordReader, decode_raw, loads, whole_records
from llava.data.sample import (
    MAX_IMAGES,
    ROLES,
    DropPolicy,
    LlavaRecord,
    Sample,
    SampleError,
    has_leading_answer,
    images_of,
)
from llava.files import LEAVES_FOLDER, leaves_folder
from lrm_ext.corpus.store import ENGLISH, ROW_SCHEMA, num_images
from lrm_ext.languages.registry import canonical_code

Flags = npt.NDArray[np.bool_]
CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class Turns:
    """The turns of many rows, concatenated.

    Attributes:
        roles: Role of each turn.
        texts: Text of each turn.
        sizes: Number of turns of each row; 0 for a row without a conversation.
    """

    roles: pa.StringArray
    texts: pa.StringArray
    sizes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, column: pa.ListArray) -> Turns:
        """Flattens a column of conversations."""
        flat = column.flatten()
        sizes = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        return cls(pc.struct_field(flat, "role"), pc.struct_field(flat, "text"), sizes)

    @property
    def index_in_row(self) -> npt.NDArray[np.int64]:
        """Index of each turn in its row."""
        starts = np.cumsum(self.sizes) - self.sizes
        return np.arange(len(self.texts)) - np.repeat(starts, self.sizes)

    def count(self, values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Sums numbers of turns, or counts flagged turns, row by row."""
        sums = np.concatenate([[0], np.cumsum(values)])
        ends = np.cumsum(self.sizes)
        return sums[ends] - sums[ends - self.sizes]

    def any(self, flags: Flags) -> Flags:
        """Tells which rows have a flagged turn."""
        return self.count(flags) > 0

    def of_role(self, role: str) -> Flags:
        """Tells which turns have a role."""
        return to_flags(pc.equal(self.roles, role))

    def matching(self, pattern: str) -> Flags:
        """Tells which turns match a regular expression (RE2)."""
        return to_flags(pc.match_substring_regex(self.texts, pattern))


def to_flags(column: pa.BooleanArray) -> Flags:
    """Converts a column of truth values; null becomes False."""
    return pc.fill_null(column, False).to_numpy(zero_copy_only=False)


def row_faults(batch: pa.RecordBatch, turns: Turns) -> dict[str, Flags]:
    """Returns the rows that violate what `Sample.from_record` demands, by kind of fault.

    Args:
        batch: Columns of `ROW_SCHEMA`.
        turns: The turns of the batch.
    """
    is_human_turn = turns.index_in_row % 2 == 0
    human, answer = (turns.of_role(role) for role in ROLES)
    # twice as fast as `count_substring`
    places = pc.count_substring_regex(turns.texts, DEFAULT_IMAGE_TOKEN)
    places = places.to_numpy(zero_copy_only=False)
    is_blank = pc.or_(pc.utf8_is_space(turns.texts), pc.equal(pc.binary_length(turns.texts), 0))
    several = batch.column("images")
    no_turns = turns.sizes == 0
    # a single image may have several placeholders in its turn
    num_places = np.where(
        to_flags(several.is_valid()), turns.count(places), turns.count(places > 0)
    )
    is_outside = to_flags(pc.match_substring_regex(batch.column("image"), LEAVES_FOLDER))
    outside = pc.match_substring_regex(pc.list_flatten(several), LEAVES_FOLDER)
    is_outside[pc.list_parent_indices(several).filter(outside).to_numpy()] = True
    return {
        "no turns": no_turns,
        "unknown_role": turns.any(~human & ~answer),
        "turn_order": turns.any(np.where(is_human_turn, answer, human)),
        "empty_turn": turns.any(to_flags(is_blank)),
        "image_mismatch": (num_places != num_images(batch)) & ~no_turns
        | turns.any((places > 0) & ~human),
        "outside_root": is_outside,
    }


# Keys: whether the records are in an array.
_decode: Mapping[bool, Callable[[bytes], list[LlavaRecord]]] = {
    True: msgspec.json.Decoder(list[LlavaRecord]).decode,
    False: msgspec.json.Decoder(LlavaRecord).decode_lines,
}


def iter_row_batches(
    path: str | Path, source: str | None, policy: DropPolicy
) -> Iterator[pa.RecordBatch]:
    """Reads LLaVA records in English as rows of a corpus.

    Args:
        path: A UTF-8 file.
        source: Name of the dataset, for records that do not name one.
        policy: Decides what happens to a record that cannot be used.

    Yields:
        Batches of `ROW_SCHEMA`, all rows translatable.

    Raises:
        DataError: The file is missing or not JSON, or `policy` refuses a record that cannot be
            used; the error names file, line and sample.
    """
    path = Path(path)
    reader = RecordReader(path)
    reader.begin()
    offset, line, is_array = reader.offset, reader.line, reader.is_array
    size = path.stat().st_size
    with path.open("rb") as file:
        while offset < size:
            file.seek(offset)
            data = file.read(CHUNK_BYTES)
            is_last = offset + len(data) == size
            body, taken = whole_records(data, is_array, is_last)
            records = None
            with suppress(msgspec.DecodeError, UnicodeDecodeError):
                records = _decode[is_array](body) if taken else None
            if records is None:  # unusual, or cut in the wrong place: read one by one
                reader = RecordReader(path, offset, line, is_array)
                until = math.inf if is_last else offset + max(taken, 1)
                batch = batch_of(_read_singly(reader, until, policy), source)
                offset, line = reader.offset, reader.line
            else:
                batch = _check_together(records, body, f"{path}", line, source, policy)
                offset, line = offset + taken, line + data.count(b"\n", 0, taken)
            if batch.num_rows:
                yield batch


def batch_of(samples: Sequence[Sample | LlavaRecord], source: str | None = None) -> pa.RecordBatch:
    """Builds rows of samples, all translatable; `source` is for those that name none."""
    turns = [turn for sample in samples for turn in sample.turns]
    ends = np.cumsum([len(sample.turns) for sample in samples], dtype=np.int32)
    images: list[Any] = [sample.image for sample in samples]
    several: list[Any] = [None] * len(samples)
    if not all(image is None or type(image) is str for image in images):
        paths = [images_of(image) for image in images]
        images = [own[0] if len(own) == 1 else None for own in paths]
        several = [own if len(own) > 1 else None for own in paths]
    columns: list[list[Any]] = [
        [sample.id if type(sample.id) is str else str(sample.id) for sample in samples],
        images,
        several,
        [sample.source or source for sample in samples],
        [sample.task for sample in samples],
        [True] * len(samples),
    ]
    arrays = [pa.array(column, ROW_SCHEMA.field(i).type) for i, column in enumerate(columns)]
    talk_type = ROW_SCHEMA.field("turns").type
    talk = pa.StructArray.from_arrays(
        [
            pa.array([turn.role for turn in turns], pa.string()),
            pa.array([turn.text for turn in turns], pa.string()),
            pa.array([turn.supervised for turn in turns], pa.bool_()),
        ],
        fields=list(talk_type.value_type),
    )
    offsets = pa.array(np.concatenate([np.zeros(1, np.int32), ends]))
    arrays.append(pa.ListArray.from_arrays(offsets, talk, type=talk_type))
    return pa.RecordBatch.from_arrays(arrays, schema=ROW_SCHEMA)


def usable_sample(make: Callable[[], Any], where: str, policy: DropPolicy) -> Sample | None:
    """Checks and counts one record in English.

    Args:
        make: Returns the record, or raises `SampleError`.
        where: Location of the record, for messages.
        policy: Decides what happens if it cannot be used.

    Returns:
        The sample; None if it is dropped.
    """
    try:
        record = make()
        sample = Sample.from_record(record, where)
        check_sample(sample, where, ENGLISH)
    except SampleError as error:
        error.lang = ENGLISH  # under which all others are counted
        policy.drop(error)
        return None
    policy.keep(ENGLISH)
    if has_leading_answer(record):
        policy.note("leading answer", ENGLISH)
    return sample


def check_sample(sample: Sample, where: str, lang: str) -> None:
    """Checks what a corpus demands beyond `Sample.from_record`.

    Raises:
        SampleError: The sample is in another language, or an image is outside the image folder.
    """
    if sample.lang not in (None, lang) and canonical_code(sample.lang) != lang:
        raise SampleError(
            f"{where}, sample {sample.id!r}: lang is {sample.lang!r}, expected {lang!r}.",
            "other_language",
        )
    if outside := [image for image in sample.images if leaves_folder(image)]:
        raise SampleError(
            f"{where}, sample {sample.id!r}: image {outside[0]!r} is outside the image folder; "
            "expected a path below it.",
            "outside_root",
        )


def _check_together(
    records: list[LlavaRecord],
    body: bytes,
    path: str,
    line: int,
    source: str | None,
    policy: DropPolicy,
) -> pa.RecordBatch:
    """Checks records column by column, and only the odd ones one by one.

    Args:
        records: The decoded records.
        body: The text that they were decoded from.
        path: The file, for messages.
        line: The line at which `body` begins.
        source: See `iter_row_batches`.
        policy: See `iter_row_batches`.
    """
    batch = batch_of(records, source)
    turns = Turns.of(batch.column("turns"))
    odd = np.array(
        [
            record.id is None
            or record.lang not in (None, ENGLISH)
            or (
                type(record.image) is tuple
                and not (all(record.image) and len(record.image) <= MAX_IMAGES)
            )
            for record in records
        ],
        dtype=bool,
    )
    odd |= to_flags(pc.equal(batch.column("image"), ""))
    odd |= (turns.sizes < 2) | turns.any(turns.matching("<video>|<audio>"))
    for fault in row_faults(batch, turns).values():
        odd |= fault
    policy.report.read[ENGLISH] += int((~odd).sum())
    if not odd.any():
        return batch
    kept: list[Sample | LlavaRecord | None] = list(records)
    raw_records = decode_raw[body.startswith(b"[")](body)
    counted = end = 0
    for i in np.flatnonzero(odd).tolist():
        raw = bytes(raw_records[i])
        start = body.index(raw, end)
        line += body.count(b"\n", counted, start)
        counted, end = start, start + len(raw)
        kept[i] = usable_sample(partial(loads, raw), f"{path}:{line}", policy)
    return batch_of([sample for sample in kept if sample is not None], source)


def _read_singly(reader: RecordReader, until: float, policy: DropPolicy) -> list[Sample]:
    """Checks records one by one, until one begins at byte `until` or later."""
    samples = []
    while reader.offset < until and (found := reader.read()) is not None:
        where, record = found
        sample = usable_sample(lambda record=record: record, where, policy)  # type: ignore[misc]
        if sample is not None:
            samples.append(sample)
    return samples
