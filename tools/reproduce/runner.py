"""Runs a study from the corpus to the result files."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from rich.console import Console

from llava.errors import ConfigError
from llava.utils import duration
from lrm_ext.plan.presets import ROOT
from tools.reproduce.pool import run_tasks
from tools.reproduce.results import collect, write_result
from tools.reproduce.settings import Study
from tools.reproduce.tasks import ASK, Task, make_tasks, run_name, write_mixtures

log = logging.getLogger(__name__)

MINI: Final = "mini"


def run_study(
    study: Study,
    preset: str,
    out: Path,
    console: Console,
    *,
    jobs: int,
    export: Path | None = None,
) -> None:
    """Trains, asks and scores every setting and seed that has no result file yet.

    Args:
        study: Settings and seeds.
        preset: Name of the preset; must be `mini`.
        out: Output folder.
        console: Console that shows the progress.
        jobs: Number of parallel processes.
        export: Folder into which the result files are copied at the end.

    Raises:
        ConfigError: The preset cannot be run here, or another command is running in `out`.
        TaskError: A training or an evaluation failed.
    """
    if preset != MINI:
        raise ConfigError(
            f"preset {preset!r}: only {MINI} is run by this command; add --plan for the commands, "
            "hours and disk of the others"
        )
    if not (ROOT / "scripts" / "v1_5" / "lrm_finetune.sh").is_file():
        raise ConfigError(f"{ROOT}: no training scripts; run this from a clone (pip install -e .)")
    out = out.resolve()
    started = time.monotonic()
    tasks = make_tasks(study, out)
    write_mixtures(study, tasks)
    num_runs = len(study.settings) * len(study.seeds)
    title = "the quick form, with fewer results" if study.quick else "all"
    console.print(
        f"{num_runs} runs ({len(study.settings)} settings, {len(study.seeds)} seeds; {title}), "
        f"{len(tasks)} tasks in {out}, {jobs} in parallel",
        markup=False,
    )
    if not all(task.is_done for task in tasks):
        _unpack_corpus(study)

    def keep(task: Task) -> None:
        if task.kind == ASK and task.setting is not None:
            run = out / "runs" / run_name(task.setting.name, task.seed)
            # without folders: a result does not depend on the folder of its run
            command = (
                f"lrm reproduce {study.name} --settings {task.setting.name} --seeds {task.seed}"
            )
            content, questions = collect(run, study, task.setting, task.seed, command)
            content["quick"] = study.quick
            write_result(out / "results", content, questions)
            for checkpoint in run.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)

    num_run = run_tasks(tasks, out, console, jobs=jobs, after=keep)
    seconds = duration(time.monotonic() - started)
    console.print(f"{num_run} tasks run in {seconds}; results: {out / 'results'}", markup=False)
    if study.quick:
        console.print("The quick form has one seed, so the variation between seeds is unknown.")
    if export is not None:
        _export(out / "results", export)
        console.print(f"copied to {export}", markup=False)


def _export(results: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(results.glob("*.json")):
        shutil.copyfile(path, folder / path.name)


def _unpack_corpus(study: Study) -> None:
    """Unpacks the corpus before the processes start, so that none waits for another."""
    command = [sys.executable, "-m", "lrm_ext.cli", "corpus", "unpack-emoji"]
    if study.languages:
        command += ["--languages", ",".join(study.languages)]
    subprocess.run(command, cwd=ROOT, check=True)
