"""Shows the progress of a long loop: steps, time left, running means."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

log = logging.getLogger(__name__)

_LOG_EVERY_S = 20.0
_MEMORY = 0.98


class Progress:
    """Shows a bar on a terminal, and logs a line every 20 seconds elsewhere.

    Args:
        title: What is being made.
        total: Number of steps.
        unit: What a step is called.

    Attributes:
        part: The part of the work that the next steps are of; "" if it has no parts.
    """

    def __init__(self, title: str, total: int, unit: str = "steps") -> None:
        self.title, self.total, self.unit, self.step = title, total, unit, 0
        self.part = ""
        self.means: dict[str, float] = {}
        self._started = self._logged = time.monotonic()
        console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, metrics="")

    def __enter__(self) -> Progress:
        """Shows the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the bar and logs the last metrics, unless no step was made."""
        self._bar.stop()
        if self.step or not self.total:
            log.info("%s: %s", self.title, ", ".join([f"{self.step} {self.unit}", *self._means()]))

    def advance(self, count: int = 1, **metrics: float) -> None:
        """Counts steps and adds their metrics to the running means."""
        self.step += count
        for name, value in metrics.items():
            self.means[name] = _MEMORY * self.means.get(name, value) + (1 - _MEMORY) * value
        title, means = f"{self.title} {self.part}".rstrip(), self._means()
        self._bar.update(self._task, advance=count, description=title, metrics=" ".join(means))
        now = time.monotonic()
        if self._bar.disable and now - self._logged > _LOG_EVERY_S:
            self._logged = now
            left = (now - self._started) / self.step * (self.total - self.step)
            done = f"{self.step} of {self.total} {self.unit}, {left:.0f} s left"
            log.info("%s: %s", title, ", ".join([done, *means]))

    def _means(self) -> list[str]:
        return [f"{name} {value:.3f}" for name, value in self.means.items()]


@contextmanager
def progress_bar(title: str, console: Console) -> Iterator[Callable[..., None]]:
    """Shows a bar on a terminal, for work that counts itself.

    Yields:
        A function to call with the number done and, once it is known, the number of all.
    """
    with RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total=None: bar.update(task, completed=done, total=total)
