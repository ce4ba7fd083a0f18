"""`lrm export ...` and `lrm import ...`: checkpoints in other people's formats."""

from __future__ import annotations

from pathlib import Path

import typer

export_app = typer.Typer(help="Checkpoints for other tools.", no_args_is_help=True)
import_app = typer.Typer(help="Checkpoints of other tools.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add `lrm export` and `lrm import` to the command line."""
    app.add_typer(export_app, name="export")
    app.add_typer(import_app, name="import")


@export_app.command("hf")
def export(
    model: Path = typer.Option(..., help="LLaVA checkpoint."),
    out: Path = typer.Option(..., help="New folder."),
    model_base: Path | None = typer.Option(None, help="Base of a projector or of LoRA adapters."),
    conv_mode: str | None = typer.Option(None, help="Template; default: the checkpoint's."),
) -> None:
    """Write a folder that plain transformers loads, with processor and chat template."""
    from lrm_ext.export.to_hf import export_hf

    export_hf(model, out, str(model_base) if model_base else None, conv_mode)
    check(out)


@export_app.command("check")
def check(folder: Path = typer.Argument(..., help="Folder of transformers' LLaVA class.")) -> None:
    """Say whether a folder has what vLLM and SGLang look for."""
    from rich.console import Console
    from rich.table import Table

    from lrm_ext.export.check import check_folder

    table = Table("", "item", "found", title=str(folder), title_justify="left")
    findings = check_folder(folder)
    for finding in findings:
        table.add_row("[green]ok[/]" if finding.ok else "[red]no[/]", finding.item, finding.found)
    Console().print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@import_app.command("hf")
def import_(
    model: Path = typer.Option(..., help="Folder of transformers' LLaVA class."),
    out: Path = typer.Option(..., help="New folder."),
) -> None:
    """Write a LLaVA checkpoint; of a folder that was exported here, the same weights."""
    from lrm_ext.export.from_hf import import_hf

    import_hf(model, out)
