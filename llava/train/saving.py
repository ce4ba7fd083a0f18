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

import json
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
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
    lora = {name for name in params if "lora_" in name}
    layers = {name.split("lora_")[0] for name in lora}
    chosen = {
        "none": lora,
        "all": lora | {name for name in params if "bias" in name},
        # the adapted layer itself is called base_layer in current peft
        "lora_only": lora
        | {f"{layer}{inner}bias" for layer in layers for inner in ("", "base_layer.")},
    }
    if bias not in chosen:
        raise NotImplementedError(f"bias={bias!r}; choose from: {', '.join(chosen)}")
    return {n: maybe_zero_3(p, ignore_status=True) for n, p in params.items() if n in chosen[bias]}


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
        path: The file.
        with_embeddings: Write the input embeddings, too (for `<im_start>` and `<im_end>`).
        is_writer: Whether this process writes; all processes must call.
    """
    keys = (*PROJECTOR_KEYS, *(EMBEDDING_KEYS if with_embeddings else ()))
    state = get_mm_adapter_state_maybe_zero_3(model.named_parameters(), keys)
    if is_writer:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path)


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
        if isinstance(value, dict):
            return {key: self._copy(entry, (*place, key), seen) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copy(each, (*place, i), seen) for i, each in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        memory = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and memory in seen:
            return seen[memory]
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._buffers[place] = buffer
        seen[memory] = buffer.copy_(value.detach(), non_blocking=True)
        return buffer


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
        self._saves_adapter_only = bool(getattr(self.args, "tune_mm_mlp_adapter", False))
        self._saves_lora = bool(getattr(self.args, "lora_enable", False))

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def identity(self) -> dict[str, Any]:
        """What must not change while this run goes on.

        Dataset and sampler may have a method `identity` that gives a dict of what decides them.
        """
        args, sampler = self.args, getattr(self, "_given_sampler", None)
        micro_steps = args.gradient_accumulation_steps * args.world_size
        return {
            "samples in an epoch": len(self.train_dataset),
            "samples in a step": args.train_batch_size * micro_steps,
            "seed": self._data_seed,
            "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "float32",
            "tokenizer": checkpoint.tokenizer_fingerprint(self.processing_class),
            **getattr(self.train_dataset, "identity", dict)(),
            **getattr(sampler, "identity", dict)(),
            **({} if self.settings is None else {checkpoint.SETTINGS: self.settings}),
        }

    # --- checkpoints ---

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_dir or super()._get_output_dir(trial))

    def wait_for_save(self) -> None:
        """Wait until the checkpoint that is being written is on the disk.

        Raises:
            CheckpointError: The disk is full.
        """
        self._writer.wait()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write `checkpoint-<step>` with all that a run needs to go on, wholly or not at all.

        With `async_save` the small files are written and the large ones copied; those are left to
        the thread.
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
                checkpoint.rotate(final.parent, limit, keep)

            if is_async:
                self._writer.start(work)
            else:
                work()

        with checkpoint.writing_folder(final, parts, run) as folder:
            self._saving_dir, self._left_to_write = folder.parent, parts if is_async else None
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._saving_dir = self._left_to_write = None
            if self.state.best_global_step:
                # by its final place, not by the temporary one
                best = final.parent / f"checkpoint-{self.state.best_global_step}"
                if best == final or best.is_dir():
                    self.state.best_model_checkpoint = str(best)
            self._write_state(folder)

    def _write_state(self, folder: Path) -> None:
        """Write the run's history, and what the run is."""
        if self.args.should_save:
            self.state.save_to_json(str(folder / checkpoint.STATE_FILE))
            text = json.dumps(self.identity(), indent=1)
            (folder / checkpoint.IDENTITY_FILE).write_text(text + "\n", encoding="utf-8")

    # --- what a stage trains ---

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save what this stage trains: the projector, LoRA adapters, or the whole model."""
        folder, should_save = Path(output_dir or self.args.output_dir), self.args.should_save
        if not self._saves_adapter_only:
            super().save_model(str(folder), _internal_call)
        model: Any = self.accelerator.unwrap_model(self.model)
        if self._saves_adapter_only:
            with_embeddings = bool(getattr(self.args, "use_im_start_end", False))
            save_projector(model, folder / PROJECTOR_FILE, with_embeddings, should_save)
        elif self._saves_lora:
            # what LoRA training changes besides the adapters
            state = get_peft_state_non_lora_maybe_zero_3(model.named_parameters())
            if should_save:
                torch.save(state, folder / NON_LORA_FILE)
        if should_save and (self._saves_adapter_only or self._saves_lora):
            model.config.save_pretrained(folder)

    def save_result(self, folder: Path) -> None:
        """Write the final files of a run: the model, the projector by itself, the run's history."""
        self.save_model(str(folder))
        model: Any = self.accelerator.unwrap_model(self.model)
        if not self._saves_adapter_only and getattr(model.config, "mm_vision_tower", None):
            save_projector(model, folder / PROJECTOR_FILE, False, self.args.should_save)
        self._write_state(folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self._left_to_write is None or not isinstance(self.model, PreTrainedModel):
            super()._save(output_dir, state_dict)  # adapters are small
        elif self.args.should_save:
            # configuration and tokenizer now: training uses the tokenizer, which is not for two
            # threads
            super()._save(output_dir, state_dict={})
            copied = self._state_copy("model", state_dict or self.model.state_dict())
            write = partial(self.model.save_pretrained, output_dir, state_dict=copied)
            self._left_to_write.append(write)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._left_to_write is None:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            copied = self._state_copy("optimizer", self.optimizer.state_dict())
            path = Path(output_dir) / OPTIMIZER_NAME
            self._left_to_write.append(partial(torch.save, copied, path))
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
            tensors = read_tensors(folder / NON_LORA_FILE)
            self.accelerator.unwrap_model(loaded).load_state_dict(tensors, strict=False)

    def _load_best_model(self) -> None:
        self.wait_for_save()
        PartialState().wait_for_everyone()
        super()._load_best_model()
