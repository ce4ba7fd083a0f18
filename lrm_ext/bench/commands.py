"""`lrm bench`: the project's benchmarks."""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the command to `lrm`."""
    app.command("bench")(bench)


def bench(
    names: list[str] = typer.Argument(None, help="Which; all if left out. --list shows them."),
    out: Path = typer.Option(
        Path("docs/performance.md"), help="Markdown file; the tables between its marks are renewed."
    ),
    list_only: bool = typer.Option(False, "--list", help="Say what there is, and end."),
) -> None:
    """Run benchmarks against their peers, and write a table of the figures.

    One that fails, or needs what is not there, does not keep the others from being run.
    """
    from rich.console import Console

    from llava.errors import DataError
    from lrm_ext.bench.report import machine, section, write_section
    from lrm_ext.bench.scripts import choose, find_scripts, run_script

    console = Console(highlight=False, soft_wrap=True)
    scripts = find_scripts()
    if list_only:
        for script in scripts:
            console.print(f"{script.name:<14} {script.title}", markup=False)
            if missing := script.missing():
                console.print(f"{'':<14} {missing}", markup=False)
        return
    faults: list[str] = []
    for script in choose(scripts, names or []):
        if script.needs_gpu and not names and not machine().gpus:
            console.print(f"{script.name}: left out, there is no GPU")
            continue
        console.print(f"{script.name}: {script.title}", markup=False)
        if missing := script.missing():
            faults.append(f"{script.name} {missing}")
            console.print(f"{script.name}: left out, {missing}", markup=False)
            continue
        try:
            entries = run_script(script)
        except DataError as error:
            faults.append(f"{script.name}: {error}")
            console.print(f"{script.name}: failed, {error}", markup=False)
            continue
        write_section(out, script.name, section(script, entries, machine()))
        console.print(f"{script.name}: {len(entries)} figures written to {out}")
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise DataError(f"{len(faults)} benchmarks were not measured:\n{listed}")
