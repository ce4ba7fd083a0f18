"""`lrm translate`: a corpus into other languages. `lrm corpus score`: judges its texts again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from llava.errors import ConfigError, DataError, split_names
from llava.progress import progress_bar
from lrm_ext.languages.registry import canonical_codes

if TYPE_CHECKING:
    from lrm_ext.translate.ray_executor import RayWorkers
    from lrm_ext.translate.runner import Job, Result

_STATUSES = ("ok", "suspect", "rejected")
_NOTHING_TO_DO = (
    "nothing to do: expected a corpus, --to and --engine, such as "
    "lrm translate corpus/ --to hr,cs --engine madlad; --list shows the engines."
)
app = typer.Typer()


@app.command("translate")
def translate(
    corpus: Path = typer.Argument(None, help="Folder of the corpus."),
    to: list[str] = typer.Option([], help="Codes of languages; repeat, or use commas."),
    engine: list[str] = typer.Option(
        [], help="Names of engines, with commas; they are tried in this order."
    ),
    option: list[str] = typer.Option(
        [], "--option", "-o", help="name=value, or engine.name=value; `--list` shows the names."
    ),
    model: str = typer.Option(None, help="Short for --option model=..."),
    base_url: str = typer.Option(None, help="Short for --option base_url=..."),
    glossary: Path = typer.Option(None, help="TOML file of terms with fixed translations."),
    cache: Path = typer.Option(
        None, help="Cache file; translation-cache.sqlite beside the corpus by default."
    ),
    check: bool = typer.Option(
        True, help="Check translations; failed ones are not used for training."
    ),
    limit: list[str] = typer.Option(
        [], help="check=value: limit of a check, such as length=5; docs/translation-quality.md."
    ),
    anew: bool = typer.Option(False, "--replace", help="Replace existing texts."),
    max_rejected: float = typer.Option(
        None, help="Fail (after writing) if a larger share of rows is rejected, such as 0.2."
    ),
    executor: str = typer.Option(
        "process", help="Where engines run: process (this one) or ray (many, see docs/scaling.md)."
    ),
    num_workers: int = typer.Option(
        None, min=1, help="Workers of --executor ray; by default as many as fit."
    ),
    gpus_per_worker: float = typer.Option(
        0.0, min=0.0, help="GPUs per worker of --executor ray; may be a fraction."
    ),
    list_engines: bool = typer.Option(
        False, "--list", help="List the engines, or with --engine the options of one, and exit."
    ),
    plan: bool = typer.Option(
        False, "--plan", help="Estimate hours and money of each engine, and exit; needs no corpus."
    ),
    assumptions: Path = typer.Option(None, help="Assumptions of --plan: your own plan.toml."),
    rows: int = typer.Option(None, min=1, help="Number of rows for --plan."),
) -> None:
    """Translate a corpus; after an interruption, run it again to continue."""
    from lrm_ext.translate.runner import Job

    names, languages, console = split_names(engine), canonical_codes(to), Console(highlight=False)
    if list_engines:
        return _print_engines(names, console)
    if plan:
        return _print_plan(languages, corpus, assumptions, rows)
    if corpus is None or not names or not languages:
        raise ConfigError(_NOTHING_TO_DO)
    chain = _chain(names, option, model=model, base_url=base_url)
    job = Job(
        corpus, "", chain, cache or _default_cache(corpus), glossary=glossary, checks=check,
        limits=parse_limits(limit), replaces=anew,
    )  # fmt: skip
    _translate(job, languages, _workers(executor, num_workers, gpus_per_worker), max_rejected)


def _translate(
    job: Job, languages: Sequence[str], workers: RayWorkers | None, max_rejected: float | None
) -> None:
    """Translates into one language after the other.

    Raises:
        DataError: A larger share of rows than `max_rejected` is rejected in a language.
    """
    from lrm_ext.translate.runner import translate_corpus

    console, failed = Console(highlight=False), list[str]()
    for lang in languages:
        with progress_bar(lang, console) as progress:
            result = translate_corpus(replace(job, target=lang), workers, progress)
        _print_result(f"{job.corpus} in {lang}", result, console)
        counts = result.counts
        share = counts["rejected"] / max(1, sum(counts[status] for status in _STATUSES))
        if max_rejected is not None and share > max_rejected:
            failed.append(f"{lang}: {share:.1%} of the rows are rejected")
    if failed:
        raise DataError(f"{'; '.join(failed)}; --max-rejected allows {max_rejected:.1%}.")


def _chain(
    names: tuple[str, ...], options: list[str], **shorts: str | None
) -> tuple[tuple[str, dict[str, str]], ...]:
    """Returns engines in order, each with its options; `shorts` are flags of common options."""
    from lrm_ext.translate.engines.base import split_options

    typed = [f"{name}={value}" for name, value in shorts.items() if value is not None]
    return tuple(split_options([*options, *typed], names).items())


def _print_plan(
    languages: tuple[str, ...], corpus: Path | None, assumptions: Path | None, rows: int | None
) -> None:
    from lrm_ext.translate.planning import plan

    found = plan(languages, corpus=corpus, assumptions=assumptions, rows=rows)
    Console(highlight=False).print(found, markup=False, soft_wrap=True)


def _default_cache(corpus: Path) -> Path:
    return corpus.resolve().parent / "translation-cache.sqlite"


def _workers(name: str, num_workers: int | None, gpus_per_worker: float) -> RayWorkers | None:
    if name == "process":
        if num_workers is not None or gpus_per_worker:
            raise ConfigError("--num-workers and --gpus-per-worker are for --executor ray.")
        return None
    if name != "ray":
        raise ConfigError(f"unknown --executor {name!r}; choose from: process, ray.")
    from lrm_ext.translate.ray_executor import RayWorkers

    return RayWorkers(num_workers, gpus_per_worker)


def _print_result(title: str, result: Result, console: Console) -> None:
    from lrm_ext.translate.translator import UNANSWERED

    print_counts(title, result.counts, console)
    if num := result.counts[f"rejected: {UNANSWERED}"]:
        console.print(
            f"{num:,} rows have no answer for reasons that may pass; --replace asks for these "
            "again, and takes the others from the cache.",
            soft_wrap=True,
        )
    if result.work:
        listed = ", ".join(f"{name} {n:,}" for name, n in sorted(result.work.items()))
        console.print(f"this run: {listed}", soft_wrap=True)
    usage = result.usage
    if usage.input_tokens or usage.usd:
        price = f"{usage.usd:.4f} USD" if usage.usd else "no price was given"
        console.print(
            f"cost: {usage.requests:,} requests, {usage.input_tokens:,} tokens in, "
            f"{usage.output_tokens:,} out, {price}",
            soft_wrap=True,
        )


def print_counts(title: str, counts: Counter[str], console: Console) -> None:
    """Prints rows by status and reason, and what happens to rows that are not accepted."""
    table = Table("rows", "number", title=title, title_justify="left")
    for name in (*_STATUSES, "not translatable"):
        table.add_row(name, f"{counts[name]:,}")
        for reason, number in sorted(counts.items()):
            if reason.startswith(f"{name}: "):
                table.add_row(f"  {reason.removeprefix(f'{name}: ')}", f"{number:,}")
    console.print(table)
    if num := counts["suspect"] + counts["rejected"]:
        rows = "1 row is" if num == 1 else f"{num:,} rows are"
        console.print(
            f"{rows} not accepted: a mixture draws others, `lrm corpus export` leaves them out or, "
            "with --with-english, writes them in English.",
            soft_wrap=True,
        )


def _print_engines(names: tuple[str, ...], console: Console) -> None:
    from lrm_ext.translate.engines.base import describe_options, engine_names, get_spec

    table = Table("engine", "what it is", "languages", "licence", "cost", show_lines=True)
    faults: list[str] = []
    for name in names or engine_names():
        try:
            spec = get_spec(name)
        except ConfigError as error:  # a broken engine of another package does not hide ours
            faults.append(str(error))
            continue
        languages = " ".join(sorted(spec.languages())) or "none"
        table.add_row(name, spec.summary, languages, spec.licence, spec.cost)
    console.print(table)
    for fault in faults:
        console.print(fault, soft_wrap=True, markup=False)
    for name in names:
        spec = get_spec(name)
        if options := describe_options(spec):
            table = Table("option", "default", "meaning", title=name, title_justify="left")
            for option in options:
                table.add_row(*option)
            console.print(table)
        if spec.install:
            console.print(f"{name} needs: {spec.install}", soft_wrap=True, markup=False)
    if not names:
        console.print("Options of one: lrm translate --list --engine NAME", soft_wrap=True)


def parse_limits(texts: list[str]) -> dict[str, float]:
    """Parses `check=number`.

    Raises:
        ConfigError: A text has another form.
    """
    limits: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            limits[name.strip()] = float(value)
        except ValueError:
            raise ConfigError(
                f"--limit {text}: expected check=number, such as length=5 or ending=1."
            ) from None
    return limits


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
        [], help="name=value: rows with a larger value are suspect, such as labse=0.4."
    ),
    cache: Path = typer.Option(
        None, help="Cache file; translation-cache.sqlite beside the corpus by default."
    ),
) -> None:
    """Check texts again, or score them with models; the texts themselves do not change."""
    from lrm_ext.translate.scoring import ScoreJob, score_corpus, split_scorer_options

    console = Console(highlight=False)
    names = split_names(by)
    scorers = [name for name in names if name != "checks"]
    for code in canonical_codes([lang]):
        job = ScoreJob(
            corpus=corpus,
            lang=code,
            names=names,
            options=split_scorer_options(option, scorers),
            limits=parse_limits(limit),
            cache=cache or _default_cache(corpus),
        )
        with progress_bar(code, console) as progress:
            counts = score_corpus(job, progress)
        print_counts(f"{corpus} in {code}", counts, console)
