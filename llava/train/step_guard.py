"""Guards each optimizer step against bad losses, signals and running out of memory.

Input: the losses of micro-batches with the ids of their samples, signals, and errors of a step.
Output: a `UserError` that names the samples, or the batch and what to reduce; or a skipped step, if
the user allows it; or the end of the run after a checkpoint. All ranks decide together, with one
small exchange between their CPUs per step.
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
from torch import Tensor, distributed
from transformers import TrainerCallback

from llava.errors import UserError

log = logging.getLogger(__name__)

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
        self._step_losses: list[Tensor] = []
        self._step_ids: list[list[str]] = []
        self._must_stop = False
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
        self._step_losses.append(loss)
        self._step_ids.append(sample_ids)

    # --- called by transformers' trainer ---

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restores the state from a checkpoint."""
        kept = state.stateful_callbacks.get(STATE_KEY, {}) if state.global_step else {}
        self._recent = list(kept.get("recent", []))
        self.num_skipped = int(kept.get("num_skipped", 0))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Judges the step by the losses of all ranks."""
        losses = [loss.item() for loss in self._step_losses]
        self._step_losses = []
        ids, self._step_ids = self._step_ids, []
        num_bad = sum(not math.isfinite(loss) for loss in losses)
        own = sum(loss for loss in losses if math.isfinite(loss))
        total_bad, total, asked = self._sum([num_bad, own, float(self.signal is not None)])
        self._must_stop = asked > 0
        # the trainer multiplies a rank's share by the number of ranks
        loss = math.nan if total_bad else total / max(args.world_size, 1)
        problem = self._problem(loss)
        norm, self.gradient_norm = self.gradient_norm, None
        if problem is None and norm is not None and not math.isfinite(norm):
            problem = f"the gradient's norm is {norm}"  # the norm over all ranks
        if problem is None:
            self._recent = [*self._recent[1 - SPIKE_WINDOW :], loss]
        else:
            self._leave_out(problem, losses, ids, state, kwargs["optimizer"])
        state.stateful_callbacks[STATE_KEY] = {
            "recent": self._recent if self.spike_factor else [],
            "num_skipped": self.num_skipped,
        }

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves and ends the run if any rank received a signal."""
        if self._must_stop:
            control.should_save = control.should_training_stop = self.is_stopped = True

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
        self, problem: str, losses: list[float], ids: list[list[str]], state: Any, optimizer: Any
    ) -> None:
        """Drops the gradients, so that the optimizer changes nothing, or ends the run.

        Raises:
            UserError: No more steps may be skipped.
        """
        named = gather_object(_suspects(losses, ids))
        self.num_skipped += 1
        step = state.global_step + 1
        if self.num_skipped > self.max_skipped_steps:
            raise UserError(
                f"step {step}: {problem}{_named(named)}. Bad steps so far: {self.num_skipped}, "
                f"--max_skipped_steps is {self.max_skipped_steps}; {self._advice()}"
            )
        optimizer.zero_grad(set_to_none=True)
        log.warning("step %d is left out: %s%s", step, problem, _named(named))

    def _advice(self) -> str:
        return (
            f"the last whole checkpoint is {self._last_checkpoint() or 'none'}. Lower "
            "--learning_rate, lengthen the warm-up, look at these samples, or leave such steps out "
            "with --max_skipped_steps."
        )


def _suspects(losses: list[float], ids: list[list[str]]) -> list[str]:
    """Returns the samples of losses that are not finite, or else those of the highest loss."""
    pairs = list(zip(losses, ids, strict=True))
    bad = [pair for pair in pairs if not math.isfinite(pair[0])]
    return [sample_id for _, batch in bad or sorted(pairs)[-1:] for sample_id in batch]


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
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _CPU_MESSAGE.search(str(error)) is not None


def describe_batch(inputs: dict[str, Any], num_image_positions: int = 0) -> str:
    """Describes the size of a batch.

    Args:
        inputs: The batch of the collator.
        num_image_positions: Positions that an image takes in the model.
    """
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    lengths = [ids.shape[1]] * len(ids) if mask is None else mask.sum(1).tolist()
    # [3, S, S] and [P, D] are one image, [tiles, ...] are several
    images = inputs.get("images", inputs.get("image_features"))
    num_images = sum(
        len(image) if image.ndim > 3 else 1 for image in (() if images is None else images)
    )
    text = (
        f"{len(ids)} samples of {min(lengths):,} to {max(lengths):,} tokens, {sum(lengths):,} in "
        f"all ({ids.numel():,} with padding)"
    )
    if num_images:
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
