"""Writes files that exist whole or not at all, and names the file when one cannot be written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava.errors import is_disk_full

_HASH_BLOCK_BYTES = 1 << 20


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Writes a file so that a reader finds the old content or the new, never a part.

    Args:
        path: The file; its folder is created if missing.

    Yields:
        The path to write to. It takes the place of `path` at the end; after an error it is removed.

    Raises:
        OSError: It cannot be written; what was there stays. The error names `path`.
    """
    partial = path.with_name(f".{path.name}.partial")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes a write error name its file: on a full disk it names none, or a temporary one."""
    try:
        yield
    except OSError as error:
        if error.filename is None or is_disk_full(error):
            error.filename, error.filename2 = str(path), None
        raise


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file as `writing` does; a line end is added where it lacks one.

    Raises:
        OSError: It cannot be written; what was there stays.
    """
    with writing(path) as partial:
        partial.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")


def sha256_of(*paths: Path) -> str:
    """SHA-256 of the content of files, one after the other, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_HASH_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
