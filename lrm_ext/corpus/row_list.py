"""A list of row numbers that stays on disk.

Input: a file of unsigned 32-bit numbers, little-endian. Output: any of them by its place, read by
itself: a mapped list of a hundred million would fill a process' memory with the pages it touched.
"""

from __future__ import annotations

import os
import struct
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.errors import DataError

NUM_BYTES = 4
_NUMBER = struct.Struct("<I")


class RowList(Sequence[int]):
    """The row numbers in a file.

    Safe to send to data-loader workers, and to share with those that are forked.

    Args:
        path: The file; an attribute.
        size: How many numbers it must hold.

    Raises:
        DataError: The file is missing or of another size.
    """

    def __init__(self, path: Path, size: int) -> None:
        found = path.stat().st_size if path.is_file() else -1
        if found != size * NUM_BYTES:
            what = "it is missing" if found < 0 else f"it has {found}"
            raise DataError(
                f"{path}: expected {size * NUM_BYTES} bytes ({size} rows), {what}. The corpus is "
                "damaged; build or unpack it again."
            )
        self.path = path
        self._size = size
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> int:  # type: ignore[override]  # no slices
        """The row number at a place.

        Raises:
            IndexError: It is not in 0 .. len - 1.
            DataError: The file has become shorter.
        """
        if not 0 <= index < self._size:
            raise IndexError(f"place {index} of {self._size} rows")
        data = os.pread(self._file, NUM_BYTES, index * NUM_BYTES)
        if len(data) != NUM_BYTES:
            raise DataError(f"{self.path}: has become shorter while it was read.")
        number: int = _NUMBER.unpack(data)[0]
        return number

    def __reduce__(self) -> tuple[Any, ...]:
        return (RowList, (self.path, self._size))
