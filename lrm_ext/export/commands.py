"""`lrm export ...` and `lrm import ...`: checkpoints, answers and benchmarks for other tools."""

from __future__ import annotations

from pathlib import Path

import typer

from llava.errors import ConfigError, split_names
from lrm_ext.languages.registry import canonical_codes

export_app = typer.Typer(
    name="export", help="Checkpoints, answers and benchmarks for other tools.", no_args_is_help=True
)
import_app = typer.Typer(name="import", help="Checkpoints of other tools.", no_args_is_help=True)
app = typer.Typer()
app.add_typer(export_app)
app.add_typer(import_app)


@export_app.command("hf")
def export(
    model: Path = typer.Option(..., help="LLaVA checkpoint."),
    out: Path = typer.Option(..., help="New folder."),
    model_base: Path | None = typer.Option(
        None, help="Base model of a projector or of LoRA adapters."
    ),
    conv_mode: str | None = typer.Option(None, help="Template; default: the checkpoint's."),
) -> None:
    """Write a folder that plain transformers loads, with processor and chat template.

    Its class is transformers' llava, llava_next for anyres, or llava_onevision for anyres_max_N,
    with any language model and tower; what these would compute otherwise is refused.
    """
    from lrm_ext.export.transformers_checkpoint import export_hf

    export_hf(model, out, str(model_base) if model_base else None, conv_mode)
    check(out)


@export_app.command("check")
def check(folder: Path = typer.Argument(..., help="Folder of transformers' LLaVA class.")) -> None:
    """Check whether a folder has what transformers and vLLM need, and which servers load it."""
    from rich.console import Console
    from rich.table import Table

    from lrm_ext.export.check import check_folder, check_servers

    findings = check_folder(folder)
    console = Console()
    table = Table("", "item", "found", title=str(folder), title_justify="left")
    servers = Table("", "server", "known of this version")
    for target, rows, bad in (
        (table, findings, "[red]no[/]"),
        (servers, check_servers(findings), "no"),
    ):
        for row in rows:
            target.add_row("[green]ok[/]" if row.ok else bad, row.item, row.found)
        console.print(target)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@export_app.command("predictions")
def predictions(
    run: Path = typer.Argument(..., help="A run: the model's folder, or that of its results."),
    to: str = typer.Option(..., help="lmms-eval or vlmevalkit."),
    out: Path = typer.Option(..., help="Folder to write to."),
    benchmarks: list[str] = typer.Option([], help="Names; repeat, or use commas. Default: all."),
    languages: list[str] = typer.Option(
        [], help="Language codes; repeat, or use commas. Default: all."
    ),
    benchmark_dir: Path = typer.Option(
        None, help="Parent of the benchmarks' folders, for complete questions in their order."
    ),
    form: str = typer.Option("xlsx", "--format", help="Of VLMEvalKit's files: xlsx or tsv."),
) -> None:
    """Write answers as lmms-eval's logs or VLMEvalKit's tables."""
    from lrm_ext.export.evaluation import export_lmms_eval, export_vlmevalkit, read_run

    answers = read_run(run, split_names(benchmarks), canonical_codes(languages), benchmark_dir)
    exporters = {
        "lmms-eval": lambda: export_lmms_eval(answers, out),
        "vlmevalkit": lambda: export_vlmevalkit(answers, out, form),
    }
    if to not in exporters:
        raise ConfigError(f"--to is {to!r}; expected {' or '.join(exporters)}")
    typer.echo("\n".join(map(str, exporters[to]())))


@export_app.command("benchmark")
def benchmark(
    folder: str = typer.Argument(..., help="A benchmark folder, or mini-mme, ..."),
    to: str = typer.Option(..., help="hf (a dataset) or lmms-eval (task files)."),
    out: Path = typer.Option(..., help="New folder."),
    languages: list[str] = typer.Option([], help="Codes; repeat, or use commas. Default: all."),
    dataset: str = typer.Option(
        None, help="For lmms-eval: the folder that `--to hf` wrote, or its name on the Hub."
    ),
    licence: str = typer.Option("unknown", help="Licence of the benchmark, for the dataset card."),
) -> None:
    """Write a benchmark as a Hugging Face dataset, or as lmms-eval tasks on such a dataset."""
    from lrm_ext.evaluate.registry import open_named
    from lrm_ext.export.evaluation import export_dataset, export_tasks

    opened, chosen = open_named(folder), canonical_codes(languages)
    if to == "hf":
        made = export_dataset(opened, out, chosen, licence)
        typer.echo(f"{out}: {opened.name} in {', '.join(made)}")
    elif to == "lmms-eval":
        if dataset is None:
            raise ConfigError("--to lmms-eval needs --dataset: the folder that --to hf wrote")
        local = Path(dataset)
        place = str(local.resolve()) if local.is_dir() else dataset
        for path in export_tasks(opened, out, place, chosen):
            typer.echo(path)
    else:
        raise ConfigError(f"--to is {to!r}; expected hf or lmms-eval")


@import_app.command("hf")
def import_(
    model: Path = typer.Option(..., help="Folder of llava, llava_next or llava_onevision."),
    out: Path = typer.Option(..., help="New folder."),
) -> None:
    """Write a LLaVA checkpoint; a folder that was exported here gives the same weights."""
    from lrm_ext.export.transformers_checkpoint import import_hf

    import_hf(model, out)


@import_app.command("tinyllava")
def import_tiny(
    model: Path = typer.Option(..., help="Folder of TinyLLaVA Factory."),
    out: Path = typer.Option(..., help="New folder."),
    conv_mode: str | None = typer.Option(
        None, help="Template that it was trained in; default: that of its language model (Phi)."
    ),
) -> None:
    """Write a LLaVA checkpoint of TinyLLaVA's three parts."""
    from lrm_ext.export.tinyllava import import_tinyllava

    import_tinyllava(model, out, conv_mode)
