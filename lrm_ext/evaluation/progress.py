"""Shows how far an evaluation is: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

LINE_INTERVAL_S: Final = 10.0


class Reporter(Protocol):
    """What the runner tells about its progress."""

    def stage(self, name: str) -> None:
        """Name what is being done now."""
        ...

    def advance(self, num_done: int) -> None:
        """Count finished questions."""
        ...


class SilentReporter:
    """Tells nobody."""

    def stage(self, name: str) -> None:
        """See `Reporter`."""

    def advance(self, num_done: int) -> None:
        """See `Reporter`."""


class _Bar:
    def __init__(self, progress: Progress, num_total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=num_total)

    def stage(self, name: str) -> None:
        self._progress.update(self._task, description=name)

    def advance(self, num_done: int) -> None:
        self._progress.advance(self._task, num_done)


class _Lines:
    def __init__(self, console: Console, num_total: int) -> None:
        self._console = console
        self._num_total = num_total
        self._num_done = 0
        self._stage = "starting"
        self._start = self._last = time.monotonic()

    def stage(self, name: str) -> None:
        self._stage = name

    def advance(self, num_done: int) -> None:
        self._num_done += num_done
        now = time.monotonic()
        if now - self._last < LINE_INTERVAL_S and self._num_done < self._num_total:
            return
        self._last = now
        per_second = self._num_done / max(now - self._start, 1e-9)
        left_s = round((self._num_total - self._num_done) / per_second)
        self._console.print(
            f"evaluate {self._stage}: {self._num_done:,} of {self._num_total:,} questions, "
            f"{per_second:,.0f} a second, {left_s // 60}:{left_s % 60:02d} left"
        )


@contextmanager
def show_progress(console: Console, num_total: int) -> Iterator[Reporter]:
    """Show the progress over `num_total` questions while the block runs."""
    if not console.is_terminal:
        yield _Lines(console, num_total)
        return
    columns = (
        TextColumn("[bold]evaluate[/] {task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bar(progress, num_total)
