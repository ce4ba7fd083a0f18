"""`lrm plot-run`: plots of training runs."""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the command to `lrm`."""
    app.command("plot-run")(plot_run)


def plot_run(
    runs: list[Path] = typer.Argument(..., help="Output folders of training runs."),
    out: Path = typer.Option(Path("loss.png"), help="Plot to write: .png, .svg or .pdf."),
    smooth: int = typer.Option(1, min=1, help="Average the loss over so many logged steps."),
) -> None:
    """Plot the loss of training runs, in all and per language, and their validation.

    Marks where interrupted runs were resumed.
    """
    from rich.console import Console

    from lrm_ext.report.training import largest_difference, plot_runs, read_attempts

    console = Console(highlight=False, soft_wrap=True)
    plot_runs(runs, out, smooth)
    for run in runs:
        attempts = read_attempts(run)
        steps, difference = largest_difference(attempts)
        repeated = f", {steps} steps made again, loss differs by at most {difference:g}"
        console.print(
            f"{run}: {len(attempts)} attempt{'s' if len(attempts) > 1 else ''}"
            f"{repeated if steps else ''}"
        )
    console.print(f"saved to {out}")
