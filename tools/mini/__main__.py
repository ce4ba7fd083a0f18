"""`python -m tools.mini ...`, or `lrm mini ...`: builds the base models of the default preset."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(help="The small base models of the preset `mini`.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `build-base` a subcommand even while it is the only one."""


@app.command("build-base")
def build_base(
    out: Path | None = typer.Option(None, help="Output folder; default: playground/models/mini."),
    check: bool = typer.Option(False, help="Only compare the files with their hashes."),
) -> None:
    """Train the vision tower and the language model that stand in for CLIP and Vicuna."""
    import transformers
    from rich.console import Console

    from tools.mini.build import build_base, check_base, hash_files, models_dir
    from tools.mini.recipe import BaseRecipe

    folder = out or models_dir()
    if not check:
        transformers.utils.logging.disable_progress_bar()
        build_base(BaseRecipe(), folder)
    check_base(folder)
    console = Console(highlight=False, soft_wrap=True)
    size = sum((folder / name).stat().st_size for name in hash_files(folder))
    console.print(f"{folder}: {size / 1e6:.1f} MB, as build.json says")


if __name__ == "__main__":
    from lrm_ext.cli import main

    main(app)
