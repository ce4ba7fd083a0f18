"""Plans a training run: memory, operations, hours and cost of each stage of a preset.

Input: a preset, and the number and type of GPUs. Output: a `Plan`, printed as tables or converted
to plain values for JSON. Given the hours that a run took, it also tells how well the run used its
GPUs. Number and length of the samples are measured if the corpus of the preset is there, and
assumed otherwise; `StageData` records the source of its numbers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.table import Table

from llava.data.sample import Sample
from llava.errors import ConfigError
from llava.train.flops import (
    ADAPTERS,
    Gpu,
    ModelShape,
    SampleFlops,
    get_gpu,
    what_is_trained,
)
from lrm_ext.plan.memory import (
    FILL_LIMIT,
    Memory,
    StageSettings,
    estimate_memory,
    largest_batch,
    num_trained,
)
from lrm_ext.plan.presets import ROOT, STAGES, load_shape, stage_flags, switch
from lrm_ext.training.arguments import NO_CACHE, read_cache_switch

GIB = 2**30


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage.

    Attributes:
        stage: "pretrain" or "finetune".
        settings: Settings that affect the memory.
        data: Number and length of the samples.
        memory: Memory of a device with samples of mean length.
        memory_at_limit: Memory of a device if all samples have `--model_max_length` positions.
        largest_batch: Largest micro-batch at mean length; None without a GPU.
        largest_batch_at_limit: Largest micro-batch if all samples have the maximum length.
        max_length: `--model_max_length`.
        flops: Operations per sample.
        hours: Hours at the MFU of the plan; None without a GPU.
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
        """Number of optimizer steps."""
        return -(-self.data.num_samples // self.settings.samples_a_step)

    @property
    def num_tokens(self) -> float:
        """Positions of all samples, including those of images."""
        return self.data.num_samples * self.data.num_positions

    @property
    def total_flops(self) -> float:
        """Operations of all samples."""
        return self.data.num_samples * self.flops.total


@dataclass(frozen=True)
class Implied:
    """Throughput of a run that took a known time.

    Attributes:
        hours: Hours of all stages.
        samples_per_second: Samples per second on all GPUs.
        tokens_per_second_and_gpu: Positions per second and GPU, including those of images.
        mfu: Model FLOPs utilization.
    """

    hours: float
    samples_per_second: float
    tokens_per_second_and_gpu: float
    mfu: float


@dataclass(frozen=True)
class Plan:
    """The plan of a preset.

    Attributes:
        preset: Name of the preset.
        shape: Sizes of the model.
        gpu: Type of GPU; None for a CPU.
        num_gpus: Number of GPUs.
        mfu: Assumed model FLOPs utilization; None for a CPU.
        stages: The plans of the stages.
        price: Price of a GPU hour; None if not given.
        implied: Throughput that `--hours` implies; None if not given.
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
        """Hours of all stages; None without a GPU."""
        hours = [stage.hours for stage in self.stages if stage.hours is not None]
        return sum(hours) if len(hours) == len(self.stages) else None

    @property
    def cost(self) -> float | None:
        """Cost of all stages in the currency of the price; None if unknown."""
        if self.price is None or self.hours is None:
            return None
        return self.hours * self.num_gpus * self.price


