"""Draws the loss of runs over their steps, every attempt of each (`lrm plot-run`).

Below it, where runs logged them: the loss in every language and instruction (`run_panels.py`).

In: output folders of training. Out: a picture. Interruptions are visible: an attempt that went on
from a checkpoint begins with a mark, and the steps that the attempt before it had made beyond that
checkpoint stay in the picture, so that anyone can see whether the two agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.errors import DataError
from llava.train.metrics import METRICS_FILE, read_metrics
from lrm_ext.analysis.run_panels import (
    VALIDATION_MARK,
    draw_panels,
    groups_of,
    num_rows,
    read_curves,
)
from lrm_ext.files import save_figure

# told apart without colour
_STYLES = ("-", "--", ":", "-.")
# Okabe and Ito's colours, which colour-blind people can tell apart
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")


@dataclass(frozen=True)
class Attempt:
    """What a run did between a start and its end or interruption.

    Attributes:
        first_step: Steps that were done before it.
        steps: Optimizer steps at which the loss was logged.
        losses: The loss at those steps.
    """

    first_step: int
    steps: tuple[int, ...]
    losses: tuple[float, ...]


def read_attempts(folder: Path) -> tuple[Attempt, ...]:
    """Read a run's attempts.

    Args:
        folder: The `--output_dir` of a training.

    Raises:
        DataError: The run logged no loss.
    """
    by_attempt: dict[int, list[dict[str, Any]]] = {}
    for record in read_metrics(folder / METRICS_FILE):
        by_attempt.setdefault(record["attempt"], []).append(record)
    attempts = []
    for records in by_attempt.values():
        logged = [record for record in records if "loss" in record]
        steps = tuple(record["step"] for record in logged)
        losses = tuple(record["loss"] for record in logged)
        attempts.append(Attempt(records[0]["step"], steps, losses))
    if not any(attempt.steps for attempt in attempts):
        raise DataError(
            f"{folder}: no loss found in {METRICS_FILE}; expected the --output_dir of a training "
            "that logged at least once (--logging_steps)."
        )
    return tuple(attempts)


def largest_difference(attempts: Sequence[Attempt]) -> tuple[int, float]:
    """How far attempts disagree in the steps that more than one of them made.

    Returns:
        Number of those steps, and the largest difference of their losses.
    """
    seen: dict[int, float] = {}
    differences = []
    for attempt in attempts:
        for step, loss in zip(attempt.steps, attempt.losses, strict=True):
            if step in seen:
                differences.append(abs(loss - seen[step]))
            seen[step] = loss
    return len(differences), max(differences, default=0.0)


def plot_runs(folders: Sequence[Path], out: Path, smooth: int = 1) -> None:
    """Draw the loss of runs.

    Args:
        folders: Output folders of trainings.
        out: The picture (.png, .svg or .pdf).
        smooth: Steps over which the loss is averaged, a run's first ones over fewer.

    Raises:
        DataError: A run logged no loss.
    """
    from matplotlib.figure import Figure

    runs = [(folder, read_attempts(folder)) for folder in folders]
    curves = [read_curves(folder) for folder in folders]
    looks = [
        {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _STYLES[i % len(_STYLES)]}
        for i in range(len(runs))
    ]
    groups = groups_of(curves)
    heights = [4.5, 1.5 * num_rows(groups)] if groups else [4.5]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    axes = parts[0].subplots()
    if groups:
        draw_panels(parts[1], curves, groups, looks)
    for (folder, attempts), curve, look in zip(runs, curves, looks, strict=True):
        done: dict[int, float] = {}
        for index, attempt in enumerate(attempts):
            label = folder.name if index == 0 else None
            done = {step: loss for step, loss in done.items() if step <= attempt.first_step}
            losses = _moving_mean([*done.values(), *attempt.losses], smooth)[len(done) :]
            done |= zip(attempt.steps, attempt.losses, strict=True)
            axes.plot(attempt.steps, losses, label=label, lw=1.5, **look)
            if attempt.first_step and attempt.steps:
                label = f"{folder.name} goes on from a checkpoint" if index == 1 else None
                axes.plot(
                    attempt.steps[0],
                    losses[0],
                    "o",
                    mfc="none",
                    color=look["color"],
                    ms=10,
                    mew=2,
                    label=label,
                )
        if "eval_loss" in curve:
            label = f"{folder.name}, validation"
            axes.plot(*curve["eval_loss"], label=label, lw=0.8, **look, **VALIDATION_MARK)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per supervised token)" + _smoothed(smooth))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, out, dpi=120)


def _smoothed(smooth: int) -> str:
    return f",\nmean of {smooth} steps" if smooth > 1 else ""


def _moving_mean(values: Sequence[float], width: int) -> list[float]:
    means = []
    for end in range(1, len(values) + 1):
        window = values[max(0, end - width) : end]
        means.append(sum(window) / len(window))
    return means
