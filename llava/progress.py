"""Shows how far a long loop is: steps, time left, running means."""

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
        unit: What a step is called.
    """

    def __init__(self, title: str, total: int, unit: str = "steps") -> None:
        self.title, self.total, self.unit, self.step = title, total, unit, 0
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
        log.info("%s: %s", self.title, ", ".join([f"{self.step} {self.unit}", *self._means()]))

    def advance(self, count: int = 1, **figures: float) -> None:
        """Count steps and take their figures into the running means."""
        self.step += count
        for name, value in figures.items():
            self.means[name] = _MEMORY * self.means.get(name, value) + (1 - _MEMORY) * value
        if self._bar is not None:
            self._bar.update(self._task, advance=count, figures=" ".join(self._means()))
        elif time.monotonic() - self._logged > _LOG_EVERY_S:
            self._logged = time.monotonic()
            left = (self._logged - self._started) / self.step * (self.total - self.step)
            told = [
                f"{self.step} of {self.total} {self.unit}",
                f"{left:.0f} s left",
                *self._means(),
            ]
            log.info("%s: %s", self.title, ", ".join(told))

    def _means(self) -> list[str]:
        return [f"{name} {value:.3f}" for name, value in self.means.items()]