@dataclass(frozen=True)
class Wishes:
    """Values that a user gives for a plan; those that are None are measured or assumed.

    Attributes:
        num_samples: Samples of each stage.
        text_tokens: Mean text tokens of a sample.
        supervised_tokens: Mean supervised tokens of a sample.
        mfu: Model FLOPs utilization.
        price: Price of a GPU hour.
        hours: Hours that a run took.
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
    wishes: Wishes = Wishes(),
    extra: tuple[str, ...] = (),
) -> Plan:
    """Plans the stages of a preset.

    Args:
        preset: Name of the preset.
        num_gpus: GPUs on one machine or several; 0 plans for a CPU.
        gpu_key: Type of GPU; may be None for a CPU.
        wishes: Values that the user gives.
        extra: Training flags, which take precedence over those of the preset.

    Raises:
        ConfigError: Preset, GPU or model is unknown, or a number is out of range.
    """
    if num_gpus < 0:
        raise ConfigError(f"--gpus is {num_gpus}, expected a number of GPUs, or 0 for a CPU")
    gpu = get_gpu(gpu_key or "") if num_gpus else None
    mfu = None if gpu is None else (wishes.mfu if wishes.mfu is not None else gpu.plan_mfu)
    if mfu is not None and not 0 < mfu <= 1:
        raise ConfigError(f"--mfu is {mfu}, expected a share in (0, 1]")
    stages, shape = [], None
    for stage in STAGES:
        flags = stage_flags(preset, stage, num_gpus, extra)
        shape = load_shape(
            str(_find(flags["model_name_or_path"]) or flags["model_name_or_path"]),
            _find_towers(flags["vision_tower"]) if "vision_tower" in flags else None,
            int(flags.get("mm_vision_select_layer", -2)),
        )
        stages.append(_plan_stage(stage, flags, shape, gpu, num_gpus, mfu, wishes))
    assert shape is not None
    plan = Plan(preset, shape, gpu, num_gpus, mfu, tuple(stages), wishes.price)
    implied = None if wishes.hours is None else _implied(plan, wishes.hours)
    return replace(plan, implied=implied)


def _plan_stage(
    stage: str,
    flags: Mapping[str, str],
    shape: ModelShape,
    gpu: Gpu | None,
    num_gpus: int,
    mfu: float | None,
    wishes: Wishes,
) -> StagePlan:
    settings = settings_of(flags, num_gpus)
    data = measure_data(flags, shape, settings.samples_a_step, wishes)
    settings = replace(settings, num_tiles=data.num_tiles)
    limit = int(flags.get("model_max_length", 2048))
    at_mean = (data.num_positions, data.num_supervised)
    at_limit = (limit, data.num_supervised * limit / data.num_positions)
    flops = shape.sample_flops(
        data.num_positions,
        data.num_supervised,
        settings.trained,
        num_images=data.num_tiles,
        tower_runs=not settings.caches_features,
        lora_rank=settings.lora_rank,
        tower_tuning=settings.tower_tuning,
    )
    batches = [
        largest_batch(shape, settings, positions, supervised, gpu.memory_gib * GIB) if gpu else None
        for positions, supervised in (at_mean, at_limit)
    ]
    hours = None
    if gpu is not None and mfu is not None:
        hours = data.num_samples * flops.total / (num_gpus * gpu.peak_tflops * 1e12 * mfu) / 3600
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
    """Reads the settings that affect memory from the flags of a stage.

    Raises:
        ConfigError: The DeepSpeed configuration cannot be read.
    """
    rank = int(flags.get("lora_r", 64)) if switch(flags, "lora_enable") else 0
    last_layers = flags.get("mm_vision_tower_last_layers")
    trained, tower_tuning = what_is_trained(
        flags.get("mm_tunable_parts"),
        None if last_layers is None else int(last_layers),
        switch(flags, "tune_mm_mlp_adapter"),
        rank,
    )
    caches = read_cache_switch(flags.get("feature_cache", NO_CACHE)) != NO_CACHE
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
        lora_rank=rank if trained == ADAPTERS else 0,
        lora_experts=trained == ADAPTERS and switch(flags, "lora_experts"),
        bits=int(flags.get("bits", 16)),
        caches_features=caches and tower_tuning is None,
        tower_tuning=tower_tuning,
    )


def _zero(path: str | None) -> tuple[int, bool]:
    """Reads the ZeRO stage, and whether it offloads, from a DeepSpeed configuration."""
    if path is None or path == "none":
        return 0, False
    file = Path(path) if Path(path).is_file() else ROOT / path
    try:
        zero = json.loads(file.read_text(encoding="utf-8")).get("zero_optimization", {})
    except (OSError, ValueError) as error:
        raise ConfigError(f"--deepspeed {path}: not readable as JSON: {error}") from error
    return int(zero.get("stage", 0)), "offload_param" in zero


def _implied(plan: Plan, hours: float) -> Implied:
    """Computes the throughput of a run that took the given hours.

    Raises:
        ConfigError: There is no GPU, or the hours are not positive.
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


# The paper's abstract: 4.8 million in total, half of them in each stage.
PAPER_SAMPLES = 2_400_000
# An assumption: translated captions of ShareGPT4V in Llama's tokens, prompt included.
ASSUMED_TEXT_TOKENS = 254
_NUM_MEASURED = 200


