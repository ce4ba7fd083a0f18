"""Train a LLaVA model: `train()` is the table of contents of a run.

Input: LLaVA's flags on the command line. Output: checkpoints and the final model in `output_dir`.
Each step is a function of `build`, `checkpoint` or `llava_trainer`; LLaVA's public names
are re-exported here. The argument `data_module` builds dataset, collator and sampler.
If a process fails, torchrun's summary has its error; the other processes only see a broken
connection.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import record

from llava.data.batching import DataCollatorForSupervisedDataset
from llava.data.dataset import LazySupervisedDataset
from llava.data.preprocess import (
    _add_speaker_and_signal,
    _mask_targets,
    _tokenize_fn,
    make_supervised_data_module,
    preprocess,
    preprocess_llama_2,
    preprocess_mpt,
    preprocess_multimodal,
    preprocess_plain,
    preprocess_v1,
)
from llava.data.sample import DropPolicy
from llava.errors import CheckpointError, ConfigError, explain
from llava.train import build, checkpoint
from llava.train.arguments import (
    DataArguments,
    DataContext,
    ModelArguments,
    TrainingArguments,
    check_surroundings,
    parse_arguments,
)
from llava.train.build import find_all_linear_names, smart_tokenizer_and_embedding_resize
from llava.train.checkpoint import (
    check_identity,
    get_mm_adapter_state_maybe_zero_3,
    get_peft_state_maybe_zero_3,
    get_peft_state_non_lora_maybe_zero_3,
    maybe_zero_3,
    save_projector,
    settings_of,
)
from llava.train.llava_trainer import (
    STOPPED_EXIT_CODE,
    LLaVATrainer,
    RunStoppedError,
    stop_signals,
)

__all__ = [
    "IS_TOKENIZER_GREATER_THAN_0_14",
    "DataArguments",
    "DataCollatorForSupervisedDataset",
    "DataContext",
    "LazySupervisedDataset",
    "ModelArguments",
    "TrainingArguments",
    "_add_speaker_and_signal",
    "_mask_targets",
    "_tokenize_fn",
    "find_all_linear_names",
    "get_mm_adapter_state_maybe_zero_3",
    "get_peft_state_maybe_zero_3",
    "get_peft_state_non_lora_maybe_zero_3",
    "local_rank",
    "make_supervised_data_module",
    "maybe_zero_3",
    "preprocess",
    "preprocess_llama_2",
    "preprocess_mpt",
    "preprocess_multimodal",
    "preprocess_plain",
    "preprocess_v1",
    "rank0_print",
    "safe_save_model_for_hf_trainer",
    "smart_tokenizer_and_embedding_resize",
    "train",
]

log = logging.getLogger(__name__)

DataModule = Callable[[DataContext], dict[str, Any]]

# for importers; not used here
local_rank = None
IS_TOKENIZER_GREATER_THAN_0_14 = tuple(map(int, tokenizers.__version__.split(".")[:2])) >= (0, 14)


def train(
    attn_implementation: str | None = None,
    data_module: DataModule | None = None,
    extra_arguments: Sequence[type] = (),
) -> None:
    """Runs the training that the command line describes.

    Args:
        attn_implementation: See transformers, which chooses one by default.
        data_module: Makes `train_dataset`, `eval_dataset`, `data_collator`, and optionally
            `train_sampler`, `callbacks`, `extra_loss`, `extra_evaluation` (see `LLaVATrainer`) and
            `conversation` (for `config.json`); LLaVA's own by default.
        extra_arguments: Dataclasses of further flags for the data module.

    Raises:
        UserError: A flag, the data or a checkpoint is invalid, or the loss is not finite.
    """
    model_args, data_args, training_args, extra = parse_arguments(extra_arguments)
    check_surroundings(training_args)
    build.set_up_logging()
    transformers.set_seed(training_args.seed)

    model = build.build_model(model_args, training_args, attn_implementation)
    tokenizer, conversation = build.build_tokenizer(model_args, training_args, model)
    image_processor = build.add_vision(model, tokenizer, model_args, data_args, training_args)
    model = build.add_lora(model, model_args, training_args)
    trained = build.trained_parts(model_args, training_args)
    build.apply_freeze(model, trained, model_args.mm_vision_tower_last_layers)

    if training_args.compile_layers:
        build.compile_layers(model)

    context = DataContext(
        tokenizer, image_processor, model, model_args, data_args, training_args, extra, conversation
    )
    data = dict((data_module or default_data_module)(context))
    conversation = data.pop("conversation", None) or conversation
    build.write_config(model, tokenizer, conversation, model_args, data_args, training_args)

    trainer = LLaVATrainer(model=model, processing_class=tokenizer, args=training_args, **data)
    trainer.settings = settings_of(model_args, data_args, *extra, training_args)
    run(trainer)
    trainer.save_result()


def default_data_module(context: DataContext, orient_images: bool = False) -> dict[str, Any]:
    """Builds LLaVA's dataset and collator for `--data_path`.

    Args:
        context: The model and the flags.
        orient_images: See `LazySupervisedDataset`.

    Raises:
        ConfigError: `--data_path` is missing.
        DataError: The data is invalid.
    """
    data_args = context.data_args
    if data_args.data_path is None:
        raise ConfigError("--data_path is missing: name a LLaVA JSON or JSONL file")
    dataset = LazySupervisedDataset(
        data_args.data_path,
        context.tokenizer,
        data_args,
        conversation=context.conversation,
        drop_policy=DropPolicy(data_args.max_drop_rate),
        orient_images=orient_images,
    )
    return {
        "train_dataset": dataset,
        "eval_dataset": None,
        "data_collator": NamedCollator(tokenizer=context.tokenizer),
    }


def run(trainer: LLaVATrainer) -> None:
    """Trains, from the last complete checkpoint if there is one.

    Raises:
        CheckpointError: The checkpoint of `--resume_from_checkpoint` is incomplete, or `output_dir`
            belongs to a run with other data or settings; it is left unchanged.
        RunStoppedError: A signal stopped the run; everything is saved.
    """
    output_dir, ranks = Path(trainer.args.output_dir), PartialState()
    start = _start_from(trainer)
    is_same = check_identity(start or output_dir, trainer.identity(), trainer.args)
    # the first process decides: without a shared disk the others have no checkpoint
    is_same = broadcast_object_list([is_same])[0]
    start = start if is_same else None
    ranks.wait_for_everyone()  # all have read what may be removed now
    if ranks.is_local_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        checkpoint.begin_run(output_dir, overwrites=not is_same)
    ranks.wait_for_everyone()
    if start is not None:
        log.info("going on from %s", start)
    try:
        with stop_signals(trainer.guard):
            trainer.train(resume_from_checkpoint=None if start is None else str(start))
        trainer.wait_for_save()
    except BaseException as error:
        try:
            trainer.wait_for_save()
        except Exception as other:  # must not hide the error that ends the run
            log.error("a checkpoint could not be written, too: %s", other)
        if isinstance(error, KeyboardInterrupt):
            last = checkpoint.find_last_checkpoint(output_dir)
            log.warning(
                "stopped in step %d. %s",
                trainer.state.global_step + 1,
                f"The same command goes on from {last}"
                if last
                else "No checkpoint was written yet",
            )
        raise
    finally:
        trainer.progress.close()
        report = getattr(trainer.train_dataset, "report", None)
        if report is not None:
            log.info("data: %s", report())
        if trainer.guard.num_skipped:
            log.warning("%d steps were left out (see above)", trainer.guard.num_skipped)
    if trainer.guard.is_stopped:
        raise RunStoppedError(
            f"{trainer.guard.signal or 'a signal to another rank'} stopped the run after step "
            f"{trainer.state.global_step}; the same command goes on from "
            f"{checkpoint.find_last_checkpoint(output_dir)}"
        )


def _start_from(trainer: LLaVATrainer) -> Path | None:
    """Returns the checkpoint to resume from: the requested one, or the last complete one.

    Raises:
        CheckpointError: The requested one is incomplete.
    """
    asked = trainer.args.resume_from_checkpoint
    if asked not in (None, "True", "true"):
        problem = checkpoint.problem_of(Path(asked), read_all=trainer.is_local_process_zero())
        if problem is not None:
            raise CheckpointError(f"--resume_from_checkpoint {asked}: {problem}")
        return Path(asked)
    found = None
    if PartialState().is_main_process:  # one process reads it and decides for all
        found = checkpoint.find_last_checkpoint(str(trainer.args.output_dir), read_all=True)
    return broadcast_object_list([found])[0]


def safe_save_model_for_hf_trainer(trainer: Any, output_dir: str) -> None:
    """Saves what a stage trains, as LLaVA's function of this name does.

    In the projector stage a folder `<parent>/checkpoint-<N>` becomes the file
    `<parent>/mm_projector/checkpoint-<N>.bin`.
    """
    folder = Path(output_dir)
    if getattr(trainer.args, "tune_mm_mlp_adapter", False) and folder.name.startswith(
        "checkpoint-"
    ):
        if trainer.args.should_save:
            trainer.model.config.save_pretrained(folder)
        target = folder.parent / "mm_projector" / f"{folder.name}.bin"
        with_embeddings = bool(getattr(trainer.args, "use_im_start_end", False))
        save_projector(trainer.model, target, with_embeddings, trainer.args.should_save)
        return
    trainer.save_model(output_dir)


def rank0_print(*args: Any) -> None:
    """Logs on the first rank; the name is LLaVA's."""
    log.info(" ".join(map(str, args)))


