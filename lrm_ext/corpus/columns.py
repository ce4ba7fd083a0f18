"""What Arrow lacks for columns of conversations.

Input: a column of turns, or of texts. Output: NumPy arrays with a value a row, a turn or a text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llava.constants import DEFAULT_IMAGE_TOKEN
from lrm_ext.files import LEAVES_FOLDER

Flags = npt.NDArray[np.bool_]


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
