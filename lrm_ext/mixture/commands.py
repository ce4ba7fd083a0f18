"""`lrm mixture show`: the samples of a mixture of a corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from llava.data.sample import Sample
    from lrm_ext.mixture.order import Mixture
    from lrm_ext.mixture.table import CountTokens

mixture_app = typer.Typer(help="Inspect mixtures.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to `lrm`."""
    app.add_typer(mixture_app, name="mixture")


@mixture_app.callback()
def _group() -> None:
    """Keeps `show` a subcommand although it is the only one."""


@mixture_app.command("show")
def show(
    mixture: str = typer.Option("finetune", help="A TOML file, or the name of an included one."),
    languages: str = typer.Option(
        None, help="Languages besides English, evenly, in place of the mixture's: hr,sw; or all."
    ),
    corpus: Path | None = typer.Option(
        None, help="A corpus folder; default: those of the mixture, or the built-in one."
    ),
    tokenizer: Path | None = typer.Option(
        None, help="Folder of a tokenizer; adds mean lengths and shares of tokens."
    ),
    template: str = typer.Option("lrm_bare", help="Conversation template for token counts."),
    num_measured: int = typer.Option(
        100, min=1, help="Samples to measure per language and instruction."
    ),
    epoch: int = typer.Option(0, min=0, help="Epoch of a curriculum."),
    simulate: bool = typer.Option(
        False, help="Show what each language gets over --epochs: tokens, rows, repeated rows."
    ),
    epochs: int = typer.Option(1, min=1, help="Epochs to simulate, from the first."),
) -> None:
    """Print the samples per language and instruction, their shares, and their rows."""
    from lrm_ext.corpus.store import parts_of
    from lrm_ext.emoji.unpack import open_corpus
    from lrm_ext.mixture.order import Mixture
    from lrm_ext.mixture.spec import MixtureSpec, mixture_path

    path = mixture_path(mixture)
    spec = MixtureSpec.from_toml(path).in_languages(languages)
    count_tokens = _token_counter(tokenizer, template) if tokenizer is not None else None
    stage = "pretrain" if path.stem == "pretrain" else "finetune"
    names_none = corpus is None and spec.corpora
    mixed = Mixture.open(spec, None if names_none else open_corpus(corpus, stage))
    console = Console(highlight=False)
    console.print(f"mixture {path}", soft_wrap=True, markup=False)
    for part in parts_of(mixed.corpus):
        console.print(f"corpus  {part.path}", soft_wrap=True, markup=False)
    shown = range(epochs) if simulate else range(epoch, epoch + 1)
    console.print(_render(mixed, shown, simulate, count_tokens, num_measured))
    notes = _notes_on_simulation(epochs) if simulate else _notes(mixed)
    if count_tokens is not None:
        lengths = (
            "Tokens are means over some of the samples, times the exact counts"
            if simulate
            else "Lengths are means over some of the samples"
        )
        notes += f"\n{lengths}; an image counts as one token."
    console.print(notes, markup=False)


def _token_counter(folder: Path, template: str) -> Callable[[Sample], int]:
    from lrm_ext.instructions.inspection import encode_sample, load_tokenizer

    tokenizer = load_tokenizer(folder)
    return lambda sample: len(encode_sample(sample, template, tokenizer).input_ids)


def _notes(mixture: Mixture) -> str:
    ratio = mixture.num_non_english / mixture.num_english
    notes = (
        f"{mixture.num_english:,} English + {mixture.num_non_english:,} other samples an epoch "
        f"(1 : {ratio:g}). Rows: distinct corpus rows in an epoch, of those with accepted text."
    )
    if mixture.left_out:
        notes += (
            f"\nLeft out: {', '.join(mixture.left_out)}; the corpus has them, and [languages] of "
            "the mixture does not. Add them there, or leave [languages] out to take all."
        )
    return notes


def _notes_on_simulation(num_epochs: int) -> str:
    epochs = f"{num_epochs} epochs" if num_epochs > 1 else "one epoch"
    return (
        f"Over {epochs}. Repeated: samples of a row that was drawn before; most often: draws of "
        "the most frequent row."
    )


# total, and cells by language, for each heading
Columns = dict[str, tuple[str, Mapping[str, str]]]


def _table(langs: Iterable[str], columns: Columns) -> Table:
    """Makes a table with a row per language and a last row of totals."""
    table = Table(show_footer=True)
    table.add_column("language", footer="all")
    for name, (total, _) in columns.items():
        table.add_column(name, footer=total, justify="right")
    for lang in langs:
        table.add_row(lang, *(cells.get(lang, "") for _, cells in columns.values()))
    return table


def _numbers(values: Mapping[str, float]) -> tuple[str, Mapping[str, str]]:
    cells = {lang: f"{value:,.0f}" for lang, value in values.items()}
    return f"{sum(values.values()):,.0f}", cells


def _shares(values: Mapping[str, float]) -> tuple[str, Mapping[str, str]]:
    total = sum(values.values())
    return "100.0 %", {lang: f"{100 * value / total:.1f} %" for lang, value in values.items()}


def _render(
    mixture: Mixture,
    epochs: Sequence[int],
    is_simulation: bool,
    count_tokens: CountTokens | None,
    num_measured: int,
) -> Table:
    """Makes the table of an epoch with a column per instruction, or of several with repeats."""
    from lrm_ext.mixture.table import make_table, simulate

    found = simulate(mixture, epochs)
    rows = [r for epoch in epochs for r in make_table(mixture, count_tokens, num_measured, epoch)]
    counts = {each.lang: each.count for each in found}
    columns: Columns = {}
    if not is_simulation:
        for name in dict.fromkeys(row.instruction for row in rows):
            own = {row.lang: row.count for row in rows if row.instruction == name}
            columns[name] = _numbers(own)
    columns["samples"], columns["share"] = _numbers(counts), _shares(counts)
    columns["rows"] = ("", {e.lang: f"{e.num_rows:,} of {e.num_usable:,}" for e in found})
    if is_simulation:
        columns["repeated"] = _numbers({each.lang: each.count - each.num_rows for each in found})
        columns["most often"] = ("", {each.lang: f"{each.most_often} x" for each in found})
    if count_tokens is not None:
        characters, tokens = dict.fromkeys(counts, 0.0), dict.fromkeys(counts, 0.0)
        for row in rows:
            characters[row.lang] += (row.characters or 0) * row.count
            tokens[row.lang] += (row.tokens or 0) * row.count
        if is_simulation:
            columns["tokens"] = _numbers(tokens)
        else:
            for name, sums in (("characters", characters), ("tokens", tokens)):
                means = {lang: f"{sums[lang] / n:,.1f}" for lang, n in counts.items() if n}
                columns[name] = (f"{sum(sums.values()) / len(mixture):,.1f}", means)
        columns["token share"] = _shares(tokens)
    return _table(counts, columns)