def main(run_training: Callable[[], None] = train) -> int:
    """Runs a training entry point from the command line.

    Returns:
        The exit code: 1 for an error that the user can fix, 75 (`EX_TEMPFAIL`) if a signal stopped
        the run with everything saved, 130 after Ctrl-C.
    """
    build.set_up_logging()
    try:
        record(run_training)()
        _leave_ranks()
    except RunStoppedError as stop:
        log.warning("%s", stop)
        _leave_ranks()
        return STOPPED_EXIT_CODE
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        reason = _explain_loss_of_contact(error) or explain(error)
        if reason is None:
            raise
        log.error("%s", reason)
        return 1
    return 0


def _leave_ranks() -> None:
    """Waits for the other ranks and ends the process group.

    A rank that exits at once may abort while gloo's threads still communicate; the launcher would
    then end the first rank, which may still be writing.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


class NamedCollator(DataCollatorForSupervisedDataset):
    """Adds `sample_ids` to batches."""

    def __call__(self, instances: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Returns the batch of LLaVA's collator, with `sample_ids`."""
        sample_ids = [instance["id"] for instance in instances]
        return {**super().__call__(instances), "sample_ids": sample_ids}


# messages of gloo and NCCL
_LOST = re.compile(
    r"Connection (closed|reset)|Broken pipe|gloo|NCCL|ncclRemoteError|Socket.*(closed|error)|"
    r"Timed out waiting",
    re.IGNORECASE,
)


def _explain_loss_of_contact(error: BaseException) -> str | None:
    """Returns the message for an error that another process's end caused, else None."""
    if not isinstance(error, RuntimeError) or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    is_lost = isinstance(error, distributed.DistError) or _LOST.search(str(error)) is not None
    if not is_lost or isinstance(error, torch.OutOfMemoryError):
        return None
    return (
        "another process of this run ended: the connection to it was lost "
        f"({str(error).strip().splitlines()[0]}). Its own messages and the launcher's summary have "
        "the reason; without one it was killed, perhaps for memory, or its machine is down. The "
        "same command resumes from the last complete checkpoint."
    )


if __name__ == "__main__":
    sys.exit(main())
