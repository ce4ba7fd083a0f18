"""Opens the pictures of rows, many at a time, to find those that are missing or broken.

Input: batches of rows. Output: the batches without the rows whose picture cannot be used; what
happens to those is the drop policy's business. If asked, the pictures are copied on the way.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from llava.data.drop import DropPolicy
from llava.data.sample import SampleError
from llava.errors import DataError
from llava.image_file import ImageError, open_image
from lrm_ext.corpus.layout import ENGLISH
from lrm_ext.files import leaves_folder

_MAX_REMEMBERED = 1_000_000


class Problem(NamedTuple):
    """Why a picture cannot be used.

    Attributes:
        reason: "outside_root", "missing_picture", or that of an `ImageError`.
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
        if leaves_folder(name):
            return Problem("outside_root", f"picture {name!r} lies outside of {self.root}")
        if not path.is_file():
            return Problem("missing_picture", f"no such picture: {path}")
        try:
            open_image(path).close()
        except ImageError as error:
            return Problem(error.reason, str(error))
        return None


class PictureCopy(PictureCheck):
    """Checks each picture and copies it; those that are embedded in a source are written out.

    Args:
        root: Folder of the pictures that sources refer to.
        out: Folder to copy into; paths below it are those below `root`.
        num_threads: How many are opened at once.
    """

    def __init__(self, root: Path, out: Path, num_threads: int | None = None) -> None:
        super().__init__(root, num_threads)
        self._out = out

    def save_embedded(self, image: dict[str, Any], where: str) -> str:
        """Write a picture of a table to a file named by its content.

        Args:
            image: Has the file's content as `bytes`.
            where: For messages.

        Returns:
            Its path below `out`.

        Raises:
            SampleError: It is no picture.
        """
        data = image["bytes"]
        try:
            open_image(data, where).close()
        except ImageError as error:
            raise SampleError(str(error), error.reason) from error
        with Image.open(io.BytesIO(data)) as picture:
            ending = (picture.format or "img").lower()
        digest = hashlib.sha256(data).hexdigest()[:32]
        name = f"embedded/{digest[:2]}/{digest}.{ending}"
        if not (self._out / name).is_file():
            _write(self._out / name, lambda path: path.write_bytes(data))
        return name

    def _problem(self, name: str) -> Problem | None:
        target = self._out / name
        if target.is_file():  # embedded ones, too
            return None
        problem = super()._problem(name)
        if problem is None:
            _write(target, lambda path: shutil.copyfile(self.root / name, path))
        return problem


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that is there when it is whole; several threads may write the same.

    Raises:
        DataError: The disk is full, or the folder cannot be written.
    """
    partial = path.with_name(f"{path.name}.{threading.get_ident()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error}") from error
