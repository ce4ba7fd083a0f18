"""Opens the pictures of rows, many at a time, to find those that are missing or broken.

Input: batches of rows. Output: the batches without the rows whose picture cannot be used; what
happens to those is the drop policy's business.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from llava.data.drop import DropPolicy
from llava.data.sample import SampleError
from llava.errors import DataError
from llava.image_file import open_image

_MAX_REMEMBERED = 1_000_000


class PictureCheck:
    """Checks each picture once; a context manager.

    Args:
        root: Folder of the pictures.
        num_threads: How many are opened at once; decoding does not hold Python's lock.
    """

    def __init__(self, root: Path, num_threads: int | None = None) -> None:
        self.root = root
        self._pool = ThreadPoolExecutor(num_threads or min(32, 2 * (os.cpu_count() or 1)))
        self._known: dict[str, str | None] = {}

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
        names = batch.column("image").to_pylist()
        self._look_at({name for name in names if name is not None})
        problems = [None if name is None else self._known[name] for name in names]
        bad = [i for i, problem in enumerate(problems) if problem is not None]
        for i in bad:
            sample_id = batch.column("id")[i].as_py()
            policy.report.read["en"] -= 1  # counted again as dropped
            reason = "missing_picture" if "no such" in str(problems[i]) else "broken_picture"
            policy.drop(SampleError(f"sample {sample_id!r}: {problems[i]}", reason, "en"))
        return batch if not bad else batch.take(np.setdiff1d(np.arange(len(batch)), bad))

    def _look_at(self, names: set[str]) -> None:
        if len(self._known) > _MAX_REMEMBERED:
            self._known.clear()
        new = [name for name in sorted(names) if name not in self._known]
        self._known.update(zip(new, self._pool.map(self._problem, new), strict=True))

    def _problem(self, name: str) -> str | None:
        path = self.root / name
        if not path.resolve().is_relative_to(self.root.resolve()):
            return f"picture {name!r} lies outside of {self.root}"
        if not path.is_file():
            return f"no such picture: {path}"
        try:
            open_image(path).close()
        except DataError as error:
            return str(error)
        return None
