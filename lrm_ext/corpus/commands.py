"""`lrm corpus ...`: makes the built-in corpus; imports, exports, shows and checks any other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from lrm_ext.corpus.importing import ImportResult
    from lrm_ext.corpus.validating import Findings

corpus_app = typer.Typer(help="Build, unpack and inspect corpora.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add `lrm corpus` to the command line."""
    app.add_typer(corpus_app, name="corpus")


@corpus_app.command("build-emoji")
def build_emoji(
    check: bool = typer.Option(False, help="Write nothing; compare with what is committed."),
) -> None:
    """Make the packed built-in corpus from the Debian packages of Noto Emoji and CLDR."""
    from rich.console import Console

    from lrm_ext.emoji import build
    from lrm_ext.emoji.scenes import load_scenes, packed_dir

    folder = packed_dir()
    files = build.build_files()
    if not check:
        build.write_files(files, folder)
    # the examples' sentences are made from the packed names, which must be there by now
    scenes = load_scenes()
    files |= build.text_files(scenes)
    if not check:
        build.write_files(files, folder)
        build.write_pictures(scenes, folder)
    found = build.differences(files, folder) + build.picture_differences(scenes, folder)
    console = Console(highlight=False, soft_wrap=True)
    for line in found:
        console.print(f"[red]{line}[/]")
    size_kib = sum(map(len, files.values())) / 1024
    console.print(
        f"{folder}: {len(files)} files, {size_kib:,.0f} KiB, "
        + (f"{len(found)} differ from a fresh build" if found else "as a fresh build makes them")
    )
    raise typer.Exit(1 if found else 0)


@corpus_app.command("unpack-emoji")
def unpack_emoji(
    force: bool = typer.Option(False, help="Start over even if it is complete."),
) -> None:
    """Unpack the built-in corpus: pictures, conversations and benchmarks in all languages."""
    from rich.console import Console
    from rich.table import Table

    from lrm_ext.corpus.store import Corpus
    from lrm_ext.emoji.unpack import unpack

    root = unpack(force=force)
    console = Console(highlight=False)
    console.print(str(root), soft_wrap=True)
    table = Table("corpus", "rows", "languages")
    for name in ("pretrain", "finetune"):
        corpus = Corpus.open(root / name)
        table.add_row(name, f"{len(corpus):,}", " ".join(corpus.languages))
    console.print(table)


