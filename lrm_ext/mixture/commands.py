"""`lrm mixture show`: the samples of a mixture of a corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from llava.data.sample import Sample
    from lrm_ext.mixture.order import Mixture
    from lrm_ext.mixture.table import CountTokens, MixtureTableRow, Simulated

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
    from rich.console import Console

    from lrm_ext.corpus.store import parts_of
    from lrm_ext.emoji.unpack import open_corpus
    from lrm_ext.mixture.order import Mixture
    from lrm_ext.mixture.spec import MixtureSpec, mixture_path
    from lrm_ext.mixture.table import make_table

    path = mixture_path(mixture)
    spec = MixtureSpec.from_toml(path)
    count_tokens = _token_counter(tokenizer, template) if tokenizer is not None else None
    stage = "pretrain" if path.stem == "pretrain" else "finetune"
    names_none = corpus is None and spec.corpora
    mixed = Mixture.open(spec, None if names_none else open_corpus(corpus, stage))
    console = Console(highlight=False)
    console.print(f"mixture {path}", soft_wrap=True, markup=False)
    for part in parts_of(mixed.corpus):
        console.print(f"corpus  {part.path}", soft_wrap=True, markup=False)
    if simulate:
        console.print(_render_simulated(mixed, epochs, count_tokens, num_measured))
        console.print(_notes_on_simulation(epochs, count_tokens is not None), markup=False)
        return
    console.print(_render(mixed, make_table(mixed, count_tokens, num_measured, epoch), epoch))
    console.print(_notes(mixed, count_tokens is not None), markup=False)


def _token_counter(folder: Path, template: str) -> Callable[[Sample], int]:
    from lrm_ext.instructions.inspection import encode_sample, load_tokenizer

    tokenizer = load_tokenizer(folder)
    return lambda sample: len(encode_sample(sample, template, tokenizer).input_ids)


def _notes(mixture: Mixture, measured: bool) -> str:
    ratio = mixture.num_non_english / mixture.num_english
    lines = [
        f"{mixture.num_english:,} English + {mixture.num_non_english:,} other samples an epoch "
        f"(1 : {ratio:g}). Rows: distinct corpus rows in an epoch, of those with accepted text."
    ]
    if mixture.left_out:
        lines.append(
            f"Left out: {', '.join(mixture.left_out)}; the corpus has them, and [languages] of the "
            "mixture does not. Add them there, or leave [languages] out to take all."
        )
    if measured:
        lines.append("Lengths are means over some of the samples; an image counts as one token.")
    return "\n".join(lines)


# total, and cells by language, for each heading
Columns = dict[str, tuple[str, Mapping[str, str]]]


def _table(langs: Iterable[str], columns: Columns) -> Table:
    """Makes a table with a row per language and a last row of totals."""
    from rich.table import Table

    table = Table(show_footer=True)
    table.add_column("language", footer="all")
    for name, (total, _) in columns.items():
        table.add_column(name, footer=total, justify="right")
    for lang in langs:
        table.add_row(lang, *(cells.get(lang, "") for _, cells in columns.values()))
    return table


def _counts(found: Sequence[Simulated]) -> Columns:
    total = sum(each.count for each in found)
    rows = {each.lang: f"{each.num_rows:,} of {each.num_usable:,}" for each in found}
    return {
        "samples": (f"{total:,}", {each.lang: f"{each.count:,}" for each in found}),
        "share": _shares({each.lang: each.count for each in found}),
        "rows": ("", rows),
    }


def _shares(values: Mapping[str, float]) -> tuple[str, Mapping[str, str]]:
    total = sum(values.values())
    return "100.0 %", {lang: f"{100 * value / total:.1f} %" for lang, value in values.items()}


def _render(mixture: Mixture, rows: Sequence[MixtureTableRow], epoch: int) -> Table:
    """Makes the table of an epoch, with a column per instruction."""
    from lrm_ext.mixture.table import simulate

    found = simulate(mixture, [epoch])
    columns: Columns = {}
    for name in dict.fromkeys(row.instruction for row in rows):
        counts = {row.lang: row.count for row in rows if row.instruction == name}
        cells = {lang: f"{count:,}" for lang, count in counts.items()}
        columns[name] = (f"{sum(counts.values()):,}", cells)
    columns |= _counts(found)
    if rows[0].tokens is not None:
        for name in ("characters", "tokens"):
            sums = {each.lang: 0.0 for each in found}
            for row in rows:
                sums[row.lang] += (getattr(row, name) or 0) * row.count
            means = {e.lang: f"{sums[e.lang] / e.count:,.1f}" for e in found if e.count}
            columns[name] = (f"{sum(sums.values()) / len(mixture):,.1f}", means)
        columns["token share"] = _shares(sums)
    return _table([each.lang for each in found], columns)


def _render_simulated(
    mixture: Mixture, num_epochs: int, count_tokens: CountTokens | None, num_measured: int
) -> Table:
    """Makes the table of several epochs, with repeated rows."""
    from lrm_ext.mixture.table import simulate

    found = simulate(mixture, range(num_epochs), count_tokens, num_measured)
    repeats = {each.lang: each.num_repeats for each in found}
    columns = _counts(found)
    columns["repeated"] = (
        f"{sum(repeats.values()):,}",
        {lang: f"{count:,}" for lang, count in repeats.items()},
    )
    columns["most often"] = ("", {each.lang: f"{each.most_often} x" for each in found})
    if count_tokens is not None:
        tokens = {each.lang: each.tokens or 0 for each in found}
        cells = {lang: f"{count:,.0f}" for lang, count in tokens.items()}
        columns["tokens"] = (f"{sum(tokens.values()):,.0f}", cells)
        columns["token share"] = _shares(tokens)
    return _table(repeats, columns)


def _notes_on_simulation(num_epochs: int, measured: bool) -> str:
    epochs = f"{num_epochs} epochs" if num_epochs > 1 else "one epoch"
    lines = [
        f"Over {epochs}. Repeated: samples of a row that was drawn before; most often: draws of "
        "the most frequent row."
    ]
    if measured:
        lines.append(
            "Tokens are means over some of the samples, times the exact counts; an image counts as "
            "one."
        )
    return "\n".join(lines)
