"""The trainer: LLaVA's sampling, parameter groups and saving on top of transformers' `Trainer`.

Input: a model, its arguments, and what a data module made. Output: whole checkpoints in
`output_dir`, from which a killed run goes on with the same order of samples.
Non-goals: which parameters are trained (`freeze.py`), how a folder becomes whole (`checkpoint.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, RandomSampler, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback

from llava.data.sampler import (
    LengthGroupedSampler,
    get_length_grouped_indices,
    get_modality_length_grouped_indices,
    split_to_even_chunks,
)
from llava.errors import UserError
from llava.train import checkpoint, weights
from llava.train.metrics_log import MetricsLog
from llava.train.progress import ProgressCallback
from llava.train.run_identity import identity_of, write_identity
from llava.train.weights import get_mm_adapter_state_maybe_zero_3, maybe_zero_3

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

_STATE_FILE = "trainer_state.json"


class SeededSampler(Sampler[int]):
    """Another sampler with the order fixed by (seed, epoch) instead of the global generator.

    LLaVA's samplers draw from torch's global generator, whose state at the start of an epoch a
    resumed run cannot know.

    Args:
        sampler: Draws all its numbers when its iteration begins.
        seed: Seed of the run's data order.
    """

    def __init__(self, sampler: Sampler[int], seed: int) -> None:
        self.sampler = sampler
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + self.epoch)
            order = list(self.sampler)
        return iter(order)


class _EpochCallback(TrainerCallback):
    """Tells the sampler the epoch; accelerate's wrappers do not always hand it on."""

    sampler: Any = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(int(state.epoch or 0))


