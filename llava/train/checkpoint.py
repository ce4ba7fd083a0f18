"""Checkpoints that are there wholly or not at all, and what must not change when a run goes on.

A folder is written beside its place, flushed to the disk, marked `COMPLETE` (a list of its files
with their sizes and checksums) and renamed; what is read back must carry the mark and be what it
says. So a run that is killed, or whose disk fills up or errs, leaves the earlier checkpoint as the
last one. CRC-32 finds what disks and networks do to a file, at several GB a second; it is no
protection against people.
A small JSON file in each checkpoint and beside the result tells a run's arguments, data and
tokenizer; going on with others is refused, naming what changed. The number of ranks may change, as
long as an optimizer step takes as many samples; so may the folders of model and data.
Input: a function that writes, or a run's settings. Output: folders `checkpoint-<step>` and the
final files of a run. Non-goals: what is in a checkpoint (`saving.py`).
"""

from __future__ import annotations

import errno
import hashlib
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
from typing import Any

from llava.errors import CheckpointError

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
    folder = begin_folder(final, ranks)
    with _explained(final.parent):
        yield folder
        ranks.barrier()
    if ranks.is_writer:
        finish_folder(final)
    ranks.barrier()
    # without a shared file system every machine has a folder of its own
    if ranks.is_local_writer and not ranks.is_writer and folder.is_dir():
        finish_folder(final)


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


def finish_folder(final: Path, parts: Sequence[Callable[[], None]] = ()) -> None:
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


IDENTITY_FILE = "run_identity.json"

# Flags that decide the result, besides those that `identity_of` reads.
_RESULT_FLAGS = (
    "learning_rate mm_projector_lr lr_scheduler_type lr_scheduler_kwargs warmup_steps weight_decay "
    "optim optim_args adam_beta1 adam_beta2 adam_epsilon max_grad_norm loss_normalization "
    "tune_mm_mlp_adapter freeze_mm_mlp_adapter freeze_backbone lora_enable lora_r lora_alpha "
    "lora_dropout lora_bias bits version mm_vision_select_layer mm_projector_type "
    "image_aspect_ratio alignment_loss"
).split()
_SETTINGS = "settings"
_PLACES = ("model_name_or_path", "vision_tower")
_FILES = ("pretrain_mm_mlp_adapter", "data_path")
_READ_BYTES = 2**22


def settings_of(*arguments: Any) -> dict[str, str]:
    """Describe what the flags ask for, as far as the result depends on it.

    Args:
        *arguments: Dataclasses of flags; a flag is looked up in each.

    Returns:
        Values by flag, without the dashes. Models are named by their folder's name, files by their
        name and CRC-32: both may move.
    """
    values = {name: value for each in arguments for name, value in vars(each).items()}
    found = {name: values[name] for name in _RESULT_FLAGS if name in values}
    if not str(getattr(values.get("lr_scheduler_type"), "value", "")).startswith("constant"):
        # by the length of the run the learning rate falls
        length = "max_steps" if values.get("max_steps", -1) > 0 else "num_train_epochs"
        found[length] = values.get(length)
    for name in _PLACES:
        found[name] = values.get(name) and Path(str(values[name])).name
    for name in _FILES:
        found[name] = values.get(name) and _describe_file(Path(str(values[name])))
    return {name: str(getattr(value, "value", value)) for name, value in found.items()}


def _describe_file(path: Path) -> str:
    if not path.is_file():
        return path.name
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            checksum = zlib.crc32(block, checksum)
    return f"{path.name} (CRC-32 {checksum:08x})"


def identity_of(
    args: Any,
    dataset: Any,
    sampler: Any,
    tokenizer: Any,
    data_seed: int,
    settings: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Describe a run.

    Args:
        args: Training arguments.
        dataset: The training samples; a method `identity`, if it has one, gives a dict of what
            decides them.
        sampler: Their order, with the same method; None for one that the arguments say.
        tokenizer: May be None.
        data_seed: Seed of the order.
        settings: Of `settings_of`; None leaves them out.
    """
    return {
        "samples in an epoch": len(dataset),
        "samples in a step": args.train_batch_size
        * args.gradient_accumulation_steps
        * args.world_size,
        "seed": data_seed,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "float32",
        "tokenizer": _fingerprint(tokenizer),
        **getattr(dataset, "identity", dict)(),
        **getattr(sampler, "identity", dict)(),
        **({} if settings is None else {_SETTINGS: settings}),
    }


def write_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Put it into a checkpoint."""
    (folder / IDENTITY_FILE).write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")


def check_identity(folder: Path, now: dict[str, Any], args: Any) -> bool:
    """Refuse to go on from another run's checkpoint.

    Args:
        folder: The checkpoint, or the folder of a result. One without the file (of an older
            version) is not checked; nor are settings that an older version did not record.
        now: What the run is.
        args: Training arguments; `allow_changed_run` and `overwrite_output_dir` turn the refusal
            into a warning.

    Returns:
        Whether to go on from it; False if it is of another run, which is to be overwritten.

    Raises:
        CheckpointError: It says what was and what is, and how to have it as it was.
    """
    path = folder / IDENTITY_FILE
    if not path.is_file():
        return True
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = _differences(before, now)
    if not changed:
        return True
    listed = ", ".join(f"{key} was {old}, is {new}" for key, (old, new) in changed.items())
    text = f"{folder} is of a run with other settings: {listed}"
    if getattr(args, "allow_changed_run", False):
        log.warning("%s; --allow_changed_run was given", text)
        return True
    if getattr(args, "overwrite_output_dir", False):
        log.warning("%s; it is overwritten, as --overwrite_output_dir asks", text)
        return False
    raise CheckpointError(
        f"{text}. The result would be neither run's. {_advice(changed, args)}, begin anew in this "
        "folder with --overwrite_output_dir True, or go on all the same with --allow_changed_run "
        "True."
    )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Old and new value of what changed, flags with their dashes."""
    before, now = dict(before), dict(now)
    old, new = before.pop(_SETTINGS, {}), now.pop(_SETTINGS, {})
    changed = {
        key: (before.get(key), now.get(key))
        for key in (*before, *(now.keys() - before.keys()))
        if before.get(key) != now.get(key)
    }
    # a flag that only one of them has was not recorded by the other's version, but for the
    # length of the run, which has two names
    both = [name for name in new if name in old and old[name] != new[name]]
    lengths = [name for name in ("max_steps", "num_train_epochs") if (name in old) != (name in new)]
    if old and new and old.get("lr_scheduler_type") == new.get("lr_scheduler_type"):
        both += lengths
    return changed | {
        f"--{name}": (old.get(name, "unset"), new.get(name, "unset")) for name in both
    }


def _advice(changed: dict[str, tuple[Any, Any]], args: Any) -> str:
    before, _ = changed.get("samples in a step", (None, None))
    per_pass = args.train_batch_size * args.world_size
    if before and before % per_pass == 0:
        steps = before // per_pass
        return f"--gradient_accumulation_steps {steps} gives {before} samples a step again"
    return "Give what it was before, name another --output_dir"


def _fingerprint(tokenizer: Any) -> str | None:
    """Hash of the vocabulary and the special tokens."""
    if tokenizer is None:
        return None
    content = [sorted(tokenizer.get_vocab().items()), tokenizer.all_special_tokens]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
