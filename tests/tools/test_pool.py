"""Tasks run side by side, go on where they stopped, and stop when one fails (a fake trainer)."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from llava.errors import ConfigError
from tools.reproduce.pool import Clock, TaskError, run_tasks
from tools.reproduce.tasks import Task

# counts how often it ran, works in steps that it can go on from, and writes its mark last
TRAINER = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1]); folder.mkdir(parents=True, exist_ok=True)
with (folder / "starts").open("a") as file: file.write(os.environ["OMP_NUM_THREADS"] + "\\n")
steps = folder / "steps"
for step in range(int(steps.read_text()) if steps.is_file() else 0, int(sys.argv[2])):
    time.sleep(0.05); steps.write_text(str(step + 1))
if len(sys.argv) > 3 and not pathlib.Path(sys.argv[3]).is_file():
    print("no such file:", sys.argv[3]); sys.exit(3)
(folder / "COMPLETE").write_text("")
"""


@pytest.fixture
def make_task(tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER, encoding="utf-8")

    def make(name, steps=1, needs=(), *more):
        folder = tmp_path / "work" / name
        command = (sys.executable, str(script), str(folder), str(steps), *map(str, more))
        return Task(name, "finetune", command, {}, folder / "COMPLETE", needs, steps, None, 0)

    return make


@pytest.fixture
def console():
    return Console(force_terminal=False, width=120)


def starts(task):
    return (task.done.parent / "starts").read_text().split()


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_tasks_run_after_what_they_need_with_one_thread(make_task, tmp_path, console, jobs):
    first = make_task("first", 3)
    second = make_task("second", 1, ("first",), first.done)
    other = make_task("other")
    assert run_tasks([first, second, other], tmp_path / "out", console, jobs=jobs) == 3
    assert starts(second) == starts(other) == ["1"]
    assert run_tasks([first, second, other], tmp_path / "out", console, jobs=jobs) == 0
    assert starts(first) == ["1"]


def test_a_failure_shows_the_log_and_what_is_done_stays(make_task, tmp_path, console):
    good, bad = make_task("good"), make_task("bad", 1, ("good",), tmp_path / "nowhere")
    with pytest.raises(TaskError, match=r"bad ended with exit code 3; the end of .*bad.log:\nno"):
        run_tasks([good, bad], tmp_path / "out", console)
    (tmp_path / "nowhere").write_text("")
    assert run_tasks([good, bad], tmp_path / "out", console) == 1
    assert len(starts(good)) == 1


def test_what_is_done_is_written_by_the_caller_where_the_process_does_not(
    make_task, tmp_path, console
):
    task = make_task("asks")
    result = tmp_path / "result.json"
    asking = Task(**{**vars(task), "done": result})
    with pytest.raises(TaskError, match="exit code 0 but without"):
        run_tasks([asking], tmp_path / "out", console)
    run_tasks([asking], tmp_path / "out", console, after=lambda task: result.write_text("{}"))
    assert result.is_file()


DRIVER = """
import sys
from pathlib import Path
from rich.console import Console
from tools.reproduce.pool import run_tasks
from tools.reproduce.tasks import Task
script, folder, out = map(Path, sys.argv[1:])
command = (sys.executable, str(script), str(folder), "60")
task = Task("long", "finetune", command, {}, folder / "COMPLETE", (), 60, None, 0)
run_tasks([task], out, Console())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the children die with the command on Linux")
def test_kill_9_leaves_nothing_behind_and_the_next_call_goes_on(make_task, tmp_path, console):
    task = make_task("long", 60)
    out, steps = tmp_path / "out", task.done.parent / "steps"
    arguments = [task.command[1], str(task.done.parent), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", DRIVER, *arguments], env=environment)
    while not steps.is_file():
        assert process.poll() is None
        time.sleep(0.02)
    with pytest.raises(ConfigError, match="is at work there"):
        run_tasks([task], out, console)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while True:  # the child's end is at most a moment later
        try:
            assert run_tasks([task], out, console) == 1
            break
        except ConfigError:
            time.sleep(0.02)
    assert len(starts(task)) == 2
    assert not (out / "seconds.jsonl").is_file()  # only whole runs are measured


def test_time_left_comes_from_what_was_measured(make_task, tmp_path):
    clock = Clock(tmp_path / "seconds.jsonl")
    assert clock.seconds_left([make_task("a", 10)], 1) is None
    clock.record(make_task("b", 4), 8.0)
    again = Clock(tmp_path / "seconds.jsonl")
    assert again.seconds_left([make_task("a", 10), make_task("c", 2)], 2) == 12.0
    assert again.seconds_left([], 2) == 0.0


def test_jobs_are_checked(make_task, tmp_path, console):
    with pytest.raises(ConfigError, match="--jobs is 0"):
        run_tasks([make_task("a")], tmp_path, console, jobs=0)
