"""Shows a plan: tables for a terminal, plain values for JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.table import Table

from lrm_ext.planning.estimate import GIB, Plan, StagePlan
from lrm_ext.planning.memory import FILL_LIMIT, Memory, num_trained
from lrm_ext.planning.presets import STAGES

_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "block": "a block computed again",
    "logits": "logits",
    "image_features": "pictures and features",
    "buffers": "buffers, CUDA context",
}


def render(plan: Plan) -> list[str | Table]:
    """The plan in text and tables, in the order in which they are read."""
    return [_heading(plan), _models(plan), _table(plan), *_notes(plan)]


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain values: bytes, hours, operations."""
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
    for row in _rows_of_settings(plan):
        table.add_row(*row)
    table.add_section()
    for row in _rows_of_memory(plan):
        table.add_row(*row)
    table.add_section()
    for row in _rows_of_cost(plan):
        table.add_row(*row)
    return table


def _rows_of_settings(plan: Plan) -> list[list[str]]:
    stages = plan.stages
    return [
        ["trained parameters", *(_big(num_trained(plan.shape, s.settings)) for s in stages)],
        ["sharding", *(_sharding(s) for s in stages)],
        ["activation checkpointing", *(_yes(s.settings.checkpointing) for s in stages)],
        ["samples a GPU x accumulation x GPUs", *(_batch(s) for s in stages)],
        ["positions a sample, mean", *(f"{s.data.num_positions:.0f}" for s in stages)],
        ["of them learnt, mean", *(f"{s.data.num_supervised:.0f}" for s in stages)],
    ]


def _rows_of_memory(plan: Plan) -> list[list[str]]:
    stages = plan.stages
    unit, size = ("GiB", GIB) if plan.gpu is not None else ("MiB", 2**20)
    rows = []
    for field in dataclasses.fields(Memory):
        values = [getattr(stage.memory, field.name) for stage in stages]
        if any(values):
            label = f"{_PARTS[field.name]}, {unit}"
            rows.append([label, *(f"{value / size:.1f}" for value in values)])
    rows.append([f"memory, {unit}", *(f"{s.memory.total / size:.1f}" for s in stages)])
    rows.append(
        [
            f"the same, all samples at the limit, {unit}",
            *(f"{s.memory_at_limit.total / size:.1f}" for s in stages),
        ]
    )
    if plan.gpu is not None:
        limit = FILL_LIMIT * plan.gpu.memory_gib * GIB
        rows.append([f"room ({FILL_LIMIT:.0%}), GiB", *(f"{limit / GIB:.1f}" for _ in stages)])
        rows.append(["fits", *(_fits(stage, limit) for stage in stages)])
        rows.append(["largest batch a GPU", *(str(s.largest_batch) for s in stages)])
        rows.append(
            [
                "the same, all samples at the limit",
                *(f"{s.largest_batch_at_limit} of {s.max_length} tokens" for s in stages),
            ]
        )
    return rows


def _rows_of_cost(plan: Plan) -> list[list[str]]:
    stages = plan.stages
    rows = [
        ["samples", *(f"{s.data.num_samples:,}" for s in stages)],
        ["optimizer steps", *(f"{s.num_steps:,}" for s in stages)],
        ["tokens", *(_big(s.num_tokens) for s in stages)],
        ["operations a sample", *(f"{s.flops.total / 1e12:.3g} T" for s in stages)],
        ["operations", *(f"{s.total_flops:.3g}" for s in stages)],
    ]
    if plan.mfu is not None:
        hours = [s.hours or 0.0 for s in stages]
        rows.append([f"hours at MFU {plan.mfu:.0%}", *(f"{value:.1f}" for value in hours)])
        if plan.price is not None:
            prices = (value * plan.num_gpus * plan.price for value in hours)
            label = f"money at {plan.price:g} a GPU and hour"
            rows.append([label, *(f"{value:,.0f}" for value in prices)])
    return rows


def _notes(plan: Plan) -> list[str]:
    notes = []
    for stage in plan.stages:
        data = stage.data
        notes.append(
            f"{STAGES[stage.stage]}: number of samples {data.source_of_samples}; lengths "
            f"{data.source_of_lengths}"
        )
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


def _sharding(stage: StagePlan) -> str:
    settings = stage.settings
    if settings.offloads:
        return f"ZeRO-{settings.zero_stage}, offloaded"
    if settings.zero_stage:
        return f"ZeRO-{settings.zero_stage}"
    return "none" if settings.num_devices == 1 else "DDP"


def _batch(stage: StagePlan) -> str:
    s = stage.settings
    return f"{s.batch_size} x {s.accumulation} x {s.num_devices} = {s.samples_a_step}"


def _fits(stage: StagePlan, limit: float) -> str:
    if stage.memory.total > limit:
        return "no"
    return "yes" if stage.memory_at_limit.total <= limit else "yes, not at the limit"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _big(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:,.0f}"
