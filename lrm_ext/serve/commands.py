"""The command `lrm demo`.

In: a checkpoint. Out: a page to talk to it, until Ctrl-C. The work is in `lrm_ext.serve.demo`.
"""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this package to `lrm`."""
    app.command("demo")(demo)


def demo(
    model: str = typer.Option("runs/mini", help="Checkpoint folder, or a name on the Hub."),
    model_base: str = typer.Option("", help="Base model of a LoRA or projector-only checkpoint."),
    compare_with: str = typer.Option("", help="Another checkpoint, to compare side by side."),
    port: int = typer.Option(7860, help="Port of the page."),
    api_port: int = typer.Option(0, help="Port of an OpenAI-compatible API, e.g. 8000; 0: none."),
    host: str = typer.Option("127.0.0.1", help="Address of both; 0.0.0.0 shows them to all."),
    device: str = typer.Option("cuda", help="Where the model runs; the CPU if there is no CUDA."),
    log_dir: Path = typer.Option(Path("runs/demo"), help="Folder for logs and uploaded pictures."),
    keep_days: float = typer.Option(
        30.0, min=0, help="Days until uploaded pictures are deleted; 0: for ever."
    ),
    start_timeout: float = typer.Option(900.0, help="Seconds that loading the model may take."),
    check: bool = typer.Option(False, "--check", help="Start, ask one question, stop."),
) -> None:
    """Start a page to talk to a model: controller, worker, page and API in one command."""
    from lrm_ext.serve.demo import DemoOptions, run_demo

    run_demo(
        DemoOptions(
            model=model,
            model_base=model_base or None,
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
