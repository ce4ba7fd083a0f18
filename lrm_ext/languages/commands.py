"""`lrm languages`: the languages there are, and whether their files are complete."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the command to `lrm`."""
    app.command("languages")(show_languages)


def show_languages() -> None:
    """List the languages and check their files."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from llava.errors import ConfigError
    from lrm_ext.languages.registry import check_languages, get_language, list_languages

    faults = check_languages()
    if not faults:
        table = Table(title="Languages")
        for heading in ("code", "name", "own name", "paper", "yes / no", "English pivot prompt"):
            table.add_column(heading)
        for code in list_languages():
            language = get_language(code)
            table.add_row(
                code,
                language.name,
                language.native_name,
                language.paper_label,
                f"{language.yes} / {language.no}",
                language.epvqa_instruction,
            )
        Console().print(table)
        Console().print(f"{len(list_languages())} language files, complete.")
        return
    for fault in faults:
        Console(stderr=True).print(escape(fault), highlight=False, soft_wrap=True)
    raise ConfigError(f"{len(faults)} faults in the language files, see above.")
