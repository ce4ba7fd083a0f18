"""`lrm eval`, `report`, `compare` and `inspect`: measure models, show and compare results."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from lrm_ext.evaluation.report import EvalReport
    from lrm_ext.evaluation.runner import EvalConfig


def register(app: typer.Typer) -> None:
    """Add the commands to `lrm`."""
    app.command("eval")(evaluate)
    app.command("report")(report)
    app.command("compare")(compare)
    app.command("inspect")(inspect)


def evaluate(
    model: Path = typer.Option(
        ..., help="Folder of a checkpoint (LLaVA's or transformers'), or a name on the hub."
    ),
    model_base: str = typer.Option(None, help="Base model of a LoRA or projector checkpoint."),
    benchmarks: list[str] = typer.Option(
        [], help="Names; repeat, or use commas. Default: all in --benchmark-dir, else scenes."
    ),
    languages: list[str] = typer.Option([], help="Codes; repeat, or use commas. Default: all."),
    limit: int = typer.Option(None, help="About so many questions per benchmark and language."),
    batch_size: int = typer.Option(64, help="Questions asked at once."),
    blind: bool = typer.Option(True, help="Ask a second time without the picture."),
    max_new_tokens: int = typer.Option(32, help="Longest answer."),
    out: Path = typer.Option(
        None, help="Folder of the results; <model>/eval, or runs/eval/<name>, by default."
    ),
    benchmark_dir: Path = typer.Option(
        None, help="A folder of <lang>.jsonl, whose name is the benchmark's, or of such folders."
    ),
    conv_mode: str = typer.Option(None, help="Template, in place of the checkpoint's own."),
    device: str = typer.Option(None, help="cpu or cuda; a GPU by default where there is one."),
    base_url: str = typer.Option(
        None, help="Ask a service with OpenAI's chat interface; --model is the name it knows."
    ),
    max_tokens_field: str = typer.Option(
        None, help="For a service: max_tokens or max_completion_tokens; found out by default."
    ),
    temperature: bool = typer.Option(
        True, help="Ask a service for temperature 0; left out by itself where it is not taken."
    ),
    skip_missing_images: bool = typer.Option(
        False, "--skip-missing-images", help="Questions without their picture are wrong, counted."
    ),
    rank: str = typer.Option(
        None, help="Rank options by likelihood, as SEED-Bench's owner does: mean or sum of tokens."
    ),
    fresh: bool = typer.Option(False, "--fresh", help="Delete earlier answers first."),
    table: bool = typer.Option(True, help="Print the tables at the end."),
) -> None:
    """Measure a model in all languages; what is answered already is not asked again.

    On several GPUs: torchrun --nproc_per_node 8 -m lrm_ext.cli eval --model ...
    """
    from lrm_ext.evaluation.runner import EvalConfig

    config = EvalConfig(
        model_path=model, model_base=model_base, benchmarks=_names(benchmarks),
        languages=_names(languages), limit=limit, batch_size=batch_size, blind=blind,
        max_new_tokens=max_new_tokens, out_dir=out, benchmark_dir=benchmark_dir,
        conv_mode=conv_mode, device=device, fresh=fresh, skip_missing_images=skip_missing_images,
        base_url=base_url, max_tokens_field=max_tokens_field, temperature=temperature, rank=rank,
    )  # fmt: skip
    _evaluate(config, table)


def _evaluate(config: EvalConfig, table: bool) -> None:
    import transformers
    from rich.console import Console

    from lrm_ext.analysis.html import write_report
    from lrm_ext.evaluation.report import score_run
    from lrm_ext.evaluation.runner import Ranks, run_evaluation

    console = Console()
    if not console.is_terminal:
        transformers.utils.logging.disable_progress_bar()
    ranks = Ranks.from_environment()
    sets = run_evaluation(config, console, ranks=ranks)
    if not ranks.is_first:
        return
    result = score_run(config, sets, command="lrm " + shlex.join(sys.argv[1:]))
    page = write_report(result, config.results_dir, config.model_path)
    if table:
        _print_tables(result, console)
    console.print(f"Report: {page}", soft_wrap=True, highlight=False)


def _print_tables(result: EvalReport, console: Console) -> None:
    from lrm_ext.analysis.tables import print_headlines, print_report

    print_report(result, console)
    print_headlines(result, console)


def report(
    run: Path = typer.Argument(None, help="A run: the model's folder, or that of its results."),
    model: Path = typer.Option(None, help="The model's folder, if its results lie elsewhere."),
    out: Path = typer.Option(None, help="Folder of the results; <model>/eval by default."),
) -> None:
    """Print the tables again and render report.html, from the files of an evaluation alone."""
    from rich.console import Console

    from llava.errors import ConfigError
    from lrm_ext.analysis.html import write_report
    from lrm_ext.evaluation.report import REPORT_FILE, EvalReport
    from lrm_ext.evaluation.runner import default_results_dir

    given = run or model or out
    if given is None:
        raise ConfigError("name a run: lrm report runs/mini")
    console = Console()
    has_report = (given / REPORT_FILE).is_file()
    folder = out or (given if has_report else default_results_dir(given))
    result = EvalReport.read(folder)
    model = model or (Path(result.model_path) if has_report else given)
    page = write_report(result, folder, model)
    _print_tables(result, console)
    console.print(f"Report: {page}", soft_wrap=True, highlight=False)


def compare(
    a: Path = typer.Argument(help="A run: the model's folder, or that of its results."),
    b: Path = typer.Argument(help="The run that is judged against it."),
    benchmarks: list[str] = typer.Option([], help="Names; repeat, or use commas. Default: all."),
    languages: list[str] = typer.Option([], help="Codes; repeat, or use commas. Default: all."),
    mode: str = typer.Option(None, help="How answers are read, in place of the default."),
    seed: int = typer.Option(0, help="Of the bootstrap."),
    replicates: int = typer.Option(10_000, help="Of the bootstrap."),
    as_json: bool = typer.Option(False, "--json", help="Print the comparison as JSON."),
) -> None:
    """Is B better than A, worse, or not distinguishable? Per language and on average."""
    import json

    from rich.console import Console

    from lrm_ext.evaluation.compare import compare_runs, print_comparison

    results = compare_runs(
        a,
        b,
        benchmarks=_names(benchmarks),
        languages=_names(languages),
        mode=mode,
        seed=seed,
        num_replicates=replicates,
    )
    if as_json:
        content = {
            "a": str(a),
            "b": str(b),
            "seed": seed,
            "replicates": replicates,
            "benchmarks": [result.to_json() for result in results],
        }
        typer.echo(json.dumps(content, ensure_ascii=False, indent=1))
    else:
        print_comparison(results, a, b, Console())


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

    try:
        import uvicorn

        from lrm_ext.evaluation.inspecting import load_runs, make_app
    except ImportError as error:
        raise ConfigError(f"the page needs {error.name}: pip install 'lrm-llava[serve]'") from error
    loaded = load_runs(runs, benchmark_dir, _names(benchmarks), _names(languages), table)
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


def _names(texts: list[str]) -> tuple[str, ...]:
    """Split at commas; each name once, in the order given."""
    names = (name.strip() for text in texts for name in text.split(","))
    return tuple(dict.fromkeys(filter(None, names)))
