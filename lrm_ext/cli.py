"""The `lrm` command: collects the commands of every package in the order in which data flows.

Each package that has commands holds them in `commands.py` with one function,
`register(app)`. They import what they need inside the command, so that `lrm --help` stays fast.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import typer

import lrm_ext.analysis.commands
import lrm_ext.benchmarks.commands
import lrm_ext.corpus.commands
import lrm_ext.evaluation.commands
import lrm_ext.export.commands
import lrm_ext.inspecting.commands
import lrm_ext.instructions.commands
import lrm_ext.languages.commands
import lrm_ext.mixture.commands
import lrm_ext.planning.commands
import lrm_ext.serve.commands
import lrm_ext.training.commands
import lrm_ext.translation.commands
import lrm_ext.vocabulary.commands
from llava.errors import ConfigError, run_command

app = typer.Typer(
    name="lrm",
    help="Make a LLaVA-style model answer in your language.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

for _package in (
    lrm_ext.languages.commands,
    lrm_ext.corpus.commands,
    lrm_ext.translation.commands,
    lrm_ext.instructions.commands,
    lrm_ext.mixture.commands,
    lrm_ext.vocabulary.commands,
    lrm_ext.planning.commands,
    lrm_ext.training.commands,
    lrm_ext.benchmarks.commands,
    lrm_ext.evaluation.commands,
    lrm_ext.inspecting.commands,
    lrm_ext.analysis.commands,
    lrm_ext.export.commands,
    lrm_ext.serve.commands,
):
    _package.register(app)


def _developer_tool(ctx: typer.Context) -> None:
    """Run `python -m tools.<command>` of this clone with the same arguments."""
    root = Path(__file__).parents[1]
    if not (root / "tools" / str(ctx.info_name)).is_dir():
        raise ConfigError(
            f"lrm {ctx.info_name} needs a clone of the repository (pip install -e .): {root} has "
            "no folder tools/"
        )
    command = [sys.executable, "-m", f"tools.{ctx.info_name}", *ctx.args]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    sys.exit(subprocess.run(command, env={**os.environ, "PYTHONPATH": path}).returncode)


for _name, _help in (
    ("reproduce", "Train and measure the paper's settings in miniature (a clone's tools/)."),
    ("bench", "Run benchmarks against their peers (a clone's tools/)."),
    ("mini", "Make the small base models of the preset `mini` (a clone's tools/)."),
):
    app.command(
        _name,
        help=_help,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(_developer_tool)


def main(command: typer.Typer = app) -> None:
    """Run a command line."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # a line for each request, of which a translation makes a hundred thousand
    for client in ("httpx", "httpx2", "openai"):
        logging.getLogger(client).setLevel(logging.WARNING)
    run_command(command)


if __name__ == "__main__":
    main()
