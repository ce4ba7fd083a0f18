"""`lrm languages ...`: list the languages, begin a new one, check files, compare tokenizers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

languages_app = typer.Typer(
    help="List the languages, begin a new one, check their files, compare tokenizers.",
    invoke_without_command=True,
)
# `lrm_ext.languages.registry.FOLDER_VARIABLE`; importing that here would slow `lrm --help` down
_VARIABLE = "LRM_LANGUAGES_DIR"
_FOLDER = typer.Option(
    None, "--dir", help=f"Folder of your own language files; default: ${_VARIABLE}."
)


def register(app: typer.Typer) -> None:
    """Add `lrm languages` to the command line."""
    app.add_typer(languages_app, name="languages")


@languages_app.callback()
def show_languages(context: typer.Context) -> None:
    """List the languages."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from lrm_ext.languages.registry import DATA_DIR, get_language, list_languages

    table = Table(title="Languages")
    for heading in ("code", "name", "own name", "paper", "yes / no", "English pivot prompt"):
        table.add_column(heading)
    for code in list_languages():
        language = get_language(code)
        table.add_row(
            code if language.path.parent == DATA_DIR else f"{code} (yours)",
            language.name,
            language.native_name,
            language.paper_label,
            f"{language.yes} / {language.no}",
            language.epvqa_instruction,
        )
    _console().print(table)
    _console().print("lrm languages check looks for faults, lrm languages add CODE begins another.")


@languages_app.command("add")
def add(
    code: str = typer.Argument(..., help="A BCP-47 code such as sk, pt-BR or zh-Hant."),
    folder: Path = _FOLDER,
) -> None:
    """Begin the file of a new language: every entry explained, CLDR's part filled in."""
    from lrm_ext.languages.drafting import write_draft
    from lrm_ext.languages.registry import FOLDER_VARIABLE, user_dir

    assert FOLDER_VARIABLE == _VARIABLE
    usual = user_dir()
    if os.environ.get(_VARIABLE) and not usual.is_dir():
        usual.mkdir(parents=True)
    path = write_draft(code, folder or usual)
    console = _console()
    console.print(f"{path} is written; replace what is marked TODO, then:")
    if folder is not None and folder.resolve() != usual.resolve():
        console.print(f"  export {_VARIABLE}={folder.resolve()}")
    console.print(f"  lrm languages check {path.stem}")


@languages_app.command("check")
def check(
    codes: list[str] = typer.Argument(None, help="Codes; all languages if left out."),
    folder: Path = _FOLDER,
) -> None:
    """Say what is missing, untranslated or would not be read back; exit status 1 if anything."""
    from rich.markup import escape

    from lrm_ext.languages.checking import check_languages

    if folder is not None:
        os.environ[_VARIABLE] = str(folder)
    found = check_languages(tuple(codes or ()))
    faults = [fault for fault in found if not fault.is_note]
    console = _console()
    for fault in found:
        style, word = ("yellow", "note") if fault.is_note else ("red", "fault")
        console.print(f"[{style}]{word}[/] {escape(str(fault))}")
    console.print(_summary(len(faults), tuple(codes or ())))
    raise typer.Exit(1 if faults else 0)


def _summary(num_faults: int, codes: tuple[str, ...]) -> str:
    from lrm_ext.languages.registry import language_files

    checked = len(codes or language_files())
    files = f"{checked} language file{'s' if checked != 1 else ''}"
    if not num_faults:
        return f"{files}: nothing wrong."
    return f"{files}: {num_faults} fault{'s' if num_faults != 1 else ''}."


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)
