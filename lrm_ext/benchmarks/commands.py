"""`lrm benchmark`: list benchmarks, read their files, score answers."""

from __future__ import annotations

from pathlib import Path

import typer

from lrm_ext.benchmarks import translate_commands

benchmark_app = typer.Typer(no_args_is_help=True, help="Benchmarks: files, questions, scores.")


def register(app: typer.Typer) -> None:
    """Add the commands to `lrm`."""
    app.add_typer(benchmark_app, name="benchmark")
    translate_commands.register(benchmark_app)


@benchmark_app.command("import")
def import_files(
    name: str = typer.Argument(help="mme, pope, seed_bench, mmbench, or a set of the list."),
    source: Path = typer.Argument(help="The official file or folder."),
    out: Path = typer.Option(..., help="The benchmark folder to write, or to add a language to."),
    lang: str = typer.Option(None, help="Language of the files: en, or all that a set has."),
    labels: Path = typer.Option(None, help="Expected answers, where the questions lack them."),
    images: Path = typer.Option(None, help="Folder of the pictures, if it is not the usual one."),
    prompt: str = typer.Option("llava", help="How it is asked: llava, or the question alone."),
) -> None:
    """Turn a benchmark's official files into a folder that `lrm eval` asks."""
    from rich.console import Console

    from lrm_ext.benchmarks.importing import import_benchmark, kind_of, languages_of

    kind_of(name)
    for one in languages_of(name, source, lang):
        questions = import_benchmark(
            name, source, out, lang=one, labels=labels, images=images, style=prompt
        )
        pictures = len({item.image for item in questions.items})
        Console().print(
            f"{out}: {len(questions.items)} questions about {pictures} pictures in {one} "
            f"({questions.version})",
            highlight=False,
            soft_wrap=True,
        )


@benchmark_app.command("list")
def list_benchmarks(
    as_json: bool = typer.Option(False, "--json", help="Print the list as JSON."),
) -> None:
    """What can be asked, imported and scored."""
    import json

    from rich.console import Console

    from lrm_ext.benchmarks.listing import known_benchmarks, print_benchmarks

    if as_json:
        typer.echo(json.dumps(known_benchmarks(), ensure_ascii=False, indent=1))
    else:
        print_benchmarks(Console())


@benchmark_app.command("score")
def score(
    name: str = typer.Argument(help="mme, pope, seed_bench, mmbench, or a set of the list."),
    predictions: Path = typer.Option(..., help="Answers, JSON Lines."),
    data: Path = typer.Option(None, help="The benchmark's folder, or its official files."),
    mode: str = typer.Option(None, help="How answers are read: llava, lmms-eval, official, ..."),
    lang: str = typer.Option(None, help="Language of the questions, if the answers do not say."),
    allow_missing: bool = typer.Option(
        False, "--allow-missing", help="Questions without an answer are wrong, not an error."
    ),
    on_duplicate: str = typer.Option("error", help="A second, different answer: error or last."),
    intervals: bool = typer.Option(True, help="Compute a 95 % interval."),
    seed: int = typer.Option(0, help="Of the bootstrap behind the interval."),
    scores: Path = typer.Option(None, help="Write what was made of each answer here."),
    as_json: bool = typer.Option(False, "--json", help="Print the report as JSON."),
) -> None:
    """Score a file of answers; needs no model."""
    import json

    from rich.console import Console

    from llava.errors import ConfigError
    from lrm_ext.benchmarks.show import print_score
    from lrm_ext.evaluation.results import score_file, write_scores

    if on_duplicate not in ("error", "last"):
        raise ConfigError(f"--on-duplicate is {on_duplicate!r}; expected error or last")
    report = score_file(
        name,
        predictions,
        data=data,
        mode=mode,
        lang=lang,
        allow_missing=allow_missing,
        last_wins=on_duplicate == "last",
    )
    content = report.to_json()
    content["predictions"] = str(predictions)
    if intervals:
        content["interval"] = report.interval(seed)
    if scores is not None:
        write_scores(report, scores)
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False, indent=1))
    else:
        print_score(content, Console())
