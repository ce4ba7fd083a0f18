"""`lrm languages ...`, `lrm probe`, `lrm extend-vocab`: what a language needs before training."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llava.errors import ConfigError, split_names
from llava.files import refuse_existing
from lrm_ext.languages.grouping import SHORT_TABLE, group_name, table_rows
from lrm_ext.languages.registry import (
    FOLDER_VARIABLE,
    canonical_code,
    canonical_codes,
    default_languages,
    get_language,
    language_files,
    list_languages,
    reload_languages,
    user_dir,
)
from lrm_ext.mixture.commands import MINI_TOKENIZER

if TYPE_CHECKING:
    from lrm_ext.corpus.sentences import Pair
    from lrm_ext.languages.fertility import Fertility
    from lrm_ext.languages.probe import Probe

_NUM_COMPARED = 2000
app = typer.Typer()
languages_app = typer.Typer(
    name="languages",
    help="List the languages; draft, check and review a file; compare tokenizers.",
    invoke_without_command=True,
)
app.add_typer(languages_app)
_FOLDER = typer.Option(
    None, "--dir", help=f"Folder of your own language files; default: ${FOLDER_VARIABLE}."
)

_ALL = "A row for each language, however many there are."


@languages_app.callback()
def show_languages(context: typer.Context) -> None:
    """List the languages."""
    if context.invoked_subcommand is not None:
        return
    from lrm_ext.translate.engines.base import engine_names, find_code

    codes = list_languages()
    table = Table("code", "name", "own name", "script", "dir", "reviewed", title="Languages")
    table.add_column("engines", justify="right")
    for language in map(get_language, codes):
        table.add_row(
            language.code if language.ships else f"{language.code} (yours)",
            language.name,
            language.native_name,
            language.script,
            language.direction,
            language.review_text if language.reviewed else "no",
            str(sum(find_code(name, language.code) is not None for name in engine_names())),
        )
    Console(highlight=False).print(table)
    num_reviewed = sum(bool(get_language(code).reviewed) for code in codes)
    _console().print(
        f"{len(codes)} languages, {num_reviewed} signed by a native reader (lrm languages review "
        "CODE). engines: translation engines with a code for the language; openai and memory need "
        "none.\nlrm languages check [CODE] finds faults, lrm languages add CODE drafts a language."
    )


@languages_app.command("add")
def add(
    code: str = typer.Argument(..., help="A BCP-47 code such as sk, pt-BR or zh-Hant."),
    folder: Path = _FOLDER,
) -> None:
    """Draft the file of a new language, with explanations and what CLDR knows filled in."""
    from lrm_ext.new_language import pending_keys, write_draft

    usual = user_dir()
    if os.environ.get(FOLDER_VARIABLE) and not usual.is_dir():
        usual.mkdir(parents=True)
    path = write_draft(code, folder or usual)
    console = _console()
    keys = [key for _, key in pending_keys(path)]
    console.print(
        f"{path} is written. {len(keys)} values are left, marked TODO; what is used first is first:"
    )
    for table in dict.fromkeys(key.rpartition(".")[0] for key in keys):
        names = [key.rpartition(".")[2] for key in keys if key.rpartition(".")[0] == table]
        console.print(f"  {escape(f'[{table}]') if table else 'top'}: {', '.join(names)}")
    console.print("Then:")
    if folder is not None and folder.resolve() != usual.resolve():
        console.print(f"  export {FOLDER_VARIABLE}={folder.resolve()}")
    console.print(f"  lrm languages check {path.stem}")


@languages_app.command("check")
def check(
    codes: list[str] = typer.Argument(None, help="Language codes; by default all."),
    folder: Path = _FOLDER,
) -> None:
    """Find what is missing, untranslated or would not be read back; exit status 1 if any."""
    from lrm_ext.new_language import check_languages

    if folder is not None:
        os.environ[FOLDER_VARIABLE] = str(folder)
    reload_languages()
    found = check_languages(canonical_codes(codes or []))
    num_files, num_faults = len(codes or language_files()), 0
    console = _console()
    for fault in found:
        num_faults += not fault.is_note
        style, word = ("yellow", "note") if fault.is_note else ("red", "fault")
        console.print(f"[{style}]{word}[/] {escape(str(fault))}")
    told = f"{_counted(num_faults, 'fault')}." if num_faults else "nothing wrong."
    console.print(f"{_counted(num_files, 'language file')}: {told}")
    raise typer.Exit(1 if num_faults else 0)


@languages_app.command("review")
def review(
    code: str = typer.Argument(..., help="Code of the language."),
) -> None:
    """Show every text of a language in its place, for a native reader to check and sign."""
    from lrm_ext.new_language import review_parts

    console = _console()
    for number, (heading, lines) in enumerate(review_parts(canonical_code(code)), 1):
        console.print(f"\n[bold]{number}. {escape(heading)}[/]")
        for line in lines:
            console.print(f"   {escape(line)}" if line else "")


@languages_app.command("fertility")
def fertility(
    tokenizers: list[str] = typer.Option(
        [],
        "--tokenizer",
        help="Folder, tokenizer.json, SentencePiece model or name; repeat to compare. Default: "
        "that of the mini preset.",
    ),
    corpus: Path = typer.Option(None, help="A corpus; default: the built-in sentences."),
    languages: list[str] = typer.Option(
        [],
        help="Language codes, or all; repeat, or use commas. Default: those of the paper and your "
        "own.",
    ),
    limit: int = typer.Option(2000, min=1, help="Sentences of a corpus to count in each language."),
    out: Path = typer.Option(None, help="Write a bar plot to this file: .png, .svg or .pdf."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
    show_all: bool = typer.Option(False, "--all", help=_ALL),
) -> None:
    """Count the tokens that each language needs for the same sentences, relative to English."""
    from lrm_ext.corpus.sentences import built_in_pairs, corpus_pairs, in_common
    from lrm_ext.languages.fertility import load_counters, measure, plot_relative, refuse_plot

    sources = list(dict.fromkeys(tokenizers)) or [str(MINI_TOKENIZER)]
    if out is not None:
        refuse_plot(out, len(sources))
    codes = canonical_codes(languages)
    counters = load_counters(sources)
    if corpus is None:
        pairs = built_in_pairs(_all_or(codes) or default_languages())
    else:
        pairs = corpus_pairs(corpus, codes or None, limit)
    pairs = in_common(pairs)
    results = [result for counter in counters for result in measure(counter, pairs)]
    console = _console()
    if as_json:
        console.print(json.dumps([asdict(r) for r in results], indent=1), markup=False)
    else:
        _print_fertility(results, console, show_all)
    if out is not None:
        values = {(r.tokenizer, r.lang): r.relative for r in results}
        label = "tokens for the same sentences, English = 1"
        plot_relative(values, out, "Tokens that a language needs", label, "tokenizer")
        if not as_json:
            console.print(f"saved to {out}")


def _print_fertility(results: Sequence[Fertility], console: Console, show_all: bool) -> None:
    rows = []
    for name in dict.fromkeys(result.tokenizer for result in results):
        own = [result for result in results if result.tokenizer == name]
        title = f"tokenizer {name}, {own[0].num_sentences:,} sentences"
        table = Table("language", title=title, title_justify="left")
        for heading in (
            "tokens a sentence",
            "relative to English",
            "characters a token",
            "unknown",
        ):
            table.add_column(heading, justify="right")
        rows = table_rows({result.lang: -result.relative for result in own}, show_all)
        for langs in rows:
            unknown = _mean(own, langs, "unknown_share")
            table.add_row(
                group_name(langs),
                f"{_mean(own, langs, 'tokens_per_sentence'):.1f}",
                f"{_mean(own, langs, 'relative'):.2f}",
                f"{_mean(own, langs, 'characters_per_token'):.2f}",
                f"{unknown:.1%}" if unknown else "none",
            )
        console.print(table)
    if any(len(langs) > 1 for langs in rows):
        console.print(SHORT_TABLE)


def _mean(results: Sequence[Fertility | Probe], langs: Sequence[str], name: str) -> float:
    return fmean(getattr(result, name) for result in results if result.lang in langs)


@app.command("probe")
def probe(
    bases: list[str] = typer.Option(
        ..., "--base", help="Folder of a base model, or its name on the Hub; repeat, or use commas."
    ),
    languages: list[str] = typer.Option(
        [],
        "--lang",
        help="Language codes, or all; repeat, or use commas. Default: those of the paper and your "
        "own.",
    ),
    texts: list[str] = typer.Option(
        [], "--text", help="CODE=FILE: a text of your own, such as hr=news.txt; repeat."
    ),
    limit: int = typer.Option(200, min=1, help="Built-in sentences to read in each language."),
    device: str = typer.Option(None, help="cpu or cuda; a GPU by default if there is one."),
    out: Path = typer.Option(None, help="Write a bar plot to this file: .png, .svg or .pdf."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
    show_all: bool = typer.Option(False, "--all", help=_ALL),
) -> None:
    """Measure how well base models know a language, before one is trained."""
    from llava.progress import Progress
    from lrm_ext.corpus.sentences import built_in_pairs, in_common
    from lrm_ext.languages.fertility import plot_relative, refuse_plot
    from lrm_ext.languages.probe import load_base, measure, parallel_texts, read_text

    sources = list(dict.fromkeys(split_names(bases)))
    if out is not None:
        refuse_plot(out, len(sources))
    own = [read_text(text) for text in texts]
    codes = _all_or(canonical_codes(languages)) or (() if own else default_languages())
    codes = tuple(dict.fromkeys(("en", *codes)))
    pairs = {code: found[:limit] for code, found in in_common(built_in_pairs(codes)).items()}
    wanted = [*parallel_texts(pairs), *own]
    results = []
    with Progress("probe", len(sources) * len(wanted), "texts") as progress:
        for source in sources:
            base = load_base(source, device)
            for result in measure(base, wanted):
                results.append(result)
                progress.advance(1)
    console = _console()
    if as_json:
        console.print(json.dumps([asdict(r) for r in results], indent=1), markup=False)
    else:
        _print_probes(results, len(wanted), console, show_all)
    if out is not None:
        values = {(r.base, r.lang): r.relative_bits for r in results if r.relative_bits is not None}
        label = "bits for the same sentences, English = 1; fewer: the model knows it better"
        plot_relative(values, out, "Bits that a language costs", label, "base model")
        if not as_json:
            console.print(f"saved to {out}")


def _print_probes(
    results: Sequence[Probe], num_texts: int, console: Console, show_all: bool
) -> None:
    table = Table(title="Languages in base models", title_justify="left")
    for heading in ("base", "language", "text"):
        table.add_column(heading, overflow="fold")
    for heading in ("characters", "tokens, en = 1", "bits a character", "bits, en = 1"):
        # no word of it is cut off in a narrow terminal
        table.add_column(heading, justify="right", min_width=max(map(len, heading.split())))
    is_short = False
    for start in range(0, len(results), num_texts):
        own = results[start : start + num_texts]
        built_in = {one.lang: one for one in own if one.relative_bits is not None}
        rows = table_rows({lang: -(r.relative_bits or 0) for lang, r in built_in.items()}, show_all)
        is_short |= len(rows) < len(built_in)
        groups = [[built_in[lang] for lang in langs] for langs in rows]
        groups += [[result] for result in own if result.relative_bits is None]
        for number, group in enumerate(groups):
            langs = [result.lang for result in group]
            tokens, bits = (
                "-" if group[0].relative_bits is None else f"{_mean(group, langs, name):.2f}"
                for name in ("relative_tokens", "relative_bits")
            )
            table.add_row(
                "" if number else own[0].base,
                group_name(langs) if len(group) > 1 else langs[0],
                group[0].text,
                f"{_mean(group, langs, 'num_characters'):,.0f}",
                tokens,
                f"{_mean(group, langs, 'bits_per_character'):.2f}",
                bits,
            )
    console.print(table)
    console.print("en = 1: as many as the same sentences need in English")
    if is_short:
        console.print(SHORT_TABLE)


@app.command("extend-vocab")
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


def _all_or(codes: tuple[str, ...]) -> tuple[str, ...]:
    return list_languages() if codes == ("all",) else codes


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)
