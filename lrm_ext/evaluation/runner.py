"""Run a model over benchmarks in several languages, with and without the picture.

In: an `EvalConfig`. Out: files of answers below `<out>/predictions`, which `score` reads. What is
answered already is skipped, and without anything left to ask the model is not even loaded.
Everything that can be wrong with the input is found before the first answer. No scoring here.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

import lrm_ext
from llava.errors import ConfigError
from llava.eval.records import without_thinking
from llava.mm_utils import get_model_name_from_path
from lrm_ext.benchmarks.items import Item
from lrm_ext.benchmarks.registry import Benchmark, names_in
from lrm_ext.evaluation.answerer import Answer, Answerer, BrokenBatchError, Request
from lrm_ext.evaluation.backend import choose_backend
from lrm_ext.evaluation.predictions import (
    Prediction,
    PredictionWriter,
    check_keys,
    clear_run,
    cut_unfinished_line,
    open_run,
    read_predictions,
    sort_lines,
)
from lrm_ext.evaluation.progress import Reporter, show_progress
from lrm_ext.evaluation.questions import QuestionSet as QuestionSet
from lrm_ext.evaluation.questions import load_questions as load_questions
from lrm_ext.evaluation.ranking import check_mode, ranked, without_options
from lrm_ext.evaluation.ranks import Ranks, gather_parts
from lrm_ext.languages import list_languages

log = logging.getLogger(__name__)

DEFAULT_BENCHMARK = "scenes"
# where results go of models that have no folder here
RESULTS_ROOT = Path("runs") / "eval"


@dataclass(frozen=True)
class EvalConfig:
    """What to evaluate, and how.

    Attributes:
        model_path: Folder of the checkpoint, a name on the Hugging Face hub, or with `base_url` the
            name that a service knows.
        model_base: Base model of a LoRA or projector-only checkpoint.
        benchmarks: Names of benchmarks; empty for those in `benchmark_dir`, else `scenes`.
        languages: Language codes; empty for all that a benchmark has a file for.
        limit: About how many questions per benchmark and language; None for all.
        batch_size: Questions asked at once.
        blind: Ask a second time without the picture.
        max_new_tokens: Longest answer.
        out_dir: Folder of the results; `<model_path>/eval` by default.
        benchmark_dir: Folder of `<lang>.jsonl` files in place of the built-in benchmark, or a
            folder of such folders, each with a benchmark's name.
        conv_mode: Template in place of the checkpoint's own.
        device: `cpu` or `cuda`; by default a GPU where there is one.
        fresh: Delete the answers of an earlier run first.
        base_url: Address of a service with OpenAI's chat interface, which is asked in place of a
            model that is loaded here.
        max_tokens_field: What the service calls the longest answer; None to find out.
        temperature: Ask the service for temperature 0; False leaves it to the service.
        skip_missing_images: Do not ask about pictures that are missing or broken; those questions
            are wrong, and counted.
        rank: Rank options by their likelihood, by the `mean` or `sum` over their tokens; None to
            have answers written.
    """

    model_path: Path
    model_base: str | None = None
    benchmarks: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    limit: int | None = None
    batch_size: int = 64
    blind: bool = True
    max_new_tokens: int = 32
    out_dir: Path | None = None
    benchmark_dir: Path | None = None
    conv_mode: str | None = None
    device: str | None = None
    fresh: bool = False
    base_url: str | None = None
    max_tokens_field: str | None = None
    temperature: bool = True
    skip_missing_images: bool = False
    rank: str | None = None

    @property
    def results_dir(self) -> Path:
        """Folder of scores and reports."""
        return self.out_dir or default_results_dir(self.model_path)

    @property
    def predictions_dir(self) -> Path:
        """Folder of answers."""
        return self.results_dir / "predictions"

    def names(self) -> tuple[str, ...]:
        """Names of the benchmarks, under which answers are filed.

        Raises:
            ConfigError: `benchmark_dir` has none.
        """
        if self.benchmarks or self.benchmark_dir is None:
            return self.benchmarks or (DEFAULT_BENCHMARK,)
        return names_in(self.benchmark_dir)

    def validate(self) -> None:
        """Check the numbers and names.

        Raises:
            ConfigError: One of them cannot be.
        """
        for name in ("limit", "batch_size", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; expected 1 or more")
        check_mode(self.rank)
        if self.base_url is None and (self.max_tokens_field or not self.temperature):
            raise ConfigError(
                "--max-tokens-field and --no-temperature are for services; name one with --base-url"
            )
        known = list_languages()
        if unknown := [lang for lang in self.languages if lang not in known]:
            raise ConfigError(
                f"unknown language {', '.join(unknown)}; choose from {', '.join(known)}"
            )
        if self.benchmark_dir is not None and len(self.benchmarks) > 1:
            without = [n for n in self.benchmarks if not (self.benchmark_dir / n).is_dir()]
            if without:
                raise ConfigError(
                    f"--benchmark-dir {self.benchmark_dir} has no folder {', '.join(without)}; "
                    "with several benchmarks it holds a folder for each of them"
                )


def default_results_dir(model_path: Path) -> Path:
    """Where results go if nothing else is said: into the model's folder, if it has one here."""
    return model_path / "eval" if model_path.is_dir() else RESULTS_ROOT / model_path.name