class LLaVATrainer(Trainer):
    """transformers' trainer for LLaVA models.

    `args` may carry LLaVA's dynamic attributes `tune_mm_mlp_adapter` (save the projector only) and
    `use_im_start_end` (and the embeddings).

    Args:
        *args: As for `Trainer`.
        train_sampler: Order of the training samples; None chooses one by the arguments. Its
            `set_epoch` is called, if it has one.
        **kwargs: As for `Trainer`; LLaVA's `tokenizer` is taken for `processing_class`.
    """

    def __init__(self, *args: Any, train_sampler: Sampler[int] | None = None, **kwargs: Any):
        if "tokenizer" in kwargs:
            kwargs["processing_class"] = kwargs.pop("tokenizer")
        self._given_sampler = train_sampler
        self._saving_dir: Path | None = None
        super().__init__(*args, **kwargs)
        if getattr(self.args, "loss_normalization", "global") == "micro_batch":
            self.model_accepts_loss_kwargs = False
        # a loss that is not finite ends the run (see training_step); the filter would hide it
        self.args.logging_nan_inf_filter = False
        self._epochs = _EpochCallback()
        self.add_callback(self._epochs)
        self.add_callback(MetricsLog())
        if self.args.disable_tqdm:
            self.remove_callback(PrinterCallback)
            self.add_callback(ProgressCallback(getattr(self.args, "stage_name", None)))

    # --- order of samples ---

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler | None:
        """The order of the training samples, fixed by seed and epoch."""
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        self._epochs.sampler = self._make_train_sampler(dataset)
        return self._epochs.sampler

    def _make_train_sampler(self, dataset: Any) -> Sampler | None:
        if self._given_sampler is not None:
            return self._given_sampler
        if dataset is not None and getattr(self.args, "group_by_modality_length", False):
            sampler = LengthGroupedSampler(
                self.args.train_batch_size,
                world_size=self.args.world_size * self.args.gradient_accumulation_steps,
                lengths=dataset.modality_lengths,
                group_by_modality=True,
            )
            return SeededSampler(sampler, self._data_seed)
        chosen = super()._get_train_sampler(dataset)
        is_random = isinstance(chosen, RandomSampler)
        return SeededSampler(chosen, self._data_seed) if is_random else chosen

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """As in `Trainer`; the sampler learns what a resumed run skips, to skip it cheaply."""
        epoch, num_batches = super()._init_training_state(*args, **kwargs)
        if num_batches and hasattr(self._epochs.sampler, "expect_skip"):
            num_samples = num_batches * self.args.train_batch_size * self.args.world_size
            self._epochs.sampler.expect_skip(epoch, num_samples)
        return epoch, num_batches

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    # --- steps ---

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As in `Trainer`, but a run that had all its steps before does not take one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimiser; with `mm_projector_lr` the projector has groups of its own."""
        projector_lr = getattr(self.args, "mm_projector_lr", None)
        if projector_lr is None or self.optimizer is not None:
            return super().create_optimizer(model)
        trained = self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(trained))
        groups: list[dict[str, Any]] = []
        for is_projector in (False, True):
            for has_decay in (True, False):
                group: dict[str, Any] = {
                    "params": [
                        parameter
                        for name, parameter in trained.named_parameters()
                        if parameter.requires_grad
                        and ("mm_projector" in name) == is_projector
                        and (name in decayed) == has_decay
                    ],
                    "weight_decay": self.args.weight_decay if has_decay else 0.0,
                }
                groups.append({**group, "lr": projector_lr} if is_projector else group)
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
        self.optimizer = kind(groups, **options)
        return self.optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Run forward and backward on a micro-batch.

        Args:
            model: The model, perhaps wrapped.
            inputs: The batch; an entry `sample_ids` names its samples in messages.
            num_items_in_batch: Supervised tokens of the optimiser step.

        Raises:
            UserError: The loss is not finite.
        """
        sample_ids = inputs.pop("sample_ids", None)
        if getattr(self.args, "packing", False):
            inputs["packing"] = True
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss).all():
            self._refuse_loss(loss, sample_ids)
        return loss

    def _refuse_loss(self, loss: Tensor, sample_ids: list[str] | None) -> None:
        """Stop at a loss that is not finite.

        Raises:
            UserError: naming the samples, where they are known.
        """
        last = checkpoint.find_last_checkpoint(self.args.output_dir)
        samples = f", samples {', '.join(sample_ids)}" if sample_ids else ""
        raise UserError(
            f"the loss is {loss.item()} in step {self.state.global_step + 1}{samples}. The weights "
            f"were not changed by this step; the last whole checkpoint is {last or 'none'}. Lower "
            "--learning_rate, lengthen the warm-up, or look at these samples."
        )

    # --- saving ---

    def ranks(self) -> checkpoint.Ranks:
        """This process among the others, as `checkpoint` wants it."""
        return checkpoint.Ranks(
            is_writer=self.is_world_process_zero(),
            is_local_writer=self.is_local_process_zero(),
            barrier=self.accelerator.wait_for_everyone,
        )

    @property
    def _saves_adapter_only(self) -> bool:
        return bool(getattr(self.args, "tune_mm_mlp_adapter", False))

    @property
    def _saves_lora(self) -> bool:
        return bool(getattr(self.args, "lora_enable", False))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_dir or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write `checkpoint-<step>` with all that a run needs to go on, wholly or not at all."""
        output_dir = Path(self.args.output_dir)
        final = output_dir / f"checkpoint-{self.state.global_step}"
        with checkpoint.writing_folder(final, self.ranks()) as folder:
            self._saving_dir = folder.parent
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._saving_dir = None
            self._note_best(output_dir, final)
            if self.args.should_save:
                self.state.save_to_json(str(folder / _STATE_FILE))
                write_identity(folder, self.identity())
        best = self.state.best_model_checkpoint
        if self.args.should_save:
            keep = (final, Path(best)) if best else (final,)
            checkpoint.rotate(output_dir, self.args.save_total_limit, keep)

    def _note_best(self, output_dir: Path, final: Path) -> None:
        """Name the best checkpoint by its final place, not by the temporary one."""
        if self.state.best_global_step:
            best = output_dir / f"checkpoint-{self.state.best_global_step}"
            if best == final or best.is_dir():
                self.state.best_model_checkpoint = str(best)

    def identity(self) -> dict[str, Any]:
        """What must not change while this run goes on; see `run_identity`."""
        return identity_of(
            self.args,
            self.train_dataset,
            self._given_sampler,
            self.processing_class,
            self._data_seed,
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save what this stage trains: the projector, LoRA adapters, or the whole model."""
        folder = Path(output_dir or self.args.output_dir)
        if self._saves_adapter_only:
            self._save_adapter(folder)
            return
        super().save_model(str(folder), _internal_call)
        if self._saves_lora:
            model = self.accelerator.unwrap_model(self.model)
            weights.save_non_lora(model, folder, self.args.should_save)

    def save_result(self, folder: Path) -> None:
        """Write the final files of a run: the model, the projector by itself, the run's history."""
        self.save_model(str(folder))
        model: Any = self.accelerator.unwrap_model(self.model)
        if not self._saves_adapter_only and getattr(model.config, "mm_vision_tower", None):
            weights.save_projector(
                model, folder / weights.PROJECTOR_FILE, False, self.args.should_save
            )
        if self.args.should_save:
            self.state.save_to_json(str(folder / _STATE_FILE))

    def close_progress(self) -> None:
        """Remove the progress bar, also of a run that stopped early."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback):
                callback.close()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self._saves_adapter_only:
            self._save_adapter(Path(output_dir or self.args.output_dir))
        else:
            super()._save(output_dir, state_dict)

    def _save_adapter(self, folder: Path) -> None:
        """Write `config.json` and `mm_projector.bin`."""
        model: Any = self.accelerator.unwrap_model(self.model)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            model.config.save_pretrained(folder)
        with_embeddings = bool(getattr(self.args, "use_im_start_end", False))
        weights.save_projector(
            model, folder / weights.PROJECTOR_FILE, with_embeddings, self.args.should_save
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load what `save_model` wrote into the model that goes on."""
        folder = Path(resume_from_checkpoint)
        loaded = self.model if model is None else model
        if self._saves_adapter_only:
            weights.load_adapter_state(self.accelerator.unwrap_model(loaded), folder)
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._saves_lora:
            weights.load_non_lora(self.accelerator.unwrap_model(loaded), folder)
