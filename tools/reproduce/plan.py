"""Renders the requirements of the full reproduction: commands, hours and disk, from `lrm plan`.

Input: a study and a preset. Output: lines and tables, and the mixture files that the commands name.
The module runs no command.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

from rich.table import Table

from llava.errors import ConfigError
from lrm_ext.plan.plan import GIB, Plan, StagePlan, Wishes, make_plan
from lrm_ext.plan.presets import STAGES
from tools.reproduce.settings import FINETUNE, PRETRAIN, Setting, Study
from tools.reproduce.tasks import make_tasks, run_name, write_mixtures

_BYTES_OF_WEIGHT: Final = 2  # bf16
_BYTES_OF_CHECKPOINT: Final = 12  # float32 weights and Adam's two moments


def render_plan(
    study: Study, preset: str, out: Path, gpus: int, gpu: str, samples: int | None
) -> list[str | Table]:
    """Returns the parts of the plan, in reading order.

    Args:
        study: Settings and seeds.
        preset: Name of a preset in scripts/v1_5/presets/.
        out: Folder of the runs.
        gpus: Number of GPUs.
        gpu: Kind of GPU.
        samples: Samples of each stage at ratio 1; None for the preset's corpus, else the paper's.

    Raises:
        ConfigError: The preset or GPU is unknown, or no hours are known for the preset.
    """
    made = make_plan(preset, gpus, gpu, Wishes(num_samples=samples))
    if made.hours is None:
        raise ConfigError(f"preset {preset}: no hours are known for it; plan with GPUs")
    write_mixtures(study, make_tasks(study, out))
    commands = _commands(study, preset, out)
    table, total = _table(study, made)
    counts = made.shape.language_model.num_parameters + made.shape.num_in_projector
    runs = len(study.settings) * len(study.seeds)
    kept = runs * counts * _BYTES_OF_WEIGHT
    at_work = counts * _BYTES_OF_CHECKPOINT
    return [
        f"preset {preset} on {gpus} x {gpu}, {len(study.settings)} settings, seeds "
        f"{', '.join(map(str, study.seeds))}",
        table,
        f"hours in all: {total:,.0f} ({total * gpus:,.0f} of a GPU); pre-training that settings "
        "share is counted once. Computed from the operations and an assumed share of the GPUs' "
        "peak, never measured: `lrm plan` says from what.",
        f"disk: {kept / GIB:,.0f} GiB for {runs} models in bf16, {at_work / GIB:,.0f} GiB for a "
        "checkpoint of the current run (two while one is written); data not included",
        f"commands, from the repository's root, with the mixtures in {out / 'mixtures'}:",
        "\n".join(commands),
    ]


def _hours(made: Plan, stage: str, ratio: float) -> float:
    """Returns the hours of a stage; those of the plan are for ratio 1."""
    found: StagePlan = next(one for one in made.stages if one.stage == stage)
    return (found.hours or 0.0) * (1 + ratio) / 2


def _ratio(setting: Setting, stage: str) -> float:
    own = setting.pretrain_ratio if stage == PRETRAIN else setting.ratio
    return own if setting.steps_of_ratio is None else setting.steps_of_ratio


def _epochs(setting: Setting, stage: str) -> float:
    """Returns the epochs over a setting's own mixture that make up its training length."""
    own = setting.pretrain_ratio if stage == PRETRAIN else setting.ratio
    return (1 + _ratio(setting, stage)) / (1 + own)


def _table(study: Study, made: Plan) -> tuple[Table, float]:
    table = Table("setting", "what", "paper")
    for stage in (PRETRAIN, FINETUNE):
        table.add_column(f"{STAGES[stage]}, hours", justify="right")
    seen: set[str] = set()
    total = 0.0
    for setting in study.settings:
        second = _hours(made, FINETUNE, _ratio(setting, FINETUNE))
        first = _hours(made, PRETRAIN, _ratio(setting, PRETRAIN))
        shared = setting.stage1 in seen
        seen.add(setting.stage1)
        total += len(study.seeds) * (second + (0 if shared else first))
        shown = "shared" if shared else f"{first:.1f}"
        table.add_row(setting.name, setting.words, setting.paper, shown, f"{second:.1f}")
    return table, total


def _commands(study: Study, preset: str, out: Path) -> list[str]:
    lines: dict[str, None] = {}
    for seed in study.seeds:
        for setting in study.settings:
            stage1, run = run_name(setting.stage1, seed), run_name(setting.name, seed)
            projector = out / "stage1" / stage1
            mixtures = out / "mixtures"
            for stage, folder, mixture in (
                (PRETRAIN, projector, mixtures / f"stage1-{stage1}.pretrain.toml"),
                (FINETUNE, out / "runs" / run, mixtures / f"{run}.finetune.toml"),
            ):
                variables = {"PRESET": preset, "MIXTURE": mixture, "OUTPUT_DIR": folder}
                words = [f"{name}={shlex.quote(str(text))}" for name, text in variables.items()]
                words += ["bash", f"scripts/v1_5/lrm_{stage}.sh", "--seed", str(seed)]
                epochs = _epochs(setting, stage)
                if epochs != 1:
                    words += ["--num_train_epochs", f"{epochs:g}"]
                if stage == FINETUNE:
                    words += ["--pretrain_mm_mlp_adapter", str(projector / "mm_projector.bin")]
                lines[" ".join(words)] = None
            model = shlex.quote(str(out / "runs" / run))
            lines[f"lrm eval --model {model} --benchmarks mme,pope,seed_bench,mmbench"] = None
    return list(lines)
