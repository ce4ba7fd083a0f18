"""Opens the pictures of rows, many at a time, to find those that are missing or broken.

Input: batches of rows. Output: the batches without the rows whose picture cannot be used; what
happens to those is the drop policy's business.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from llava.data.drop import DropPolicy
from llava.data.sample import SampleError
from llava.errors import DataError
from llava.image_file import open_image
from lrm_ext.corpus.layout import ENGLISH

_MAX_REMEMBERED = 1_000_000


class Problem(NamedTuple):
    """Why a picture cannot be used.

    Attributes:
        reason: "outside_root", "missing_picture" or "broken_picture".
        message: What was found, with its path.
    """

    reason: str
    message: str


class PictureCheck:
    """Checks each picture once; a context manager.

    Args:
        root: Folder of the pictures.
        num_threads: How many are opened at once; decoding does not hold Python's lock.
    """

    def __init__(self, root: Path, num_threads: int | None = None) -> None:
        self.root = root
        self._resolved = root.resolve()
        self._pool = ThreadPoolExecutor(num_threads or min(32, 2 * (os.cpu_count() or 1)))
        self._known: dict[str, Problem | None] = {}

    def __enter__(self) -> PictureCheck:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, batch: pa.RecordBatch, policy: DropPolicy) -> pa.RecordBatch:
        """Drop the rows of a batch whose picture cannot be used.

        Raises:
            DataError: As `policy` raises.
        """
        problems = self.problems(batch.column("image").to_pylist())
        bad = [i for i, problem in enumerate(problems) if problem is not None]
        for i in bad:
            problem, sample_id = problems[i], batch.column("id")[i].as_py()
            assert problem is not None
            policy.report.read[ENGLISH] -= 1  # counted again as dropped
            text = f"sample {sample_id!r}: {problem.message}"
            policy.drop(SampleError(text, problem.reason, ENGLISH))
        return batch if not bad else batch.take(np.setdiff1d(np.arange(len(batch)), bad))

    def problems(self, names: Sequence[str | None]) -> list[Problem | None]:
        """Open pictures, several at a time.

        Args:
            names: Paths relative to the root; None for a row without a picture.

        Returns:
            For each what is wrong with it; None if nothing is.
        """
        if len(self._known) > _MAX_REMEMBERED:
            self._known.clear()
        new = sorted({name for name in names if name is not None} - self._known.keys())
        self._known.update(zip(new, self._pool.map(self._problem, new), strict=True))
        return [None if name is None else self._known[name] for name in names]

    def _problem(self, name: str) -> Problem | None:
        path = self.root / name
        if not path.resolve().is_relative_to(self._resolved):
            return Problem("outside_root", f"picture {name!r} lies outside of {self.root}")
        if not path.is_file():
            return Problem("missing_picture", f"no such picture: {path}")
        try:
            open_image(path).close()
        except DataError as error:
            return Problem("broken_picture", str(error))
        return None
