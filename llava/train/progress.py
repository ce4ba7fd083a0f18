"""Shows how far training is: a bar and a table on a terminal, lines every ten seconds elsewhere.

Input: the trainer's events and figures. Output: stage, loss, samples per second, time left, how
well the machine is used, and a row for each group of samples, on stderr of the first process.
Non-goals: recording metrics (`--report_to`, `metrics.py`).
"""

from __future__ import annotations

import logging
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback

from llava.utils import duration

log = logging.getLogger(__name__)

LINE_INTERVAL_S = 10.0
MAX_GROUPS = 16
# figures of the machine, how they are shown, in this order
_MACHINE = {
    "tokens_per_second": "{:,.0f} tokens/s",
    "padding_share": "padding {:.0%}",
    "mfu": "MFU {:.1%}",
    "memory_gib": "{:.1f} GiB",
    "data_wait_share": "waiting for data {:.0%}",
    "grad_norm": "gradient {:.2g}",
    "eval_loss": "validation loss {:.4f}",
}


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
        self._live: Live | None = None
        self._loss: float | None = None
        self._seen: dict[str, float] = {}
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
        self._live = Live(console=self.console, get_renderable=self._view, refresh_per_second=4)
        self._live.start()
        self._task = self._bar.add_task(
            self.stage, total=state.max_steps, completed=state.global_step, figures=""
        )

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Take note of the figures."""
        self._loss = (logs or {}).get("loss", self._loss)
        self._seen |= {k: v for k, v in (logs or {}).items() if isinstance(v, int | float)}

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
                f"{self._figures(args, state, now)}, {duration(left)} left"
            )
            if machine := self._machine():
                self._line(f"{self.stage}: {machine}")
            if groups := self._groups():
                losses = ", ".join(f"{name} {values[0]:.3f}" for name, values in groups.items())
                self._line(f"{self.stage}: loss of {losses}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the bar and say what was reached."""
        if not state.is_world_process_zero:
            return
        self.close()
        now = time.monotonic()
        self._line(
            f"{self.stage}: {state.global_step} steps, {self._figures(args, state, now)}, "
            f"{duration(now - self._started)}"
        )

    def close(self) -> None:
        """Remove the bar; also for a run that stops early."""
        if self._live is not None:
            self._live.stop()
        self._bar = self._live = None

    def _figures(self, args: Any, state: Any, now: float) -> str:
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        rate = (state.global_step - self._first_step) * batch / max(now - self._started, 1e-9)
        loss = "" if self._loss is None else f"loss {self._loss:.4f}, "
        return f"{loss}{rate:.1f} samples/s"

    def _view(self) -> Group:
        """The bar, how the machine is used, and the groups."""
        parts: list[Any] = [] if self._bar is None else [self._bar]
        if machine := self._machine():
            parts.append(Text(machine, style="dim", no_wrap=True, overflow="ellipsis"))
        if groups := self._groups():
            parts.append(_table(groups))
        return Group(*parts)

    def _machine(self) -> str:
        seen = self._seen
        return ", ".join(form.format(seen[name]) for name, form in _MACHINE.items() if name in seen)

    def _groups(self) -> dict[str, tuple[float, float, float, float | None]]:
        """Loss, accuracy, tokens and validation loss of each group that is no part of another."""
        names = [key.removeprefix("loss/") for key in self._seen if key.startswith("loss/")]
        shown = sorted(name for name in names if "/" not in name)[:MAX_GROUPS]
        return {
            name: (
                self._seen[f"loss/{name}"],
                self._seen[f"accuracy/{name}"],
                self._seen[f"tokens/{name}"],
                self._seen.get(f"eval_loss/{name}"),
            )
            for name in shown
        }

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)


def _table(groups: dict[str, tuple[float, float, float, float | None]]) -> Table:
    has_validation = any(values[3] is not None for values in groups.values())
    headings = ["group", "loss", "right", "tokens", *(["validation"] if has_validation else [])]
    table = Table(*headings, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, (loss, accuracy, tokens, validation) in groups.items():
        row = [name, f"{loss:.3f}", f"{accuracy:.1%}", f"{tokens:,.0f}"]
        if has_validation:
            row.append("" if validation is None else f"{validation:.3f}")
        table.add_row(*row)
    return table
