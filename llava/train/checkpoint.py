"""Saves and loads checkpoints, completely or not at all, and decides whether a run may be resumed.

A checkpoint folder is written under a temporary name, flushed to disk, marked with a `COMPLETE`
file (the sizes and checksums of its files) and renamed; a folder without a matching mark is not
read. If a run is killed, or its disk fills up or fails, the previous checkpoint remains the last
one. CRC-32 detects what disks and networks do to a file, at several GB per second; it does not
protect against tampering.

On one device or under DDP, training only waits until the state is copied to RAM; a thread of the
first process writes it. The buffers of the copy are reused, so checkpoints need as much RAM as the
state has bytes. With DeepSpeed and FSDP all ranks gather and write the state while training waits.
Gathering weights is a collective operation: under ZeRO-3 every rank must call it, although only one
writes.

A small JSON file in each checkpoint and beside the result records a run's arguments, data and
tokenizer. Resuming with other ones is refused, and the message names the differences. The number of
ranks may change as long as an optimizer step takes as many samples, and so may the folders of model
and data.

Input: the trainer's state, or a run's settings. Output: folders `checkpoint-<step>` and the final
files of a run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import recursively_apply
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from llava.errors import CheckpointError, is_disk_full
from llava.files import flush_to_disk
from llava.model.builder import NON_LORA_FILE
from llava.model.checkpoint import PROJECTOR_FILE
from llava.model.multimodal_projector.builder import (
    gathered,
    load_adapter,
    read_tensors,
)

log = logging.getLogger(__name__)

COMPLETE_FILE = "COMPLETE"
STATE_FILE = "trainer_state.json"
_SAVING = "tmp-saving"
_OLD = "tmp-old"
_NO_SPACE = re.compile(r"No space left|StorageFull|code: 28\b|os error 28")
_WEIGHTS = re.compile(
    r"(model|pytorch_model|adapter_model)([-.].*)?\.(safetensors|bin)(\.index\.json)?"
)
# if a write fails with less free space than this, the disk counts as full
_FULL_BELOW_BYTES = 16 * 2**20
_CHECKSUM_BYTES = 2**22
_CHECKSUM_THREADS = 4


@contextmanager
def writing_folder(
    final: Path,
    parts: Sequence[Callable[[], None]] = (),
    run: Callable[[Callable[[], None]], object] = lambda work: work(),
    on_each_node: bool = False,
) -> Iterator[Path]:
    """Writes a checkpoint folder, which gets its name when all of it is on disk.

    All processes must call this. Without a shared file system every machine has its own folder.

    Args:
        final: The folder's final path.
        parts: Functions that write further files after the block has ended.
        run: Runs the function that calls `parts` and renames the folder, now or on a thread.
        on_each_node: Every machine writes all files, to a disk of its own (`save_on_each_node`).

    Yields:
        A folder with the same name in a temporary parent, to write into.

    Raises:
        CheckpointError: The disk is full.
    """
    saving = final.parent / _SAVING
    folder = saving / final.name

    def finish() -> None:
        with _explained(final.parent):
            for write in parts:
                write()
            _seal(folder)
            _replace_folder(folder, final)
        shutil.rmtree(saving, ignore_errors=True)

    _make_empty(folder)
    with _explained(final.parent):
        yield folder
    ranks = PartialState()
    ranks.wait_for_everyone()
    # on a shared disk the first process has written this folder, or has renamed it by now
    is_foreign = not on_each_node and ((folder / STATE_FILE).exists() or not folder.is_dir())
    if ranks.is_main_process or (ranks.is_local_main_process and not is_foreign):
        run(finish)
    ranks.wait_for_everyone()


@contextmanager
def writing_final(output_dir: Path) -> Iterator[Path]:
    """Writes the final files of a run; they move to `output_dir` when all are on disk.

    All processes must call this.

    Yields:
        A temporary folder to write into.

    Raises:
        CheckpointError: The disk is full.
    """
    saving = output_dir / _SAVING / "final"
    ranks = PartialState()
    _make_empty(saving)
    with _explained(output_dir):
        yield saving
        ranks.wait_for_everyone()
        if ranks.is_main_process:
            _seal(saving)
            _move_files(saving, output_dir)
        ranks.wait_for_everyone()
    if ranks.is_local_main_process:
        shutil.rmtree(output_dir / _SAVING, ignore_errors=True)


def problem_of(folder: Path, read_all: bool = False) -> str | None:
    """Returns why a folder is not a complete checkpoint, or None if it is one.

    Args:
        folder: A checkpoint, or a finished run.
        read_all: Also compare the files' content with the checksums, which marks of older versions
            lack.
    """
    try:
        mark = json.loads((folder / COMPLETE_FILE).read_text(encoding="utf-8"))
        sizes, checksums = mark["files"], mark.get("crc32", {}) if read_all else {}
    except FileNotFoundError:
        return f"it has no {COMPLETE_FILE} file"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {COMPLETE_FILE} file is not readable: {error!r}"
    for name, size in sizes.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            return f"{name} should have {size} bytes, found {found}"
    with ThreadPoolExecutor(_CHECKSUM_THREADS) as threads:
        found_sums = threads.map(_checksum, [folder / name for name in checksums])
        for (name, checksum), found_sum in zip(checksums.items(), found_sums, strict=True):
            if found_sum != checksum:
                return f"{name} is damaged: its checksum should be {checksum}, found {found_sum}"
    return None


def find_last_checkpoint(output_dir: str | Path, read_all: bool = False) -> Path | None:
    """Finds the complete checkpoint with the most steps; logs each one that is skipped.

    Args:
        output_dir: Folder of a run; it need not exist.
        read_all: See `problem_of`; wanted to resume from a checkpoint, not to name it.
    """
    for path in reversed(_checkpoints(Path(output_dir))):
        problem = problem_of(path, read_all)
        if problem is None:
            return path
        log.warning("%s is not used: %s", path, problem)
    return None


def rotate(output_dir: Path, limit: int | None, keep: tuple[Path, ...] = ()) -> None:
    """Removes the oldest checkpoints beyond `limit`; those in `keep` count and are kept."""
    if limit is None or limit <= 0:
        return
    found = _checkpoints(output_dir)
    kept = {path.resolve() for path in keep}
    spare = [path for path in found if path.resolve() not in kept]
    for path in spare[: max(len(found) - limit, 0)]:
        log.debug("removing %s (save_total_limit %d)", path, limit)
        _remove_checkpoint(path)


def begin_run(output_dir: Path, overwrites: bool = False) -> None:
    """Removes the incomplete files of a killed run and the mark of an older result.

    Args:
        output_dir: Folder of the run.
        overwrites: Also remove the checkpoints, which belong to another run.
    """
    for path in _checkpoints(output_dir) if overwrites else ():
        _remove_checkpoint(path)
    for name in (_SAVING, _OLD):
        shutil.rmtree(output_dir / name, ignore_errors=True)
    (output_dir / COMPLETE_FILE).unlink(missing_ok=True)


def _remove_checkpoint(path: Path) -> None:
    # the mark goes first, in case the removal is interrupted
    (path / COMPLETE_FILE).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    """Returns the folders that are named as checkpoints, ordered by step."""
    found = {
        int(path.name.partition("-")[2]): path
        for path in folder.glob("checkpoint-*")
        if path.name.partition("-")[2].isdecimal() and path.is_dir()
    }
    return [path for _, path in sorted(found.items())]


def _make_empty(folder: Path) -> None:
    ranks = PartialState()
    if ranks.is_local_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    ranks.wait_for_everyone()


def _seal(folder: Path) -> None:
    """Flushes every file, then writes the mark."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        flush_to_disk(path)
    names = {path.relative_to(folder).as_posix(): path for path in files}
    content = {
        "files": {name: path.stat().st_size for name, path in names.items()},
        "crc32": {name: _checksum(path) for name, path in names.items()},
    }
    mark = folder / COMPLETE_FILE
    mark.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    flush_to_disk(mark)
    for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        flush_to_disk(path)


