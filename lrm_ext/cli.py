"""The `lrm` command: collects the commands of every package in the order in which data flows.

Each package that has commands holds them in `commands.py` with one function,
`register(app)`. They import what they need inside the command, so that `lrm --help` stays fast.
"""

from __future__ import annotations

import logging

import typer

import lrm_ext.analysis.commands
import lrm_ext.bench.commands
import lrm_ext.benchmarks.commands
import lrm_ext.corpus.commands
import lrm_ext.evaluation.commands
import lrm_ext.export.commands
import lrm_ext.inspecting.commands
import lrm_ext.instructions.commands
import lrm_ext.languages.commands
import lrm_ext.mini.commands
import lrm_ext.mixture.commands
import lrm_ext.planning.commands
import lrm_ext.reproduce.commands
import lrm_ext.serve.commands
import lrm_ext.training.commands
import lrm_ext.translation.commands
import lrm_ext.vocabulary.commands
from llava.errors import run_command

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
    lrm_ext.mini.commands,
    lrm_ext.vocabulary.commands,
    lrm_ext.planning.commands,
    lrm_ext.training.commands,
    lrm_ext.benchmarks.commands,
    lrm_ext.evaluation.commands,
    lrm_ext.inspecting.commands,
    lrm_ext.analysis.commands,
    lrm_ext.reproduce.commands,
    lrm_ext.export.commands,
    lrm_ext.serve.commands,
    lrm_ext.bench.commands,
):
    _package.register(app)


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # a line for each request, of which a translation makes a hundred thousand
    for client in ("httpx", "httpx2", "openai"):
        logging.getLogger(client).setLevel(logging.WARNING)
    run_command(app)


if __name__ == "__main__":
    main()
