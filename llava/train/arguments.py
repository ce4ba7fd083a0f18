"""Flags of training: LLaVA's three dataclasses, and the old flags that its recipes still use.

Input: the command line (`parse_arguments`). Output: checked dataclasses. Flags that transformers
has removed (`--evaluation_strategy`, `--warmup_ratio`, ...) are still declared here and translated,
so that LLaVA's recipes parse. Non-goals: what the flags do to a model (`build.py`) or
to data (`llava.data`).
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from transformers import HfArgumentParser
from transformers.integrations import integration_utils as integrations

from llava.errors import ConfigError, refuse
from llava.model.checkpoint import (
    LANGUAGE_PART,
    PROJECTOR_PART,
    TOWER_PART,
    TUNABLE_PARTS,
    split_parts,
)

log = logging.getLogger(__name__)

# reporters whose package check has another name in transformers
_REPORTERS = {
    "azure_ml": integrations.is_azureml_available,
    "comet_ml": integrations.is_comet_available,
    "flyte": integrations.is_flytekit_available,
}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "bits": (4, 8, 16),
    "lora_bias": ("none", "all", "lora_only"),
    "quant_type": ("fp4", "nf4"),
    "loss_normalization": ("global", "micro_batch"),
}


@dataclass
class ModelArguments:
    """The model, and which of its parts are trained."""

    model_name_or_path: str | None = field(
        default="facebook/opt-125m", metadata={"help": "Base language model or LLaVA checkpoint."}
    )
    version: str | None = field(
        default="v0",
        metadata={
            "help": "Conversation template; v0 and v0.5 keep vicuna_v1, auto is the tokenizer's."
        },
    )
    freeze_backbone: bool = field(
        default=False, metadata={"help": "Freeze the language model, but not its head."}
    )
    tune_mm_mlp_adapter: bool = field(
        default=False,
        metadata={
            "help": "First stage: train and save only the projector, and the newline of tiles."
        },
    )
    mm_tunable_parts: str | None = field(
        default=None,
        metadata={
            "help": "What is trained, in place of the flags above and of --freeze_mm_mlp_adapter: "
            f"a comma list of {', '.join(TUNABLE_PARTS)}. With --lora_enable, tower and language "
            "model get adapters."
        },
    )
    mm_vision_tower_last_layers: int | None = field(
        default=None,
        metadata={
            "help": "Train only the last N layers of the tower that its features come from; needs "
            "mm_vision_tower in --mm_tunable_parts. Not in LLaVA-NeXT."
        },
    )
    vision_tower: str | None = field(
        default=None,
        metadata={
            "help": "Vision model, folder or Hub id, or two as a+b (docs/towers.md); none: text "
            "only."
        },
    )
    mm_vision_select_layer: int | None = field(
        default=-1, metadata={"help": "Index into the tower's hidden states."}
    )
    pretrain_mm_mlp_adapter: str | None = field(
        default=None, metadata={"help": "mm_projector.bin of the first stage."}
    )
    mm_projector_type: str | None = field(default="linear")
    mm_use_im_start_end: bool = field(default=False)
    mm_use_im_patch_token: bool = field(default=True)
    mm_patch_merge_type: str | None = field(
        default="flat",
        metadata={
            "help": "How tiles (--image_aspect_ratio anyres) become positions: flat: one after the "
            "other; spatial: line by line of the whole image; spatial_unpad: the same without "
            "padding, and with a trained newline after each line."
        },
    )
    mm_spatial_pool_stride: int = field(
        default=1,
        metadata={
            "help": "Average the projected features of a video's frame over squares of so many "
            "positions a side: 2 leaves a quarter. Images are left alone."
        },
    )
    mm_vision_select_feature: str | None = field(default="patch")
    s2: bool = field(
        default=False, metadata={"help": "Encode images at several scales (not in LLaVA)."}
    )
    s2_scales: str = field(
        default="336,672,1008", metadata={"help": "Those scales, sides in pixels."}
    )

    def __post_init__(self) -> None:
        """Checks the names of the parts.

        Raises:
            ConfigError: A part is unknown, or no part is named.
        """
        if self.mm_tunable_parts is None:
            return
        named = split_parts(self.mm_tunable_parts)
        if not named or not set(named) <= set(TUNABLE_PARTS):
            unknown = [part for part in named if part not in TUNABLE_PARTS]
            raise ConfigError(
                f"--mm_tunable_parts is {self.mm_tunable_parts!r}, which names "
                f"{'the unknown ' + ', '.join(unknown) if unknown else 'no part'}; expected a "
                f"comma list of: {', '.join(TUNABLE_PARTS)}"
            )
        # LLaVA-NeXT's form of the first stage
        self.tune_mm_mlp_adapter |= set(named) == {PROJECTOR_PART}

    @property
    def tunes_tower(self) -> bool:
        """Whether the vision tower is trained."""
        return TOWER_PART in split_parts(self.mm_tunable_parts)


@dataclass
class DataArguments:
    """The training data, and how images are shaped.

    `image_processor` and `mm_use_im_start_end` are set by `train()`, as in LLaVA.
    """

    data_path: str | None = field(
        default=None, metadata={"help": "Training data, LLaVA JSON or JSONL."}
    )
    lazy_preprocess: bool = field(
        default=False, metadata={"help": "Accepted for LLaVA's recipes; data is always lazy."}
    )
    is_multimodal: bool = False
    image_folder: str | None = field(default=None)
    image_aspect_ratio: str = field(
        default="square",
        metadata={
            "help": "square: crop the center; pad: fill up to a square; anyres: cut into tiles, "
            "after an overview (LLaVA-1.6); anyres_max_N: the same, but with the positions of "
            "about N tiles at most (LLaVA-NeXT; needs --mm_patch_merge_type spatial_unpad). Of "
            "several images in a sample each is filled up to a square."
        },
    )
    image_grid_pinpoints: str | None = field(
        default=None,
        metadata={
            "help": "Sizes that anyres cuts images to: a list of (width, height) in pixels, or a "
            "range of tiles such as '(1x1),...,(6x6)'."
        },
    )
    video_frames: int = field(
        default=0,
        metadata={
            "help": "Frames that are shown of a video (`video` of a record, a list of images), "
            "chosen evenly; each is made a square. 0: a record with a video is an error."
        },
    )
    max_drop_rate: float = field(
        default=0.0,
        metadata={"help": "Share of unusable samples that is tolerated, counted and reported."},
    )


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' training arguments, LLaVA's, and the old ones that LLaVA's recipes use."""

    cache_dir: str | None = field(default=None)
    optim: str = field(default="adamw_torch")
    remove_unused_columns: bool = field(default=False)
    freeze_mm_mlp_adapter: bool = field(default=False)
    mpt_attn_impl: str | None = field(
        default="triton", metadata={"help": "Accepted; transformers' MPT has one implementation."}
    )
    model_max_length: int = field(
        default=512,
        metadata={"help": "Longest sequence in tokens, image included; right padded."},
    )
    double_quant: bool = field(
        default=True, metadata={"help": "Compress the quantization statistics as well."}
    )
    quant_type: str = field(default="nf4", metadata={"help": "fp4 or nf4."})
    bits: int = field(default=16, metadata={"help": "Bits of the frozen weights: 16, 8 or 4."})
    lora_enable: bool = False
    lora_r: int = 64
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_weight_path: str = ""
    lora_bias: str = field(default="none", metadata={"help": "none, all or lora_only."})
    lora_experts: bool = field(
        default=False,
        metadata={
            "help": "Give adapters to experts that transformers keeps in one tensor, too; needs "
            "--lora_dropout 0."
        },
    )
    mm_projector_lr: float | None = None
    mm_vision_tower_lr: float | None = field(
        default=None,
        metadata={"help": "Learning rate of the tower, if it is trained; else --learning_rate."},
    )
    group_by_modality_length: bool = field(default=False)
    loss_normalization: str = field(
        default="global",
        metadata={
            "help": "global: mean over the supervised tokens of an optimizer step; micro_batch: "
            "LLaVA's mean of the micro-batches' means."
        },
    )
    allow_changed_run: bool = field(
        default=False,
        metadata={"help": "Resume from a checkpoint of a run with other data or settings."},
    )
    compile_layers: bool = field(
        default=False,
        metadata={"help": "Compile the language model's layers: minutes once, then faster steps."},
    )
    liger_loss: bool = field(
        default=True,
        metadata={
            "help": "Compute the loss with Liger's kernel if liger-kernel and a GPU are available."
        },
    )
    max_skipped_steps: int = field(
        default=0,
        metadata={
            "help": "Steps with a loss that is not finite, or a spike, that are skipped and "
            "counted; one more ends the run. 0: the first one ends it."
        },
    )
    loss_spike_factor: float = field(
        default=0.0,
        metadata={
            "help": "A loss this many times the median of the last 64 steps counts as a spike; "
            "0: never."
        },
    )
    async_save: bool = field(
        default=True,
        metadata={
            "help": "Training continues while a checkpoint is written; needs as much RAM as "
            "weights and optimizer state. No effect with DeepSpeed and FSDP."
        },
    )
    packing: bool = field(
        default=False,
        metadata={"help": "Run the samples of a batch as one row without padding, each by itself."},
    )
    stage_name: str | None = field(
        default=None, metadata={"help": "Name of the run in the progress display."}
    )
    group_steps: int = field(
        default=50,
        metadata={"help": "Minimum optimizer steps between metrics per group, such as a language."},
    )
    peak_tflops: float | None = field(
        default=None,
        metadata={
            "help": "Peak of a device in 1e12 operations per second, for MFU; GPUs are known."
        },
    )
    # removed from transformers
    evaluation_strategy: str | None = field(
        default=None, metadata={"help": "Old name of --eval_strategy."}
    )
    warmup_ratio: float | None = field(
        default=None, metadata={"help": "Share of warm-up; --warmup_steps takes a share as well."}
    )
    group_by_length: bool = field(
        default=False, metadata={"help": "Old form of --train_sampling_strategy group_by_length."}
    )
    logging_dir: str | None = field(default=None, metadata={"help": "Folder of TensorBoard logs."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Start over if output_dir has a run with other data or settings; the same run "
            "resumes from its last checkpoint."
        },
    )
    save_safetensors: bool = field(
        default=True, metadata={"help": "Accepted; weights are always written as safetensors."}
    )
    no_cuda: bool = field(default=False, metadata={"help": "Old name of --use_cpu."})

    def __post_init__(self) -> None:
        """Translates old flags and checks values.

        Raises:
            ConfigError: A value is invalid, or a package is missing.
        """
        self._translate_old_flags()
        self._check()
        if self.disable_tqdm is None:
            # llava.train.metrics shows the progress
            self.disable_tqdm = True
        super().__post_init__()

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype that the flags `fp16` and `bf16` select."""
        if self.fp16:
            return torch.float16
        return torch.bfloat16 if self.bf16 else torch.float32

    def _translate_old_flags(self) -> None:
        """Translates flags that transformers has removed to their present form."""
        if self.evaluation_strategy is not None:
            self.eval_strategy = self.evaluation_strategy
        if str(getattr(self.eval_strategy, "value", self.eval_strategy)) != "no":
            # so that --save_total_limit also keeps the best checkpoint
            self.metric_for_best_model = self.metric_for_best_model or "loss"
        if self.warmup_ratio is not None:
            # as in older versions, the number of steps takes precedence
            self.warmup_steps = self.warmup_steps or self.warmup_ratio
        if self.group_by_length:
            self.train_sampling_strategy = "group_by_length"
        if self.logging_dir is not None:
            os.environ.setdefault("TENSORBOARD_LOGGING_DIR", self.logging_dir)
        self.use_cpu = self.use_cpu or self.no_cuda
        if not self.use_cpu and not torch.accelerator.is_available():
            log.warning("no GPU is found: training on the CPU")
            self.use_cpu = True
        if self.use_cpu and self.deepspeed:
            self._set_up_deepspeed_on_cpu()
        if self.activation_checkpointing is None and self.gradient_checkpointing is not None:
            self.activation_checkpointing = self.gradient_checkpointing
        if not self.save_safetensors:
            log.warning("--save_safetensors False has no effect: weights go into safetensors files")
        if self.tf32 and (self.use_cpu or not torch.cuda.is_available()):
            log.info("--tf32 True has no effect: there is no CUDA device")
            self.tf32 = None

    def _set_up_deepspeed_on_cpu(self) -> None:
        """Starts DeepSpeed's processes on CPUs; transformers would not use DeepSpeed there."""
        _need("deepspeed", "--deepspeed", "train")
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        self.use_cpu = self.dataloader_pin_memory = False
        if "LOCAL_RANK" not in os.environ:
            raise ConfigError("--deepspeed on a CPU needs a launcher: start it with torchrun")
        PartialState._reset_state()
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        PartialState(backend="gloo")
        del os.environ["ACCELERATE_USE_DEEPSPEED"]
        self.accelerator_config = {"use_configured_state": True}

    def _check(self) -> None:
        """Checks values and packages.

        Raises:
            ConfigError: A value is invalid, or a package is missing.
        """
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                listed = ", ".join(map(str, choices))
                raise ConfigError(f"--{name} is {getattr(self, name)!r}; choose from: {listed}")
        begins_anew_from = self.overwrite_output_dir and self.resume_from_checkpoint
        refuse(
            {
                f"--warmup_ratio is {self.warmup_ratio}, expected a share in [0, 1)": (
                    self.warmup_ratio is not None and not 0 <= self.warmup_ratio < 1
                ),
                f"--max_skipped_steps is {self.max_skipped_steps}, expected 0 or more; "
                f"--loss_spike_factor is {self.loss_spike_factor}, expected 0 or more than 1": (
                    self.max_skipped_steps < 0
                    or (self.loss_spike_factor and self.loss_spike_factor <= 1)
                ),
                "--max_skipped_steps cannot be combined with --deepspeed, which takes the step "
                "itself, or --fp16, whose scaler steps over overflows; use --bf16 or leave it "
                "out": (self.max_skipped_steps and (self.deepspeed or self.fp16)),
                "--overwrite_output_dir and --resume_from_checkpoint exclude each other: the one "
                "removes the checkpoints that the other may name": (
                    begins_anew_from and begins_anew_from not in ("True", "true")
                ),
                f"--group_steps is {self.group_steps}, expected 1 or more": self.group_steps < 1,
                f"--peak_tflops is {self.peak_tflops}, expected a positive number": (
                    self.peak_tflops is not None and self.peak_tflops <= 0
                ),
                "--compile_layers cannot be combined with --torch_compile, --deepspeed or --bits": (
                    self.compile_layers and (self.torch_compile or self.deepspeed or self.bits < 16)
                ),
            }
        )
        needed = {
            ("bitsandbytes", f"--bits {self.bits}", "gpu"): self.bits < 16,
            ("peft", "--lora_enable", "train"): self.lora_enable,
            ("deepspeed", "--deepspeed", "train"): self.deepspeed,
        }
        for package, is_needed in needed.items():
            if is_needed:
                _need(*package)


