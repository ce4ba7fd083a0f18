"""`lrm extend-vocab`: more pieces for a language."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from lrm_ext.corpus.sentences import Pair

_NUM_COMPARED = 2000


def register(app: typer.Typer) -> None:
    """Add the command to `lrm`."""
    app.command("extend-vocab")(extend_vocab)


def extend_vocab(
    model: Path | None = typer.Option(None, help="A model's folder; its embeddings grow, too."),
    tokenizer: Path | None = typer.Option(None, help="A tokenizer's folder, without a model."),
    corpus: Path = typer.Option(..., help="A corpus folder with texts in the language."),
    lang: str = typer.Option(..., help="The language that needs pieces."),
    num_pieces: int = typer.Option(2000, min=1, help="At most so many new pieces."),
    limit: int = typer.Option(
        100_000, min=1, help="Rows of the corpus to learn from; every 20th is held out."
    ),
    out: Path = typer.Option(..., help="Folder to write; must not exist."),
) -> None:
    """Add pieces for a language to a SentencePiece tokenizer and its model.

    Old pieces keep their ids and embeddings. A new one begins as the mean of the pieces that its
    text was written in before. Train it: until then nothing is won but length.
    """
    from rich.console import Console

    from llava.errors import ConfigError
    from llava.model.tokenizer import load_tokenizer
    from lrm_ext.corpus.sentences import corpus_pairs, in_common
    from lrm_ext.corpus.store import Corpus
    from lrm_ext.vocabulary import extend as vocabulary

    if (model is None) == (tokenizer is None):
        raise ConfigError("give either --model or --tokenizer")
    if out.exists():
        raise ConfigError(f"--out {out} exists already; name a new folder")
    folder = model or tokenizer
    assert folder is not None
    opened = Corpus.open(corpus)
    pieces = vocabulary.read_model(folder)
    texts = list(vocabulary.texts_of(opened, lang, limit))
    extension = vocabulary.extend(pieces, folder, texts, num_pieces)
    vocabulary.write_tokenizer(pieces, folder, out)
    if model is not None:
        vocabulary.write_model(model, out, extension)
    console = Console(highlight=False, soft_wrap=True)
    some = ", ".join(piece.text.replace("\u2581", "_") for piece in extension.pieces[:12])
    console.print(
        f"{len(extension.pieces):,} new pieces from id {extension.first_id:,} on: {some} ...",
        markup=False,
    )
    if reason := extension.why_fewer(num_pieces):
        console.print(reason, markup=False)
    learnt = {*texts, *(line for text in texts for line in text.splitlines())}
    pairs = vocabulary.held_out_pairs(corpus, lang, learnt, _NUM_COMPARED)
    measured_on = "sentences that it was not learnt from"
    if not pairs:
        measured_on = "that it was learnt from (no others are left), so too good"
        pairs = in_common(corpus_pairs(corpus, None, _NUM_COMPARED))
    _print_fertility(console, folder, out, pairs, measured_on)
    _print_changes(console, load_tokenizer(folder), load_tokenizer(out), pairs)
    console.print(f"saved to {out}")


def _print_fertility(
    console: Console, old: Path, new: Path, pairs: dict[str, list[Pair]], measured_on: str
) -> None:
    from rich.table import Table

    from lrm_ext.languages.fertility import load_counter, measure
    from lrm_ext.languages.registry import get_language

    before, after = (
        {result.lang: result for result in measure(load_counter(str(folder)), pairs)}
        for folder in (old, new)
    )
    title = f"tokens a sentence, over {len(next(iter(pairs.values()))):,} {measured_on}"
    table = Table("language", title=title, title_justify="left")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for lang, result in before.items():
        count = after[lang].tokens_per_sentence
        table.add_row(
            get_language(lang).name,
            f"{result.tokens_per_sentence:.2f}",
            f"{count:.2f}",
            f"{count / result.tokens_per_sentence - 1:+.1%}",
        )
    console.print(table)


def _print_changes(
    console: Console, old: object, new: object, pairs: dict[str, list[Pair]]
) -> None:
    """Say which languages are cut in another way: the model has not learnt those cuts."""
    from lrm_ext.vocabulary.extend import changed_share

    shares = {
        lang: changed_share(old, new, [other for _, other in found])
        for lang, found in pairs.items()
    }
    listed = ", ".join(f"{lang} {share:.1%}" for lang, share in shares.items())
    console.print(f"sentences that are cut in another way than before: {listed}")
