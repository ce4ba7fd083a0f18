"""Checkpoints that are there wholly or not at all.

A folder is written beside its place, flushed to the disk, marked `COMPLETE` (a list of its files
with their sizes and checksums) and renamed; what is read back must carry the mark and be what it
says. So a run that is killed, or whose disk fills up or errs, leaves the earlier checkpoint as the
last one. CRC-32 finds what disks and networks do to a file, at several GB a second; it is no
protection against people.
Input: a function that writes. Output: folders `checkpoint-<step>` and the final files of a run.
Non-goals: what is in a checkpoint (`llava_trainer.py`, `weights.py`).
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llava.errors import CheckpointError
from llava.train.weights import (
    get_mm_adapter_state_maybe_zero_3,
    get_peft_state_maybe_zero_3,
    get_peft_state_non_lora_maybe_zero_3,
    maybe_zero_3,
    save_projector,
)

__all__ = [
    "COMPLETE_FILE",
    "Ranks",
    "begin_folder",
    "find_last_checkpoint",
    "finish_folder",
    "get_mm_adapter_state_maybe_zero_3",
    "get_peft_state_maybe_zero_3",
    "get_peft_state_non_lora_maybe_zero_3",
    "is_whole",
    "maybe_zero_3",
    "problem_of",
    "rotate",
    "save_projector",
    "writing_final",
    "writing_folder",
]

log = logging.getLogger(__name__)

COMPLETE_FILE = "COMPLETE"
_SAVING = "tmp-saving"
_OLD = "tmp-old"
_NAME = re.compile(r"checkpoint-(\d+)")
_NO_SPACE = re.compile(r"No space left|StorageFull|code: 28\b|os error 28")
_WEIGHTS = re.compile(
    r"(model|pytorch_model|adapter_model)([-.].*)?\.(safetensors|bin)(\.index\.json)?"
)
# less free space than this after a failed write means that the disk was full
_FULL_BELOW_BYTES = 16 * 2**20
_CHECKSUM_BYTES = 2**22
_CHECKSUM_THREADS = 4


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        is_writer: Whether it is the one that writes.
        is_local_writer: Whether it is the first of its machine.
        barrier: Waits for all processes.
    """

    is_writer: bool = True
    is_local_writer: bool = True
    barrier: Callable[[], None] = lambda: None


@contextmanager
def writing_folder(final: Path, ranks: Ranks) -> Iterator[Path]:
    """Write a checkpoint folder; it appears under its name when all of it is on the disk.

    Args:
        final: Where it will be.
        ranks: All processes must come here.

    Yields:
        A folder with the same name, in a temporary parent, to write into.

    Raises:
        CheckpointError: The disk is full.
    """
    saving = final.parent / _SAVING
    _make_empty(saving / final.name, ranks)
    with _explained(final.parent):
        yield saving / final.name
        ranks.barrier()
        if ranks.is_writer:
            _seal(saving / final.name)
            _replace_folder(saving / final.name, final)
        ranks.barrier()
        # without a shared file system every machine has a folder of its own
        if ranks.is_local_writer and not ranks.is_writer and (saving / final.name).is_dir():
            _seal(saving / final.name)
            _replace_folder(saving / final.name, final)
    if ranks.is_local_writer:
        shutil.rmtree(saving, ignore_errors=True)


def begin_folder(final: Path, ranks: Ranks) -> Path:
    """Make the folder that a checkpoint is written into, for `finish_folder`.

    Args:
        final: Where the checkpoint will be.
        ranks: All processes must come here.

    Returns:
        An empty folder with the same name, in a temporary parent.
    """
    folder = final.parent / _SAVING / final.name
    _make_empty(folder, ranks)
    return folder


def finish_folder(final: Path, parts: Sequence[Callable[[], None]]) -> None:
    """Write what is still missing in a folder of `begin_folder`, and put it into its place.

    One process of those that share the folder does this, on whichever thread.

    Args:
        final: As there.
        parts: Each writes some files.

    Raises:
        CheckpointError: The disk is full.
    """
    saving = final.parent / _SAVING
    with _explained(final.parent):
        for write in parts:
            write()
        _seal(saving / final.name)
        _replace_folder(saving / final.name, final)
    shutil.rmtree(saving, ignore_errors=True)


