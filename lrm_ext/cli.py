"""The `lrm` command: collects the commands of every package and lists them in the order of work.

Each package that has commands holds them in `commands.py`, in the Typer application `app`, and
imports what it needs inside the command, so that `lrm --help` stays fast. `PANELS` says where
`lrm --help` lists a command and how it sums it up.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import typer
import typer.core

import lrm_ext.corpus.commands
import lrm_ext.evaluate.commands
import lrm_ext.export.commands
import lrm_ext.languages.commands
import lrm_ext.mixture.commands
import lrm_ext.plan.commands
import lrm_ext.report.commands
import lrm_ext.translate.commands
from llava.errors import ConfigError, run_command

PANELS: Final = {
    "Languages and data": {
        "languages": "List, add and check languages; compare how tokenizers split them.",
        "probe": "Measure how well base models know a language, before training.",
        "corpus": "Import, inspect, validate and export parallel corpora.",
        "sample": "Print one training sample: text, prompt, token ids and labels.",
        "mixture": "Show the shares of languages, instructions and corpora.",
    },
    "Translation": {
        "translate": "Translate a corpus. Resumes where it stopped and pays for nothing twice.",
    },
    "Training": {
        "plan": "Estimate memory, batch size, time and cost before a run.",
        "extend-vocab": "Add tokens for a language to a tokenizer and its model.",
        "plot-run": "Plot training and validation loss, overall and per language.",
    },
    "Measuring": {
        "benchmark": "Import, translate, list and score benchmarks.",
        "eval": "Evaluate a model in every language. Resumes where it stopped.",
        "report": "Rebuild the tables and report.html from saved results.",
        "compare": "Test whether one model is better than another, per language.",
    },
    "Showing": {
        "inspect": "Browse images, questions and answers in a local page.",
        "table": "Make a table of the paper from saved answers.",
        "figure": "Plot a figure of the paper from saved answers.",
        "modality-gap": "Measure the distance between images and texts in a model (Figure 5).",
    },
    "Serving": {
        "demo": "Serve a model: web page and OpenAI-style API in one command.",
        "export": "Export checkpoints, answers and benchmarks to other tools.",
        "import": "Import checkpoints from other tools.",
    },
    "Developer tools": {
        "mini": "Build the small base models of the preset `mini`.",
        "reproduce": "Train and evaluate the paper's settings in miniature (needs a clone).",
        "bench": "Benchmark speed against other tools (needs a clone).",
    },
}
"""Panel -> command -> summary, in the order of `lrm --help`."""


class _PanelGroup(typer.core.TyperGroup):
    """Lists commands as `PANELS` has them."""

    def list_commands(self, ctx: Any) -> list[str]:
        for panel, summaries in PANELS.items():
            for name, summary in summaries.items():
                command: Any = self.commands[name]  # the attributes are typer's
                command.rich_help_panel, command.short_help = panel, summary
        return [name for summaries in PANELS.values() for name in summaries]


app = typer.Typer(
    name="lrm",
    cls=_PanelGroup,
    help="Make a LLaVA-style vision-language model answer in your language.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

for _package in (
    lrm_ext.languages.commands,
    lrm_ext.corpus.commands,
    lrm_ext.translate.commands,
    lrm_ext.mixture.commands,
    lrm_ext.plan.commands,
    lrm_ext.evaluate.commands,
    lrm_ext.report.commands,
    lrm_ext.export.commands,
):
    app.add_typer(_package.app)
lrm_ext.corpus.commands.app.command("score")(lrm_ext.translate.commands.score)


@app.command("demo")
def demo(
    model: str = typer.Option("runs/mini", help="Checkpoint folder, or a name on the Hub."),
    model_base: str = typer.Option("", help="Base model of a LoRA or projector-only checkpoint."),
    base_url: str = typer.Option(
        "", help="Service with OpenAI's API, e.g. http://127.0.0.1:8000/v1; replaces --model."
    ),
    compare_with: str = typer.Option("", help="Another checkpoint, to compare side by side."),
    port: int = typer.Option(7860, help="Port of the page."),
    api_port: int = typer.Option(0, help="Port of an OpenAI-compatible API, e.g. 8000; 0: none."),
    host: str = typer.Option("127.0.0.1", help="Address of page and API; 0.0.0.0: all networks."),
    device: str = typer.Option("cuda", help="Device of the model; the CPU if there is no CUDA."),
    log_dir: Path = typer.Option(Path("runs/demo"), help="Folder for logs and uploaded images."),
    keep_days: float = typer.Option(
        30.0, min=0, help="Days until uploaded images are deleted; 0: for ever."
    ),
    start_timeout: float = typer.Option(900.0, help="Seconds that loading the model may take."),
    check: bool = typer.Option(False, "--check", help="Start, ask one question, stop."),
) -> None:
    """Start a page to talk to a model: controller, worker, page and API in one command."""
    from lrm_ext.demo import DemoOptions, run_demo

    run_demo(
        DemoOptions(
            model=model,
            model_base=model_base or None,
            base_url=base_url or None,
            compare_with=compare_with or None,
            port=port,
            api_port=api_port or None,
            host=host,
            device=device,
            log_dir=log_dir,
            keep_days=keep_days,
            start_timeout_s=start_timeout,
            check=check,
        )
    )


def _developer_tool(ctx: typer.Context) -> None:
    """Runs `python -m tools.<command>` of this clone with the same arguments."""
    root, name = Path(__file__).parents[1], str(ctx.info_name).replace("-", "_")
    if not list((root / "tools").glob(f"{name}*")):
        raise ConfigError(
            f"{ctx.command_path} needs a clone of the repository (pip install -e .): {root} has "
            "no folder tools/"
        )
    command = [sys.executable, "-m", f"tools.{name}", *ctx.args]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    sys.exit(subprocess.run(command, env={**os.environ, "PYTHONPATH": path}).returncode)


_BUILD_EMOJI = "Build the packed built-in corpus from its sources (needs a clone)."
for _group, _name, _help in (
    (app, "mini", None),
    (app, "reproduce", None),
    (app, "bench", None),
    (lrm_ext.corpus.commands.app, "build-emoji", _BUILD_EMOJI),
):
    _group.command(
        _name,
        help=_help,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(_developer_tool)


def main(command: typer.Typer = app) -> None:
    """Runs a command line."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # a line for each request, of which a translation makes a hundred thousand
    for client in ("httpx", "httpx2", "openai"):
        logging.getLogger(client).setLevel(logging.WARNING)
    run_command(command)


if __name__ == "__main__":
    main()
