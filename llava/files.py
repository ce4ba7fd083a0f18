"""Writes files whole or not at all, names the one that cannot be written, and locks folders."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from llava.errors import ConfigError, is_disk_full

_HASH_BLOCK_BYTES = 1 << 20
PLOT_ENDINGS: Final = (".png", ".svg", ".pdf")

LEAVES_FOLDER = r"^/|(?:^|/)\.\.(?:/|$)|\x00"
"""Matches a name that is absolute, goes upwards or is invalid; for `re` and RE2."""


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


def leaves_folder(name: str) -> bool:
    """Tells whether a file name in a dataset leads out of its folder.

    Only the name counts. Links in the folder may lead anywhere, because the owner of the folder
    made them: image folders often consist of links to shared data, as snapshots of the Hub do.
    """
    return re.search(LEAVES_FOLDER, name) is not None


def lock_of(path: Path, timeout_s: float = -1) -> FileLock:
    """Returns the lock of a file or folder, to hold in a `with` block.

    It is the file `.<name>.lock` beside it, because folders cannot be locked on network disks. The
    system frees it if the process dies.

    Args:
        path: The file or folder; its parent must exist.
        timeout_s: How long to wait for the lock before `filelock.Timeout`; for ever if negative.
    """
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout_s)


def refuse_existing(folder: Path) -> None:
    """Raises `ConfigError` if a folder that is to be written exists."""
    if folder.exists():
        raise ConfigError(f"{folder} exists: name a new folder, or remove it")


def save_figure(figure: Any, path: Path, dpi: int = 150) -> None:
    """Writes a matplotlib figure.

    Raises:
        ConfigError: The name does not end with .png, .svg or .pdf.
    """
    if path.suffix not in PLOT_ENDINGS:
        raise ConfigError(f"--out {path}: expected a file that ends with {', '.join(PLOT_ENDINGS)}")
    drawn = io.BytesIO()  # a figure that cannot be drawn leaves the file alone
    figure.savefig(drawn, dpi=dpi, format=path.suffix[1:])
    with writing(path) as partial:
        partial.write_bytes(drawn.getvalue())
