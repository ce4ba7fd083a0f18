"""Lists the tasks of a study, in order: pre-training, fine-tuning and questions.

Input: a `Study`. Output: tasks, each a command with the file that marks it as done. The module
runs no command. Folders below `out`:

    mixtures/<setting>.seed<k>.<stage>.toml   samples that a training draws from
    stage1/<ratio>.seed<k>/                   pre-training that settings share
    runs/<setting>.seed<k>/                   the model, its answers in eval/predictions
    results/<setting>.seed<k>.json            stored results (`results.py`)
    logs/                                     output of the processes
    features/                                 outputs of the frozen tower, computed once
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from llava.files import load_toml, write_atomically
from lrm_ext.emoji.unpack import corpus_folder
from lrm_ext.languages.registry import ENGLISH
from lrm_ext.plan.presets import ROOT
from tools.reproduce.settings import FINETUNE, PRETRAIN, Setting, Study, mixture_text

ASK: Final = "questions"
COMPLETE: Final = "COMPLETE"
MIXTURES: Final = ROOT / "scripts" / "v1_5" / "mixtures"
_SAVES: Final = 4  # checkpoints of a stage, to resume from
# variables that a user may have set for other runs must not change a setting
_UNSET: Final = dict.fromkeys(
    "MODEL_NAME_OR_PATH VISION_TOWER DATA_PATH LANGUAGES IMAGE_FOLDER REPORT_TO NNODES".split(), ""
)


@dataclass(frozen=True, eq=False)
class Task:
    """A process to run.

    Attributes:
        name: Unique name.
        kind: `pretrain`, `finetune` or `questions`.
        command: Command to run from the repository's root.
        variables: Environment variables in addition to the common ones.
        done: File that exists once the task has succeeded.
        needs: Names of the tasks that must finish first.
        size: Amount of work, in units of its kind (steps, or questions).
        setting: Setting that the results belong to; None for shared work.
        seed: Seed of the setting.
    """

    name: str
    kind: str
    command: tuple[str, ...]
    variables: dict[str, str]
    done: Path
    needs: tuple[str, ...]
    size: int
    setting: Setting | None
    seed: int

    @property
    def is_done(self) -> bool:
        """Whether the task has succeeded, now or earlier."""
        return self.done.is_file()


def run_name(setting: str, seed: int) -> str:
    """Returns the name of a run's folder and result file."""
    return f"{setting}.seed{seed}"


def result_path(out: Path, setting: str, seed: int) -> Path:
    """Returns the result file of a run."""
    return out / "results" / f"{run_name(setting, seed)}.json"


def make_tasks(study: Study, out: Path) -> list[Task]:
    """Returns all tasks of a study, seed by seed, each after the tasks that it needs.

    Args:
        study: Settings and seeds.
        out: Output folder, absolute.
    """
    tasks: dict[str, Task] = {}
    for seed in study.seeds:
        for setting in study.settings:
            for task in _of_run(study, setting, seed, out):
                tasks.setdefault(task.name, task)
    return list(tasks.values())


def _of_run(study: Study, setting: Setting, seed: int, out: Path) -> list[Task]:
    stage1 = run_name(setting.stage1, seed)
    run = run_name(setting.name, seed)
    projector = out / "stage1" / stage1
    model = out / "runs" / run
    first = _training(study, setting, PRETRAIN, seed, out, projector, f"stage1/{stage1}", ())
    second = _training(study, setting, FINETUNE, seed, out, model, run, (first.name,))
    flags = ("--pretrain_mm_mlp_adapter", str(projector / "mm_projector.bin"))
    second = replace(second, command=(*second.command, *flags))
    asking = Task(
        name=f"{run}/questions",
        kind=ASK,
        command=_ask_command(study, model),
        variables={},
        done=result_path(out, setting.name, seed),
        needs=(second.name,),
        size=1,
        setting=setting,
        seed=seed,
    )
    return [first, second, asking]


def _training(
    study: Study,
    setting: Setting,
    stage: str,
    seed: int,
    out: Path,
    folder: Path,
    name: str,
    needs: tuple[str, ...],
) -> Task:
    steps = study.steps(setting, stage)
    command = (
        *("bash", f"scripts/v1_5/lrm_{stage}.sh"),
        *("--max_steps", str(steps), "--save_steps", str(max(1, -(-steps // _SAVES)))),
        *("--seed", str(seed), "--feature_cache", str(out / "features")),
    )
    mixture = out / "mixtures" / f"{name.replace('/', '-')}.{stage}.toml"
    return Task(
        name=name,
        kind=stage,
        command=command,
        variables={
            **_UNSET,
            "PRESET": "mini",
            "NUM_GPUS": "0",
            "OUTPUT_DIR": str(folder),
            "MIXTURE": str(mixture),
            "DATA_PATH": str(corpus_folder(study.languages).relative_to(ROOT) / stage),
            "PYTHON": sys.executable,
        },
        done=folder / COMPLETE,
        needs=needs,
        size=steps,
        setting=setting,
        seed=seed,
    )


def _ask_command(study: Study, model: Path) -> tuple[str, ...]:
    languages = ("--languages", ",".join((ENGLISH, *study.languages))) if study.languages else ()
    return (
        *(sys.executable, "-m", "lrm_ext.cli", "eval", "--model", str(model)),
        *("--benchmarks", ",".join(study.benchmarks), "--limit", str(study.limit)),
        *("--no-blind", "--no-table", "--device", "cpu", *languages),
    )


def write_mixtures(study: Study, tasks: Sequence[Task]) -> None:
    """Writes the mixture files of the trainings; one that is as it should be is left alone."""
    for task in tasks:
        if task.kind == ASK or task.setting is None:
            continue
        path = Path(task.variables["MIXTURE"])
        base = load_toml(MIXTURES / f"{task.kind}.toml")
        text = mixture_text(
            task.setting, task.kind, task.seed, base, study.languages_of(task.setting)
        )
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)
