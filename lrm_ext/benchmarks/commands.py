"""`lrm benchmark`: list benchmarks, read their files, score answers, translate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from lrm_ext.benchmarks.agreement import Agreement, LanguagePairs
    from lrm_ext.benchmarks.registry import Benchmark
    from lrm_ext.benchmarks.translating import Correction, Target, Translation
    from lrm_ext.translation.runner import Job

benchmark_app = typer.Typer(no_args_is_help=True, help="Benchmarks: files, questions, scores.")


def register(app: typer.Typer) -> None:
    """Add the commands to `lrm`."""
    app.add_typer(benchmark_app, name="benchmark")


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

    from lrm_ext.benchmarks.printing import known_benchmarks, print_benchmarks

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
    from lrm_ext.benchmarks.printing import print_score
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


@benchmark_app.command("translate")
def translate(
    benchmark: str = typer.Argument(help="A folder of `lrm benchmark import`, or mini-mme, ..."),
    to: list[str] = typer.Option(..., help="Codes of languages; repeat, or use commas."),
    engine: list[str] = typer.Option(..., help="Engines, with commas; tried in this order."),
    out: Path = typer.Option(..., help="The folder to write; the benchmark's own adds to it."),
    option: list[str] = typer.Option([], "--option", "-o", help="As of `lrm translate`."),
    glossary: Path = typer.Option(None, help="TOML file of terms to translate in one way."),
    cache: Path = typer.Option(None, help="File of answers; by default beside --out."),
    check: bool = typer.Option(True, help="Check translations; what fails is rejected."),
    limit: list[str] = typer.Option([], help="check=value: what passes, such as length=5."),
    with_english: bool = typer.Option(
        False, "--with-english", help="Ask rejected questions in English, and count them."
    ),
    corrections: list[Path] = typer.Option(
        [], help="Filled review lists; kept in <out>/corrections.tsv, which always wins."
    ),
    replace: bool = typer.Option(False, "--replace", help="Make anew what people wrote there."),
    compare_with: str = typer.Option(
        None, help="A second engine: show how far both agree (BLEU, chrF) and where not."
    ),
    worst: int = typer.Option(100, min=0, help="Rows of the list of disagreements."),
) -> None:
    """Translate a benchmark; run it again after an interruption and it goes on from there."""
    from rich.console import Console

    from llava.errors import DataError
    from lrm_ext.benchmarks.registry import open_named
    from lrm_ext.benchmarks.translating import open_target
    from lrm_ext.translation.commands import parse_limits, split_names
    from lrm_ext.translation.engines.base import split_options
    from lrm_ext.translation.runner import Job

    console = Console(highlight=False, soft_wrap=True)
    names, languages = split_names(engine), split_names(to)
    others = (*names, compare_with) if compare_with else names
    options = split_options(option, tuple(dict.fromkeys(others)))
    target = open_target(open_named(benchmark), out, languages, with_english, replace)
    known = _corrections(out, corrections)
    compared: dict[str, LanguagePairs] = {}
    faults: list[str] = []
    for lang in languages:
        job = Job(
            corpus=out,
            target=lang,
            engines=tuple((name, options[name]) for name in names),
            cache=cache or out.resolve().parent / "translation-cache.sqlite",
            glossary=glossary,
            checks=check,
            limits=parse_limits(limit),
        )
        translation = _translate(target, job, known, console)
        faults += _write(target, translation, console)
        if compare_with:
            compared[lang] = _compare(target, translation, job, compare_with, options)
    if compared:
        review = out / "translation" / f"disagreements.{compare_with}.tsv"
        ours = (" + ".join(names), str(compare_with))
        _report(target.source, compared, ours, review, worst, False, console)
    if faults:
        raise DataError("; ".join(faults))


def _corrections(out: Path, given: list[Path]) -> list[Correction]:
    """Those that are kept in a folder, with given ones added to them and kept."""
    from lrm_ext.benchmarks.translating import (
        CORRECTIONS_FILE,
        merge,
        read_corrections,
        write_corrections,
    )

    kept = out / CORRECTIONS_FILE
    known = read_corrections(kept) if kept.is_file() else []
    if given:
        known = merge(known, (one for path in given for one in read_corrections(path)))
        write_corrections(kept, known)
    return known


def _translate(
    target: Target, job: Job, corrections: list[Correction], console: Console
) -> Translation:
    from rich.progress import Progress

    from lrm_ext.benchmarks.translating import translate_items

    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(job.target)
        return translate_items(
            target.english,
            target.kind,
            job,
            corrections,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _write(target: Target, translation: Translation, console: Console) -> list[str]:
    """Write a language and say what became of it; what went wrong is for the end."""
    from llava.errors import DataError
    from lrm_ext.benchmarks.translating import write_translation

    counts, total = translation.counts, len(translation.outcomes)
    faults: list[str] = []
    try:
        written = write_translation(target, translation)
        console.print(f"{target.out}: {total} questions in {translation.lang} ({written.version})")
    except DataError as error:
        faults.append(str(error))
    of_status = ", ".join(f"{name} {counts[name]}" for name in ("ok", "suspect", "rejected"))
    console.print(f"  {translation.lang}: {of_status} of {total}; corrected {counts['corrected']}")
    for reason, number in sorted(counts.items()):
        if ": " in reason:
            console.print(f"    {reason}: {number}", markup=False)
    if counts["rejected"] and not faults:
        console.print(f"    {counts['rejected']} are asked in English")
    for one in translation.stale:
        console.print(f"    correction not applied: {one}", markup=False)
    return faults


def _compare(
    target: Target,
    translation: Translation,
    job: Job,
    other: str,
    options: Mapping[str, Mapping[str, str]],
) -> LanguagePairs:
    """The same questions by another engine, without what people wrote."""
    from dataclasses import replace

    from lrm_ext.benchmarks.agreement import pairs_of_translations
    from lrm_ext.benchmarks.translating import translate_items

    first = translation
    if translation.counts["corrected"]:
        first = translate_items(target.english, target.kind, job)
    theirs = replace(job, engines=((other, options[other]),))
    second = translate_items(target.english, target.kind, theirs)
    return pairs_of_translations(first, second)


@benchmark_app.command("agreement")
def agreement(
    a: Path = typer.Argument(help="A translated benchmark: the hypothesis."),
    b: Path = typer.Argument(help="The same by another engine: the reference."),
    languages: list[str] = typer.Option([], help="Codes; repeat, or use commas. Default: all."),
    review: Path = typer.Option(None, help="Write the texts that disagree most here (TSV)."),
    worst: int = typer.Option(100, min=0, help="Rows of that list, per language."),
    as_json: bool = typer.Option(False, "--json", help="Print the figures as JSON."),
) -> None:
    """How far two translations of a benchmark agree, as in the paper's Table 2."""
    from rich.console import Console

    from lrm_ext.benchmarks.agreement import engines_of, pairs_of_folders, shared_languages
    from lrm_ext.benchmarks.registry import open_named
    from lrm_ext.translation.commands import split_names

    first, second = open_named(str(a)), open_named(str(b))
    langs = shared_languages(first, second, split_names(languages))
    found = {lang: pairs_of_folders(first, second, lang) for lang in langs}
    names = (engines_of(a, langs[0]), engines_of(b, langs[0]))
    console = Console(highlight=False, soft_wrap=True)
    _report(first, found, names, review, worst, as_json, console)


