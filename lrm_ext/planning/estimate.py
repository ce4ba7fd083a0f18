"""A plan: what each stage of a preset takes, on GPUs of one kind.

Input: a preset, a number of GPUs and their kind. Output: a `Plan` with memory, operations and hours
of each stage, and what a run that took a known time made of its GPUs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from llava.errors import ConfigError
from llava.train.flops import ADAPTERS, ALL, PROJECTOR, Gpu, ModelShape, SampleFlops, get_gpu
from lrm_ext.planning.data import StageData, measure_data
from lrm_ext.planning.memory import (
    FILL_LIMIT,
    Memory,
    StageSettings,
    estimate_memory,
    largest_batch,
)
from lrm_ext.planning.models import load_shape
from lrm_ext.planning.presets import ROOT, STAGES, stage_flags, switch
from lrm_ext.training.arguments import NO_CACHE, read_cache_switch

GIB = 2**30


@dataclass(frozen=True)
class StagePlan:
    """What a stage takes.

    Attributes:
        stage: "pretrain" or "finetune".
        settings: How it is trained.
        data: What it is trained on.
        memory: Of a device, with samples of mean length.
        memory_at_limit: The same, all samples as long as `--model_max_length`.
        largest_batch: Most samples a device can take at mean length; None without a GPU.
        largest_batch_at_limit: The same, all samples as long as the limit.
        max_length: `--model_max_length`.
        flops: Operations for a sample.
        hours: At the MFU of the plan; None without a GPU.
    """

    stage: str
    settings: StageSettings
    data: StageData
    memory: Memory
    memory_at_limit: Memory
    largest_batch: int | None
    largest_batch_at_limit: int | None
    max_length: int
    flops: SampleFlops
    hours: float | None

    @property
    def num_steps(self) -> int:
        """Optimizer steps."""
        return -(-self.data.num_samples // self.settings.samples_a_step)

    @property
    def num_tokens(self) -> float:
        """Positions in all, pictures included."""
        return self.data.num_samples * self.data.num_positions

    @property
    def total_flops(self) -> float:
        """Operations in all."""
        return self.data.num_samples * self.flops.total


@dataclass(frozen=True)
class Implied:
    """What a run that took a known time made of its GPUs.

    Attributes:
        hours: How long it took, all stages.
        samples_per_second: Of all GPUs.
        tokens_per_second_and_gpu: Positions, pictures included.
        mfu: Share of the GPUs' peak.
    """

    hours: float
    samples_per_second: float
    tokens_per_second_and_gpu: float
    mfu: float


@dataclass(frozen=True)
class Plan:
    """What the stages of a preset take.

    Attributes:
        preset: Its name.
        shape: The model.
        gpu: Kind of GPU; None for a CPU.
        num_gpus: How many.
        mfu: Share of the peak that is assumed.
        stages: Each stage.
        price: Of a GPU for an hour; None if not given.
        implied: What `--hours` imply; None if not given.
    """

    preset: str
    shape: ModelShape
    gpu: Gpu | None
    num_gpus: int
    mfu: float | None
    stages: tuple[StagePlan, ...]
    price: float | None = None
    implied: Implied | None = None

    @property
    def hours(self) -> float | None:
        """Of all stages."""
        hours = [stage.hours for stage in self.stages if stage.hours is not None]
        return sum(hours) if len(hours) == len(self.stages) else None

    @property
    def cost(self) -> float | None:
        """Of all stages, in the currency of the price."""
        if self.price is None or self.hours is None:
            return None
        return self.hours * self.num_gpus * self.price


@dataclass(frozen=True)
class Wishes:
    """What a user says about a plan; what is None is found out or assumed.

    Attributes:
        num_samples: Samples of each stage.
        text_tokens: Of a sample, without its picture.
        supervised_tokens: Of those, the ones that are learnt.
        mfu: Share of the peak.
        price: Of a GPU for an hour.
        hours: That a run took, for what they imply.
    """

    num_samples: int | None = None
    text_tokens: float | None = None
    supervised_tokens: float | None = None
    mfu: float | None = None
    price: float | None = None
    hours: float | None = None


def make_plan(
    preset: str,
    num_gpus: int,
    gpu_key: str | None,
    wishes: Wishes | None = None,
    extra: tuple[str, ...] = (),
) -> Plan:
    """Plan the stages of a preset.

    Args:
        preset: Its name.
        num_gpus: GPUs, on one machine or several; 0 plans for a CPU.
        gpu_key: Kind of GPU; None only for a CPU.
        wishes: What else is said.
        extra: Flags of training that win over the preset's.

    Raises:
        ConfigError: The preset, the GPU or a model is not known, or a number is out of range.
    """
    wishes = wishes or Wishes()
    gpu = _gpu(num_gpus, gpu_key)
    mfu = None if gpu is None else (wishes.mfu if wishes.mfu is not None else gpu.plan_mfu)
    if mfu is not None and not 0 < mfu <= 1:
        raise ConfigError(f"--mfu is {mfu}, expected a share in (0, 1]")
    stages, shape = [], None
    for stage in STAGES:
        flags = stage_flags(preset, stage, num_gpus, extra)
        shape = load_shape(
            str(_local(flags["model_name_or_path"])),
            str(_local(flags["vision_tower"])) if "vision_tower" in flags else None,
            int(flags.get("mm_vision_select_layer", -2)),
        )
        stages.append(_plan_stage(stage, flags, shape, (gpu, num_gpus, mfu), wishes))
    assert shape is not None
    plan = Plan(preset, shape, gpu, num_gpus, mfu, tuple(stages), wishes.price)
    if wishes.hours is None:
        return plan
    return replace(plan, implied=_implied(plan, wishes.hours))


def _gpu(num_gpus: int, key: str | None) -> Gpu | None:
    if num_gpus < 0:
        raise ConfigError(f"--gpus is {num_gpus}, expected a number of GPUs, or 0 for a CPU")
    if num_gpus == 0:
        return None
    return get_gpu(key or "")


def _local(name: str) -> Path | str:
    """A folder that a preset names relative to the repository; else the name."""
    return ROOT / name if (ROOT / name / "config.json").is_file() else name


def _plan_stage(
    stage: str,
    flags: Mapping[str, str],
    shape: ModelShape,
    device: tuple[Gpu | None, int, float | None],
    wishes: Wishes,
) -> StagePlan:
    gpu, num_gpus, mfu = device
    settings = settings_of(flags, num_gpus)
    data = measure_data(stage, flags, shape.num_image_tokens, settings.samples_a_step, wishes)
    limit = int(flags.get("model_max_length", 2048))
    at_mean = (data.num_positions, data.num_supervised)
    at_limit = (limit, data.num_supervised * limit / data.num_positions)
    flops = shape.sample_flops(
        data.num_positions,
        data.num_supervised,
        settings.trained,
        tower_runs=not settings.caches_features,
        lora_rank=settings.lora_rank,
    )
    batches: list[int | None] = [None, None]
    hours = None
    if gpu is not None and mfu is not None:
        memory = gpu.memory_gib * GIB
        batches = [
            largest_batch(shape, settings, positions, supervised, memory)
            for positions, supervised in (at_mean, at_limit)
        ]
        speed = num_gpus * gpu.peak_tflops * 1e12 * mfu
        hours = data.num_samples * flops.total / speed / 3600
    return StagePlan(
        stage=stage,
        settings=settings,
        data=data,
        memory=estimate_memory(shape, settings, *at_mean),
        memory_at_limit=estimate_memory(shape, settings, *at_limit),
        largest_batch=batches[0],
        largest_batch_at_limit=batches[1],
        max_length=limit,
        flops=flops,
        hours=hours,
    )


def settings_of(flags: Mapping[str, str], num_gpus: int) -> StageSettings:
    """What the flags of a stage say about its memory.

    Raises:
        ConfigError: The DeepSpeed configuration cannot be read.
    """
    trained = ALL
    if switch(flags, "tune_mm_mlp_adapter"):
        trained = PROJECTOR
    elif switch(flags, "lora_enable"):
        trained = ADAPTERS
    zero_stage, offloads = _zero(flags.get("deepspeed"))
    return StageSettings(
        trained=trained,
        batch_size=int(flags.get("per_device_train_batch_size", 8)),
        accumulation=int(flags.get("gradient_accumulation_steps", 1)),
        num_gpus=num_gpus,
        zero_stage=zero_stage,
        offloads=offloads,
        half=switch(flags, "bf16") or switch(flags, "fp16"),
        checkpointing=switch(flags, "gradient_checkpointing")
        or switch(flags, "activation_checkpointing"),
        lora_rank=int(flags.get("lora_r", 64)) if trained == ADAPTERS else 0,
        bits=int(flags.get("bits", 16)),
        caches_features=read_cache_switch(flags.get("feature_cache", NO_CACHE)) != NO_CACHE,
    )


def _zero(path: str | None) -> tuple[int, bool]:
    """ZeRO's stage and whether it offloads, of a DeepSpeed configuration."""
    if path is None or path == "none":
        return 0, False
    file = Path(path) if Path(path).is_file() else ROOT / path
    try:
        zero = json.loads(file.read_text(encoding="utf-8")).get("zero_optimization", {})
    except (OSError, ValueError) as error:
        raise ConfigError(f"--deepspeed {path}: not readable as JSON: {error}") from error
    return int(zero.get("stage", 0)), "offload_param" in zero


def _implied(plan: Plan, hours: float) -> Implied:
    """What a run of all stages in so many hours made of its GPUs.

    Raises:
        ConfigError: There is no GPU, or the hours are no positive number.
    """
    if plan.gpu is None or hours <= 0:
        raise ConfigError(f"--hours is {hours:g}: expected a positive number, and --gpus above 0")
    seconds = hours * 3600
    flops = sum(stage.total_flops for stage in plan.stages)
    return Implied(
        hours=hours,
        samples_per_second=sum(stage.data.num_samples for stage in plan.stages) / seconds,
        tokens_per_second_and_gpu=sum(s.num_tokens for s in plan.stages) / seconds / plan.num_gpus,
        mfu=flops / seconds / (plan.num_gpus * plan.gpu.peak_tflops * 1e12),
    )


__all__ = ["FILL_LIMIT", "Implied", "Plan", "StagePlan", "Wishes", "make_plan", "settings_of"]
