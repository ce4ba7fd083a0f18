"""`lrm benchmark`, `eval`, `report`, `compare` and `inspect`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from llava.errors import ConfigError, DataError, split_names
from lrm_ext.languages.registry import canonical_codes

if TYPE_CHECKING:
    from lrm_ext.evaluate.judging import JudgeConfig
    from lrm_ext.evaluate.registry import Benchmark
    from lrm_ext.evaluate.report import EvalReport
    from lrm_ext.evaluate.results import RunResult
    from lrm_ext.evaluate.runner import EvalConfig
    from lrm_ext.evaluate.translating import Correction, LanguagePairs, Target, Translation
    from lrm_ext.translate.runner import Job

_JUDGE_URL = typer.Option(None, help="Address of the judge: OpenAI's chat interface, to /v1.")
_JUDGE_BUDGET = typer.Option(
    None, min=1, help="Stop before the judge uses more tokens, in all runs with its cache."
)
_JUDGE_OPTION = typer.Option(
    [], help="name=value as of engine openai: concurrency, budget_usd, key_variable, ..."
)
_ALL = typer.Option(
    False, "--all", help="Every language; of more than 20 only the worst 10 have a row by default."
)
app = typer.Typer()
benchmark_app = typer.Typer(
    name="benchmark", no_args_is_help=True, help="Benchmarks: files, questions, scores."
)
app.add_typer(benchmark_app)


@app.command("eval")
def evaluate(
    model: Path = typer.Option(
        ..., help="Folder of a checkpoint (LLaVA's or transformers'), or a name on the hub."
    ),
    model_base: str = typer.Option(None, help="Base model of a LoRA or projector checkpoint."),
    benchmarks: list[str] = typer.Option(
        [], help="Names; repeat, or use commas. Default: all in --benchmark-dir, else scenes."
    ),
    languages: list[str] = typer.Option([], help="Codes; repeat, or use commas. Default: all."),
    limit: int = typer.Option(None, help="About so many questions per benchmark and language."),
    batch_size: int = typer.Option(64, help="Questions asked at once."),
    blind: bool = typer.Option(True, help="Ask a second time without the image."),
    max_new_tokens: int = typer.Option(32, help="Longest answer."),
    out: Path = typer.Option(
        None, help="Folder of the results; <model>/eval, or runs/eval/<name>, by default."
    ),
    benchmark_dir: Path = typer.Option(
        None, help="A folder of <lang>.jsonl, whose name is the benchmark's, or of such folders."
    ),
    conv_mode: str = typer.Option(None, help="Template, in place of the checkpoint's own."),
    device: str = typer.Option(None, help="cpu or cuda; a GPU by default if there is one."),
    base_url: str = typer.Option(
        None, help="Ask a service with OpenAI's chat interface; --model is the name it knows."
    ),
    max_tokens_field: str = typer.Option(
        None, help="For a service: max_tokens or max_completion_tokens; found out by default."
    ),
    temperature: bool = typer.Option(
        True, help="Ask a service for temperature 0; left out by itself if it is not taken."
    ),
    skip_missing_images: bool = typer.Option(
        False, "--skip-missing-images", help="Questions without their image are wrong, counted."
    ),
    text_only: bool = typer.Option(False, "--text-only", help="Ask sets that have no images."),
    rank: str = typer.Option(
        None, help="Rank options by likelihood, as SEED-Bench's owner does: mean or sum of tokens."
    ),
    fresh: bool = typer.Option(False, "--fresh", help="Delete earlier answers first."),
    table: bool = typer.Option(True, help="Print the tables at the end."),
    judge: str = typer.Option(None, help="Model that judges open answers, where a set says how."),
    judge_url: str = _JUDGE_URL,
    judge_budget: int = _JUDGE_BUDGET,
    judge_option: list[str] = _JUDGE_OPTION,
) -> None:
    """Measure a model in all languages; what is answered already is not asked again.

    On several GPUs: torchrun --nproc_per_node 8 -m lrm_ext.cli eval --model ...
    """
    from lrm_ext.evaluate.runner import EvalConfig

    config = EvalConfig(
        model_path=model, model_base=model_base, benchmarks=split_names(benchmarks),
        languages=canonical_codes(languages), limit=limit, batch_size=batch_size, blind=blind,
        max_new_tokens=max_new_tokens, out_dir=out, benchmark_dir=benchmark_dir,
        conv_mode=conv_mode, device=device, fresh=fresh, skip_missing_images=skip_missing_images,
        base_url=base_url, max_tokens_field=max_tokens_field, temperature=temperature, rank=rank,
        text_only=text_only,
    )  # fmt: skip
    judging = _judging(judge, judge_url, judge_budget, judge_option, config.results_dir)
    _evaluate(config, table, judging)


def _judging(
    model: str | None, url: str | None, budget: int | None, options: list[str], folder: Path
) -> JudgeConfig | None:
    """Returns the settings of a judge, whose replies are kept in a folder of results."""
    if model is None:
        if url or budget or options:
            raise ConfigError("--judge-url, --judge-budget and --judge-option need --judge MODEL")
        return None
    if url is None:
        raise ConfigError("--judge needs --judge-url, such as http://127.0.0.1:8000/v1")
    from lrm_ext.evaluate.judging import CACHE_FILE, JudgeConfig
    from lrm_ext.translate.engines.base import split_options

    budgets = [f"budget_tokens={budget}"] if budget is not None else []
    found = split_options([*options, *budgets], ["openai"])["openai"]
    return JudgeConfig(model, url, folder / CACHE_FILE, options=found)


def _evaluate(config: EvalConfig, table: bool, judging: JudgeConfig | None = None) -> None:
    import transformers

    from lrm_ext.evaluate.judging import ModelJudge, refuse_without_rubric
    from lrm_ext.evaluate.registry import get_benchmark
    from lrm_ext.evaluate.report import score_run
    from lrm_ext.evaluate.runner import EvalRanks, run_evaluation

    console = Console()
    if not console.is_terminal:
        transformers.utils.logging.disable_progress_bar()
    ranks = EvalRanks.from_environment()
    judge = None
    if judging is not None:
        refuse_without_rubric([get_benchmark(n, config.benchmark_dir) for n in config.names()])
        judge = ModelJudge(judging) if ranks.is_first else None
    sets = run_evaluation(config, ranks=ranks)
    if not ranks.is_first:
        return
    command = "lrm " + shlex.join(sys.argv[1:])
    result = score_run(config, sets, command, judge.judge if judge else None)
    _show(result, config.results_dir, config.model_path, console, table)


def _show(
    result: EvalReport,
    folder: Path,
    model: Path,
    console: Console,
    table: bool = True,
    show_all: bool = False,
) -> None:
    """Renders the page of a report, prints its tables and says where the page is."""
    from lrm_ext.report.evaluation import print_report, write_report

    page = write_report(result, folder, model)
    if table:
        print_report(result, console, show_all)
    console.print(f"Report: {page}", soft_wrap=True, highlight=False)


@app.command("report")
def report(
    run: Path = typer.Argument(None, help="A run: the model's folder, or that of its results."),
    model: Path = typer.Option(None, help="The model's folder, if its results lie elsewhere."),
    out: Path = typer.Option(None, help="Folder of the results; <model>/eval by default."),
    show_all: bool = _ALL,
) -> None:
    """Print the tables again and render report.html, from the files of an evaluation alone."""
    from lrm_ext.evaluate.report import REPORT_FILE, EvalReport
    from lrm_ext.evaluate.runner import default_results_dir

    given = run or model or out
    if given is None:
        raise ConfigError("name a run: lrm report runs/mini")
    has_report = (given / REPORT_FILE).is_file()
    folder = out or (given if has_report else default_results_dir(given))
    result = EvalReport.read(folder)
    model = model or (Path(result.model_path) if has_report else given)
    _show(result, folder, model, Console(), show_all=show_all)


@app.command("compare")
def compare(
    a: Path = typer.Argument(help="A run: the model's folder, or that of its results."),
    b: Path = typer.Argument(help="The run that is judged against it."),
    benchmarks: list[str] = typer.Option([], help="Names; repeat, or use commas. Default: all."),
    languages: list[str] = typer.Option([], help="Codes; repeat, or use commas. Default: all."),
    mode: str = typer.Option(None, help="How answers are read, in place of the default."),
    seed: int = typer.Option(0, help="Of the bootstrap."),
    replicates: int = typer.Option(10_000, help="Of the bootstrap."),
    show_all: bool = _ALL,
    as_json: bool = typer.Option(False, "--json", help="Print the comparison as JSON."),
) -> None:
    """Say whether B is better than A, worse, or neither, per language and on average."""
    from lrm_ext.evaluate.compare import compare_runs, print_comparison

    results = compare_runs(
        a,
        b,
        benchmarks=split_names(benchmarks),
        languages=canonical_codes(languages),
        mode=mode,
        seed=seed,
        num_replicates=replicates,
    )
    if as_json:
        content = {
            "a": str(a),
            "b": str(b),
            "seed": seed,
            "replicates": replicates,
            "benchmarks": [result.to_json() for result in results],
        }
        typer.echo(json.dumps(content, ensure_ascii=False, indent=1))
    else:
        print_comparison(results, a, b, Console(), show_all)


@app.command("inspect")
def inspect(
    runs: list[Path] = typer.Argument(help="Models' folders, or those of their results."),
    benchmark_dir: Path = typer.Option(
        None, help="Folder of your own benchmarks, for their images."
    ),
    benchmarks: list[str] = typer.Option([], help="Names; repeat, or use commas. Default: all."),
    languages: list[str] = typer.Option([], help="Codes; repeat, or use commas. Default: all."),
    table: str = typer.Option(
        None, help="Translations for answers in English: TSV or corpus, {lang} for the code."
    ),
    port: int = typer.Option(7861, min=0, max=65535, help="Port of the page; 0: a free one."),
) -> None:
    """Show answers beside their images, on a page that only this machine can open."""
    import socket

    try:
        import uvicorn

        from lrm_ext.evaluate.inspecting import load_runs, make_app
    except ImportError as error:
        raise ConfigError(f"the page needs {error.name}: pip install 'lrm-llava[serve]'") from error

    names, codes = split_names(benchmarks), canonical_codes(languages)
    loaded = load_runs(runs, benchmark_dir, names, codes, table)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"--port {port} is in use ({error.strerror}); choose another, or 0 for a free one"
            ) from error
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        num_questions = f"{len(loaded.rows):,} questions, {len(loaded.names)} runs"
        Console().print(f"{num_questions}: {address} (Ctrl-C ends it)", highlight=False)
        config = uvicorn.Config(make_app(loaded), log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listener])


@benchmark_app.command("import")
def import_files(
    name: str = typer.Argument(help="mme, pope, seed_bench, mmbench, or a set of the list."),
    source: Path = typer.Argument(help="The official file or folder, such as a snapshot."),
    out: Path = typer.Option(..., help="The benchmark folder to write, or to add a language to."),
    lang: list[str] = typer.Option(
        [], help="Languages of the files; repeat, or use commas. Default: en, or all of a set."
    ),
    labels: Path = typer.Option(None, help="Expected answers, if the questions lack them."),
    images: Path = typer.Option(None, help="Folder of the images, if it is not the usual one."),
    prompt: str = typer.Option("llava", help="How it is asked: llava, or the question alone."),
    hub: bool = typer.Option(
        False, "--hub", help="SOURCE is a data set on the Hugging Face Hub: owner/name."
    ),
    revision: str = typer.Option(None, help="Its branch, tag or commit; the latest by default."),
) -> None:
    """Turn a benchmark's official files into a folder that `lrm eval` asks."""
    from lrm_ext.evaluate.importing import download, import_benchmark, kind_of, languages_of

    kind_of(name)
    langs = canonical_codes(lang)
    if revision is not None and not hub:
        raise ConfigError("--revision is for a data set on the Hub; add --hub")
    path = download(name, source.as_posix(), revision, langs) if hub else source
    for one in languages_of(name, path, langs):
        questions = import_benchmark(
            name, path, out, lang=one, labels=labels, images=images, style=prompt
        )
        num_images = len({image for item in questions.items for image in item.images})
        Console().print(
            f"{out}: {len(questions.items)} questions about {num_images} images in {one} "
            f"({questions.version})",
            highlight=False,
            soft_wrap=True,
        )


