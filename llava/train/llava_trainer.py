"""The trainer: LLaVA's sampling, parameter groups and guarded steps on top of transformers' own.

Input: a model, its arguments, and the result of a data module. Output: complete checkpoints in
`output_dir`, from which a killed run resumes with the same order of samples.
Each optimizer step is guarded against bad losses, signals and running out of memory: the run ends
with a `UserError` that names the samples, or the batch and what to reduce; or the step is skipped,
if the user allows it; or the run ends after a checkpoint. All ranks decide together, with one small
exchange between their CPUs per step.
Non-goals: which parameters are trained (`build.py`), saving (`checkpoint.py`).
"""

from __future__ import annotations

import logging
import math
import re
import signal
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, distributed, nn
from torch.utils.data import Dataset, RandomSampler, Sampler
from transformers import PrinterCallback, TrainerCallback

from llava.data.batching import (
    LengthGroupedSampler,
    get_length_grouped_indices,
    get_modality_length_grouped_indices,
    split_to_even_chunks,
)
from llava.errors import UserError
from llava.train import checkpoint
from llava.train.checkpoint import CheckpointSaving, get_mm_adapter_state_maybe_zero_3, maybe_zero_3
from llava.train.metrics import MetricsLog, ProgressCallback, WatchedTrainer

__all__ = [
    "LLaVATrainer",
    "LengthGroupedSampler",
    "SeededSampler",
    "get_length_grouped_indices",
    "get_mm_adapter_state_maybe_zero_3",
    "get_modality_length_grouped_indices",
    "maybe_zero_3",
    "split_to_even_chunks",
]

log = logging.getLogger(__name__)

# flags with the learning rate of a part, whose parameters' names contain the key
_OWN_RATES = {"mm_projector": "mm_projector_lr", "vision_tower": "mm_vision_tower_lr"}


class SeededSampler(Sampler[int]):
    """Wraps a sampler so that (seed, epoch) determines its order.

    LLaVA's samplers draw from torch's global generator, whose state at the start of an epoch is
    unknown to a resumed run.

    Args:
        sampler: The sampler; it must draw all its numbers when its iteration begins.
        seed: Seed of the run's data order.
    """

    def __init__(self, sampler: Sampler[int], seed: int) -> None:
        self.sampler = sampler
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + self.epoch)
            order = list(self.sampler)
        return iter(order)


