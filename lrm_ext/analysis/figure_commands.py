"""`lrm figure`: the paper's figures from answers, or from features of `lrm modality-gap`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from lrm_ext.analysis.settings import Setting

NUMBERS = (1, 4, 5, 6)


def figure(
    number: int = typer.Argument(help="Of the figure in the paper: 1, 4, 5 or 6."),
    runs: list[str] = typer.Argument(
        help="RUN, or LABEL=RUN,RUN,... with a run a seed. Figure 5: FILE.npz or LABEL=FILE.npz; "
        "figure 6: RATIO=RUN,..., such as 150=runs/x."
    ),
    out: Path = typer.Option(..., help="The picture: .png, .svg or .pdf."),
    benchmarks: list[str] = typer.Option([], help="Names; repeat, or use commas. Default: all."),
    languages: list[str] = typer.Option([], help="Codes; repeat, or use commas. Default: all."),
    style: str = typer.Option("bars", help="Figure 1: bars or radar."),
    ids: list[str] = typer.Option([], help="Figure 4: question ids; repeat, or use commas."),
    num: int = typer.Option(3, min=1, help="Figure 4: questions, where no --ids are given."),
    benchmark_dir: Path = typer.Option(
        None, help="Figure 4: where the benchmark with its pictures is, if it is not built in."
    ),
    table: str = typer.Option(
        None, help="Figure 4: a table for the back-translation, as of the engine `memory`."
    ),
    seed: int = typer.Option(0, help="Figure 5: of t-SNE. Figure 4: of the choice of questions."),
) -> None:
    """A figure of the paper: 1 languages, 4 an example, 5 modality gap, 6 ratio of data."""
    from llava.errors import ConfigError
    from lrm_ext.analysis.settings import Setting
    from lrm_ext.translation.commands import split_names

    if number not in NUMBERS:
        raise ConfigError(f"figure {number}: expected one of {', '.join(map(str, NUMBERS))}")
    settings = [Setting.parse(text) for text in runs]
    names, langs = split_names(benchmarks), split_names(languages)
    if number == 5:
        _modality(settings, seed, out)
    elif number == 4:
        from lrm_ext.analysis.qualitative import Choice, write_examples

        choice = Choice(names, langs, split_names(ids), num, seed)
        page = write_examples(settings, choice, out, benchmark_dir, table)
        typer.echo(f"Page: {page}")
    else:
        _scores(number, settings, names, langs, style, out)
    typer.echo(f"Figure: {out}")


def _scores(
    number: int,
    settings: list[Setting],
    names: tuple[str, ...],
    langs: tuple[str, ...],
    style: str,
    out: Path,
) -> None:
    from llava.errors import ConfigError
    from lrm_ext.analysis.paper_charts import languages_figure, ratio_figure
    from lrm_ext.analysis.settings import score_settings
    from lrm_ext.files import save_figure

    scored = score_settings(settings, names, langs)
    labels = [setting.label for setting in settings]
    if number == 1:
        save_figure(languages_figure(scored, labels, style), out)
    elif len(scored) > 1:
        there = ", ".join(one.name for one in scored)
        raise ConfigError(f"figure 6 is about one benchmark; choose with --benchmarks: {there}")
    else:
        save_figure(ratio_figure(scored[0], labels), out)
    for one in scored:
        for label in labels:
            for lang, cell in one.cells[label].items():
                if cell.value is None:
                    typer.echo(f"missing: {label}, {one.name}, {lang}: {cell.reason}", err=True)


def _modality(settings: list[Setting], seed: int, out: Path) -> None:
    from llava.errors import ConfigError
    from lrm_ext.analysis.modality_plot import modality_figure
    from lrm_ext.files import save_figure

    paths = [setting.runs[0] for setting in settings]
    if any(len(setting.runs) > 1 for setting in settings):
        raise ConfigError("figure 5 takes one file of features a label")
    labels = [s.label.removesuffix(".npz") for s in settings]
    save_figure(modality_figure(paths, labels, seed), out)
