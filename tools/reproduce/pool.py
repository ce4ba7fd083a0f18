"""Runs tasks in parallel, each in a process with one thread, and resumes after an interruption.

Input: tasks, each with the file that marks it as done. Finished tasks are skipped; interrupted
tasks resume by themselves (trainings from their checkpoints, questions from their answers). Each
process has one thread, because the order of a sum, and with it the last bit of every weight, must
not depend on the machine's cores or on `jobs`.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from llava.errors import ConfigError, UserError
from llava.utils import duration
from lrm_ext.plan.presets import ROOT
from tools.reproduce.tasks import Task

log = logging.getLogger(__name__)

SECONDS_FILE: Final = "seconds.jsonl"
_LOCK_FILE: Final = "LOCK"
_THREADS: Final = {
    name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
}
_POLL_SECONDS: Final = 0.5
_DIE_WITH_PARENT: Final = 1  # PR_SET_PDEATHSIG
_NUM_LINES_SHOWN: Final = 15


class TaskError(UserError):
    """Raised when a process of the reproduction ends with an error."""


@dataclass
class _Running:
    process: subprocess.Popen[bytes]
    started: float
    was_begun: bool


class Clock:
    """Estimates durations from measured times per kind of work, kept beside the results."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sums: dict[str, tuple[float, int]] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self._add(entry["kind"], entry["seconds"], entry["size"])

    def _add(self, kind: str, seconds: float, size: int) -> None:
        sums = self._sums.get(kind, (0.0, 0))
        self._sums[kind] = (sums[0] + seconds, sums[1] + size)

    def record(self, task: Task, seconds: float) -> None:
        """Stores the time of a task that ran from its beginning to its end."""
        self._add(task.kind, seconds, task.size)
        entry = {"task": task.name, "kind": task.kind, "size": task.size, "seconds": seconds}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def seconds_left(self, tasks: Sequence[Task], jobs: int) -> float | None:
        """Estimates the time for parallel tasks; None while a kind of them is unmeasured."""
        total = 0.0
        for task in tasks:
            if task.kind not in self._sums:
                return None
            seconds, size = self._sums[task.kind]
            total += seconds / size * task.size
        return total / jobs


def run_tasks(
    tasks: Sequence[Task],
    out: Path,
    console: Console,
    *,
    jobs: int = 1,
    after: Callable[[Task], None] = lambda task: None,
    root: Path = ROOT,
) -> int:
    """Runs all tasks that are not done.

    Args:
        tasks: Tasks in starting order; each comes after those that it needs.
        out: Folder of the logs and times.
        console: Console that shows the progress.
        jobs: Number of parallel processes.
        after: Called after a process succeeds; it writes `done` if the process does not.
        root: Working directory of the processes.

    Returns:
        The number of tasks that were run.

    Raises:
        ConfigError: `jobs` is below 1, or an earlier command is still running in `out`.
        TaskError: A process failed; the others are stopped, and resume with the next call.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs is {jobs}; expected 1 or more")
    out.mkdir(parents=True, exist_ok=True)
    with (out / _LOCK_FILE).open("w") as lock:
        _take(lock, out)
        waiting = [task for task in tasks if not task.is_done]
        num_waiting = len(waiting)
        clock = Clock(out / SECONDS_FILE)
        running: dict[Task, _Running] = {}
        log.info("%d of %d tasks are already done", len(tasks) - num_waiting, len(tasks))
        with _progress(console) as progress:
            bar = progress.add_task(
                "tasks", total=len(tasks), completed=len(tasks) - num_waiting, left=""
            )
            try:
                while waiting or running:
                    _start_ready(tasks, waiting, running, jobs, out, root, lock)
                    ended = _collect(running, out, clock, after)
                    left = [*waiting, *running]
                    text = _left(clock, left, running, jobs)
                    for line in ended:
                        console.print(f"{line}; {len(left)} tasks and {text}", markup=False)
                    names = ", ".join(task.name for task in running)
                    progress.update(
                        bar, completed=len(tasks) - len(left), description=names, left=text
                    )
                    if running:
                        time.sleep(_POLL_SECONDS)
            finally:
                _stop(running)
    return num_waiting


def _take(lock: IO[str], out: Path) -> None:
    """Locks the folder against a second command, and processes that outlive a first one."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigError(
            f"{out}: another `lrm reproduce`, or a process that one has started, is at work there; "
            "wait for it or stop it, or name another folder (--out)"
        ) from error


def _progress(console: Console) -> Progress:
    # without a terminal, `_collect` prints a line per task
    return Progress(
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("[dim]{task.description}"),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def _start_ready(
    tasks: Sequence[Task],
    waiting: list[Task],
    running: dict[Task, _Running],
    jobs: int,
    out: Path,
    root: Path,
    lock: IO[str],
) -> None:
    done = {task.name for task in tasks if task not in waiting and task not in running}
    for task in list(waiting):
        if len(running) >= jobs:
            return
        if all(name in done for name in task.needs):
            waiting.remove(task)
            running[task] = _start(task, out, root, lock)


def _start(task: Task, out: Path, root: Path, lock: IO[str]) -> _Running:
    path = log_path(out, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    was_begun = path.is_file()
    python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    settings = {"PYTHONPATH": python_path, "TOKENIZERS_PARALLELISM": "false"}
    with path.open("ab") as file:
        process = subprocess.Popen(
            task.command,
            cwd=root,
            env={**os.environ, **_THREADS, **settings, **task.variables},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=(lock.fileno(),),
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
    return _Running(process, time.monotonic(), was_begun)


def _die_with_parent() -> None:
    """Runs in the child, so that `kill -9` of the command also ends the training."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def log_path(out: Path, task: Task) -> Path:
    """Returns the path of a task's log."""
    return out / "logs" / f"{task.name.replace('/', '-')}.log"


def _collect(
    running: dict[Task, _Running],
    out: Path,
    clock: Clock,
    after: Callable[[Task], None],
) -> list[str]:
    """Handles the processes that ended since the last call; returns a line for each."""
    ended: list[str] = []
    for task, one in list(running.items()):
        code = one.process.poll()
        if code is None:
            continue
        del running[task]
        seconds = time.monotonic() - one.started
        if code == 0:
            after(task)
        if code != 0 or not task.is_done:
            path = log_path(out, task)
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            raise TaskError(
                f"{task.name} ended with exit code {code}"
                + ("" if code else f" but without {task.done}")
                + f"; the end of {path}:\n"
                + "\n".join(lines[-_NUM_LINES_SHOWN:])
            )
        if not one.was_begun:
            clock.record(task, seconds)
        ended.append(f"{task.name}: done in {duration(seconds)}")
    return ended


def _left(clock: Clock, left: Sequence[Task], running: dict[Task, _Running], jobs: int) -> str:
    seconds = clock.seconds_left(left, jobs)
    if seconds is None:
        return "an unknown time left"
    passed = sum(time.monotonic() - one.started for one in running.values()) / jobs
    return f"{duration(max(0.0, seconds - passed))} left"


def _stop(running: dict[Task, _Running]) -> None:
    for one in running.values():
        one.process.terminate()
    for one in running.values():
        one.process.wait()
