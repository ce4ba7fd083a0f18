"""Keeps what a run logs in `metrics.jsonl`, one JSON object a line, across all its attempts.

Input: the trainer's events. Output: lines appended to `<output_dir>/metrics.jsonl` by the first
process: `{"attempt": .., "step": .., "time": .., "loss": .., ...}`. Unlike the history in
`trainer_state.json` it also holds the steps that an attempt made after its last checkpoint, so that
an interrupted run can be compared with itself. Non-goals: showing it (`lrm plot-run`).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

METRICS_FILE = "metrics.jsonl"


class MetricsLog(TrainerCallback):
    """Appends the trainer's figures to the metrics file of its run."""

    def __init__(self) -> None:
        self._attempt = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin another attempt, whose first line says after which step."""
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir) / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        if state.global_step == 0:
            path.unlink(missing_ok=True)  # nothing of an older run is kept, so neither are these
        else:
            _end_line(path)
        self._attempt = 1 + max((int(line["attempt"]) for line in read_metrics(path)), default=0)
        _append(path, {"attempt": self._attempt, "step": state.global_step, "time": time.time()})

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Append one line."""
        if state.is_world_process_zero and logs:
            head = {"attempt": self._attempt, "step": state.global_step, "time": time.time()}
            _append(Path(args.output_dir) / METRICS_FILE, {**head, **logs})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics file.

    Args:
        path: A file that need not exist.

    Returns:
        Its lines; one that a killed process did not finish is left out.
    """
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _end_line(path: Path) -> None:
    """Keep what follows off a line that a killed process did not finish."""
    if path.is_file() and not path.read_bytes().endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