@dataclass(frozen=True)
class StageData:
    """Number and length of the samples of a stage.

    Attributes:
        num_samples: Samples of all epochs.
        num_positions: Mean positions of a sample, including those of its images.
        num_supervised: Mean supervised positions of a sample.
        source_of_samples: Source of their number.
        source_of_lengths: Source of their length.
        num_tiles: Mean number of images of the tower's size: one, or the tiles of the images.
    """

    num_samples: int
    num_positions: float
    num_supervised: float
    source_of_samples: str
    source_of_lengths: str
    num_tiles: float = 1.0


def measure_data(
    flags: Mapping[str, str],
    shape: ModelShape,
    samples_a_step: int,
    wishes: Wishes,
) -> StageData:
    """Measures or assumes number and length of the samples of a stage.

    Args:
        flags: Flags of the stage.
        shape: Sizes of the model.
        samples_a_step: Global batch size, for flags that give a number of steps.
        wishes: Values that the user gives, which take precedence.

    Raises:
        UserError: The corpus or the mixture exists but cannot be read.
    """
    tiling = _tiling(flags, shape)
    num_measured, text, supervised, source, images = _measure(flags, tiling) or (
        None, float(ASSUMED_TEXT_TOKENS), None, "assumed, the corpus is not here", None,
    )  # fmt: skip
    lengths = source
    num_in_images, num_tiles = float(shape.num_image_tokens), 1.0
    if tiling is not None and tiling.video_frames:
        num_tiles = tiling.video_frames
        num_in_images = tiling.num_video_positions(num_tiles)
        lengths += f"; a video of {num_tiles} frames in each sample"
    elif tiling is not None:
        size = tiling.largest_size
        num_in_images, num_tiles = images or (tiling.num_positions(size), tiling.num_tiles(size))
        lengths += "" if images else f"; images of {size[0]} x {size[1]} pixels"
    if wishes.text_tokens is not None:
        text, supervised, lengths = wishes.text_tokens, None, "as given"
    if wishes.supervised_tokens is not None:
        supervised = wishes.supervised_tokens
    if supervised is None:
        supervised = text  # more it cannot be
        lengths += "; all of the text learnt"
    if wishes.num_samples is not None:
        num_samples, source = wishes.num_samples, "as given"
    elif int(flags.get("max_steps", -1)) > 0:
        num_samples, source = int(flags["max_steps"]) * samples_a_step, "--max_steps"
    elif num_measured is not None:
        num_samples = round(num_measured * float(flags.get("num_train_epochs", 1)))
    else:
        num_samples, source = PAPER_SAMPLES, "the paper's"
    return StageData(num_samples, text + num_in_images, supervised, source, lengths, num_tiles)


def _tiling(flags: Mapping[str, str], shape: ModelShape) -> Any:
    """Returns how images are cut into tiles and videos shown (`llava.model.tiles.Tiling`).

    None if neither is.

    Raises:
        ConfigError: A training with these flags would be refused.
    """
    ratio = flags.get("image_aspect_ratio", "square")
    shows_videos = int(flags.get("video_frames", 0)) > 0
    if not (ratio.startswith("anyres") or shows_videos) or shape.tower is None:
        return None
    from llava.model.tiles import Tiling  # torch is not needed otherwise

    side_px = max(part.image_size_px for part in shape.tower.parts)
    tiling = Tiling.of(SimpleNamespace(**flags), side_px, shape.num_image_tokens)
    tiling.check(int(flags.get("model_max_length", 2048)))
    return tiling


def _image_counts(
    samples: Sequence[Sample], folder: Path, tiling: Any
) -> tuple[float, float] | None:
    """Returns the mean positions and tiles of the images of samples; None if they are not here."""
    from llava.images import image_size

    sizes: list[tuple[int, int] | None] = []
    for sample in samples:
        paths = [folder / image for image in sample.images]
        if not all(map(Path.is_file, paths)):
            return None
        sizes += [image_size(path) if len(paths) == 1 else None for path in paths]
    positions, tiles = (
        sum(map(count, sizes)) / len(samples) for count in (tiling.num_positions, tiling.num_tiles)
    )
    return positions, tiles


