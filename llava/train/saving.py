"""How the trainer saves and loads: what a stage trains, whole checkpoints, in the background.

Input: the trainer's state. Output: `checkpoint-<step>` folders and the final files. By itself, or
under DDP, training waits only until the state is copied into RAM; a thread of the first process
writes it. The copy's buffers are kept for the next one, so a checkpoint costs as much RAM as the
state has bytes. DeepSpeed and FSDP gather and write together, and training waits for that.
Collecting weights is a collective operation: under ZeRO-3 every rank must call it, the writer alone
writes.
Non-goals: how a folder becomes whole, and what may not change between checkpoint and resumption
(`checkpoint.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from llava.model.builder import NON_LORA_FILE
from llava.model.multimodal_projector.builder import (
    PROJECTOR_FILE,
    gathered,
    load_projector,
    read_tensors,
)
from llava.train import checkpoint
from llava.train.checkpoint import identity_of, write_identity

log = logging.getLogger(__name__)

NamedParameters = Iterable[tuple[str, nn.Parameter]]

PROJECTOR_KEYS = ("mm_projector", "vision_resampler")
EMBEDDING_KEYS = ("embed_tokens", "embed_in")


def maybe_zero_3(param: Tensor, ignore_status: bool = False, name: str | None = None) -> Tensor:
    """Copy a parameter to the CPU; one that ZeRO-3 partitioned is gathered first.

    Args:
        param: A parameter, of any shape.
        ignore_status: Say nothing if the parameter is in use while it is gathered.
        name: Its name, for messages.
    """
    if not hasattr(param, "ds_id"):
        return param.detach().cpu().clone()
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    if param.ds_status != ZeroParamStatus.NOT_AVAILABLE and not ignore_status:
        log.warning("%s is gathered while it is in use (%s)", name, param.ds_status)
    with gathered([param]):
        return param.data.detach().cpu().clone()


def get_peft_state_maybe_zero_3(named_params: NamedParameters, bias: str) -> dict[str, Tensor]:
    """Collect LoRA's weights.

    Args:
        named_params: All parameters of the peft model.
        bias: `none`, `all` (every bias, too) or `lora_only` (the biases of adapted layers, too).

    Raises:
        NotImplementedError: another value of `bias`.
    """
    params = dict(named_params)
    lora = [name for name in params if "lora_" in name]
    if bias == "none":
        chosen = set(lora)
    elif bias == "all":
        chosen = {*lora, *(name for name in params if "bias" in name)}
    elif bias == "lora_only":
        # the adapted layer itself is called base_layer in current peft
        layers = {name.split("lora_")[0] for name in lora}
        biases = {f"{layer}{inner}bias" for layer in layers for inner in ("", "base_layer.")}
        chosen = {*lora, *(biases & params.keys())}
    else:
        raise NotImplementedError(f"bias={bias!r}; choose from: none, all, lora_only")
    return {n: maybe_zero_3(p, ignore_status=True) for n, p in params.items() if n in chosen}


def get_peft_state_non_lora_maybe_zero_3(
    named_params: NamedParameters, require_grad_only: bool = True
) -> dict[str, Tensor]:
    """Collect what LoRA training changes besides the adapters, e.g. the projector."""
    return {
        name: maybe_zero_3(param, ignore_status=True)
        for name, param in named_params
        if "lora_" not in name and (param.requires_grad or not require_grad_only)
    }


def get_mm_adapter_state_maybe_zero_3(
    named_params: NamedParameters, keys_to_match: Iterable[str]
) -> dict[str, Tensor]:
    """Collect the parameters whose names contain one of `keys_to_match`."""
    keys = tuple(keys_to_match)
    return {
        name: maybe_zero_3(param, ignore_status=True)
        for name, param in named_params
        if any(key in name for key in keys)
    }


def save_projector(
    model: nn.Module, path: Path, with_embeddings: bool = False, is_writer: bool = True
) -> None:
    """Write the projector's weights, in the dtype in which they are trained.

    Args:
        model: A model with a projector.
        path: The file, or the folder that gets `mm_projector.bin`.
        with_embeddings: Write the input embeddings, too (for `<im_start>` and `<im_end>`).
        is_writer: Whether this process writes; all processes must call.
    """
    keys = (*PROJECTOR_KEYS, *(EMBEDDING_KEYS if with_embeddings else ()))
    state = get_mm_adapter_state_maybe_zero_3(model.named_parameters(), keys)
    if is_writer:
        path = path / PROJECTOR_FILE if path.is_dir() else path
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path)


def save_non_lora(model: nn.Module, folder: Path, is_writer: bool = True) -> None:
    """Write what LoRA training changes besides the adapters, and the base's configuration."""
    state = get_peft_state_non_lora_maybe_zero_3(model.named_parameters())
    if is_writer:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / NON_LORA_FILE)
        config: Any = model.config
        config.save_pretrained(folder)


