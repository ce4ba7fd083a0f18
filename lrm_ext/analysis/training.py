"""What `trainer_state.json` tells of a training: the loss over the steps, and how long it took.

In: a checkpoint folder, and the folder of the stage before it by the quickstart's naming. Out:
frozen records for a plot. A folder without such a file gives nothing; a broken file is logged.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

log = logging.getLogger(__name__)

STATE_FILE: Final = "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class StageCurve:
    """One stage of a training.

    Attributes:
        name: What it is called in a report.
        folder: Where it was read from.
        steps: Optimizer steps at which the loss was logged.
        losses: The loss at those steps.
        num_steps: Steps of the whole stage.
        runtime_s: Its duration in seconds; None if the log does not say.
        samples_per_s: Its speed; None if the log does not say.
    """

    name: str
    folder: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    num_steps: int
    runtime_s: float | None
    samples_per_s: float | None


def training_stages(model_path: Path) -> tuple[StageCurve, ...]:
    """Curves of the stages that made a model: `<model>-pretrain` beside it, and itself."""
    before = model_path.with_name(f"{model_path.name}-pretrain")
    stages = (("Pre-training", before), ("Fine-tuning", model_path))
    return tuple(curve for name, folder in stages if (curve := read_stage(name, folder)))


def read_stage(name: str, folder: Path) -> StageCurve | None:
    """Read a stage's curve; None where there is none.

    Args:
        name: What to call it.
        folder: Holds `trainer_state.json`, or `checkpoint-<step>` folders that do.
    """
    path = _state_file(folder)
    if path is None:
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        points = [(int(e["step"]), float(e["loss"])) for e in state["log_history"] if "loss" in e]
        return _curve(name, folder, points, state)
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s: left out of the report, as it cannot be read: %r", path, error)
        return None


def _curve(
    name: str, folder: Path, points: list[tuple[int, float]], state: dict[str, Any]
) -> StageCurve | None:
    points = [point for point in points if point[1] > 0]
    if len(points) < 2:
        return None
    summary: dict[str, Any] = next(
        (e for e in reversed(state["log_history"]) if "train_runtime" in e), {}
    )
    return StageCurve(
        name=name,
        folder=str(folder),
        steps=tuple(step for step, _ in points),
        losses=tuple(loss for _, loss in points),
        num_steps=max(points[-1][0], int(state.get("global_step", 0))),
        runtime_s=summary.get("train_runtime"),
        samples_per_s=summary.get("train_samples_per_second"),
    )


def _state_file(folder: Path) -> Path | None:
    if (folder / STATE_FILE).is_file():
        return folder / STATE_FILE
    numbered = [
        (int(match.group(1)), path / STATE_FILE)
        for path in folder.glob("checkpoint-*")
        if (match := _CHECKPOINT.fullmatch(path.name)) and (path / STATE_FILE).is_file()
    ]
    return max(numbered)[1] if numbered else None
