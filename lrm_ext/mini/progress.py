"""A progress line for the training loops of the base models: step, time left, running means."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

log = logging.getLogger(__name__)

_LOG_EVERY_S = 20.0
_MEMORY = 0.98


class Progress:
    """A bar on a terminal, a line every 20 seconds elsewhere.

    Args:
        title: What is being made.
        total: Number of steps.
    """

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.step = title, total, 0
        self.means: dict[str, float] = {}
        self._started = self._logged = time.monotonic()
        console = Console(stderr=True)
        self._bar: RichProgress | None = None
        if console.is_terminal:
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=console,
            )

    def __enter__(self) -> Progress:
        """Show the bar."""
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, figures="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the bar and log the last figures."""
        if self._bar is not None:
            self._bar.stop()
        log.info("%s: %d steps, %s", self.title, self.step, self._figures())

    def advance(self, **figures: float) -> None:
        """Count one step and take its figures into the running means."""
        self.step += 1
        for name, value in figures.items():
            self.means[name] = _MEMORY * self.means.get(name, value) + (1 - _MEMORY) * value
        if self._bar is not None:
            self._bar.update(self._task, advance=1, figures=self._figures())
        elif time.monotonic() - self._logged > _LOG_EVERY_S:
            self._logged = time.monotonic()
            left = (self._logged - self._started) / self.step * (self.total - self.step)
            log.info(
                "%s: step %d of %d, %.0f s left, %s",
                self.title, self.step, self.total, left, self._figures(),
            )  # fmt: skip

    def _figures(self) -> str:
        return " ".join(f"{name} {value:.3f}" for name, value in self.means.items())