def load_adapter_state(model: Any, folder: Path) -> None:
    """Load the projector, and embeddings if they were saved, from a first stage's checkpoint.

    Raises:
        CheckpointError: the file is missing, cut short or does not fit.
    """
    tensors = read_tensors(folder / PROJECTOR_FILE)
    load_projector(model.get_model().mm_projector, folder / PROJECTOR_FILE)
    rows = next((t for n, t in tensors.items() if any(key in n for key in EMBEDDING_KEYS)), None)
    if rows is not None:
        weight = model.get_input_embeddings().weight
        with gathered([weight], modify=True), torch.no_grad():
            weight.copy_(rows)


def load_non_lora(model: nn.Module, folder: Path) -> None:
    """Load what `save_non_lora` wrote, into a model with the same adapters.

    Raises:
        CheckpointError: the file is missing or cut short.
    """
    model.load_state_dict(read_tensors(folder / NON_LORA_FILE), strict=False)


class BackgroundWriter:
    """Runs one function at a time on a thread of its own."""

    def __init__(self) -> None:
        # at the end of the process Python waits for the thread
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Run a function; one that is still running is waited for first.

        Raises:
            Exception: What the one before raised.
        """
        self.wait()
        self._running = self._thread.submit(work)

    def wait(self) -> None:
        """Wait until nothing is running.

        Raises:
            Exception: What it raised.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def check(self) -> None:
        """Without waiting, see how the last one went.

        Raises:
            Exception: What it raised.
        """
        if self._running is not None and self._running.done():
            self.wait()


