"""One small plot for each group of samples: a run's loss in each language, and its validation loss.

In: what runs logged per group (`loss/hr`, `eval_loss/hr`). Out: axes that are drawn on. Every panel
has the same scales, so that languages can be compared; runs are told apart by the shape of their
lines, which grey paper keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.train.metrics import METRICS_FILE, read_metrics
from lrm_ext.instructions.registry import list_instructions
from lrm_ext.languages import get_language, list_languages

# steps and values
Curve = tuple[tuple[int, ...], tuple[float, ...]]

NUM_COLUMNS = 5


def read_curves(folder: Path) -> dict[str, Curve]:
    """What a run logged, by name; of a step that was made again the last value stands."""
    values: dict[str, dict[int, float]] = {}
    for record in read_metrics(folder / METRICS_FILE):
        for name, value in record.items():
            if isinstance(value, int | float):
                values.setdefault(name, {})[int(record["step"])] = float(value)
    curves = {}
    for name, by_step in values.items():
        steps = tuple(sorted(by_step))
        curves[name] = (steps, tuple(by_step[step] for step in steps))
    return curves


def groups_of(runs: Sequence[Mapping[str, Curve]]) -> list[str]:
    """Languages and instructions that runs logged a loss of, in their usual order."""
    known = [*list_languages(), *list_instructions()]
    return [
        name
        for name in known
        if any(f"{kind}/{name}" in run for run in runs for kind in ("loss", "eval_loss"))
    ]


def num_rows(groups: Sequence[str]) -> int:
    """Rows of panels."""
    return -(-len(groups) // NUM_COLUMNS)


def draw_panels(
    figure: Any,
    runs: Sequence[Mapping[str, Curve]],
    groups: Sequence[str],
    looks: Sequence[Mapping[str, Any]],
) -> None:
    """Draw a panel for each group.

    Args:
        figure: A matplotlib figure or subfigure.
        runs: What each run logged.
        groups: Names of groups.
        looks: Colour and line of each run.
    """
    grid = figure.subplots(
        num_rows(groups), NUM_COLUMNS, sharex=True, sharey=True, squeeze=False
    ).ravel()
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
                axes.plot(*run[f"eval_loss/{group}"], lw=0.6, **look, **VALIDATION_MARK)
    for number, axes in enumerate(grid):
        if number >= len(groups):
            axes.set_axis_off()
        elif number >= len(groups) - NUM_COLUMNS:  # the lowest of its column
            axes.tick_params(labelbottom=True)
    figure.supylabel("loss in each group", fontsize=9)


VALIDATION_MARK = {"marker": "s", "ms": 4, "mfc": "white", "mew": 1}