def run_evaluation(
    config: EvalConfig,
    console: Console,
    make_answerer: Callable[[], Answerer] | None = None,
    ranks: Ranks | None = None,
) -> list[QuestionSet]:
    """Answer all questions that have no answer yet.

    Args:
        config: What to do.
        console: Where the progress is shown.
        make_answerer: Loads the model, called only if there is something to ask; by default that
            which `config` names.
        ranks: Who answers together; this process alone if left out.

    Returns:
        The questions; their answers are in the files below `config.predictions_dir`.

    Raises:
        CheckpointError: The model folder is incomplete.
        ConfigError: A setting is wrong, or the answers there are of another run.
        DataError: A question, picture or earlier answer is not as it must be.
    """
    ranks = ranks or Ranks()
    sets = load_questions(config)
    if config.rank is not None:
        sets = [without_options(qs) for qs in sets]
    backend = choose_backend(replace(config, device=ranks.device(config.device)))
    if ranks.is_first:
        _open_run(config, sets, backend.identity())
    ranks.barrier()
    pending = [
        (qs, blind, items)
        for blind in ((False, True) if config.blind else (False,))
        for qs in sets
        if (items := _unanswered(config.predictions_dir, qs, blind))
    ]
    if not pending:
        log.info("%s: every question is answered already", config.predictions_dir)
        return sets
    # nobody may put files together while others still look what is in them
    ranks.barrier()
    answerer = (make_answerer or backend.load)()
    if config.rank is not None:
        answerer = ranked(answerer, config.rank)
    shown = console if ranks.is_first else Console(quiet=True)
    num_questions = sum(len(items) for *_, items in pending)
    with show_progress(shown, num_questions // ranks.world_size) as reporter:
        for qs, blind, items in pending:
            reporter.stage(f"{qs.benchmark.name} {qs.lang}{' blind' if blind else ''}")
            _answer_items(config, answerer, qs, blind, items, reporter, ranks)
    ranks.barrier()
    if ranks.is_first:
        gather_parts(config.predictions_dir)
        for qs, blind, _ in pending:
            order = sorted(qs.items, key=_asking_order(answerer, qs, blind))
            keys = [item.question_id for item in order]
            sort_lines(qs.path(config.predictions_dir, blind), keys)
    ranks.barrier()
    return sets


def _open_run(config: EvalConfig, sets: Sequence[QuestionSet], identity: dict[str, Any]) -> None:
    """Make sure that the answers in the folder are of this very run, and are all in place."""
    if config.fresh:
        clear_run(config.predictions_dir)
    settings: dict[str, Any] = {
        "generation": {"do_sample": False, "max_new_tokens": config.max_new_tokens},
        "blind": "canvas in the image processor's mean colour",
        "code_version": lrm_ext.__version__,
    }
    if config.rank is not None:
        settings["generation"] = {"rank": config.rank}
    data = {f"{qs.benchmark.name}/{qs.lang}.jsonl": qs.sha256 for qs in sets}
    folders = {}
    if config.benchmark_dir is not None:
        folders = {qs.benchmark.name: str(qs.benchmark.folder.resolve()) for qs in sets}
    open_run(config.predictions_dir, {**identity, **settings}, data, folders)
    gather_parts(config.predictions_dir)


def _unanswered(folder: Path, qs: QuestionSet, blind: bool) -> list[Item]:
    path = qs.path(folder, blind)
    cut_unfinished_line(path)
    answered = read_predictions(path)
    check_keys(path, answered, qs.keys)
    return [
        item
        for item in qs.items
        if item.question_id not in answered and item.question_id not in qs.unasked
    ]


def _request(item: Item, qs: QuestionSet, blind: bool) -> Request:
    image = None if blind else qs.benchmark.image_path(item.image)
    return Request(item.text, item.lang, image, item.options if qs.is_ranked else ())


def _asking_order(
    answerer: Answerer, qs: QuestionSet, blind: bool
) -> Callable[[Item], tuple[int, str, str, str]]:
    """Longest first, and equal questions one after the other."""

    def key(item: Item) -> tuple[int, str, str, str]:
        length = answerer.num_tokens(_request(item, qs, blind))
        return -length, item.text, item.image, item.question_id

    return key


def _answer_items(
    config: EvalConfig,
    answerer: Answerer,
    qs: QuestionSet,
    blind: bool,
    items: Sequence[Item],
    reporter: Reporter,
    ranks: Ranks,
) -> None:
    """Answer this process's share of a file's questions; equal questions are asked once."""
    ordered = sorted(items, key=_asking_order(answerer, qs, blind))
    groups = [
        (asked, list(same))
        for asked, same in itertools.groupby(ordered, key=lambda item: _request(item, qs, blind))
    ]
    model_id = get_model_name_from_path(str(config.model_path))
    with PredictionWriter(ranks.path(qs.path(config.predictions_dir, blind))) as writer:
        for batch in ranks.share(list(_batches(groups, config.batch_size))):
            answers: Sequence[Answer | None]
            fault: BrokenBatchError | None = None
            try:
                answers = answerer.answer([asked for asked, _ in batch])
            except BrokenBatchError as error:
                answers, fault = error.answers, error
            predictions = [
                _prediction(item, answer, qs.benchmark, model_id, blind)
                for (_, same), answer in zip(batch, answers, strict=True)
                for item in same
                if answer is not None
            ]
            writer.write(predictions)
            if fault is not None:
                raise fault
            reporter.advance(len(predictions))


def _batches(groups: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(groups), size):
        yield groups[start : start + size]


def _prediction(
    item: Item, answer: Answer, benchmark: Benchmark, model_id: str, blind: bool
) -> Prediction:
    name = "\n".join((model_id, benchmark.name, item.lang, item.question_id, str(blind)))
    return Prediction(
        question_id=item.source_id or item.question_id,
        prompt=item.text,
        text=without_thinking(answer.text),
        answer_id=hashlib.sha256(name.encode()).hexdigest()[:22],
        model_id=model_id,
        key=item.question_id,
        benchmark=benchmark.name,
        lang=item.lang,
        category=item.category,
        image=item.image,
        gold=item.answer,
        blind=blind,
        num_new_tokens=answer.num_new_tokens,
        finish_reason=answer.finish_reason,
        extra=_described(item, benchmark),
    )


def _described(item: Item, benchmark: Benchmark) -> dict[str, Any]:
    """What of a question its answer is scored by."""
    described: dict[str, Any] = {
        "answer_type": item.answer_type,
        "kind": benchmark.kind,
        "version": benchmark.versions.get(item.lang),
        "prompt_id": f"{benchmark.prompt}/{item.answer_type}/{item.lang}"
        if benchmark.prompt
        else None,
        "image_id": item.image_id,
        "group": item.group,
        "golds": list(item.answers),
        "supercategory": item.supercategory,
        "answer_lang": item.answer_lang,
    }
    if item.options:
        described["options"] = list(item.options)
        described["option_char"] = list(item.lettered())
        described["round_id"] = 0
    return {key: value for key, value in described.items() if value not in (None, "", [])}
