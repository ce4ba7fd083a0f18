"""`lrm mixture show`: the samples of a mixture of a corpus. `lrm sample`: one of them, as ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from lrm_ext.languages.grouping import SHORT_TABLE, group_name, table_rows
from lrm_ext.languages.registry import canonical_code, get_language

if TYPE_CHECKING:
    from llava.data.sample import Sample
    from lrm_ext.mixture.order import Mixture
    from lrm_ext.mixture.table import CountTokens, MixtureTableRow

# Part of the repository; built by `lrm mini build-base`.
MINI_TOKENIZER = Path(__file__).parents[2] / "playground" / "models" / "mini" / "llm"
app = typer.Typer()
mixture_app = typer.Typer(name="mixture", help="Inspect mixtures.", no_args_is_help=True)
app.add_typer(mixture_app)


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
    show_all: bool = typer.Option(
        False, "--all", help="A row for each language, however many there are."
    ),
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
    mixed = Mixture.open(spec, None if names_none else open_corpus(corpus, stage, spec.languages))
    console = Console(highlight=False)
    console.print(f"mixture {path}", soft_wrap=True, markup=False)
    for part in parts_of(mixed.corpus):
        console.print(f"corpus  {part.path}", soft_wrap=True, markup=False)
    shown = range(epochs) if simulate else range(epoch, epoch + 1)
    table, rows = _render(mixed, shown, simulate, count_tokens, num_measured, show_all)
    console.print(table)
    notes = _notes_on_simulation(epochs) if simulate else _notes(mixed)
    if any(len(langs) > 1 for langs in rows):
        notes += f"\n{SHORT_TABLE} Worst: most samples for each row with accepted text."
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


# total, and the cell of some languages together, for each heading
Columns = dict[str, tuple[str, Callable[[Sequence[str]], str]]]


def _numbers(values: Mapping[str, float]) -> tuple[str, Callable[[Sequence[str]], str]]:
    def cell(langs: Sequence[str]) -> str:
        there = [values[lang] for lang in langs if lang in values]
        return f"{sum(there):,.0f}" if there else ""

    return cell(list(values)), cell


def _shares(values: Mapping[str, float]) -> tuple[str, Callable[[Sequence[str]], str]]:
    total = sum(values.values())
    return "100.0 %", lambda langs: f"{100 * sum(values[lang] for lang in langs) / total:.1f} %"


def _render(
    mixture: Mixture,
    epochs: Sequence[int],
    is_simulation: bool,
    count_tokens: CountTokens | None,
    num_measured: int,
    show_all: bool,
) -> tuple[Table, list[tuple[str, ...]]]:
    """Makes the table of an epoch with a column per instruction, or of several with repeats.

    Returns:
        The table, whose last row has totals, and the languages of each row.
    """
    from lrm_ext.mixture.table import make_table, simulate

    found = {each.lang: each for each in simulate(mixture, epochs)}
    rows = [r for epoch in epochs for r in make_table(mixture, count_tokens, num_measured, epoch)]
    counts = {lang: each.count for lang, each in found.items()}

    def total(name: str, langs: Sequence[str]) -> int:
        return sum(getattr(found[lang], name) for lang in langs)

    columns: Columns = {}
    if not is_simulation:
        for name in dict.fromkeys(row.instruction for row in rows):
            own = {row.lang: row.count for row in rows if row.instruction == name}
            columns[name] = _numbers(own)
    columns["samples"], columns["share"] = _numbers(counts), _shares(counts)
    columns["rows"] = (
        "",
        lambda langs: f"{total('num_rows', langs):,} of {total('num_usable', langs):,}",
    )
    if is_simulation:
        columns["repeated"] = _numbers(
            {lang: each.count - each.num_rows for lang, each in found.items()}
        )
        columns["most often"] = (
            "",
            lambda langs: f"{max(found[lang].most_often for lang in langs)} x",
        )
    if count_tokens is not None:
        columns |= _lengths(rows, counts, is_simulation)
    groups = table_rows({lang: -e.count / e.num_usable for lang, e in found.items()}, show_all)
    table = Table(show_footer=True)
    table.add_column("language", footer="all")
    for name, (footer, _) in columns.items():
        table.add_column(name, footer=footer, justify="right")
    for langs in groups:
        name = langs[0] if len(langs) == 1 else group_name(langs)
        table.add_row(name, *(cell(langs) for _, cell in columns.values()))
    return table, groups


def _lengths(
    rows: Sequence[MixtureTableRow], counts: Mapping[str, int], is_simulation: bool
) -> Columns:
    """Makes the columns of characters and tokens: sums in a simulation, else means a sample."""
    characters, tokens = dict.fromkeys(counts, 0.0), dict.fromkeys(counts, 0.0)
    for row in rows:
        characters[row.lang] += (row.characters or 0) * row.count
        tokens[row.lang] += (row.tokens or 0) * row.count

    def mean(sums: Mapping[str, float]) -> tuple[str, Callable[[Sequence[str]], str]]:
        def cell(langs: Sequence[str]) -> str:
            number = sum(counts[lang] for lang in langs)
            return f"{sum(sums[lang] for lang in langs) / number:,.1f}" if number else ""

        return cell(list(sums)), cell

    columns: Columns = {"tokens": _numbers(tokens)}
    if not is_simulation:
        columns = {"characters": mean(characters), "tokens": mean(tokens)}
    return {**columns, "token share": _shares(tokens)}


@app.command("sample")
def show_sample(
    lang: str = typer.Option("en", help="Language code."),
    instruction: str = typer.Option("mvqa", help="Task instruction: mvqa, epvqa or bvqa."),
    direction: str | None = typer.Option(
        None, help="For bvqa: to_en (the default), or from_en for questions in English."
    ),
    index: int = typer.Option(0, help="Row of the corpus."),
    corpus: Path | None = typer.Option(None, help="A corpus folder; default: the built-in one."),
    tokenizer: Path | None = typer.Option(
        None, help="Folder of a tokenizer; default: that of the mini preset."
    ),
    template: str = typer.Option(
        "lrm_bare", help="Conversation template; auto is the tokenizer's own chat template."
    ),
) -> None:
    """Print one training sample as text, as prompt, and as token ids and labels."""
    from lrm_ext.emoji.unpack import open_corpus
    from lrm_ext.instructions import get_instruction, inspection

    lang = get_language(canonical_code(lang)).code
    rule = get_instruction(instruction)
    if direction is None and rule.directions:
        direction = rule.directions[0]
    if tokenizer is None and MINI_TOKENIZER.is_dir():
        tokenizer = MINI_TOKENIZER
    opened = open_corpus(corpus)
    row = opened.row(index)
    sample = rule.format(row, opened.turns(lang, index), lang, direction)
    loaded = None if tokenizer is None else inspection.load_tokenizer(tokenizer)
    name, conv = inspection.conversation_for(sample, template, loaded)

    console = Console(highlight=False, soft_wrap=True)
    color = console.color_system is not None
    mark = "green" if color else " ... ".join(inspection.MARKS)
    console.rule("sample", align="left")
    console.print(inspection.describe_sample(sample), end="")
    console.rule(f"prompt, template {name} (supervised: {mark})", align="left")
    console.print(inspection.describe_prompt(sample, conv, color))
    if loaded is None:
        console.print(
            "\nFor ids and labels pass --tokenizer DIR, a folder with a tokenizer "
            f"(the mini preset's is not there: {MINI_TOKENIZER}).",
            markup=False,
        )
        return
    encoded = inspection.encode_sample(sample, template, loaded)
    console.rule(f"tokens, {tokenizer}", align="left")
    console.print(inspection.describe_tokens(encoded, loaded, color))