class LLaVATrainer(CheckpointSaving, WatchedTrainer):
    """transformers' trainer for LLaVA models.

    Args:
        *args: See `Trainer`.
        train_sampler: Order of the training samples; by default the arguments determine it. Its
            `set_epoch` is called if it has one.
        **kwargs: See `WatchedTrainer` and `Trainer`; LLaVA's `tokenizer` is accepted as
            `processing_class`.
    """

    def __init__(self, *args: Any, train_sampler: Sampler[int] | None = None, **kwargs: Any):
        if "tokenizer" in kwargs:
            kwargs["processing_class"] = kwargs.pop("tokenizer")
        self._given_sampler = train_sampler
        super().__init__(*args, **kwargs)
        if getattr(self.args, "loss_normalization", "global") == "micro_batch":
            self.model_accepts_loss_kwargs = False
        # the filter would hide losses that are not finite from the guard
        self.args.logging_nan_inf_filter = False
        self._sampler: Any = train_sampler
        self.guard = StepGuard(
            self._last_checkpoint,
            getattr(self.args, "max_skipped_steps", 0),
            getattr(self.args, "loss_spike_factor", 0.0),
        )
        self._last_batch: dict[str, Any] | None = None
        self._sample_ids: list[str] = []
        self.add_callback(self.guard)
        self.progress = ProgressCallback(getattr(self.args, "stage_name", None))
        if self.args.disable_tqdm:
            self.remove_callback(PrinterCallback)
        if self.is_world_process_zero():
            self.add_callback(MetricsLog())
            if self.args.disable_tqdm:
                self.add_callback(self.progress)

    # --- order of samples ---

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler | None:
        """Returns the sampler of the training samples; seed and epoch determine its order."""
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        if self._given_sampler is not None:
            return self._given_sampler
        if getattr(self.args, "group_by_modality_length", False):
            chosen: Any = LengthGroupedSampler(
                self.args.train_batch_size,
                world_size=self.args.world_size * self.args.gradient_accumulation_steps,
                lengths=dataset.modality_lengths,
                group_by_modality=True,
            )
        else:
            chosen = super()._get_train_sampler(dataset)
        is_random = isinstance(chosen, LengthGroupedSampler | RandomSampler)
        self._sampler = SeededSampler(chosen, self._data_seed) if is_random else chosen
        return self._sampler

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Works as in `Trainer` and tells the sampler what a resumed run skips."""
        epoch, num_batches = super()._init_training_state(*args, **kwargs)
        if num_batches and hasattr(self._sampler, "expect_skip"):
            num_samples = num_batches * self.args.train_batch_size * self.args.world_size
            self._sampler.expect_skip(epoch, num_samples)
        return epoch, num_batches

    # --- steps ---

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Works as in `Trainer`, but a finished run does not take another step.

        Raises:
            UserError: There is not enough memory.
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        # accelerate's wrappers do not always pass the epoch on
        if hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(kwargs["epoch"])
        try:
            super()._run_epoch(*args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or self._last_batch is None:
                raise
            tower = getattr(self.accelerator.unwrap_model(self.model), "get_vision_tower", None)
            num_positions = getattr(tower and tower(), "num_image_tokens", 0)
            batch = describe_batch(self._last_batch, num_positions)
            raise out_of_memory(error, batch, self.args, self.state.global_step + 1) from error

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Creates the optimizer; a part with a learning rate of its own has its own groups."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if not is_new:
            return optimizer
        named = list((self.model if model is None else model).named_parameters())
        for part, flag in _OWN_RATES.items():
            rate = getattr(self.args, flag, None)
            own = {id(parameter) for name, parameter in named if part in name}
            for group in list(optimizer.param_groups) if rate is not None else ():
                theirs = [each for each in group["params"] if id(each) in own]
                group["params"] = [each for each in group["params"] if id(each) not in own]
                optimizer.add_param_group({**group, "params": theirs, "lr": rate})
        return optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Runs forward and backward on a micro-batch.

        Args:
            model: The model, perhaps wrapped.
            inputs: The batch; an entry `sample_ids` names its samples in messages.
            num_items_in_batch: Supervised tokens of the optimizer step.

        Raises:
            UserError: The loss is not finite, or there is not enough memory.
        """
        self.check_save()
        self._sample_ids = inputs.pop("sample_ids", None) or []
        self._last_batch = {**inputs}
        if getattr(self.args, "packing", False):
            inputs["packing"] = True
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.guard.note(loss.detach(), self._sample_ids)
        return loss

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any):
        """Works as in `Trainer`, but a loss that is not finite ends the training run.

        Raises:
            UserError: The loss is not finite; the message names the samples.
        """
        result = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            loss = result[0] if isinstance(result, tuple) else result
            self.guard.check_before_backward(loss, self._sample_ids, self.state.global_step + 1)
        return result

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not self.args.fp16:  # fp16's scaler skips overflows itself
            self.guard.gradient_norm = float(norm)
        return norm

    def _last_checkpoint(self) -> Path | None:
        self.wait_for_save()
        return checkpoint.find_last_checkpoint(self.args.output_dir)


STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# EX_TEMPFAIL in sysexits.h: run the same command again
STOPPED_EXIT_CODE = 75
STATE_KEY = "step_guard"
# a spike is compared with the median of at most and at least so many steps
SPIKE_WINDOW, SPIKE_MIN_STEPS = 64, 16


class RunStoppedError(Exception):
    """A signal stopped the run; its state is saved."""