@dataclass(frozen=True)
class DataContext:
    """The argument of a data module; see `data_module` of `train()`.

    Attributes:
        tokenizer: Tokenizer with `model_max_length`, right padding and a pad token.
        image_processor: The vision tower's; None for a text-only model.
        model: The model to train, with its tower.
        model_args: Flags of the model.
        data_args: Flags of the data.
        training_args: Flags of training.
        extra: Instances of `train()`'s `extra_arguments`, in the same order.
        conversation: The template that `--version` names.
    """

    tokenizer: Any
    image_processor: Any
    model: Any
    model_args: ModelArguments
    data_args: DataArguments
    training_args: TrainingArguments
    extra: tuple[Any, ...] = ()
    conversation: Any = None


def parse_arguments(
    extra_arguments: Sequence[type] = (), args: Sequence[str] | None = None
) -> tuple[ModelArguments, DataArguments, TrainingArguments, tuple[Any, ...]]:
    """Parses a command line.

    Args:
        extra_arguments: Dataclasses of further flags.
        args: The command line; that of the process by default.

    Returns:
        The three dataclasses and a tuple of the further ones.

    Raises:
        ConfigError: A flag is unknown, or a value is invalid.
    """
    types = (ModelArguments, DataArguments, TrainingArguments, *extra_arguments)
    # names must not be abbreviated: `--data` is not `--data_path`
    parser = HfArgumentParser(types, allow_abbrev=False)
    model_args, data_args, training_args, *extra, unknown = parser.parse_args_into_dataclasses(
        args=None if args is None else list(args), return_remaining_strings=True
    )
    if unknown:
        known = [f"--{each.name}" for kind in types for each in fields(kind)]
        raise ConfigError(_name_unknown(unknown, known))
    _check_paths(model_args, data_args, training_args)
    return model_args, data_args, training_args, tuple(extra)


