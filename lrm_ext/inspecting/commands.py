"""`lrm inspect`: look at answers."""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the command to `lrm`."""
    app.command("inspect")(inspect)


def inspect(
    runs: list[Path] = typer.Argument(help="Models' folders, or those of their results."),
    benchmark_dir: Path = typer.Option(
        None, help="Folder of your own benchmarks, for their pictures."
    ),
    benchmarks: list[str] = typer.Option([], help="Names; repeat, or use commas. Default: all."),
    languages: list[str] = typer.Option([], help="Codes; repeat, or use commas. Default: all."),
    table: str = typer.Option(
        None, help="Translations for answers in English: TSV or corpus, {lang} for the code."
    ),
    port: int = typer.Option(7861, min=0, max=65535, help="Port of the page; 0: a free one."),
) -> None:
    """Show answers beside their pictures, on a page that only this machine can open."""
    import socket

    from rich.console import Console

    from llava.errors import ConfigError
    from lrm_ext.inspecting.rows import load_runs
    from lrm_ext.translation.commands import split_names

    try:
        import uvicorn

        from lrm_ext.inspecting.server import make_app
    except ImportError as error:
        raise ConfigError(f"the page needs {error.name}: pip install 'lrm-llava[serve]'") from error
    loaded = load_runs(runs, benchmark_dir, split_names(benchmarks), split_names(languages), table)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"--port {port} is in use ({error.strerror}); choose another, or 0 for a free one"
            ) from error
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        num_questions = f"{len(loaded.rows):,} questions, {len(loaded.names)} runs"
        Console().print(f"{num_questions}: {address} (Ctrl-C ends it)", highlight=False)
        config = uvicorn.Config(make_app(loaded), log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listener])