class StepGuard(TrainerCallback):
    """Skips or refuses steps whose loss or gradient is not finite, or whose loss is a spike.

    Args:
        last_checkpoint: Finds the checkpoint to resume from, for messages.
        max_skipped_steps: Bad steps that are skipped and counted; one more ends the run.
        spike_factor: A loss counts as bad if it exceeds the median of the last steps by this
            factor; 0 disables the check.
    """

    def __init__(
        self,
        last_checkpoint: Callable[[], Path | None],
        max_skipped_steps: int = 0,
        spike_factor: float = 0.0,
    ) -> None:
        self._last_checkpoint = last_checkpoint
        self.max_skipped_steps = max_skipped_steps
        self.spike_factor = spike_factor
        self.num_skipped = 0
        self.signal: str | None = None
        self.is_stopped = False
        self.gradient_norm: float | None = None
        self._recent: list[float] = []
        # a micro-batch's share of the step's loss, and the ids of its samples
        self._noted: list[tuple[Tensor, list[str]]] = []
        self._cpu_group: Any = None

    # --- called by LLaVATrainer ---

    def check_before_backward(self, loss: Tensor, sample_ids: list[str], step: int) -> None:
        """Refuses a micro-batch's loss that is not finite, unless steps may be skipped.

        Raises:
            UserError: The loss is not finite; the message names the samples.
        """
        if not self.max_skipped_steps and not torch.isfinite(loss).all():
            raise UserError(
                f"the loss is {loss.item()} in step {step}{_named(sample_ids)}. The weights were "
                f"not changed by this step; {self._advice()}"
            )

    def note(self, loss: Tensor, sample_ids: list[str]) -> None:
        """Records a micro-batch's share of the step's loss, without waiting for the device."""
        self._noted.append((loss, sample_ids))

    # --- called by transformers' trainer ---

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restores the state from a checkpoint."""
        kept = state.stateful_callbacks.get(STATE_KEY, {}) if state.global_step else {}
        self._recent = list(kept.get("recent", []))
        self.num_skipped = int(kept.get("num_skipped", 0))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Judges the step by the losses of all ranks."""
        losses = [(loss.item(), sample_ids) for loss, sample_ids in self._noted]
        self._noted = []
        finite = [loss for loss, _ in losses if math.isfinite(loss)]
        own = [len(losses) - len(finite), sum(finite), float(self.signal is not None)]
        total_bad, total, asked = self._sum(own)
        self.is_stopped = asked > 0
        # the trainer multiplies a rank's share by the number of ranks
        loss = math.nan if total_bad else total / max(args.world_size, 1)
        problem = self._problem(loss)
        norm, self.gradient_norm = self.gradient_norm, None
        if problem is None and norm is not None and not math.isfinite(norm):
            problem = f"the gradient's norm is {norm}"  # the norm over all ranks
        if problem is None:
            self._recent = [*self._recent[1 - SPIKE_WINDOW :], loss]
        else:
            self._leave_out(problem, losses, state, kwargs["optimizer"])
        state.stateful_callbacks[STATE_KEY] = {
            "recent": self._recent if self.spike_factor else [],
            "num_skipped": self.num_skipped,
        }

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves and ends the run if any rank received a signal."""
        if self.is_stopped:
            control.should_save = control.should_training_stop = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Adds the number of skipped steps to the log entry."""
        if logs is not None and self.num_skipped:
            logs["skipped_steps"] = self.num_skipped

    # --- judging ---

    def _sum(self, values: list[float]) -> list[float]:
        """Sums values over the ranks, on their CPUs."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return values
        if self._cpu_group is None:
            self._cpu_group = distributed.new_group(backend="gloo")
        tensor = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(tensor, group=self._cpu_group)
        return tensor.tolist()

    def _problem(self, loss: float) -> str | None:
        if not math.isfinite(loss):
            return "the loss is not finite"
        if not self.spike_factor or len(self._recent) < SPIKE_MIN_STEPS:
            return None
        median = statistics.median(self._recent)
        if loss <= self.spike_factor * median:
            return None
        return (
            f"the loss is {loss:.4g}, {loss / median:.1f} times the median of the last "
            f"{len(self._recent)} steps (--loss_spike_factor {self.spike_factor:g})"
        )

    def _leave_out(
        self, problem: str, losses: list[tuple[float, list[str]]], state: Any, optimizer: Any
    ) -> None:
        """Drops the gradients, so that the optimizer changes nothing, or ends the run.

        Raises:
            UserError: No more steps may be skipped.
        """
        named = _named(gather_object(_suspects(losses)))
        self.num_skipped += 1
        step = state.global_step + 1
        if self.num_skipped > self.max_skipped_steps:
            raise UserError(
                f"step {step}: {problem}{named}. Bad steps so far: {self.num_skipped}, "
                f"--max_skipped_steps is {self.max_skipped_steps}; {self._advice()}"
            )
        optimizer.zero_grad(set_to_none=True)
        log.warning("step %d is left out: %s%s", step, problem, named)

    def _advice(self) -> str:
        return (
            f"the last whole checkpoint is {self._last_checkpoint() or 'none'}. Lower "
            "--learning_rate, lengthen the warm-up, look at these samples, or leave such steps out "
            "with --max_skipped_steps."
        )


def _suspects(losses: list[tuple[float, list[str]]]) -> list[str]:
    """Returns the samples of losses that are not finite, or else those of the highest loss."""
    bad = [pair for pair in losses if not math.isfinite(pair[0])]
    return [sample_id for _, batch in bad or sorted(losses)[-1:] for sample_id in batch]


def _named(sample_ids: list[str]) -> str:
    return f", samples {', '.join(sample_ids)}" if sample_ids else ""


@contextmanager
def stop_signals(guard: StepGuard) -> Iterator[None]:
    """Lets `STOP_SIGNALS` end the run after the current step.

    It has no effect outside the main thread, which alone can handle signals.
    """

    def take_note(number: int, frame: Any) -> None:
        guard.signal = signal.Signals(number).name
        log.warning("%s: saving after this step, then ending", guard.signal)

    is_main = threading.current_thread() is threading.main_thread()
    before = {each: signal.signal(each, take_note) for each in STOP_SIGNALS if is_main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_CPU_MESSAGE = re.compile(r"DefaultCPUAllocator: (can't|not enough)|std::bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an allocation failed, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _CPU_MESSAGE.search(str(error)) is not None
    )


def describe_batch(inputs: dict[str, Any], num_image_positions: int = 0) -> str:
    """Describes the size of a batch.

    Args:
        inputs: The batch of the collator.
        num_image_positions: Positions that an image takes in the model.
    """
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    lengths = [ids.shape[1]] * len(ids) if mask is None else mask.sum(1).tolist()
    images = inputs.get("images", inputs.get("image_features"))
    num_images = 0 if images is None else len(images)
    text = (
        f"{len(ids)} samples of {min(lengths):,} to {max(lengths):,} tokens, {sum(lengths):,} in "
        f"all ({ids.numel():,} with padding)"
    )
    if counts := inputs.get("image_positions"):
        positions, tiles = map(sum, zip(*counts, strict=True))
        text += f", and {tiles} tiles of images or frames of videos in {positions:,} positions"
    elif num_images:
        text += f", and {num_images} images of {num_image_positions:,} positions each"
    return text


def out_of_memory(error: BaseException, batch: str, args: Any, step: int) -> UserError:
    """Returns the error that tells the user what to reduce.

    Args:
        error: The original error.
        batch: Result of `describe_batch`.
        args: Training arguments.
        step: The optimizer step, from 1.
    """
    first_line = (str(error).strip() or repr(error)).splitlines()[0]
    size, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
    is_alone = args.deepspeed or args.fsdp or args.world_size == 1
    advice = {
        f"--per_device_train_batch_size {size // 2} --gradient_accumulation_steps {steps * 2} "
        "learns from as many samples a step with half the activations": size > 1,
        "--activation_checkpointing True computes activations again, not kept": (
            not args.activation_checkpointing
        ),
        "--packing True leaves the padding out": not args.packing,
        f"--model_max_length is {args.model_max_length}": True,
        "--deepspeed scripts/zero3.json shares weights and states between the GPUs": not is_alone,
    }
    return UserError(
        f"out of memory in step {step}, with {batch}: {first_line}\nWhat helps: "
        f"{'; '.join(text for text, helps in advice.items() if helps)}. The same command goes on "
        "from the last whole checkpoint."
    )