@contextmanager
def writing_final(output_dir: Path, ranks: Ranks) -> Iterator[Path]:
    """Write the final files of a run; they move into `output_dir` when all are on the disk.

    Args:
        output_dir: Where they will be, beside the checkpoints.
        ranks: All processes must come here.

    Yields:
        A temporary folder to write into.

    Raises:
        CheckpointError: The disk is full.
    """
    saving = output_dir / _SAVING / "final"
    _make_empty(saving, ranks)
    with _explained(output_dir):
        yield saving
        ranks.barrier()
        if ranks.is_writer:
            _seal(saving)
            _move_files(saving, output_dir)
        ranks.barrier()
    if ranks.is_local_writer:
        shutil.rmtree(output_dir / _SAVING, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """Whether a folder carries its mark and has the files that the mark lists."""
    return problem_of(folder) is None


def problem_of(folder: Path, read_all: bool = False) -> str | None:
    """Say why a folder is no whole checkpoint; None if it is one.

    Args:
        folder: A checkpoint, or a finished run.
        read_all: Compare the files' content with the checksums, too. A mark of an older version has
            none.
    """
    try:
        mark = json.loads((folder / COMPLETE_FILE).read_text(encoding="utf-8"))
        sizes, checksums = mark["files"], mark.get("crc32", {})
    except FileNotFoundError:
        return f"it has no {COMPLETE_FILE} file"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {COMPLETE_FILE} file is not readable: {error!r}"
    for name, size in sizes.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            return f"{name} should have {size} bytes, found {found}"
    if not read_all:
        return None
    with ThreadPoolExecutor(_CHECKSUM_THREADS) as threads:
        found_sums = threads.map(_checksum, [folder / name for name in checksums])
        for (name, checksum), found_sum in zip(checksums.items(), found_sums, strict=True):
            if found_sum != checksum:
                return f"{name} is damaged: its checksum should be {checksum}, found {found_sum}"
    return None


def find_last_checkpoint(output_dir: str | Path, read_all: bool = False) -> Path | None:
    """Find the whole checkpoint with the most steps; others are named in the log and left out.

    Args:
        output_dir: Folder of a run; it need not exist.
        read_all: As for `problem_of`; to go on from a checkpoint, not only to name it.
    """
    folder = Path(output_dir)
    found = [(step, path) for path in _entries(folder) if (step := _step(path)) is not None]
    for _, path in sorted(found, reverse=True):
        problem = problem_of(path, read_all)
        if problem is None:
            return path
        log.warning("%s is not used: %s", path, problem)
    return None


def rotate(output_dir: Path, limit: int | None, keep: tuple[Path, ...] = ()) -> None:
    """Remove the oldest checkpoints beyond `limit`; those in `keep` stay and count."""
    if limit is None or limit <= 0:
        return
    found = [(step, path) for path in _entries(output_dir) if (step := _step(path)) is not None]
    kept = {path.resolve() for path in keep}
    spare = [p for _, p in sorted(found) if p.resolve() not in kept]
    for path in spare[: max(len(found) - limit, 0)]:
        log.debug("removing %s (save_total_limit %d)", path, limit)
        _remove_checkpoint(path)


def begin_run(output_dir: Path, overwrites: bool = False) -> None:
    """Remove what a run that was killed left half-written, and the mark of an older result.

    Args:
        output_dir: Folder of the run.
        overwrites: Remove the checkpoints, too: they are another run's.
    """
    if overwrites:
        for path in _entries(output_dir):
            if _step(path) is not None:
                _remove_checkpoint(path)
    for name in (_SAVING, _OLD):
        shutil.rmtree(output_dir / name, ignore_errors=True)
    (output_dir / COMPLETE_FILE).unlink(missing_ok=True)


def _remove_checkpoint(path: Path) -> None:
    # without its mark it is no checkpoint, even if the removal is cut short
    (path / COMPLETE_FILE).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _step(path: Path) -> int | None:
    match = _NAME.fullmatch(path.name)
    return int(match.group(1)) if match and path.is_dir() else None


def _make_empty(folder: Path, ranks: Ranks) -> None:
    if ranks.is_local_writer:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    ranks.barrier()


def _seal(folder: Path) -> None:
    """Flush every file, then write the mark."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    names = [path.relative_to(folder).as_posix() for path in files]
    content = {
        "files": {name: path.stat().st_size for name, path in zip(names, files, strict=True)},
        "crc32": {name: _checksum(path) for name, path in zip(names, files, strict=True)},
    }
    mark = folder / COMPLETE_FILE
    mark.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _sync(mark)
    for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        _sync(path)


def _checksum(path: Path) -> str:
    """CRC-32 of a file in hexadecimal; an unreadable sector gives an error's name."""
    value = 0
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(_CHECKSUM_BYTES):
                value = zlib.crc32(block, value)
    except OSError as error:
        return f"unreadable ({error.strerror})"
    return f"{value:08x}"


def _replace_folder(source: Path, final: Path) -> None:
    old = final.parent / _OLD
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    source.rename(final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _move_files(source: Path, target: Path) -> None:
    """Move files into `target`; configuration and mark come last, stale weights go."""
    (target / COMPLETE_FILE).unlink(missing_ok=True)
    new = {path.name for path in source.iterdir()}
    for path in target.iterdir():
        if path.is_file() and _WEIGHTS.fullmatch(path.name) and path.name not in new:
            path.unlink()
    last = ("config.json", COMPLETE_FILE)
    for name in (*sorted(new.difference(last)), *(name for name in last if name in new)):
        destination = target / name
        if (source / name).is_dir():
            shutil.rmtree(destination, ignore_errors=True)
        os.replace(source / name, destination)
    _sync(target)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _explained(output_dir: Path) -> Iterator[None]:
    """Tell a full disk from other errors, and free what was written in vain."""
    try:
        yield
    except Exception as error:
        if not _is_disk_full(error, output_dir):
            raise
        shutil.rmtree(output_dir / _SAVING, ignore_errors=True)
        last = find_last_checkpoint(output_dir)
        raise CheckpointError(
            f"{output_dir}: the disk is full, the checkpoint could not be written "
            f"({shutil.disk_usage(output_dir).free / 2**20:.0f} MiB are free now). The last whole "
            f"checkpoint is {last or 'none'}. Free some space, or set a lower --save_total_limit, "
            "and run the same command again: it goes on from there."
        ) from error


def _is_disk_full(error: BaseException, folder: Path) -> bool:
    """Whether an error of any library that writes comes from a full disk or quota."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if _NO_SPACE.search(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    is_write_error = isinstance(error, OSError | RuntimeError)
    return is_write_error and shutil.disk_usage(folder).free < _FULL_BELOW_BYTES