def _checksum(path: Path) -> str:
    """Returns the CRC-32 of a file in hexadecimal, or the error if it cannot be read."""
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
    flush_to_disk(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _move_files(source: Path, target: Path) -> None:
    """Moves files to `target`, configuration and mark last, and removes stale weights."""
    (target / COMPLETE_FILE).unlink(missing_ok=True)
    new = {path.name for path in source.iterdir()}
    for path in target.iterdir():
        if _WEIGHTS.fullmatch(path.name) and path.name not in new:
            path.unlink()
    last = ("config.json", COMPLETE_FILE)
    for name in sorted(new, key=lambda name: (last.index(name) if name in last else -1, name)):
        if (source / name).is_dir():
            shutil.rmtree(target / name, ignore_errors=True)
        os.replace(source / name, target / name)
    flush_to_disk(target)


@contextmanager
def _explained(output_dir: Path) -> Iterator[None]:
    """Raises `CheckpointError` if the disk is full, and removes the incomplete files."""
    try:
        yield
    except Exception as error:
        if not _says_disk_full(error, output_dir):
            raise
        shutil.rmtree(output_dir / _SAVING, ignore_errors=True)
        last = find_last_checkpoint(output_dir)
        raise CheckpointError(
            f"{output_dir}: the disk is full, the checkpoint could not be written "
            f"({shutil.disk_usage(output_dir).free / 2**20:.0f} MiB are free now). The last whole "
            f"checkpoint is {last or 'none'}. Free some space, or set a lower --save_total_limit, "
            "and run the same command again: it goes on from there."
        ) from error


def _says_disk_full(error: BaseException, folder: Path) -> bool:
    """Returns whether an error, of any library, comes from a full disk or quota."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and is_disk_full(cause) or _NO_SPACE.search(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    # some libraries say only that they could not write
    may_be_full = isinstance(error, OSError | RuntimeError)
    return may_be_full and shutil.disk_usage(folder).free < _FULL_BELOW_BYTES


IDENTITY_FILE = "run_identity.json"

# Flags that decide the result, besides those that the identity has.
_RESULT_FLAGS = (
    "learning_rate mm_projector_lr lr_scheduler_type lr_scheduler_kwargs warmup_steps weight_decay "
    "optim optim_args adam_beta1 adam_beta2 adam_epsilon max_grad_norm loss_normalization "
    "mm_tunable_parts mm_vision_tower_lr mm_vision_tower_last_layers "
    "tune_mm_mlp_adapter freeze_mm_mlp_adapter freeze_backbone lora_enable lora_r lora_alpha "
    "lora_dropout lora_bias lora_experts bits version mm_vision_select_layer mm_projector_type "
    "image_aspect_ratio image_grid_pinpoints mm_patch_merge_type video_frames "
    "mm_spatial_pool_stride alignment_loss"
).split()
_SETTINGS = "settings"
_PLACES = ("model_name_or_path", "vision_tower", "pretrain_mm_mlp_adapter", "data_path")


def settings_of(*arguments: Any) -> dict[str, str]:
    """Describes the flags that the result depends on.

    Args:
        *arguments: Dataclasses of flags; a flag is looked up in each.

    Returns:
        Values by flag, without dashes. A model is described by its folder's name, a file by its
        name and CRC-32, since both may move.
    """
    values = {name: value for each in arguments for name, value in vars(each).items()}
    found = {name: values[name] for name in _RESULT_FLAGS if name in values}
    if not str(getattr(values.get("lr_scheduler_type"), "value", "")).startswith("constant"):
        # the learning rate falls with the length of the run
        length = "max_steps" if values.get("max_steps", -1) > 0 else "num_train_epochs"
        found[length] = values.get(length)
    for name in _PLACES:
        found[name] = values.get(name) and _describe_place(str(values[name]))
    return {name: str(getattr(value, "value", value)) for name, value in found.items()}


def _describe_place(place: str) -> str:
    path = Path(place)
    if "+" in place and not path.exists():
        return "+".join(Path(part).name for part in place.split("+"))  # two towers
    return f"{path.name} (CRC-32 {_checksum(path)})" if path.is_file() else path.name


def check_identity(folder: Path, now: dict[str, Any], args: Any) -> bool:
    """Refuses to resume from another run's checkpoint.

    Args:
        folder: The checkpoint, or the folder of a result. It is not checked if an older version
            wrote it without the file; settings that were not recorded are not checked either.
        now: The identity of this run.
        args: Training arguments; `allow_changed_run` and `overwrite_output_dir` turn the refusal
            into a warning.

    Returns:
        Whether to resume from it; False if it belongs to another run and is to be overwritten.

    Raises:
        CheckpointError: The run differs; the message lists old and new values and what to do.
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
    advice = "Give what it was before, name another --output_dir"
    size, per_pass = before.get("samples in a step"), args.train_batch_size * args.world_size
    if "samples in a step" in changed and size and size % per_pass == 0:
        advice = (
            f"--gradient_accumulation_steps {size // per_pass} gives {size} samples a step again"
        )
    raise CheckpointError(
        f"{text}. The result would be neither run's. {advice}, begin anew in this folder with "
        "--overwrite_output_dir True, or go on all the same with --allow_changed_run True."
    )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns old and new values of what changed; flags have their dashes."""
    before, now = dict(before), dict(now)
    old, new = before.pop(_SETTINGS, {}), now.pop(_SETTINGS, {})
    changed = {
        key: (before.get(key), now.get(key))
        for key in (*before, *(now.keys() - before.keys()))
        if before.get(key) != now.get(key)
    }
    # a flag that only one side has was not recorded by the other side's version; the length of a
    # run is an exception, because it has two names
    both = [name for name in new if name in old and old[name] != new[name]]
    lengths = [name for name in ("max_steps", "num_train_epochs") if (name in old) != (name in new)]
    if old and new and old.get("lr_scheduler_type") == new.get("lr_scheduler_type"):
        both += lengths
    return changed | {
        f"--{name}": (old.get(name, "unset"), new.get(name, "unset")) for name in both
    }


def _fingerprint(tokenizer: Any) -> str | None:
    """Returns a hash of the vocabulary and the special tokens."""
    if tokenizer is None:
        return None
    content = [sorted(tokenizer.get_vocab().items()), tokenizer.all_special_tokens]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


NamedParameters = Iterable[tuple[str, nn.Parameter]]

PROJECTOR_KEYS = ("mm_projector", "vision_resampler", "image_newline")
EMBEDDING_KEYS = ("embed_tokens", "embed_in")


def maybe_zero_3(param: Tensor, ignore_status: bool = False, name: str | None = None) -> Tensor:
    """Copies a parameter to the CPU; gathers it first if ZeRO-3 partitioned it.

    Args:
        param: A parameter of any shape.
        ignore_status: Do not warn if the parameter is in use while it is gathered.
        name: Its name, for the warning.
    """
    if not hasattr(param, "ds_id"):
        return param.detach().cpu().clone()
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    if param.ds_status != ZeroParamStatus.NOT_AVAILABLE and not ignore_status:
        log.warning("%s is gathered while it is in use (%s)", name, param.ds_status)
    with gathered([param]):
        return param.data.detach().cpu().clone()


def get_peft_state_maybe_zero_3(named_params: NamedParameters, bias: str) -> dict[str, Tensor]:
    """Collects LoRA's weights.

    Args:
        named_params: All parameters of the peft model.
        bias: `none`, `all` (with every bias) or `lora_only` (with the biases of adapted layers).

    Raises:
        NotImplementedError: `bias` has another value.
    """
    params = dict(named_params)
    lora = {name for name in params if "lora_" in name}
    layers = {name.split("lora_")[0] for name in lora}
    chosen = {
        "none": lora,
        "all": lora | {name for name in params if "bias" in name},
        # current peft calls the adapted layer itself base_layer
        "lora_only": lora
        | {f"{layer}{inner}bias" for layer in layers for inner in ("", "base_layer.")},
    }
    if bias not in chosen:
        raise NotImplementedError(f"bias={bias!r}; choose from: {', '.join(chosen)}")
    return {n: maybe_zero_3(p, ignore_status=True) for n, p in params.items() if n in chosen[bias]}


def get_peft_state_non_lora_maybe_zero_3(
    named_params: NamedParameters, require_grad_only: bool = True
) -> dict[str, Tensor]:
    """Collects the weights that LoRA training changes besides the adapters, e.g. the projector."""
    return {
        name: maybe_zero_3(param, ignore_status=True)
        for name, param in named_params
        if "lora_" not in name and (param.requires_grad or not require_grad_only)
    }


def get_mm_adapter_state_maybe_zero_3(
    named_params: NamedParameters, keys_to_match: Iterable[str]
) -> dict[str, Tensor]:
    """Collects the parameters whose names contain one of `keys_to_match`."""
    keys = tuple(keys_to_match)
    return {
        name: maybe_zero_3(param, ignore_status=True)
        for name, param in named_params
        if any(key in name for key in keys)
    }


def save_projector(
    model: nn.Module, path: Path, with_embeddings: bool = False, is_writer: bool = True
) -> None:
    """Writes the weights of projector and newline in the dtype in which they are trained.

    Args:
        model: A model with a projector.
        path: The file.
        with_embeddings: Also write the input embeddings (for `<im_start>` and `<im_end>`).
        is_writer: Whether this process writes; all processes must call this.
    """
    keys = (*PROJECTOR_KEYS, *(EMBEDDING_KEYS if with_embeddings else ()))
    state = get_mm_adapter_state_maybe_zero_3(model.named_parameters(), keys)
    if is_writer:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path)


def load_adapter_state(model: Any, folder: Path) -> None:
    """Loads the projector, and the embeddings if they were saved, from a stage 1 checkpoint.

    Raises:
        CheckpointError: The file is missing, truncated or does not fit.
    """
    tensors = load_adapter(model.get_model(), folder / PROJECTOR_FILE)
    rows = next((t for n, t in tensors.items() if any(key in n for key in EMBEDDING_KEYS)), None)
    if rows is not None:
        weight = model.get_input_embeddings().weight
        with gathered([weight], modify=True), torch.no_grad():
            weight.copy_(rows)


class StateCopy:
    """Copies nested dicts and lists of tensors to CPU buffers, which it reuses.

    A call overwrites what the previous call with the same name returned.
    """

    def __init__(self) -> None:
        # by name of the state and number of the tensor in it
        self._buffers: dict[tuple[str, int], Tensor] = {}

    def __call__(self, name: str, state: Any) -> Any:
        """Copies a state.

        Args:
            name: Name of the state.
            state: Dicts, lists, tuples, tensors and small values.

        Returns:
            The same structure; tensors that shared memory (tied weights) share it again.
        """
        seen: dict[Any, Tensor] = {}
        numbers = count()

        def copy(value: Tensor) -> Tensor:
            memory = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            if value.numel() and memory in seen:
                return seen[memory]
            place = (name, next(numbers))
            buffer = self._buffers.get(place)
            if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
                buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
                self._buffers[place] = buffer
            seen[memory] = buffer.copy_(value.detach(), non_blocking=True)
            return buffer

        copied = recursively_apply(copy, state)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copied


class CheckpointSaving(Trainer):
    """Saves and loads checkpoints; a base class of `LLaVATrainer`.

    `args` may have LLaVA's dynamic attributes `tune_mm_mlp_adapter` (save only the projector) and
    `use_im_start_end` (save the embeddings with it).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # from `settings_of`; None leaves the settings out of the identity
        self.settings: dict[str, str] | None = None
        self._saving_dir: Path | None = None
        # collects the work for the thread while a checkpoint is prepared
        self._left_to_write: list[Callable[[], None]] | None = None
        # one checkpoint at a time; Python waits for the thread before the process exits
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        self._state_copy = StateCopy()
        super().__init__(*args, **kwargs)
        self._saves_adapter_only = bool(getattr(self.args, "tune_mm_mlp_adapter", False))
        self._saves_lora = bool(getattr(self.args, "lora_enable", False))

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def identity(self) -> dict[str, Any]:
        """Returns what must not change when this run is resumed.

        Dataset and sampler may add to it with a method `identity`.
        """
        args, sampler = self.args, getattr(self, "_given_sampler", None)
        micro_steps = args.gradient_accumulation_steps * args.world_size
        return {
            "samples in an epoch": len(self.train_dataset),
            "samples in a step": args.train_batch_size * micro_steps,
            "seed": self._data_seed,
            "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "float32",
            "tokenizer": _fingerprint(self.processing_class),
            **getattr(self.train_dataset, "identity", dict)(),
            **getattr(sampler, "identity", dict)(),
            **({} if self.settings is None else {_SETTINGS: self.settings}),
        }

    # --- checkpoints ---

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_dir or super()._get_output_dir(trial))

    def wait_for_save(self) -> None:
        """Waits until the current checkpoint is on disk.

        Raises:
            CheckpointError: The disk is full.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def check_save(self) -> None:
        """Raises the error of a save that has failed, without waiting.

        Raises:
            CheckpointError: The disk is full.
        """
        if self._saving is not None and self._saving.done():
            self.wait_for_save()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes `checkpoint-<step>` with everything that is needed to resume the run.

        With `async_save` the small files are written here, and the thread writes copies of the
        large ones.
        """
        final = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.wait_for_save()
        is_sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        is_async = getattr(self.args, "async_save", False) and not is_sharded
        parts: list[Callable[[], None]] = []

        def run(finish: Callable[[], None]) -> None:
            best = self.state.best_model_checkpoint
            keep = (final, Path(best)) if best else (final,)
            limit = self.args.save_total_limit if self.args.should_save else None

            def work() -> None:
                finish()
                rotate(final.parent, limit, keep)

            if is_async:
                self._saving = self._thread.submit(work)
            else:
                work()

        with writing_folder(final, parts, run, self.args.save_on_each_node) as folder:
            self._saving_dir, self._left_to_write = folder.parent, parts if is_async else None
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._saving_dir = self._left_to_write = None
            if self.state.best_global_step:
                # transformers has stored the temporary path
                best = final.parent / f"checkpoint-{self.state.best_global_step}"
                if best == final or best.is_dir():
                    self.state.best_model_checkpoint = str(best)
            self._write_state(folder)

    def _write_state(self, folder: Path) -> None:
        """Writes the run's history and identity."""
        if self.args.should_save:
            self.state.save_to_json(str(folder / STATE_FILE))
            identity = json.dumps(self.identity(), indent=1) + "\n"
            (folder / IDENTITY_FILE).write_text(identity, encoding="utf-8")

    # --- what a stage trains ---

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves what this stage trains: the projector, LoRA adapters, or the whole model."""
        folder, should_save = Path(output_dir or self.args.output_dir), self.args.should_save
        if not self._saves_adapter_only:
            super().save_model(str(folder), _internal_call)
        model: Any = self.accelerator.unwrap_model(self.model)
        if self._saves_adapter_only:
            with_embeddings = bool(getattr(self.args, "use_im_start_end", False))
            save_projector(model, folder / PROJECTOR_FILE, with_embeddings, should_save)
        elif self._saves_lora:
            state = get_peft_state_non_lora_maybe_zero_3(model.named_parameters())
            if should_save:
                torch.save(state, folder / NON_LORA_FILE)
        if should_save and (self._saves_adapter_only or self._saves_lora):
            model.config.save_pretrained(folder)

    def save_result(self) -> None:
        """Writes the result of a run to `output_dir`, completely or not at all.

        The files are the model, a separate projector file and the history.

        Raises:
            CheckpointError: The disk is full.
        """
        model: Any = self.accelerator.unwrap_model(self.model)
        model.config.use_cache = True
        with writing_final(Path(self.args.output_dir)) as folder:
            self.save_model(str(folder))
            if not self._saves_adapter_only and getattr(model.config, "mm_vision_tower", None):
                save_projector(model, folder / PROJECTOR_FILE, False, self.args.should_save)
            self._write_state(folder)
        log.info("saved to %s", self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self._left_to_write is None or not isinstance(self.model, PreTrainedModel):
            super()._save(output_dir, state_dict)  # adapters are small
        elif self.args.should_save:
            # configuration and tokenizer are written now: the tokenizer is not thread-safe
            super()._save(output_dir, state_dict={})
            copied = self._state_copy("model", state_dict or self.model.state_dict())
            write = partial(self.model.save_pretrained, output_dir, state_dict=copied)
            self._left_to_write.append(write)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._left_to_write is None:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            copied = self._state_copy("optimizer", self.optimizer.state_dict())
            self._left_to_write.append(
                partial(torch.save, copied, Path(output_dir) / OPTIMIZER_NAME)
            )
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    # --- loading ---

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads what `save_model` wrote."""
        folder = Path(resume_from_checkpoint)
        loaded = self.model if model is None else model
        if self._saves_adapter_only:
            load_adapter_state(self.accelerator.unwrap_model(loaded), folder)
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._saves_lora:
            self.accelerator.unwrap_model(loaded).load_state_dict(
                read_tensors(folder / NON_LORA_FILE), strict=False
            )

    def _load_best_model(self) -> None:
        self.wait_for_save()
        PartialState().wait_for_everyone()
        super()._load_best_model()
