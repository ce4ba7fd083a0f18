"""`lrm table`, `lrm figure`, `lrm modality-gap`: the paper's. `lrm plot-run`: plots of training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer
from rich.console import Console

from llava.errors import ConfigError, split_names
from llava.files import write_atomically
from lrm_ext.languages.fonts import save_plot
from lrm_ext.languages.registry import canonical_codes

if TYPE_CHECKING:
    from lrm_ext.report.settings import Setting

_FIGURES: Final = (1, 4, 5, 6)
app = typer.Typer()


@app.command("table")
def table(
    name: str = typer.Argument(help="1 to 4, or pangea, centurio, kaleidoscope, mmmb."),
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
    """A table of the paper: 1 models, 2 translations, 3 instructions, 4 language models.

    Or runs beside the published figures of other papers, where they are read by the same rules.
    """
    from rich.console import Console

    from lrm_ext.report import paper_tables, protocols, tables
    from lrm_ext.report.settings import Setting

    formats = tables.FORMATS
    if style not in formats:
        raise ConfigError(f"--format {style}: expected one of {', '.join(formats)}")
    names, langs = split_names(benchmarks), canonical_codes(languages)
    protocols.check_table(name, runs or ())
    if name == "2":
        made = paper_tables.agreement_table([Path(path) for path in runs or ()], published)
    else:
        settings = [Setting.parse(text) for text in runs or ()]
        if name in protocols.PROTOCOLS:
            if names or langs:
                raise ConfigError(
                    f"--benchmarks, --languages: table {name} has those of its source"
                )
            made = protocols.protocol_table(name, settings, published)
        elif name == "1":
            made = paper_tables.models_table(settings, names, langs, published)
        else:
            made = paper_tables.summary_table(int(name), settings, names, langs, published)
    if out is not None:
        write_atomically(out, formats[style](made))
        typer.echo(f"Table: {out}")
    elif style == "terminal":
        tables.print_table(made, Console(highlight=False))
    else:
        typer.echo(formats[style](made), nl=False)


@app.command("modality-gap")
def modality_gap(
    model: Path = typer.Argument(help="Folder of a checkpoint."),
    corpus: Path = typer.Option(
        None, help="Folder of a corpus; the built-in fine-tuning corpus by default."
    ),
    languages: list[str] = typer.Option([], help="Codes; repeat, or use commas. Default: all."),
    num: int = typer.Option(5_000, min=10, help="Samples."),
    seed: int = typer.Option(0, help="Of the samples and folds."),
    batch_size: int = typer.Option(64, min=1, help="Images or texts at once."),
    layers: str = typer.Option(None, help="Such as 0,8,16; at most nine, evenly, by default."),
    model_base: str = typer.Option(None, help="Base model of a LoRA or projector checkpoint."),
    device: str = typer.Option(None, help="cpu or cuda; a GPU by default where there is one."),
    out: Path = typer.Option(..., help="FILE.npz of features; the numbers go to FILE.json."),
) -> None:
    """Measure how far images are from texts, and languages from each other (Figure 5)."""
    import json

    from lrm_ext.corpus.store import Corpus
    from lrm_ext.emoji.unpack import ensure_unpacked
    from lrm_ext.report import modality

    modality.need_scikit_learn()
    if out.suffix != ".npz":
        raise ConfigError(f"--out {out}: expected a file that ends with .npz")
    console = Console(highlight=False)
    opened = Corpus.open(corpus or ensure_unpacked() / "finetune")
    langs = dict.fromkeys(("en", *(canonical_codes(languages) or opened.languages)))
    samples = modality.draw_samples(opened, tuple(langs), num, seed)
    chosen = None if layers is None else [int(layer) for layer in layers.split(",")]
    extractor = modality.FeatureExtractor(model, model_base, chosen, device)
    features = modality.extract(extractor, samples, batch_size)
    about = {
        "model": str(model), "corpus": str(opened.path), "corpus_fingerprint": opened.fingerprint(),
        "seed": seed, "num_samples": len(samples.rows), "num_wanted": num,
        "left_out": samples.num_left_out, "layers": list(extractor.layers),
    }  # fmt: skip
    modality.save_features(out, features, about)
    report = {**about, **modality.measure(features, extractor.layers, seed)}
    write_atomically(out.with_suffix(".json"), json.dumps(report, indent=1))
    console.print(modality.gap_table(report))
    left = ", ".join(f"{n:,} {why}" for why, n in samples.num_left_out.items() if n)
    console.print(f"{len(samples.rows):,} samples of {num:,} asked for; left out: {left or 'none'}")
    console.print(f"Features: {out}, numbers: {out.with_suffix('.json')}", soft_wrap=True)


@app.command("figure")
def figure(
    number: int = typer.Argument(help="Of the figure in the paper: 1, 4, 5 or 6."),
    runs: list[str] = typer.Argument(
        help="RUN, or LABEL=RUN,RUN,... with a run a seed. Figure 5: FILE.npz or LABEL=FILE.npz; "
        "figure 6: RATIO=RUN,..., such as 150=runs/x."
    ),
    out: Path = typer.Option(..., help="The figure: .png, .svg or .pdf."),
    benchmarks: list[str] = typer.Option([], help="Names; repeat, or use commas. Default: all."),
    languages: list[str] = typer.Option([], help="Codes; repeat, or use commas. Default: all."),
    style: str = typer.Option("bars", help="Figure 1: bars or radar."),
    ids: list[str] = typer.Option([], help="Figure 4: question ids; repeat, or use commas."),
    num: int = typer.Option(3, min=1, help="Figure 4: questions, where no --ids are given."),
    benchmark_dir: Path = typer.Option(
        None, help="Figure 4: where the benchmark with its images is, if it is not built in."
    ),
    table: str = typer.Option(
        None, help="Figure 4: a table for the back-translation, as of the engine `memory`."
    ),
    seed: int = typer.Option(0, help="Figure 5: of t-SNE. Figure 4: of the choice of questions."),
) -> None:
    """A figure of the paper: 1 languages, 4 an example, 5 modality gap, 6 ratio of data."""
    from lrm_ext.report.settings import Setting

    if number not in _FIGURES:
        raise ConfigError(f"figure {number}: expected one of {', '.join(map(str, _FIGURES))}")
    settings = [Setting.parse(text) for text in runs]
    names, langs = split_names(benchmarks), canonical_codes(languages)
    if number == 4:
        from lrm_ext.report import qualitative

        examples = qualitative.choose_examples(
            settings, benchmark_dir, benchmarks=names, languages=langs, ids=split_names(ids),
            num=num, seed=seed, table=table,
        )  # fmt: skip
        save_plot(qualitative.examples_figure(examples), out)
        page = out.with_suffix(".html")
        write_atomically(page, qualitative.examples_page(examples))
        typer.echo(f"Page: {page}")
    elif number == 5:
        from lrm_ext.report.modality import modality_figure

        if any(len(setting.runs) > 1 for setting in settings):
            raise ConfigError("figure 5 takes one file of features a label")
        labels = [setting.label.removesuffix(".npz") for setting in settings]
        save_plot(modality_figure([s.runs[0] for s in settings], labels, seed), out)
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
    """Draws Figure 1 or 6, and says which scores are missing."""
    from lrm_ext.report.plots import languages_figure, ratio_figure
    from lrm_ext.report.settings import score_settings

    scored = score_settings(settings, names, langs)
    if number == 6 and len(scored) > 1:
        there = ", ".join(one.name for one in scored)
        raise ConfigError(f"figure 6 is about one benchmark; choose with --benchmarks: {there}")
    made = languages_figure(scored, style) if number == 1 else ratio_figure(scored[0])
    save_plot(made, out)
    for one in scored:
        for label, cells in one.cells.items():
            for lang, cell in cells.items():
                if cell.value is None:
                    typer.echo(f"missing: {label}, {one.name}, {lang}: {cell.reason}", err=True)


@app.command("plot-run")
def plot_run(
    runs: list[Path] = typer.Argument(..., help="Output folders of training runs."),
    out: Path = typer.Option(Path("loss.png"), help="Plot to write: .png, .svg or .pdf."),
    smooth: int = typer.Option(1, min=1, help="Average the loss over so many logged steps."),
) -> None:
    """Plot the loss of training runs, in all and per language, and their validation.

    Marks where interrupted runs were resumed.
    """
    from lrm_ext.report.training import largest_difference, plot_runs, read_attempts

    console = Console(highlight=False, soft_wrap=True)
    plot_runs(runs, out, smooth)
    for run in runs:
        attempts = read_attempts(run)
        steps, difference = largest_difference(attempts)
        repeated = f", {steps} steps made again, loss differs by at most {difference:g}"
        console.print(
            f"{run}: {len(attempts)} attempt{'s' if len(attempts) > 1 else ''}"
            f"{repeated if steps else ''}"
        )
    console.print(f"saved to {out}")
