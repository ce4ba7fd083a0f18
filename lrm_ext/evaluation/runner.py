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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

import lrm_ext
from llava.conversation import conversation_to_dict
from llava.errors import CheckpointError, ConfigError, DataError
from llava.image_file import open_image
from llava.mm_utils import get_model_name_from_path
from lrm_ext.benchmarks.items import Item, limit_items
from lrm_ext.benchmarks.registry import Benchmark, get_benchmark, missing_images
from lrm_ext.evaluation.answerer import (
    Answer,
    Answerer,
    Request,
    Templates,
    load_answerer,
)
from lrm_ext.evaluation.predictions import (
    Prediction,
    PredictionWriter,
    check_keys,
    clear_run,
    cut_unfinished_line,
    open_run,
    prediction_path,
    read_predictions,
)
from lrm_ext.evaluation.progress import Reporter, show_progress
from lrm_ext.languages import list_languages

log = logging.getLogger(__name__)

NUM_SHOWN_IMAGES = 20
_HASH_CHUNK_BYTES = 1 << 20
_WEIGHT_SUFFIXES = (".safetensors", ".bin")


@dataclass(frozen=True)
class EvalConfig:
    """What to evaluate, and how.

    Attributes:
        model_path: Folder of the checkpoint.
        model_base: Base model of a LoRA or projector-only checkpoint.
        benchmarks: Names of benchmarks.
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
    """

    model_path: Path
    model_base: str | None = None
    benchmarks: tuple[str, ...] = ("scenes",)
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

    @property
    def results_dir(self) -> Path:
        """Folder of scores and reports."""
        return self.out_dir or self.model_path / "eval"

    @property
    def predictions_dir(self) -> Path:
        """Folder of answers."""
        return self.results_dir / "predictions"

    def validate(self) -> None:
        """Check the numbers and names.

        Raises:
            ConfigError: One of them cannot be.
        """
        for name in ("limit", "batch_size", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; expected 1 or more")
        known = list_languages()
        if unknown := [lang for lang in self.languages if lang not in known]:
            raise ConfigError(
                f"unknown language {', '.join(unknown)}; choose from {', '.join(known)}"
            )
        if self.benchmark_dir is not None and len(self.benchmarks) != 1:
            without = [n for n in self.benchmarks if not (self.benchmark_dir / n).is_dir()]
            if without:
                raise ConfigError(
                    f"--benchmark-dir {self.benchmark_dir} has no folder {', '.join(without)}; "
                    "with several benchmarks it holds a folder for each of them"
                )


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one benchmark in one language.

    Attributes:
        benchmark: Where they are from.
        lang: Their language.
        items: Those to ask, in file order.
        keys: The ids of all questions in the file, asked or not.
        sha256: Of the file.
    """

    benchmark: Benchmark
    lang: str
    items: tuple[Item, ...]
    keys: frozenset[str] = field(repr=False)
    sha256: str

    def path(self, folder: Path, blind: bool) -> Path:
        """Where its answers are."""
        return prediction_path(folder, self.benchmark.name, self.lang, blind)


def load_questions(config: EvalConfig) -> list[QuestionSet]:
    """Read the questions that a configuration asks for.

    Raises:
        ConfigError: A name is unknown.
        DataError: A file or line is wrong, or a picture is missing or no picture.
    """
    config.validate()
    sets: list[QuestionSet] = []
    for name in config.benchmarks:
        benchmark = get_benchmark(name, config.benchmark_dir)
        languages = config.languages or tuple(
            lang for lang in list_languages() if lang in benchmark.languages()
        )
        if not languages:
            raise DataError(f"benchmark {name}: no <lang>.jsonl in {benchmark.folder}")
        for lang in languages:
            items = benchmark.read(lang)
            keys = frozenset(item.question_id for item in items)
            chosen = tuple(limit_items(items, config.limit))
            sets.append(QuestionSet(benchmark, lang, chosen, keys, sha256_of(benchmark.path(lang))))
    _check_images(sets)
    return sets


def _check_images(sets: Sequence[QuestionSet]) -> None:
    """Open every picture once, before a model is loaded.

    Raises:
        DataError: With the paths of those that are missing or cannot be read.
    """
    missing = [
        str(qs.benchmark.image_path(image))
        for qs in sets
        for image in missing_images(qs.benchmark, qs.items)
    ]
    bad = list(dict.fromkeys(missing))
    if not bad:
        paths = {qs.benchmark.image_path(item.image) for qs in sets for item in qs.items}
        bad = [str(path) for path in sorted(paths) if not _is_picture(path)]
    if bad:
        more = (
            f"\n  ... and {len(bad) - NUM_SHOWN_IMAGES} more" if len(bad) > NUM_SHOWN_IMAGES else ""
        )
        shown = "".join(f"\n  {path}" for path in bad[:NUM_SHOWN_IMAGES])
        raise DataError(f"{len(bad)} pictures are missing or cannot be read:{shown}{more}")


def _is_picture(path: Path) -> bool:
    try:
        open_image(path)
    except DataError:
        return False
    return True


def run_evaluation(
    config: EvalConfig,
    console: Console,
    make_answerer: Callable[[], Answerer] | None = None,
) -> list[QuestionSet]:
    """Answer all questions that have no answer yet.

    Args:
        config: What to do.
        console: Where the progress is shown.
        make_answerer: Loads the model, called only if there is something to ask; by default the
            checkpoint that `config` names.

    Returns:
        The questions; their answers are in the files below `config.predictions_dir`.

    Raises:
        CheckpointError: The model folder is incomplete.
        ConfigError: A setting is wrong, or the answers there are of another run.
        DataError: A question, picture or earlier answer is not as it must be.
    """
    sets = load_questions(config)
    templates = Templates.of_checkpoint(config.model_path, config.conv_mode)
    identity = {
        **_model_identity(config),
        "template": templates.name,
        "conversation": conversation_to_dict(templates.conversation),
        "generation": {"do_sample": False, "max_new_tokens": config.max_new_tokens},
        "blind": "canvas in the image processor's mean colour",
        "code_version": lrm_ext.__version__,
    }
    if config.fresh:
        clear_run(config.predictions_dir)
    data = {f"{qs.benchmark.name}/{qs.lang}.jsonl": qs.sha256 for qs in sets}
    open_run(config.predictions_dir, identity, data)
    pending = [
        (qs, blind, items)
        for blind in ((False, True) if config.blind else (False,))
        for qs in sets
        if (items := _unanswered(config.predictions_dir, qs, blind))
    ]
    if not pending:
        log.info("%s: every question is answered already", config.predictions_dir)
        return sets
    make_answerer = make_answerer or partial(
        load_answerer,
        config.model_path,
        config.model_base,
        templates,
        config.max_new_tokens,
        config.device,
    )
    answerer = make_answerer()
    with show_progress(console, sum(len(items) for *_, items in pending)) as reporter:
        for qs, blind, items in pending:
            reporter.stage(f"{qs.benchmark.name} {qs.lang}{' blind' if blind else ''}")
            _answer_items(config, answerer, qs, blind, items, reporter)
    return sets


def _unanswered(folder: Path, qs: QuestionSet, blind: bool) -> list[Item]:
    path = qs.path(folder, blind)
    cut_unfinished_line(path)
    answered = read_predictions(path)
    check_keys(path, answered, qs.keys)
    return [item for item in qs.items if item.question_id not in answered]


def _answer_items(
    config: EvalConfig,
    answerer: Answerer,
    qs: QuestionSet,
    blind: bool,
    items: Sequence[Item],
    reporter: Reporter,
) -> None:
    """Answer one file's questions, longest first; equal questions are asked once."""

    def request(item: Item) -> Request:
        image = None if blind else qs.benchmark.image_path(item.image)
        return Request(item.text, item.lang, image)

    def order(item: Item) -> tuple[int, str, str, str]:
        return -answerer.num_tokens(request(item)), item.text, item.image, item.question_id

    groups = [
        (asked, list(same))
        for asked, same in itertools.groupby(sorted(items, key=order), key=request)
    ]
    model_id = get_model_name_from_path(str(config.model_path))
    with PredictionWriter(qs.path(config.predictions_dir, blind)) as writer:
        for batch in _batches(groups, config.batch_size):
            answers = answerer.answer([asked for asked, _ in batch])
            predictions = [
                _prediction(item, answer, qs.benchmark, model_id, blind)
                for (_, same), answer in zip(batch, answers, strict=True)
                for item in same
            ]
            writer.write(predictions)
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
        text=answer.text,
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
        "prompt_id": f"llava/{item.answer_type}/{item.lang}" if benchmark.kind else None,
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


def sha256_of(*paths: Path) -> str:
    """SHA-256 of the content of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _model_identity(config: EvalConfig) -> dict[str, Any]:
    weights = sorted(
        path
        for path in config.model_path.iterdir()
        if path.suffix in _WEIGHT_SUFFIXES and path.name != "training_args.bin"
    )
    if not weights:
        raise CheckpointError(
            f"{config.model_path} holds no weights; expected {' or '.join(_WEIGHT_SUFFIXES)} files"
        )
    return {
        "model_id": get_model_name_from_path(str(config.model_path)),
        "model_base": config.model_base,
        "weights_sha256": sha256_of(*weights),
    }
