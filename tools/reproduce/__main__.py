"""Trains and measures settings in miniature, and plans the full ones.

Usage: `python -m tools.reproduce`, or `lrm reproduce`.
"""

from __future__ import annotations

from pathlib import Path

import typer

from llava.errors import ConfigError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def reproduce(
    study_name: str = typer.Argument(
        "mini",
        metavar="STUDY",
        help="mini: the paper's experiments; languages: how many languages, and which share of "
        "English. With --plan, a preset in place of mini.",
    ),
    preset_to_plan: str = typer.Option(
        None, "--preset", help="The preset as an option: --preset vicuna-13b --plan."
    ),
    quick: bool = typer.Option(False, "--quick", help="Run one seed of the main settings."),
    out: Path = typer.Option(None, help="Output folder; default: runs/reproduce-<study>."),
    jobs: int = typer.Option(2, min=1, help="Parallel processes, one thread each."),
    settings: list[str] = typer.Option([], help="Only these settings; repeat, or use commas."),
    seeds: list[int] = typer.Option([], help="Only these seeds; repeat the option."),
    export: Path = typer.Option(None, help="Folder to copy the result files to."),
    plan: bool = typer.Option(
        False, "--plan", help="Print commands, hours and disk; train nothing."
    ),
    gpus: int = typer.Option(8, min=1, help="With --plan: number of GPUs."),
    gpu: str = typer.Option("a800-80g", help="With --plan: kind of GPU."),
    samples: int = typer.Option(None, min=1, help="With --plan: samples per stage."),
) -> None:
    """Train and measure the settings of a study, several seeds each; a second call resumes."""
    from rich.console import Console

    from tools.reproduce.settings import STUDIES, read_study, study_file

    console = Console(highlight=False, soft_wrap=True)
    names = [name for text in settings for name in text.split(",") if name]
    if not plan and study_name not in STUDIES:
        raise ConfigError(f"no study {study_name!r}; choose from: {', '.join(STUDIES)}")
    file = study_file(study_name if study_name in STUDIES else STUDIES[0])
    study = read_study(file, quick=quick).choose(names, seeds)
    preset = preset_to_plan or ("mini" if study_name in STUDIES else study_name)
    folder = out or Path("runs") / f"reproduce-{preset_to_plan or study_name}"
    if plan:
        from tools.reproduce.plan import render_plan

        for part in render_plan(study, preset, folder, gpus, gpu, samples):
            console.print(part, markup=False)
        return
    from tools.reproduce.runner import run_study

    run_study(study, preset, folder, console, jobs=jobs, export=export)


if __name__ == "__main__":
    from lrm_ext.cli import main

    main(app)