def _measure(
    flags: Mapping[str, str], tiling: Any
) -> tuple[int, float, float | None, str, tuple[float, float] | None] | None:
    """Measures number of samples, mean text tokens, mean supervised tokens, and images.

    Returns:
        The numbers, their source, and the mean positions and tiles of images if they are cut;
        None if corpus or tokenizer is missing.
    """
    corpus_path, mixture_path = _find(flags.get("corpus_path")), _find(flags.get("mixture_path"))
    model_path = _find(flags.get("model_name_or_path"))
    if corpus_path is None or not (corpus_path / "corpus.toml").is_file():
        return None
    if model_path is None or not any(model_path.glob("token*")):
        return None
    from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
    from lrm_ext.corpus.store import Corpus
    from lrm_ext.instructions.inspection import encode_sample, load_tokenizer
    from lrm_ext.mixture.order import Mixture
    from lrm_ext.mixture.spec import MixtureSpec

    spec = MixtureSpec() if mixture_path is None else MixtureSpec.from_toml(mixture_path)
    corpus = Corpus.open(corpus_path)
    mixture = Mixture(spec.in_languages(flags.get("languages")), corpus)
    tokenizer = load_tokenizer(model_path)
    count = min(_NUM_MEASURED, len(mixture))
    samples = [mixture.sample(i) for i in range(count)]
    encoded = [encode_sample(sample, flags["version"], tokenizer) for sample in samples]
    tokens = [token for each in encoded for token in each.input_ids]
    labels = [label for each in encoded for label in each.labels]
    num_text = len(tokens) - tokens.count(IMAGE_TOKEN_INDEX)
    num_supervised = len(labels) - labels.count(IGNORE_INDEX)
    source = f"{count} samples of {flags['corpus_path']}"
    images = tiling and _image_counts(samples, corpus.image_root, tiling)
    return len(mixture), num_text / count, num_supervised / count, source, images


def _find(name: str | None) -> Path | None:
    """Returns a path as given or relative to the repository, if it exists."""
    candidates = () if name is None else (Path(name), ROOT / name)
    return next(filter(Path.exists, candidates), None)


def _find_towers(name: str) -> str:
    """Returns a tower's folder, or those of towers joined by `+`; a name where there is none."""
    names = [name] if _find(name) else name.split("+")
    return "+".join(str(_find(each) or each) for each in names)


_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "block": "a block computed again",
    "logits": "logits",
    "image_features": "images and features",
    "buffers": "buffers, CUDA context",
}


def render(plan: Plan) -> list[str | Table]:
    """Renders a plan as text and tables, in the order of printing."""
    return [_heading(plan), _models(plan), _table(plan), *_notes(plan)]


def as_dict(plan: Plan) -> dict[str, Any]:
    """Converts a plan to plain values in bytes, hours and operations."""
    stages = []
    for stage in plan.stages:
        values = dataclasses.asdict(stage)
        values["memory"]["total"] = stage.memory.total
        values["memory_at_limit"]["total"] = stage.memory_at_limit.total
        values["flops"] = {**stage.flops._asdict(), "total": stage.flops.total}
        stages.append({**values, "steps": stage.num_steps, "tokens": stage.num_tokens})
    return {
        "preset": plan.preset,
        "gpu": None if plan.gpu is None else dataclasses.asdict(plan.gpu),
        "num_gpus": plan.num_gpus,
        "mfu": plan.mfu,
        "parameters": _parameters(plan),
        "stages": stages,
        "hours": plan.hours,
        "cost": plan.cost,
        "implied": None if plan.implied is None else dataclasses.asdict(plan.implied),
    }


def _parameters(plan: Plan) -> dict[str, int]:
    tower = plan.shape.tower
    return {
        "language_model": plan.shape.language_model.num_parameters,
        "projector": plan.shape.num_in_projector,
        "tower": 0 if tower is None else tower.num_parameters,
    }


def _heading(plan: Plan) -> str:
    if plan.gpu is None:
        return f"preset {plan.preset} on a CPU"
    return (
        f"preset {plan.preset} on {plan.num_gpus} x {plan.gpu.name} "
        f"({plan.gpu.peak_tflops:g} TFLOP/s: {plan.gpu.source})"
    )


def _models(plan: Plan) -> str:
    names = {"language_model": "language model", "projector": "projector", "tower": "vision tower"}
    counts = _parameters(plan)
    return "parameters: " + ", ".join(f"{names[k]} {_big(n)}" for k, n in counts.items())


def _table(plan: Plan) -> Table:
    table = Table("", *(STAGES[stage.stage] for stage in plan.stages))
    for column in table.columns[1:]:
        column.justify = "right"
    for sections in zip(*(_cells(plan, stage) for stage in plan.stages), strict=True):
        for label in sections[0]:
            table.add_row(label, *(cells[label] for cells in sections))
        table.add_section()
    return table


