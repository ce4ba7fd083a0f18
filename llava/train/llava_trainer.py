"""The trainer: LLaVA's sampling, parameter groups and steps on top of transformers' `Trainer`.

Input: a model, its arguments, and the result of a data module. Output: complete checkpoints in
`output_dir`, from which a killed run resumes with the same order of samples.
Non-goals: which parameters are trained (`freeze.py`), saving (`checkpoint.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, RandomSampler, Sampler
from transformers import PrinterCallback

from llava.data.batching import (
    LengthGroupedSampler,
    get_length_grouped_indices,
    get_modality_length_grouped_indices,
    split_to_even_chunks,
)
from llava.train import checkpoint
from llava.train.checkpoint import CheckpointSaving, get_mm_adapter_state_maybe_zero_3, maybe_zero_3
from llava.train.metrics import MetricsLog, ProgressCallback, WatchedTrainer
from llava.train.step_guard import StepGuard, describe_batch, is_out_of_memory, out_of_memory

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
        self.add_callback(MetricsLog())
        self.progress = ProgressCallback(getattr(self.args, "stage_name", None))
        if self.args.disable_tqdm:
            self.remove_callback(PrinterCallback)
            self.add_callback(self.progress)

    # --- order of samples ---

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler | None:
        """Returns the sampler of the training samples; seed and epoch determine its order."""
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        self._sampler = self._given_sampler
        if self._sampler is not None:
            return self._sampler
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
        """Creates the optimizer; with `mm_projector_lr` the projector has its own groups."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        projector_lr = getattr(self.args, "mm_projector_lr", None)
        if projector_lr is None or not is_new:
            return optimizer
        named = (self.model if model is None else model).named_parameters()
        projector = {id(parameter) for name, parameter in named if "mm_projector" in name}
        for group in list(optimizer.param_groups):
            theirs = [each for each in group["params"] if id(each) in projector]
            group["params"] = [each for each in group["params"] if id(each) not in projector]
            optimizer.add_param_group({**group, "params": theirs, "lr": projector_lr})
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