def _report(
    benchmark: Benchmark,
    found: Mapping[str, LanguagePairs],
    names: tuple[str, str],
    review: Path | None,
    worst: int,
    as_json: bool,
    console: Console,
) -> None:
    import json

    from lrm_ext.benchmarks.agreement import REVIEW_COLUMNS, disagreements, measure, summary
    from lrm_ext.benchmarks.translating import write_table

    by_lang = {lang: measure(pairs, lang) for lang, pairs in found.items()}
    if review is not None:
        rows = [row for lang, p in found.items() for row in disagreements(p, lang, worst)]
        write_table(review, REVIEW_COLUMNS, rows)
    content = summary(benchmark, by_lang, names)
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False, indent=1))
        return
    _print(content, by_lang, console)
    if review is not None:
        console.print(f"Where they disagree most: {review}", markup=False)


def _print(content: dict, by_lang: Mapping[str, Agreement], console: Console) -> None:  # type: ignore[type-arg]
    from rich.table import Table

    title = f"{content['benchmark']}: {content['hypothesis']} against {content['reference']}"
    table = Table("language", "BLEU", "chrF", "texts", "left out", title=title)
    for lang, one in by_lang.items():
        figures = (f"{one.bleu:.2f}", f"{one.chrf:.2f}", str(one.num_texts), str(one.num_left_out))
        table.add_row(lang, *figures)
    mean = content["mean"]
    table.add_row("mean", f"{mean['bleu']:.2f}", f"{mean['chrf']:.2f}", "", "")
    console.print(table)
    for signature in dict.fromkeys(one.signature for one in by_lang.values()):
        console.print(signature, markup=False)
    console.print(
        "Agreement, not correctness; BLEU is not symmetric. Left out: questions that one "
        "of both asks in English."
    )