def _cells(plan: Plan, stage: StagePlan) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Returns the column of a stage: its settings, memory and cost, by label."""
    chosen, data = stage.settings, stage.data
    settings = {
        "trained parameters": _big(num_trained(plan.shape, chosen)),
        **_tower_row(plan, stage),
        "sharding": _sharding(chosen),
        "activation checkpointing": "yes" if chosen.checkpointing else "no",
        "samples a GPU x accumulation x GPUs": f"{chosen.batch_size} x {chosen.accumulation} x "
        f"{chosen.num_devices} = {chosen.samples_a_step}",
        "positions a sample, mean": f"{data.num_positions:.0f}",
        "of them learnt, mean": f"{data.num_supervised:.0f}",
    }
    unit, size = ("GiB", GIB) if plan.gpu is not None else ("MiB", 2**20)
    parts = {
        label: getattr(stage.memory, name)
        for name, label in _PARTS.items()
        if any(getattr(each.memory, name) for each in plan.stages)
    }
    parts["memory"] = stage.memory.total
    parts["the same, all samples at the limit"] = stage.memory_at_limit.total
    memory = {f"{label}, {unit}": f"{part / size:.1f}" for label, part in parts.items()}
    if plan.gpu is not None:
        limit = FILL_LIMIT * plan.gpu.memory_gib * GIB
        memory |= {
            f"room ({FILL_LIMIT:.0%}), GiB": f"{limit / GIB:.1f}",
            "fits": _fits(stage, limit),
            "largest batch a GPU": f"{stage.largest_batch}",
            "the same, all samples at the limit": f"{stage.largest_batch_at_limit} of "
            f"{stage.max_length} tokens",
        }
    cost = {
        "samples": f"{data.num_samples:,}",
        "optimizer steps": f"{stage.num_steps:,}",
        "tokens": _big(stage.num_tokens),
        "operations a sample": f"{stage.flops.total / 1e12:.3g} T",
        "operations": f"{stage.total_flops:.3g}",
    }
    if plan.mfu is not None and stage.hours is not None:
        cost[f"hours at MFU {plan.mfu:.0%}"] = f"{stage.hours:.1f}"
        if plan.price is not None:
            money = stage.hours * plan.num_gpus * plan.price
            cost[f"money at {plan.price:g} a GPU and hour"] = f"{money:,.0f}"
    return settings, memory, cost


def _tower_row(plan: Plan, stage: StagePlan) -> dict[str, str]:
    """Returns the row of the tower's trained parameters, if any stage trains it."""
    tower = plan.shape.tower
    if tower is None or not any(each.settings.tower_tuning for each in plan.stages):
        return {}
    return {"of them in the vision tower": _big(tower.num_tuned(stage.settings.tower_tuning))}


def _notes(plan: Plan) -> list[str]:
    notes = [
        f"{STAGES[stage.stage]}: number of samples {stage.data.source_of_samples}; lengths "
        f"{stage.data.source_of_lengths}"
        for stage in plan.stages
    ]
    if plan.hours is not None:
        cost = "" if plan.cost is None else f", {plan.cost:,.0f} in money"
        notes.append(f"both stages: {plan.hours:.1f} hours{cost}")
    if plan.gpu is None:
        notes.append("A CPU's peak is not known: no hours.")
    elif plan.price is None:
        notes.append("No money without a price: --price of a GPU for an hour.")
    if plan.implied is not None:
        implied = plan.implied
        notes.append(
            f"{implied.hours:g} hours imply {implied.samples_per_second:.2f} samples/s, "
            f"{implied.tokens_per_second_and_gpu:,.0f} tokens/s on each GPU, MFU {implied.mfu:.1%}"
        )
    return notes


def _sharding(settings: StageSettings) -> str:
    if settings.zero_stage or settings.offloads:
        return f"ZeRO-{settings.zero_stage}{', offloaded' if settings.offloads else ''}"
    return "none" if settings.num_devices == 1 else "DDP"


def _fits(stage: StagePlan, limit: float) -> str:
    if stage.memory.total > limit:
        return "no"
    return "yes" if stage.memory_at_limit.total <= limit else "yes, not at the limit"


def _big(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:,.0f}"
