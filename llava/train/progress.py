"""Shows how far training is: a bar on a terminal, one line every ten seconds elsewhere.

Input: the trainer's events. Output: stage, loss, samples per second, time left, on stderr of the
first process. Non-goals: recording metrics (`--report_to`).
"""

from __future__ import annotations

import logging
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

log = logging.getLogger(__name__)

LINE_INTERVAL_S = 10.0


class ProgressCallback(TrainerCallback):
    """Progress of a training run.

    Args:
        stage: What the run is called.
        console: Where to show it; stderr if left out.
    """

    def __init__(self, stage: str | None = None, console: Console | None = None) -> None:
        self.stage = stage or "training"
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._loss: float | None = None
        self._first_step = 0
        self._started = self._shown = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar, or the first line."""
        if not state.is_world_process_zero:
            return
        self._first_step = state.global_step
        self._started = self._shown = time.monotonic()
        if not self.console.is_terminal:
            self._line(f"{self.stage}: step {state.global_step} of {state.max_steps}")
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            self.stage, total=state.max_steps, completed=state.global_step, figures=""
        )

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Take note of the loss."""
        self._loss = (logs or {}).get("loss", self._loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar, or print a line if the last one is old."""
        if not state.is_world_process_zero:
            return
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(
                self._task, completed=state.global_step, figures=self._figures(args, state, now)
            )
        elif now - self._shown >= LINE_INTERVAL_S:
            self._shown = now
            done = state.global_step - self._first_step
            left = (now - self._started) / done * (state.max_steps - state.global_step)
            self._line(
                f"{self.stage}: step {state.global_step} of {state.max_steps}, "
                f"{self._figures(args, state, now)}, {_duration(left)} left"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the bar and say what was reached."""
        if not state.is_world_process_zero:
            return
        self.close()
        now = time.monotonic()
        self._line(
            f"{self.stage}: {state.global_step} steps, {self._figures(args, state, now)}, "
            f"{_duration(now - self._started)}"
        )

    def close(self) -> None:
        """Remove the bar; also for a run that stops early."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _figures(self, args: Any, state: Any, now: float) -> str:
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        rate = (state.global_step - self._first_step) * batch / max(now - self._started, 1e-9)
        loss = "" if self._loss is None else f"loss {self._loss:.4f}, "
        return f"{loss}{rate:.1f} samples/s"

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
