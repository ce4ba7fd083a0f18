"""`lrm table`: the paper's tables from answers alone."""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to `lrm`."""
    app.command("table")(table)


def table(
    number: int = typer.Argument(min=1, max=4, help="Of the table in the paper."),
    runs: list[str] = typer.Argument(
        None, help="RUN, or LABEL=RUN,RUN,... with a run a seed. Table 2: files of figures."
    ),
    benchmarks: list[str] = typer.Option([], help="Names; repeat, or use commas. Default: all."),
    languages: list[str] = typer.Option([], help="Codes; repeat, or use commas. Default: all."),
    published: bool = typer.Option(True, help="Add what the paper publishes, marked as such."),
    style: str = typer.Option(
        "terminal", "--format", help="terminal, markdown, latex, csv or html."
    ),
    out: Path = typer.Option(None, help="Write it here instead of printing it."),
) -> None:
    """A table of the paper: 1 models, 2 translations, 3 instructions, 4 language models."""
    from rich.console import Console

    from llava.errors import ConfigError
    from lrm_ext.analysis.paper_tables import agreement_table, models_table, summary_table
    from lrm_ext.analysis.settings import Setting
    from lrm_ext.analysis.table_formats import FORMATS, print_table
    from lrm_ext.evaluation.predictions import write_atomically
    from lrm_ext.translation.commands import split_names

    if style not in FORMATS:
        raise ConfigError(f"--format {style}: expected one of {', '.join(FORMATS)}")
    names, langs = split_names(benchmarks), split_names(languages)
    if number == 2:
        made = agreement_table([Path(path) for path in runs or ()], published)
    else:
        settings = [Setting.parse(text) for text in runs or ()]
        if number == 1:
            made = models_table(settings, names, langs, published)
        else:
            made = summary_table(number, settings, names, langs, published)
    if out is not None:
        write_atomically(out, FORMATS[style](made))
        typer.echo(f"Table: {out}")
    elif style == "terminal":
        print_table(made, Console(highlight=False))
    else:
        typer.echo(FORMATS[style](made), nl=False)