def _name_unknown(unknown: Sequence[str], known: Sequence[str]) -> str:
    """Lists what no flag accepts, with similar flags."""
    told = []
    for word in unknown:
        alike = difflib.get_close_matches(word.partition("=")[0], known, 1, 0.75)
        told.append(f"{word} (did you mean {alike[0]}?)" if alike else word)
    return f"unknown on the command line: {' '.join(told)}; --help lists all flags"


def _check_paths(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> None:
    """Checks for contradictions between the dataclasses before anything is loaded.

    Raises:
        ConfigError: Flags contradict each other; the message names them.
    """
    tunes, rate = model_args.tune_mm_mlp_adapter, data_args.max_drop_rate
    frames, stride = data_args.video_frames, model_args.mm_spatial_pool_stride
    refuse(
        {
            f"--video_frames is {frames}, expected 0 or more": frames < 0,
            f"--video_frames {frames} shows videos: name a --vision_tower": (
                frames and model_args.vision_tower is None
            ),
            f"--mm_spatial_pool_stride is {stride}, expected 1 or more": stride < 1,
            f"--mm_spatial_pool_stride {stride} is for videos: give --video_frames, too": (
                stride > 1 and not frames
            ),
            "--tune_mm_mlp_adapter and --freeze_mm_mlp_adapter exclude each other": (
                tunes and training_args.freeze_mm_mlp_adapter
            ),
            "--tune_mm_mlp_adapter (or --mm_tunable_parts mm_mlp_adapter) and --lora_enable "
            "exclude each other": (tunes and training_args.lora_enable),
            "--lora_experts needs --lora_enable True and --lora_dropout 0, because peft computes "
            "no dropout for the experts' weights": (
                training_args.lora_experts
                and (not training_args.lora_enable or training_args.lora_dropout != 0)
            ),
            "--tune_mm_mlp_adapter trains the projector: name a --vision_tower": (
                tunes and model_args.vision_tower is None
            ),
            f"--max_drop_rate is {rate}, expected 0 <= rate < 1": not 0 <= rate < 1,
        }
    )
    _check_parts(model_args, training_args)


def _check_parts(model_args: ModelArguments, training_args: TrainingArguments) -> None:
    """Checks `--mm_tunable_parts` against the other flags.

    Raises:
        ConfigError: Flags contradict each other; the message names them.
    """
    named, tunes_tower = split_parts(model_args.mm_tunable_parts), model_args.tunes_tower
    layers, rate = model_args.mm_vision_tower_last_layers, training_args.mm_vision_tower_lr
    flag = f"--mm_tunable_parts {model_args.mm_tunable_parts}"
    deepspeed = getattr(training_args, "hf_deepspeed_config", None)
    of_deepspeed = {} if deepspeed is None else deepspeed.config
    has_own_rate = "optimizer" in of_deepspeed or "scheduler" in of_deepspeed
    refuse(
        {
            f"{flag} and --tune_mm_mlp_adapter True exclude each other: the latter trains and "
            f"saves the projector only; give --tune_mm_mlp_adapter False": (
                named and model_args.tune_mm_mlp_adapter and set(named) != {PROJECTOR_PART}
            ),
            f"{flag} and --freeze_mm_mlp_adapter True exclude each other": (
                PROJECTOR_PART in named and training_args.freeze_mm_mlp_adapter
            ),
            f"{flag} and --freeze_backbone True exclude each other": (
                LANGUAGE_PART in named and model_args.freeze_backbone
            ),
            f"{flag} trains modules for images: name a --vision_tower": (
                {TOWER_PART, PROJECTOR_PART} & set(named) and model_args.vision_tower is None
            ),
            f"{flag} and --bits {training_args.bits} train a quantized tower or language model: "
            "add --lora_enable True": (
                {TOWER_PART, LANGUAGE_PART} & set(named)
                and training_args.bits < 16
                and not training_args.lora_enable
            ),
            f"--mm_vision_tower_lr is {rate}, but the vision tower is not trained: add {TOWER_PART}"
            " to --mm_tunable_parts, or leave the rate out": rate is not None and not tunes_tower,
            f"--mm_vision_tower_lr is {rate}, expected 0 or more": rate is not None and rate < 0,
            f"--mm_vision_tower_lr has no effect with --deepspeed {training_args.deepspeed}, whose "
            "own optimizer or scheduler has one rate: use scripts/zero3.json": (
                rate is not None and has_own_rate
            ),
            f"--mm_vision_tower_last_layers is {layers}, but the vision tower is not trained: add "
            f"{TOWER_PART} to --mm_tunable_parts": layers is not None and not tunes_tower,
            f"--mm_vision_tower_last_layers is {layers}, expected 1 or more": (
                layers is not None and layers < 1
            ),
        }
    )


def check_surroundings(training_args: TrainingArguments) -> None:
    """Checks that results can be recorded, before a model is loaded.

    Raises:
        ConfigError: A package that `--report_to` needs is missing, or the output folder cannot be
            created.
    """
    for name in training_args.report_to:
        is_available = _REPORTERS.get(name) or getattr(integrations, f"is_{name}_available", None)
        if is_available is None:
            known = ", ".join(integrations.INTEGRATION_TO_CALLBACK)
            raise ConfigError(f"--report_to is {name!r}; choose from: none, all, {known}")
        if not is_available():
            raise ConfigError(
                f"--report_to {name} needs its package, which is not installed or switched off: "
                f"pip install {name}, or --report_to none (REPORT_TO=none for the scripts)"
            )
    folder = Path(training_args.output_dir)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        problem = "is not writable" if there.is_dir() else "is no folder"
        raise ConfigError(f"--output_dir {folder} cannot be made: {there} {problem}")


def _need(package: str, flag: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{flag} needs the package {package}, which is not installed: bash scripts/setup.sh "
            f"--extras {extra}, or pip install {package}; or leave the flag out"
        )