class StateCopy:
    """Copies nested dicts and lists of tensors into CPU buffers that it keeps.

    What an earlier call returned is overwritten by the next call with the same name.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, name: str, state: Any) -> Any:
        """Copy.

        Args:
            name: Tells several states apart.
            state: Dicts, lists, tuples, tensors and small values.

        Returns:
            The same structure; tensors that shared their memory (tied weights) share it again.
        """
        copied = self._copy(state, (name,), {})
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copied

    def _copy(self, value: Any, place: tuple[Any, ...], seen: dict[Any, Tensor]) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value.detach(), place, seen)
        if isinstance(value, dict):
            return {key: self._copy(entry, (*place, key), seen) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            copied = [self._copy(entry, (*place, i), seen) for i, entry in enumerate(value)]
            return copied if isinstance(value, list) else tuple(copied)
        return value

    def _copy_tensor(
        self, tensor: Tensor, place: tuple[Any, ...], seen: dict[Any, Tensor]
    ) -> Tensor:
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and memory in seen:
            return seen[memory]
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[place] = buffer
        seen[memory] = buffer.copy_(tensor, non_blocking=True)
        return buffer


STATE_FILE = "trainer_state.json"


class CheckpointSaving(Trainer):
    """The half of `LLaVATrainer` that saves and loads.

    `args` may carry LLaVA's dynamic attributes `tune_mm_mlp_adapter` (save the projector only) and
    `use_im_start_end` (and the embeddings).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # what `checkpoint.settings_of` says of the run, if it was asked
        self.settings: dict[str, str] | None = None
        self._saving_dir: Path | None = None
        # what is left to the thread, while a checkpoint is being prepared for it
        self._left_to_write: list[Callable[[], None]] | None = None
        self._writer = BackgroundWriter()
        self._state_copy = StateCopy()
        super().__init__(*args, **kwargs)

    def ranks(self) -> checkpoint.Ranks:
        """This process among the others, as `checkpoint` wants it."""
        return checkpoint.Ranks(
            is_writer=self.is_world_process_zero(),
            is_local_writer=self.is_local_process_zero(),
            barrier=self.accelerator.wait_for_everyone,
        )

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def identity(self) -> dict[str, Any]:
        """What must not change while this run goes on; see `checkpoint.identity_of`."""
        sampler = getattr(self, "_given_sampler", None)
        return identity_of(
            self.args,
            self.train_dataset,
            sampler,
            self.processing_class,
            self._data_seed,
            self.settings,
        )

    # --- checkpoints ---

    @property
    def _saves_adapter_only(self) -> bool:
        return bool(getattr(self.args, "tune_mm_mlp_adapter", False))

    @property
    def _saves_lora(self) -> bool:
        return bool(getattr(self.args, "lora_enable", False))

    @property
    def _saves_in_background(self) -> bool:
        is_sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        return getattr(self.args, "async_save", False) and not is_sharded

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_dir or super()._get_output_dir(trial))

    def wait_for_save(self) -> None:
        """Wait until the checkpoint that is being written is on the disk.

        Raises:
            CheckpointError: The disk is full.
        """
        self._writer.wait()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write `checkpoint-<step>` with all that a run needs to go on, wholly or not at all."""
        final = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.wait_for_save()
        if self._saves_in_background:
            self._save_in_background(final, model, trial)
            return
        with checkpoint.writing_folder(final, self.ranks()) as folder:
            self._fill(folder, final, model, trial)
        self._rotation(final)()

    def _save_in_background(self, final: Path, model: nn.Module, trial: Any) -> None:
        """Write the small files, copy the large ones, and leave those to the thread."""
        folder = checkpoint.begin_folder(final, self.ranks())
        self._left_to_write = parts = []
        try:
            self._fill(folder, final, model, trial)
        finally:
            self._left_to_write = None
        self.ranks().barrier()
        if self.is_world_process_zero():
            parts.append(self._rotation(final))
            *writes, rotate = parts
            self._writer.start(lambda: (checkpoint.finish_folder(final, writes), rotate())[1])
        elif self.is_local_process_zero() and not (folder / STATE_FILE).exists():
            # another machine's folder: of its own it has the generators' states only. If the disk
            # is a shared one, the folder may have moved by now
            if folder.is_dir():
                self._writer.start(lambda: checkpoint.finish_folder(final))

    def _fill(self, folder: Path, final: Path, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint's files into `folder`, which will be moved to `final`."""
        self._saving_dir = folder.parent
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving_dir = None
        self._note_best(final)
        if self.args.should_save:
            self.state.save_to_json(str(folder / STATE_FILE))
            write_identity(folder, self.identity())

    def _note_best(self, final: Path) -> None:
        """Name the best checkpoint by its final place, not by the temporary one."""
        if self.state.best_global_step:
            best = final.parent / f"checkpoint-{self.state.best_global_step}"
            if best == final or best.is_dir():
                self.state.best_model_checkpoint = str(best)

    def _rotation(self, final: Path) -> Callable[[], None]:
        """What removes the checkpoints beyond `save_total_limit`; not the new and the best one."""
        best = self.state.best_model_checkpoint
        keep = (final, Path(best)) if best else (final,)
        limit = self.args.save_total_limit if self.args.should_save else None
        return partial(checkpoint.rotate, final.parent, limit, keep)

    def _write(self, write: Callable[[], None]) -> None:
        """Write now, or leave it to the thread."""
        if self._left_to_write is None:
            write()
        else:
            self._left_to_write.append(write)

    # --- what a stage trains ---

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save what this stage trains: the projector, LoRA adapters, or the whole model."""
        folder = Path(output_dir or self.args.output_dir)
        if self._saves_adapter_only:
            self._save_adapter(folder)
            return
        super().save_model(str(folder), _internal_call)
        if self._saves_lora:
            model = self.accelerator.unwrap_model(self.model)
            save_non_lora(model, folder, self.args.should_save)

    def save_result(self, folder: Path) -> None:
        """Write the final files of a run: the model, the projector by itself, the run's history."""
        self.save_model(str(folder))
        model: Any = self.accelerator.unwrap_model(self.model)
        if not self._saves_adapter_only and getattr(model.config, "mm_vision_tower", None):
            save_projector(model, folder / PROJECTOR_FILE, False, self.args.should_save)
        if self.args.should_save:
            self.state.save_to_json(str(folder / STATE_FILE))
            write_identity(folder, self.identity())

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if self._saves_adapter_only:
            self._save_adapter(folder)
            return
        if self._left_to_write is None or not isinstance(self.model, PreTrainedModel):
            super()._save(output_dir, state_dict)  # adapters are small
            return
        if not self.args.should_save:
            return
        # configuration and tokenizer now: training uses the tokenizer, which is not for two threads
        super()._save(str(folder), state_dict={})
        copied = self._state_copy("model", state_dict or self.model.state_dict())
        self._write(lambda: self.model.save_pretrained(folder, state_dict=copied))

    def _save_adapter(self, folder: Path) -> None:
        """Write `config.json` and `mm_projector.bin`."""
        model: Any = self.accelerator.unwrap_model(self.model)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            model.config.save_pretrained(folder)
        with_embeddings = bool(getattr(self.args, "use_im_start_end", False))
        save_projector(model, folder / PROJECTOR_FILE, with_embeddings, self.args.should_save)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._left_to_write is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if self.args.should_save:
            copied = self._state_copy("optimizer", self.optimizer.state_dict())
            self._write(partial(torch.save, copied, Path(output_dir) / OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    # --- loading ---

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load what `save_model` wrote into the model that goes on."""
        folder = Path(resume_from_checkpoint)
        loaded = self.model if model is None else model
        if self._saves_adapter_only:
            load_adapter_state(self.accelerator.unwrap_model(loaded), folder)
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._saves_lora:
            load_non_lora(self.accelerator.unwrap_model(loaded), folder)

    def _load_best_model(self) -> None:
        self.wait_for_save()
        self.ranks().barrier()
        super()._load_best_model()