@benchmark_app.command("list")
def list_benchmarks(
    as_json: bool = typer.Option(False, "--json", help="Print the list as JSON."),
) -> None:
    """List what can be asked, imported and scored."""
    from lrm_ext.report.evaluation import known_benchmarks, print_benchmarks

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
    from lrm_ext.evaluate.scoring import score_file, write_scores
    from lrm_ext.report.evaluation import print_score

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


@benchmark_app.command("judge")
def judge_answers(
    run: Path = typer.Argument(help="A run: the model's folder, or that of its results."),
    judge: str = typer.Option(None, help="The model that judges; none: show what is stored."),
    judge_url: str = _JUDGE_URL,
    judge_budget: int = _JUDGE_BUDGET,
    judge_option: list[str] = _JUDGE_OPTION,
    benchmarks: list[str] = typer.Option([], help="Names; repeat, or use commas. Default: all."),
    languages: list[str] = typer.Option([], help="Codes; repeat, or use commas. Default: all."),
    rubric: str = typer.Option(
        "", help="In place of a benchmark's own: xchat, alm-bench, ... (docs/judging.md)."
    ),
    against: Path = typer.Option(None, help="For pairs: another run, whose answers are B."),
    sample: int = typer.Option(1, min=1, help="2, 3, ...: judge once more, with this seed."),
    as_json: bool = typer.Option(False, "--json", help="Print scores and agreement as JSON."),
) -> None:
    """Have a model judge the answers of a run, and say how far judges agree."""
    from dataclasses import replace as changed

    from lrm_ext.evaluate.judging import ModelJudge
    from lrm_ext.evaluate.report import REPORT_FILE, EvalReport, add_judged
    from lrm_ext.evaluate.results import answer_files, open_result, predictions_dir

    folder = predictions_dir(run).parent
    config = _judging(judge, judge_url, judge_budget, judge_option, folder)
    model = None
    if config is not None:
        model = ModelJudge(changed(config, rubric=rubric, opponent=against, sample=sample))
    names, codes = split_names(benchmarks), canonical_codes(languages)
    judged: list[RunResult] = []
    for (name, lang), path in answer_files(run).items():
        if (not names or name in names) and (not codes or lang in codes):
            open_judged = open_result if model is None else model.judge_stored
            result = open_judged(path, name, lang)
            judged += [result] if result.judges() else []
            if model is not None and result.judges():
                add_judged(folder, [result])
    if not judged:
        raise ConfigError(
            f"{run}: nothing to show: no answers to a benchmark that names a rubric, or none "
            "judged so far; give --judge MODEL, and --rubric NAME if the benchmark names none"
        )
    _print_judged(judged, as_json)
    if model is not None and not as_json:
        counts = ", ".join(f"{what} {number:,}" for what, number in model.counts.items())
        Console().print(f"this run: {counts}", highlight=False, soft_wrap=True)
    if model is not None and (folder / REPORT_FILE).is_file():
        report = EvalReport.read(folder)
        console = Console(quiet=as_json)
        _show(report, folder, Path(report.model_path), console, table=False)