@corpus_app.command("import")
def import_(
    sources: list[str] = typer.Argument(
        None, help="PATH or FORMAT:PATH, one or more; --formats lists the formats."
    ),
    out: Path = typer.Option(None, help="Corpus folder to make."),
    images: Path = typer.Option(Path(), help="Folder below which all pictures lie."),
    source: str = typer.Option(None, help="Name of the data set, for rows that do not say."),
    rules: Path = typer.Option(None, help="Your own rules on which rows stay English (TOML)."),
    explain: bool = typer.Option(False, "--explain", help="Show what each rule caught."),
    verify_images: bool = typer.Option(False, "--verify-images", help="Open every picture."),
    copy_images: bool = typer.Option(
        False, "--copy-images", help="Copy every picture into the corpus; embedded ones, too."
    ),
    max_drop_rate: float = typer.Option(0.0, help="Share of bad rows that may be left out."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the corpus at --out."),
    formats: bool = typer.Option(False, "--formats", help="List the formats and end."),
) -> None:
    """Make a corpus of English data: LLaVA JSON, Parquet, ChartQA, ..."""
    from lrm_ext.corpus.formats import split_source
    from lrm_ext.corpus.importing import RULES_FILE, ImportSource, Rules, import_corpus

    console = _console()
    if formats:
        _print_formats(console)
        return
    if not sources or out is None:
        raise typer.BadParameter("expected sources and --out; lrm corpus import --help")
    given = [ImportSource(*split_source(text), source) for text in sources]
    with _bar(console) as bar:
        task = bar.add_task("rows", total=None)
        result = import_corpus(
            given,
            out,
            images=images,
            rules=Rules.load(rules or RULES_FILE),
            max_drop_rate=max_drop_rate,
            verify_images=verify_images,
            copy_images=copy_images,
            overwrite=overwrite,
            progress=lambda num_rows: bar.update(task, completed=num_rows),
        )
    _print_import(result, out, console)
    if explain:
        _print_rules(result, rules or RULES_FILE, console)


@corpus_app.command("export")
def export(
    corpus: Path = typer.Argument(..., help="Folder of the corpus."),
    lang: str = typer.Option("en", help='A language, or "all" with {lang} in --out.'),
    out: Path = typer.Option(..., help="File to write: .json or .jsonl."),
    with_english: bool = typer.Option(
        False,
        "--with-english",
        help="English where a row has no accepted text in the language; else it is left out.",
    ),
) -> None:
    """Write LLaVA JSON of a corpus, for any other tool."""
    from lrm_ext.corpus.exporting import export_llava
    from lrm_ext.corpus.store import Corpus

    opened, console = Corpus.open(corpus), _console()
    languages = opened.languages if lang == "all" else (lang,)
    if lang == "all" and "{lang}" not in str(out):
        raise typer.BadParameter(f"--lang all needs {{lang}} in --out, found {out}")
    for code in languages:
        path = Path(str(out).replace("{lang}", code))
        with _bar(console) as bar:
            task = bar.add_task(code, total=len(opened))
            exported = export_llava(
                opened,
                code,
                path,
                with_english=with_english,
                progress=lambda done, total, task=task: bar.update(task, completed=done),  # type: ignore[misc]
            )
        listed = ", ".join(f"{number:,} {name}" for name, number in exported.not_accepted.items())
        fate = "are in English" if with_english else "are left out"
        note = f"; rows without accepted text in {code} {fate}: {listed}" if listed else ""
        console.print(f"{path}: {exported.num_records:,} records{note}")


@corpus_app.command("info")
def info(
    corpus: Path = typer.Argument(None, help="Folder; the built-in corpus if left out."),
) -> None:
    """Show what a corpus holds."""
    from rich.table import Table

    from lrm_ext.corpus.store import STATUSES
    from lrm_ext.corpus.summary import count_engines, median_lengths, summarize
    from lrm_ext.emoji.unpack import open_corpus

    opened, console = open_corpus(corpus), _console()
    summary = summarize(opened)
    console.print(
        f"{opened.path}: {summary.num_rows:,} rows, {summary.num_turns:,} turns, "
        f"{summary.num_characters:,} characters; {summary.num_pictures:,} pictures, "
        f"{summary.num_text_only:,} rows without one, "
        f"{summary.num_english_only:,} that stay English\npictures: {opened.image_root.resolve()}"
    )
    for name, counts in (("source", summary.sources), ("task", summary.tasks)):
        table = Table(name, "rows")
        for key, count in counts.most_common():
            table.add_row(key, f"{count:,}")
        console.print(table)
    table = Table("language", *STATUSES, "none", "median characters a turn")
    lengths = median_lengths(opened)
    for lang in opened.languages:
        counts_of = opened.statuses(lang)
        none = summary.num_rows - sum(counts_of.values())
        numbers = [*(counts_of[status] for status in STATUSES), none]
        table.add_row(lang, *(f"{number:,}" for number in numbers), f"{lengths[lang]:.0f}")
    console.print(table)
    engines = {lang: count_engines(opened, lang) for lang in opened.languages[1:]}
    if any(name != "-" for counts in engines.values() for name, _ in counts):
        table = Table("language", "engine", *STATUSES)
        for lang, made in engines.items():
            for name in sorted({name for name, _ in made}):
                numbers = [made[name, status] for status in STATUSES]
                table.add_row(lang, name, *(f"{number:,}" for number in numbers))
        console.print(table)


@corpus_app.command("show")
def show(
    corpus: Path = typer.Argument(None, help="Folder; the built-in corpus if left out."),
    row: int = typer.Option(0, help="Number of the row; from the end if negative."),
    lang: list[str] = typer.Option([], help="Languages; all if left out."),
) -> None:
    """Show one row in all its languages."""
    from rich.markup import escape

    from lrm_ext.emoji.unpack import open_corpus

    opened, console = open_corpus(corpus), _console()
    index = row if row >= 0 else len(opened) + row
    found = opened.row(index)
    stays = "" if found.translatable else ", stays English"
    console.print(
        f"row {index}, id {found.id}, picture {found.image or 'none'}, source "
        f"{found.source or '-'}, task {found.task or '-'}{stays}"
    )
    codes = [code.strip() for text in lang for code in text.split(",")] or list(opened.languages)
    for code in codes:
        text = opened.text(code, index)
        if text is None:
            console.print(f"[bold]{code}[/]  no text")
            continue
        about = ", ".join(filter(None, (text.status, text.engine, text.reason)))
        console.print(f"[bold]{code}[/]  [dim]{escape(about)}[/]")
        for turn in text.turns:
            console.print(f"    {turn.role:>5}: {escape(turn.text)}")
        if text.quality:
            figures = ", ".join(f"{name} {value:.4g}" for name, value in text.quality.items())
            console.print(f"    [dim]{escape(figures)}[/]")


@corpus_app.command("diff")
def diff(
    left: Path = typer.Argument(..., help="A corpus."),
    right: Path = typer.Argument(None, help="Another of the same rows; left out: the same one."),
    lang: str = typer.Option(
        "en", help="Language to compare (en: the rows themselves), or two of them, as in cs,sk."
    ),
    limit: int = typer.Option(20, help="Show so many differences; all are counted."),
) -> None:
    """Compare two corpora, such as by two engines, or two languages; exit status 1 if they differ.

    Of two languages those rows are shown that one lacks, that only one accepts, or that say the
    same in both.
    """
    from collections import Counter

    from rich.markup import escape

    from lrm_ext.corpus.store import Corpus
    from lrm_ext.corpus.summary import CorpusSide, differences

    langs = [code.strip() for code in lang.split(",")]
    if len(langs) > 2 or (right is None and len(langs) != 2):
        raise typer.BadParameter("expected two corpora, or two languages (--lang cs,sk)")
    sides = (
        CorpusSide(Corpus.open(left), langs[0]),
        CorpusSide(Corpus.open(right or left), langs[-1]),
    )
    console, counts = _console(), Counter[str]()
    for found in differences(*sides):
        counts[found.what] += 1
        if counts.total() <= limit:
            console.print(f"row {found.index} ({escape(found.id)}): {found.what}")
            console.print(f"  [red]- {escape(str(found.left))}[/]")
            console.print(f"  [green]+ {escape(str(found.right))}[/]")
    listed = ", ".join(f"{what} {number:,}" for what, number in counts.items())
    console.print(f"{counts.total():,} rows differ" + (f": {listed}" if listed else ""))
    raise typer.Exit(1 if counts else 0)


@corpus_app.command("validate")
def validate(
    path: str = typer.Argument(..., help="A corpus folder; or PATH or FORMAT:PATH of a data set."),
    images: Path = typer.Option(
        Path(), help="Folder of a data set's pictures; a corpus knows its own."
    ),
    verify_images: bool = typer.Option(False, "--verify-images", help="Open every picture."),
) -> None:
    """Look for errors and oddities in every row; exit status 1 if there are errors."""
    from lrm_ext.corpus.formats import split_source
    from lrm_ext.corpus.importing import ImportSource
    from lrm_ext.corpus.store import META_FILE, Corpus
    from lrm_ext.corpus.validating import validate as look
    from lrm_ext.corpus.validating import validate_source

    console = _console()
    with _bar(console) as bar:
        task = bar.add_task("rows", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if (Path(path) / META_FILE).is_file():
            opened = Corpus.open(path)
            findings = look(opened, with_pictures=verify_images, progress=progress)
        else:
            source = ImportSource(*split_source(path))
            findings = validate_source(
                source, images, with_pictures=verify_images, progress=progress
            )
    _print_findings(findings, console)
    console.print(
        f"{path}: {findings.num_rows:,} rows, {findings.num_errors:,} errors, "
        f"{findings.counts.total() - findings.num_errors:,} remarks"
        + ("" if verify_images else "; pictures were not opened (--verify-images)")
    )
    raise typer.Exit(1 if findings.num_errors else 0)


@corpus_app.command("report")
def report(
    corpus: Path = typer.Argument(None, help="Folder; the built-in corpus if left out."),
    out: Path = typer.Option(Path("report.html"), help="Page to write."),
    pictures: bool = typer.Option(False, "--pictures", help="Small pictures beside examples."),
    examples: int = typer.Option(
        20, min=0, help="Examples of kept texts, and of others, in each language."
    ),
    seed: int = typer.Option(0, help="Of the draw of examples."),
    cache: Path = typer.Option(
        None, help="File of answers, for costs; translation-cache.sqlite beside the corpus."
    ),
) -> None:
    """Write a page: what was kept, what was not and why, engines, costs, quality, examples."""
    from llava.errors import ConfigError
    from llava.files import write_atomically
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
    from rich.markup import escape

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
    from rich.table import Table

    table = Table("source", "rows", "without a picture")
    for name, count in result.rows.most_common():
        table.add_row(name or "-", f"{count:,}", f"{result.without_picture[name]:,}")
    console.print(table)
    for path, report in result.reports.items():
        if report.num_dropped or report.notes:
            console.print(f"{path}: {report.table()}", markup=False)
    console.print(
        f"{out}: {sum(result.rows.values()):,} rows, {result.rules.num_english:,} of them stay "
        "English (--explain shows why)"
    )


def _print_rules(result: ImportResult, path: Path, console: Console) -> None:
    from rich.markup import escape

    console.print(f"rules of {path}:")
    for rule in result.rules.rules:
        console.print(
            f"  {result.rules.caught[rule.name]:>8,}  {rule.name} ({rule.field})", highlight=False
        )
        for example in result.rules.examples.get(rule.name, ()):
            console.print(f"            {escape(example)}")


def _print_formats(console: Console) -> None:
    from rich.table import Table

    from lrm_ext.corpus.formats import FORMATS

    table = Table("format", "what it looks like", "pictures")
    for name, found in FORMATS.items():
        where = "below --images" if found.pictures is None else f"{found.pictures}/ beside it"
        table.add_row(name, found.summary, where)
    console.print(table)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def _bar(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
