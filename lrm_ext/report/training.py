"""Plots what a training logged (`lrm plot-run`).

In: output folders of training. Out: a plot of the metrics of runs, every attempt of each, with a
panel for each language and instruction whose loss was logged. Interruptions are visible: an attempt
that went on from a checkpoint begins with a mark, and the steps that the attempt before it had made
beyond that checkpoint stay in the plot, so that anyone can see whether the two agree. Panels have
the same scales; runs are told apart by the shape of their lines, which grey paper keeps.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from llava.errors import DataError
from llava.files import METRICS_FILE, read_metrics
from lrm_ext.instructions.registry import list_instructions
from lrm_ext.languages import get_language, list_languages
from lrm_ext.languages.fonts import save_plot
from lrm_ext.report.render import BLUE, GREEN, ORANGE, PINK

log = logging.getLogger(__name__)

# told apart without colour
_STYLES: Final = ("-", "--", ":", "-.")
_COLOURS: Final = (BLUE, ORANGE, GREEN, PINK, "#000000")
NUM_COLUMNS: Final = 5
_VALIDATION_MARK: Final = {"marker": "s", "ms": 4, "mfc": "white", "mew": 1}
# steps and values
Curve = tuple[tuple[int, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Attempt:
    """The steps of a run between a start and its end or interruption.

    Attributes:
        first_step: Steps that were done before it.
        steps: Optimizer steps at which the loss was logged.
        losses: The loss at those steps.
    """

    first_step: int
    steps: tuple[int, ...]
    losses: tuple[float, ...]


def read_attempts(folder: Path) -> tuple[Attempt, ...]:
    """Reads a run's attempts.

    Args:
        folder: The `--output_dir` of a training.

    Raises:
        DataError: The run logged no loss.
    """
    by_attempt: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in read_metrics(folder / METRICS_FILE):
        by_attempt[record["attempt"]].append(record)
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
    """Tells how far attempts disagree in the steps that more than one of them made.

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
    """Draws the loss of runs.

    Args:
        folders: Output folders of trainings.
        out: The plot (.png, .svg or .pdf).
        smooth: Steps over which the loss is averaged, a run's first ones over fewer.

    Raises:
        DataError: A run logged no loss.
    """
    from matplotlib.figure import Figure

    curves = [read_curves(folder) for folder in folders]
    looks: list[dict[str, Any]] = [
        {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _STYLES[i % len(_STYLES)]}
        for i in range(len(folders))
    ]
    # languages and instructions, in their usual order
    groups = [
        name
        for name in (*list_languages(), *list_instructions())
        if any({f"loss/{name}", f"eval_loss/{name}"} & curve.keys() for curve in curves)
    ]
    num_rows = -(-len(groups) // NUM_COLUMNS)
    heights = [4.5, 1.5 * num_rows] if groups else [4.5]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    axes = parts[0].subplots()
    if groups:
        _draw_panels(parts[1], curves, groups, looks)
    for folder, curve, look in zip(folders, curves, looks, strict=True):
        _draw_run(axes, folder, look, smooth)
        if "eval_loss" in curve:
            label = f"{folder.name}, validation"
            axes.plot(*curve["eval_loss"], label=label, lw=0.8, **look, **_VALIDATION_MARK)
    axes.set_xlabel("optimizer step")
    smoothed = f",\nmean of {smooth} steps" if smooth > 1 else ""
    axes.set_ylabel(f"loss (nats per supervised token){smoothed}")
    axes.grid(alpha=0.3)
    axes.legend()
    save_plot(figure, out, dpi=120)


def _draw_run(axes: Any, folder: Path, look: Mapping[str, Any], smooth: int) -> None:
    """Draws a line an attempt; one that went on from a checkpoint begins with a mark."""
    done: dict[int, float] = {}
    for index, attempt in enumerate(read_attempts(folder)):
        label = folder.name if index == 0 else None
        done = {step: loss for step, loss in done.items() if step <= attempt.first_step}
        losses = _moving_mean([*done.values(), *attempt.losses], smooth)[len(done) :]
        done |= zip(attempt.steps, attempt.losses, strict=True)
        axes.plot(attempt.steps, losses, label=label, lw=1.5, **look)
        if attempt.first_step and attempt.steps:
            label = f"{folder.name} goes on from a checkpoint" if index == 1 else None
            axes.plot(attempt.steps[0], losses[0], "o", mfc="none", color=look["color"], ms=10,
                      mew=2, label=label)  # fmt: skip


def _moving_mean(values: Sequence[float], width: int) -> list[float]:
    return [fmean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]


def read_curves(folder: Path) -> dict[str, Curve]:
    """Reads what a run logged, by name; of a step that was made again the last value stands."""
    values: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for record in read_metrics(folder / METRICS_FILE):
        for name, value in record.items():
            if isinstance(value, int | float):
                values[name][int(record["step"])] = float(value)
    return {
        name: (tuple(sorted(by_step)), tuple(by_step[step] for step in sorted(by_step)))
        for name, by_step in values.items()
    }


def _draw_panels(
    figure: Any,
    runs: Sequence[Mapping[str, Curve]],
    groups: Sequence[str],
    looks: Sequence[Mapping[str, Any]],
) -> None:
    """Draws a panel for each group.

    Args:
        figure: A matplotlib figure or subfigure.
        runs: What each run logged.
        groups: Names of groups.
        looks: Colour and line of each run.
    """
    num_rows = -(-len(groups) // NUM_COLUMNS)
    grid = figure.subplots(num_rows, NUM_COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    languages = list_languages()
    for axes, group in zip(grid, groups, strict=False):
        title = get_language(group).name if group in languages else f"instruction {group}"
        axes.set_title(title, fontsize=9, pad=3)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        for run, look in zip(runs, looks, strict=True):
            if f"loss/{group}" in run:
                axes.plot(*run[f"loss/{group}"], lw=1.2, **look)
            if f"eval_loss/{group}" in run:
                axes.plot(*run[f"eval_loss/{group}"], lw=0.6, **look, **_VALIDATION_MARK)
    for number, axes in enumerate(grid):
        if number >= len(groups):
            axes.set_axis_off()
        elif number >= len(groups) - NUM_COLUMNS:  # the lowest of its column
            axes.tick_params(labelbottom=True)
    figure.supylabel("loss in each group", fontsize=9)
