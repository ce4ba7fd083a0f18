"""`lrm corpus ...`: builds the built-in corpus; imports, exports, shows and checks any other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llava.errors import ConfigError
from llava.files import write_atomically
from llava.progress import progress_bar
from lrm_ext.languages.registry import canonical_code, canonical_codes

if TYPE_CHECKING:
    from lrm_ext.corpus.importing import ImportResult
    from lrm_ext.corpus.validating import Findings

app = typer.Typer(name="corpus", help="Build, unpack and inspect corpora.", no_args_is_help=True)


@app.command("unpack-emoji")
def unpack_emoji(
    languages: list[str] = typer.Option(
        [], help="Codes, or all; repeat, or use commas. Default: the ten of the paper."
    ),
    force: bool = typer.Option(False, help="Start over even if it is complete."),
) -> None:
    """Unpack the built-in corpus: images, conversations and benchmarks."""
    from lrm_ext.corpus.store import Corpus
    from lrm_ext.emoji.scenes import LANGUAGES, available_languages, unnamed_concepts
    from lrm_ext.emoji.unpack import unpack

    codes = canonical_codes(languages) or LANGUAGES
    codes = available_languages() if codes == ("all",) else codes
    root, console = unpack(force=force, languages=codes), _console()
    console.print(str(root))
    opened = [Corpus.open(root / name) for name in ("pretrain", "finetune")]
    rows = [(c.path.name, len(c), " ".join(c.languages)) for c in opened]
    _print_table(console, ("corpus", "rows", "languages"), rows)
    for lang in codes:
        if unnamed := sorted(unnamed_concepts(lang)):
            missing = ", ".join(f"{c.path.name} {len(c) - len(c.usable(lang))}" for c in opened)
            console.print(
                f"{lang}: no name of {', '.join(unnamed)} in CLDR, nor in [scenes.names] of its "
                f"file; rows without text: {missing}",
                soft_wrap=True,
            )


@app.command("import")
def import_(
    sources: list[str] = typer.Argument(
        None, help="PATH or FORMAT:PATH, one or more; --formats lists the formats."
    ),
    out: Path = typer.Option(None, help="Corpus folder to create."),
    images: Path = typer.Option(Path(), help="Folder that holds all images."),
    source: str = typer.Option(None, help="Name of the dataset, for rows that do not name one."),
    rules: Path = typer.Option(None, help="Your own rules on which rows stay English (TOML)."),
    explain: bool = typer.Option(False, "--explain", help="Show what each rule caught."),
    verify_images: bool = typer.Option(False, "--verify-images", help="Open every image."),
    copy_images: bool = typer.Option(
        False, "--copy-images", help="Copy every image into the corpus, embedded ones too."
    ),
    max_drop_rate: float = typer.Option(0.0, help="Share of bad rows that may be dropped."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the corpus at --out."),
    formats: bool = typer.Option(False, "--formats", help="List the formats and exit."),
) -> None:
    """Create a corpus from English data: LLaVA JSON, Parquet, ChartQA, ..."""
    from lrm_ext.corpus.formats import split_source
    from lrm_ext.corpus.importing import RULES_FILE, ImportSource, Rules, import_corpus

    console = _console()
    if formats:
        _print_formats(console)
        return
    if not sources or out is None:
        raise typer.BadParameter("expected sources and --out; lrm corpus import --help")
    given = [ImportSource(*split_source(text), source) for text in sources]
    with progress_bar("rows", console) as progress:
        result = import_corpus(
            given,
            out,
            images=images,
            rules=Rules.load(rules or RULES_FILE),
            max_drop_rate=max_drop_rate,
            verify_images=verify_images,
            copy_images=copy_images,
            overwrite=overwrite,
            progress=progress,
        )
    _print_import(result, out, console)
    if explain:
        _print_rules(result, rules or RULES_FILE, console)


@app.command("text-images")
def text_images(
    lang: list[str] = typer.Option(..., help="Languages, as in hr,ru,hi."),
    out: Path = typer.Option(Path("text-images"), help="Folder to write."),
    rows: int = typer.Option(10_000, min=2, help="Rows of the corpus, of all languages together."),
    from_: Path = typer.Option(
        None,
        "--from",
        help="Sentences, one a line: a file in one language, or with LANG<TAB>TEXT in each line, "
        "or a folder with <lang>.txt; by default the project's own.",
    ),
    fonts: list[Path] = typer.Option([], help="Folder with more fonts than are installed."),
    seed: int = typer.Option(0, help="Seed of all choices."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is at --out."),
) -> None:
    """Make images of sentences, with questions about what is written in them.

    Writes a corpus, --out/train, and a benchmark of other sentences in other fonts, --out/reading.
    The same command goes on where a run that was stopped ended.
    """
    from lrm_ext.corpus.text_images import make_text_images

    plans = make_text_images(
        out,
        canonical_codes(lang),
        rows,
        source=from_,
        folders=fonts,
        seed=seed,
        overwrite=overwrite,
    )
    console = _console()
    reasons = sorted({reason for plan in plans for reason in plan.left_out})
    _print_table(
        console,
        ("language", "train", "test", *reasons, "fonts: train", "test", "differ in"),
        [
            (
                plan.language.code,
                *(len(plan.sentences[split]) for split in ("train", "test")),
                *(plan.left_out[reason] for reason in reasons),
                *(len(plan.fonts[split]) for split in ("train", "test")),
                plan.fonts_apart,
            )
            for plan in plans
        ],
    )
    notes = [f"{plan.language.code}: {plan.remark}" for plan in plans if plan.remark]
    if asked := [plan.language.code for plan in plans if not plan.language.reading]:
        notes.append(f"asked in English, for want of a table [reading]: {', '.join(asked)}")
    notes.append(f"corpus: {out / 'train'} ({rows:,} rows; licences of its fonts: FONTS.md)")
    notes.append(f"mixture: {out / 'mixture.toml'}\nbenchmark: {out / 'reading'}")
    console.print("\n".join(notes), markup=False)


@app.command("export")
def export(
    corpus: Path = typer.Argument(..., help="Folder of the corpus."),
    lang: str = typer.Option("en", help='A language, or "all" with {lang} in --out.'),
    out: Path = typer.Option(..., help="File to write: .json or .jsonl."),
    with_english: bool = typer.Option(
        False,
        "--with-english",
        help="Write English text for rows without accepted text, instead of leaving them out.",
    ),
) -> None:
    """Export a corpus to LLaVA JSON, for any other tool."""
    from lrm_ext.corpus.exporting import export_llava
    from lrm_ext.corpus.store import Corpus

    opened, console = Corpus.open(corpus), _console()
    languages = opened.languages if lang == "all" else (canonical_code(lang),)
    if lang == "all" and "{lang}" not in str(out):
        raise typer.BadParameter(f"--lang all needs {{lang}} in --out, found {out}")
    for code in languages:
        path = Path(str(out).replace("{lang}", code))
        with progress_bar(code, console) as progress:
            exported = export_llava(
                opened, code, path, with_english=with_english, progress=progress
            )
        listed = ", ".join(f"{number:,} {name}" for name, number in exported.not_accepted.items())
        fate = "are in English" if with_english else "are left out"
        note = f"; rows without accepted text in {code} {fate}: {listed}" if listed else ""
        console.print(f"{path}: {exported.num_records:,} records{note}")


@app.command("info")
def info(
    corpus: Path = typer.Argument(None, help="Folder; by default the built-in corpus."),
) -> None:
    """Show what a corpus holds."""
    from lrm_ext.corpus.store import STATUSES
    from lrm_ext.corpus.summary import count_engines, median_lengths, summarize
    from lrm_ext.emoji.unpack import open_corpus

    opened, console = open_corpus(corpus), _console()
    summary = summarize(opened)
    console.print(
        f"{opened.path}: {summary.num_rows:,} rows, {summary.num_turns:,} turns, "
        f"{summary.num_characters:,} characters; {summary.num_images:,} images, "
        f"{summary.num_text_only:,} rows without one, {summary.num_several:,} with several, "
        f"{summary.num_english_only:,} that stay English\nimages: {opened.image_root.resolve()}"
    )
    for name, counts in (("source", summary.sources), ("task", summary.tasks)):
        _print_table(console, (name, "rows"), counts.most_common())
    lengths, rows = median_lengths(opened), []
    for lang in opened.languages:
        numbers = [*opened.statuses(lang).values()]
        none = summary.num_rows - sum(numbers)
        rows.append((lang, *numbers, none, f"{lengths[lang]:.0f}"))
    _print_table(console, ("language", *STATUSES, "none", "median characters a turn"), rows)
    made = {lang: count_engines(opened, lang) for lang in opened.languages[1:]}
    by_engine = [
        (lang, name, *(counts[name, status] for status in STATUSES))
        for lang, counts in made.items()
        for name in sorted({name for name, _ in counts})
    ]
    if any(name != "-" for _, name, *_ in by_engine):
        _print_table(console, ("language", "engine", *STATUSES), by_engine)


@app.command("show")
def show(
    corpus: Path = typer.Argument(None, help="Folder; by default the built-in corpus."),
    row: int = typer.Option(0, help="Number of the row; negative numbers count from the end."),
    lang: list[str] = typer.Option([], help="Languages; by default all."),
) -> None:
    """Show one row in all its languages."""
    from lrm_ext.emoji.unpack import open_corpus

    opened, console = open_corpus(corpus), _console()
    index = row if row >= 0 else len(opened) + row
    found = opened.row(index)
    stays = "" if found.translatable else ", stays English"
    console.print(
        f"row {index}, id {found.id}, image {', '.join(found.images) or 'none'}, source "
        f"{found.source or '-'}, task {found.task or '-'}{stays}"
    )
    for code in canonical_codes(lang) or opened.languages:
        text = opened.text(code, index)
        if text is None:
            console.print(f"[bold]{code}[/]  no text")
            continue
        about = ", ".join(filter(None, (text.status, text.engine, text.reason)))
        console.print(f"[bold]{code}[/]  [dim]{escape(about)}[/]")
        for turn in text.turns:
            console.print(f"    {turn.role:>5}: {escape(turn.text)}")
        if text.quality:
            scores = ", ".join(f"{name} {value:.4g}" for name, value in text.quality.items())
            console.print(f"    [dim]{escape(scores)}[/]")


@app.command("diff")
def diff(
    left: Path = typer.Argument(..., help="A corpus."),
    right: Path = typer.Argument(
        None, help="Another corpus of the same rows; by default the same."
    ),
    lang: str = typer.Option(
        "en", help="Language to compare (en: the rows themselves), or two languages, as in cs,sk."
    ),
    limit: int = typer.Option(20, help="Number of differences to show; all are counted."),
) -> None:
    """Compare two corpora (of two engines, say) or two languages; exit status 1 if they differ.

    For two languages it shows rows that one lacks, that only one accepts, or that have the same
    text in both.
    """
    from collections import Counter

    from lrm_ext.corpus.store import Corpus
    from lrm_ext.corpus.summary import differences

    langs = [canonical_code(code.strip()) for code in lang.split(",")]
    if len(langs) > 2 or (right is None and len(langs) != 2):
        raise typer.BadParameter("expected two corpora, or two languages (--lang cs,sk)")
    opened = Corpus.open(left), Corpus.open(right or left)
    console, counts = _console(), Counter[str]()
    for found in differences(*opened, (langs[0], langs[-1])):
        counts[found.what] += 1
        if counts.total() <= limit:
            console.print(f"row {found.index} ({escape(found.id)}): {found.what}")
            console.print(f"  [red]- {escape(str(found.left))}[/]")
            console.print(f"  [green]+ {escape(str(found.right))}[/]")
    listed = ", ".join(f"{what} {number:,}" for what, number in counts.items())
    console.print(f"{counts.total():,} rows differ" + (f": {listed}" if listed else ""))
    raise typer.Exit(1 if counts else 0)


@app.command("validate")
def validate(
    path: str = typer.Argument(..., help="A corpus folder, or PATH or FORMAT:PATH of a dataset."),
    images: Path = typer.Option(Path(), help="Image folder of a dataset; a corpus knows its own."),
    verify_images: bool = typer.Option(False, "--verify-images", help="Open every image."),
) -> None:
    """Check every row for errors and oddities; exit status 1 if there are errors."""
    from lrm_ext.corpus.formats import split_source
    from lrm_ext.corpus.importing import ImportSource
    from lrm_ext.corpus.store import META_FILE, Corpus
    from lrm_ext.corpus.validating import validate as look
    from lrm_ext.corpus.validating import validate_source

    console = _console()
    with progress_bar("rows", console) as progress:
        if (Path(path) / META_FILE).is_file():
            opened = Corpus.open(path)
            findings = look(opened, verify_images=verify_images, progress=progress)
        else:
            source = ImportSource(*split_source(path))
            findings = validate_source(
                source, images, verify_images=verify_images, progress=progress
            )
    _print_findings(findings, console)
    console.print(
        f"{path}: {findings.num_rows:,} rows, {findings.num_errors:,} errors, "
        f"{findings.counts.total() - findings.num_errors:,} remarks"
        + ("" if verify_images else "; images were not opened (--verify-images)")
    )
    raise typer.Exit(1 if findings.num_errors else 0)


@app.command("report")
def report(
    corpus: Path = typer.Argument(None, help="Folder; by default the built-in corpus."),
    out: Path = typer.Option(Path("report.html"), help="Page to write."),
    pictures: bool = typer.Option(False, "--pictures", help="Show thumbnails beside examples."),
    examples: int = typer.Option(
        20, min=0, help="Number of kept texts, and of others, to show in each language."
    ),
    seed: int = typer.Option(0, help="Seed for sampling the examples."),
    cache: Path = typer.Option(
        None,
        help="Translation cache, for costs; by default the one next to the corpus.",
    ),
) -> None:
    """Write a page on what was kept and why, engines, costs, quality, and examples."""
    from lrm_ext.emoji.unpack import open_corpus
    from lrm_ext.report.corpus_report import corpus_stats, render_corpus

    opened, console = open_corpus(corpus), _console()
    usual = opened.path.resolve().parent / "translation-cache.sqlite"
    if cache is not None and not cache.is_file():
        raise ConfigError(f"--cache {cache}: there is no such file.")
    found = cache or (usual if usual.is_file() else None)
    stats = corpus_stats(opened, cache=found, num_examples=examples, seed=seed)
    command = f"lrm corpus report {opened.path} --examples {examples} --seed {seed}"
    command += " --pictures" if pictures else ""
    page = render_corpus(stats, command=command, with_images=pictures)
    write_atomically(out, page)
    console.print(f"{out}: {len(page.encode()) / 1024:,.0f} KiB")


def _print_findings(findings: Findings, console: Console) -> None:
    from lrm_ext.corpus.validating import ERRORS, REMARKS

    for kind, count in sorted(findings.counts.items(), key=lambda found: found[0] in REMARKS):
        meaning = {**ERRORS, **REMARKS}.get(kind, kind)
        title = "[yellow]remark[/]" if kind in REMARKS else "[red]error[/]"
        console.print(f"{title} {count:,} x {escape(meaning)}")
        for example in findings.examples[kind]:
            console.print(f"    {escape(example)}")
        if count > len(findings.examples[kind]):
            console.print("    ...")


def _print_import(result: ImportResult, out: Path, console: Console) -> None:
    rows = [(name, count, result.text_only[name]) for name, count in result.rows.most_common()]
    _print_table(console, ("source", "rows", "without an image"), rows)
    for path, report in result.reports.items():
        if report.num_dropped or report.notes:
            console.print(f"{path}: {report.table()}", markup=False)
    console.print(
        f"{out}: {sum(result.rows.values()):,} rows, {result.rules.num_english:,} of them stay "
        "English (--explain shows why)"
    )


def _print_rules(result: ImportResult, path: Path, console: Console) -> None:
    console.print(f"rules of {path}:")
    for rule in result.rules.rules:
        console.print(
            f"  {result.rules.caught[rule.name]:>8,}  {rule.name} ({rule.field})", highlight=False
        )
        for example in result.rules.examples.get(rule.name, ()):
            console.print(f"            {escape(example)}")


def _print_formats(console: Console) -> None:
    from lrm_ext.corpus.formats import FORMATS

    rows = [
        (name, f.summary, "below --images" if f.images is None else f"{f.images}/ next to it")
        for name, f in FORMATS.items()
    ]
    _print_table(console, ("format", "content", "images"), rows)


def _print_table(console: Console, headings: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    table = Table(*headings)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, str) else f"{cell:,}" for cell in row))
    console.print(table)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)