def _print_judged(results: list[RunResult], as_json: bool) -> None:
    from dataclasses import asdict

    from lrm_ext.evaluate.judging import agreements
    from lrm_ext.report.evaluation import print_score

    console, content = Console(), []
    for result in results:
        reports = [result.score(mode) for mode in result.judges()]
        scores = [{**report.to_json(), "interval": report.interval()} for report in reports]
        pairs = [{"a": a, "b": b, **asdict(v)} for (a, b), v in agreements(result).items()]
        content.append({"scores": scores, "agreement": pairs})
        for score in scores if not as_json else ():
            print_score(score, console)
        for pair in pairs if not as_json else ():
            figures = ((name, pair[name]) for name in ("kappa", "spearman"))
            said = ", ".join(f"{name} {value:.3f}" for name, value in figures if value is not None)
            console.print(
                f"{pair['a']} and {pair['b']} agree on {100 * pair['equal']:.1f} % of "
                f"{pair['num']} answers" + (f" ({said})" if said else ""),
                highlight=False, soft_wrap=True,
            )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False, indent=1))


@benchmark_app.command("translate")
def translate(
    benchmark: str = typer.Argument(help="A folder of `lrm benchmark import`, or mini-mme, ..."),
    to: list[str] = typer.Option(..., help="Codes of languages; repeat, or use commas."),
    engine: list[str] = typer.Option(..., help="Engines, with commas; tried in this order."),
    out: Path = typer.Option(..., help="The folder to write; the benchmark's own adds to it."),
    option: list[str] = typer.Option([], "--option", "-o", help="As for `lrm translate`."),
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
    from dataclasses import replace as changed

    from lrm_ext.evaluate.registry import open_named
    from lrm_ext.evaluate.translating import TRANSLATION_DIR, keep_corrections, open_target
    from lrm_ext.translate.commands import parse_limits
    from lrm_ext.translate.engines.base import split_options
    from lrm_ext.translate.runner import Job

    console = Console(highlight=False, soft_wrap=True)
    names, languages = split_names(engine), canonical_codes(to)
    others = (*names, compare_with) if compare_with else names
    options = split_options(option, tuple(dict.fromkeys(others)))
    target = open_target(open_named(benchmark), out, languages, with_english, replace)
    known = keep_corrections(out, corrections)
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
            theirs = changed(job, engines=((compare_with, options[compare_with]),))
            compared[lang] = _compare(target, translation, job, theirs)
    if compared:
        review = out / TRANSLATION_DIR / f"disagreements.{compare_with}.tsv"
        ours = (" + ".join(names), str(compare_with))
        _report(target.source, compared, ours, review, worst, False, console)
    if faults:
        raise DataError("; ".join(faults))


def _translate(
    target: Target, job: Job, corrections: list[Correction], console: Console
) -> Translation:
    from rich.progress import Progress

    from lrm_ext.evaluate.translating import translate_items

    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(job.target)
        return translate_items(
            target.english,
            job,
            corrections,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _write(target: Target, translation: Translation, console: Console) -> list[str]:
    """Writes a language, says what became of it, and returns what went wrong."""
    from lrm_ext.evaluate.translating import write_translation

    counts, total = translation.counts, len(translation.outcomes)
    faults: list[str] = []
    try:
        version = write_translation(target, translation)
        console.print(f"{target.out}: {total} questions in {translation.lang} ({version})")
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


def _compare(target: Target, translation: Translation, ours: Job, theirs: Job) -> LanguagePairs:
    """Translates by the other engine, and anew without what people wrote."""
    from lrm_ext.evaluate.translating import pairs_of_translations, translate_items

    if translation.counts["corrected"]:
        translation = translate_items(target.english, ours)
    return pairs_of_translations(translation, translate_items(target.english, theirs))


@benchmark_app.command("agreement")
def agreement(
    a: Path = typer.Argument(help="A translated benchmark: the hypothesis."),
    b: Path = typer.Argument(help="The same by another engine: the reference."),
    languages: list[str] = typer.Option([], help="Codes; repeat, or use commas. Default: all."),
    review: Path = typer.Option(None, help="Write the texts that disagree most here (TSV)."),
    worst: int = typer.Option(100, min=0, help="Rows of that list, per language."),
    as_json: bool = typer.Option(False, "--json", help="Print the figures as JSON."),
) -> None:
    """Measure how far two translations of a benchmark agree, as in the paper's Table 2."""
    from lrm_ext.evaluate.registry import open_named
    from lrm_ext.evaluate.translating import engines_of, pairs_of_folders, shared_languages

    first, second = open_named(str(a)), open_named(str(b))
    langs = shared_languages(first, second, canonical_codes(languages))
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
    from lrm_ext.evaluate.translating import (
        DISAGREEMENT_COLUMNS,
        disagreements,
        measure,
        summary,
        write_table,
    )

    by_lang = {lang: measure(pairs, lang) for lang, pairs in found.items()}
    if review is not None:
        rows = [row for lang, p in found.items() for row in disagreements(p, lang, worst)]
        write_table(review, DISAGREEMENT_COLUMNS, rows)
    content = summary(benchmark, by_lang, names)
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False, indent=1))
        return
    from rich.table import Table

    title = f"{benchmark.name}: {names[0]} against {names[1]}"
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
    if review is not None:
        console.print(f"Where they disagree most: {review}", markup=False)
