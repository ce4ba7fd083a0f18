"""`lrm corpus ...`: the built-in corpus; other corpora are in `data_commands.py`."""

from __future__ import annotations

import typer

from lrm_ext.corpus import data_commands

corpus_app = typer.Typer(help="Build, unpack and inspect corpora.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add `lrm corpus` to the command line."""
    data_commands.register(corpus_app)
    app.add_typer(corpus_app, name="corpus")


@corpus_app.command("build-emoji")
def build_emoji(
    check: bool = typer.Option(False, help="Write nothing; compare with what is committed."),
) -> None:
    """Make the packed built-in corpus from the Debian packages of Noto Emoji and CLDR."""
    from rich.console import Console

    from lrm_ext.corpus.emoji import examples
    from lrm_ext.corpus.emoji.build import build_files, differences, write_files
    from lrm_ext.corpus.emoji.packed import packed_dir
    from lrm_ext.corpus.emoji.scenes import load_scenes

    folder = packed_dir()
    files = build_files()
    if not check:
        write_files(files, folder)
    # the examples' sentences are made from the packed names, which must be there by now
    scenes = load_scenes()
    files |= examples.text_files(scenes)
    if not check:
        write_files(files, folder)
        examples.write_pictures(scenes, folder)
    found = differences(files, folder) + examples.picture_differences(scenes, folder)
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

    from lrm_ext.corpus.emoji.unpack import unpack
    from lrm_ext.corpus.store import Corpus

    root = unpack(force=force)
    console = Console(highlight=False)
    console.print(str(root), soft_wrap=True)
    table = Table("corpus", "rows", "languages")
    for name in ("pretrain", "finetune"):
        corpus = Corpus.open(root / name)
        table.add_row(name, f"{len(corpus):,}", " ".join(corpus.languages))
    console.print(table)
