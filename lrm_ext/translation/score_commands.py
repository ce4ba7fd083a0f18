"""`lrm corpus score`: figures and statuses of texts that are there already."""

from __future__ import annotations

from pathlib import Path

import typer


def register(corpus_app: typer.Typer) -> None:
    """Add the command to `lrm corpus`."""
    corpus_app.command("score")(score)


def score(
    corpus: Path = typer.Argument(..., help="Folder of the corpus."),
    lang: str = typer.Option(..., help="Codes of languages, with commas."),
    by: list[str] = typer.Option(
        ["checks"], help="checks, back-translation, labse or comet; repeat, or use commas."
    ),
    option: list[str] = typer.Option(
        [], "--option", "-o", help="scorer.name=value, such as labse.model=folder."
    ),
    limit: list[str] = typer.Option(
        [], help="name=value: a row with a larger figure is suspect, such as labse=0.4."
    ),
    cache: Path = typer.Option(
        None, help="File of answers; translation-cache.sqlite beside the corpus by default."
    ),
) -> None:
    """Check texts again, or have models judge them; the texts themselves stay as they are."""
    from rich.console import Console
    from rich.progress import Progress

    from lrm_ext.translation.commands import parse_limits, print_counts, split_names
    from lrm_ext.translation.scoring import ScoreJob, score_corpus, split_scorer_options

    console = Console(highlight=False)
    names = split_names(by)
    scorers = [name for name in names if name != "checks"]
    for code in split_names([lang]):
        job = ScoreJob(
            corpus=corpus,
            lang=code,
            names=names,
            options=split_scorer_options(option, scorers),
            limits=parse_limits(limit),
            cache=cache or corpus.resolve().parent / "translation-cache.sqlite",
        )
        with Progress(console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(code)
            counts = score_corpus(
                job,
                progress=lambda done, total, task=task: bar.update(  # type: ignore[misc]
                    task, completed=done, total=total
                ),
            )
        print_counts(f"{corpus} in {code}", counts, console)
