"""How the trainer saves and loads: what a stage trains, whole checkpoints, in the background.

Input: the trainer's state. Output: `checkpoint-<step>` folders and the final files. By itself, or
under DDP, training waits only until the state is copied into RAM; a thread of the first process
writes it. DeepSpeed and FSDP gather and write together, and training waits for that.
Non-goals: how a folder becomes whole (`checkpoint.py`), what may not change between checkpoint and
resumption (`run_identity.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from llava.train import checkpoint, weights
from llava.train.background import BackgroundWriter, StateCopy
from llava.train.run_identity import identity_of, write_identity

log = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"


class CheckpointSaving(Trainer):
    """The half of `LLaVATrainer` that saves and loads.

    `args` may carry LLaVA's dynamic attributes `tune_mm_mlp_adapter` (save the projector only) and
    `use_im_start_end` (and the embeddings).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # what `run_identity.settings_of` says of the run, if it was asked
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
        """What must not change while this run goes on; see `run_identity`."""
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
                self._writer.start(lambda: checkpoint.finish_folder(final, ()))

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
        weights.save_projector(
            model, folder / weights.PROJECTOR_FILE, with_embeddings, self.args.should_save
        )

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
            weights.load_adapter_state(self.accelerator.unwrap_model(loaded), folder)
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._saves_lora:
            weights.load_non_lora(self.accelerator.unwrap_model(loaded), folder)

    def _load_best_model(self) -> None:
        self.wait_for_save()
        self.ranks().barrier()
        super()._load_best_model()
