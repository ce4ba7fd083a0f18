"""`lrm extend-vocab`: adds pieces for a language to a tokenizer and its model."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from llava.errors import ConfigError
from llava.files import refuse_existing
from lrm_ext.languages.registry import canonical_code, get_language

if TYPE_CHECKING:
    from lrm_ext.corpus.sentences import Pair

_NUM_COMPARED = 2000


def register(app: typer.Typer) -> None:
    """Adds the command to `lrm`."""
    app.command("extend-vocab")(extend_vocab)


def extend_vocab(
    model: Path | None = typer.Option(None, help="Folder of a model; its embeddings grow, too."),
    tokenizer: Path | None = typer.Option(None, help="Folder of a tokenizer without a model."),
    corpus: Path = typer.Option(..., help="A corpus folder with texts in the language."),
    lang: str = typer.Option(..., help="Code of the language that needs pieces."),
    num_pieces: int = typer.Option(2000, min=1, help="Largest number of new pieces."),
    limit: int = typer.Option(
        100_000, min=1, help="Rows of the corpus to learn from; every 20th is held out."
    ),
    out: Path = typer.Option(..., help="Folder to write; must not exist."),
) -> None:
    """Add pieces for a language to a SentencePiece tokenizer and its model.

    Old pieces keep their ids and embeddings. The embedding of a new piece starts as the mean of the
    pieces that it replaces. Train the model afterwards: until then, only prompts get shorter.
    """
    from llava.model.tokenizer import load_tokenizer
    from lrm_ext.corpus.sentences import corpus_pairs, in_common
    from lrm_ext.corpus.store import Corpus
    from lrm_ext.vocabulary import extend as vocabulary

    if (model is None) == (tokenizer is None):
        raise ConfigError("give either --model or --tokenizer")
    refuse_existing(out)
    folder = model or tokenizer
    assert folder is not None
    opened = Corpus.open(corpus)
    pieces = vocabulary.read_model(folder)
    lang = canonical_code(lang)
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
    if (num_new := len(extension.pieces)) < num_pieces:
        console.print(
            f"{num_new:,} of {num_pieces:,} pieces: in the {extension.num_words:,} words that were "
            "read, no other two neighbouring pieces of a word occur "
            f"{vocabulary.MIN_COUNT} times. More text (a larger corpus, --limit) gives more pieces",
            markup=False,
        )
    learnt = {*texts, *(line for text in texts for line in text.splitlines())}
    pairs = vocabulary.held_out_pairs(corpus, lang, learnt, _NUM_COMPARED)
    measured_on = "sentences that it was not learnt from"
    if not pairs:
        measured_on = "that it was learnt from (no others are left), so too good"
        pairs = in_common(corpus_pairs(corpus, None, _NUM_COMPARED))
    _print_effect(console, load_tokenizer(folder), load_tokenizer(out), pairs, measured_on)
    console.print(f"saved to {out}")


def _print_effect(
    console: Console, old: Any, new: Any, pairs: dict[str, list[Pair]], measured_on: str
) -> None:
    """Prints for each language how much shorter its texts get, and how many are split differently.

    The model has not been trained on the new splits.
    """
    title = f"tokens a sentence, over {len(next(iter(pairs.values()))):,} {measured_on}"
    table = Table("language", title=title, title_justify="left")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    shares = []
    for lang, found in pairs.items():
        cuts = [(old.tokenize(text), new.tokenize(text)) for _, text in found]
        before, after = (fmean(map(len, side)) for side in zip(*cuts, strict=True))
        change = f"{after / before - 1:+.1%}"
        table.add_row(get_language(lang).name, f"{before:.2f}", f"{after:.2f}", change)
        shares.append(f"{lang} {fmean(was != now for was, now in cuts):.1%}")
    console.print(table)
    console.print(f"sentences that are cut in another way than before: {', '.join(shares)}")
