"""Runs a model over benchmarks in several languages, with and without the image.

In: an `EvalConfig`. Out: files of answers below `<out>/predictions`, which `score_run` reads. What
is answered already is skipped, and without anything left to ask the model is not even loaded.
Everything that can be wrong with the input is found before the first answer. Several processes
(torchrun) answer together: each writes its share, and the first puts the shares together. No
scoring here.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import lrm_ext
from llava.errors import ConfigError, DataError
from llava.eval.records import cut_unfinished_line, without_thinking
from llava.files import get_model_name_from_path, sha256_of
from llava.images import open_image
from llava.progress import Progress
from lrm_ext.evaluate.backends import choose_backend
from lrm_ext.evaluate.items import (
    LETTERS,
    Answer,
    Answerer,
    BrokenBatchError,
    Item,
    Request,
    check_places,
    limit_items,
)
from lrm_ext.evaluate.predictions import (
    PredictionWriter,
    add_lines,
    check_keys,
    clear_run,
    open_run,
    prediction_path,
    read_lines,
    read_predictions,
    sort_lines,
)
from lrm_ext.evaluate.registry import Benchmark, get_benchmark, names_in
from lrm_ext.languages import get_language, in_language_order, list_languages

log = logging.getLogger(__name__)
NUM_SHOWN_IMAGES: Final = 20
PARTS_DIR: Final = "parts"
RANK_MODES: Final = ("mean", "sum")
# the slowest process may have the longest questions
_PATIENCE: Final = timedelta(hours=12)
# Batches differ in the last digits of a sum; what is nearer than this is a tie.
_DECIMALS: Final = 4
DEFAULT_BENCHMARK = "scenes"
# where results go of models that have no folder here
RESULTS_ROOT = Path("runs") / "eval"


@dataclass(frozen=True)
class EvalConfig:
    """The settings of an evaluation.

    Attributes:
        model_path: Folder of the checkpoint, a name on the Hugging Face hub, or with `base_url` the
            name that a service knows.
        model_base: Base model of a LoRA or projector-only checkpoint.
        benchmarks: Names of benchmarks; empty for those in `benchmark_dir`, else `scenes`.
        languages: Language codes; empty for all that a benchmark has a file for.
        limit: About how many questions per benchmark and language; None for all.
        batch_size: Questions asked at once.
        blind: Ask a second time without the image.
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
        skip_missing_images: Do not ask about images that are missing or broken; those questions
            are wrong, and counted.
        text_only: Ask questions about no image; the model need not take any.
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
    text_only: bool = False
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
        """Returns the names of the benchmarks, under which answers are filed.

        Raises:
            ConfigError: `benchmark_dir` has none.
        """
        if self.benchmarks or self.benchmark_dir is None:
            return self.benchmarks or (DEFAULT_BENCHMARK,)
        return names_in(self.benchmark_dir)

    def validate(self) -> None:
        """Checks the numbers and names.

        Raises:
            ConfigError: One of them cannot be.
        """
        for name in ("limit", "batch_size", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; expected 1 or more")
        if self.rank not in (None, *RANK_MODES):
            raise ConfigError(f"--rank is {self.rank!r}; expected {' or '.join(RANK_MODES)}")
        if self.base_url is None and (self.max_tokens_field or not self.temperature):
            raise ConfigError(
                "--max-tokens-field and --no-temperature are for services; name one with --base-url"
            )
        if self.benchmark_dir is not None and len(self.benchmarks) > 1:
            without = [n for n in self.benchmarks if not (self.benchmark_dir / n).is_dir()]
            if without:
                raise ConfigError(
                    f"--benchmark-dir {self.benchmark_dir} has no folder {', '.join(without)}; "
                    "with several benchmarks it holds a folder for each of them"
                )


def default_results_dir(model_path: Path) -> Path:
    """Returns the usual folder of results: in the model's folder, if it has one here."""
    return model_path / "eval" if model_path.is_dir() else RESULTS_ROOT / model_path.name


def run_evaluation(
    config: EvalConfig,
    make_answerer: Callable[[], Answerer] | None = None,
    ranks: EvalRanks | None = None,
) -> list[QuestionSet]:
    """Answers all questions that have no answer yet.

    Args:
        config: What to do.
        make_answerer: Loads the model, called only if there is something to ask; by default that
            which `config` names.
        ranks: The processes that answer together; this one alone if left out.

    Returns:
        The questions; their answers are in the files below `config.predictions_dir`.

    Raises:
        CheckpointError: The model folder is incomplete.
        ConfigError: A setting is wrong, or the answers there are of another run.
        DataError: A question, image or earlier answer is not as it must be.
    """
    ranks = ranks or EvalRanks()
    sets = load_questions(config)
    backend = choose_backend(replace(config, device=ranks.device(config.device)))
    if ranks.is_first:
        _open_run(config, sets, backend.identity())
    ranks.barrier()
    pending = [
        (qs, blind, items)
        for blind in ((False, True) if config.blind and not config.text_only else (False,))
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
        answerer = OptionRanker(answerer, config.rank)
    num_questions = sum(len(items) for *_, items in pending) // ranks.world_size
    shown = Progress("evaluate", num_questions, "questions") if ranks.is_first else nullcontext()
    with shown as progress:
        for qs, blind, items in pending:
            if progress is not None:
                progress.part = f"{qs.benchmark.name} {qs.lang}{' blind' * blind}"
            _answer_items(config, answerer, qs, blind, items, progress, ranks)
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
    """Checks that the answers in the folder are of this very run, and puts them all in place."""
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
    done = answered.keys() | qs.unasked
    return [item for item in qs.items if item.question_id not in done]


def _request(item: Item, qs: QuestionSet, blind: bool) -> Request:
    images = (None,) * len(item.images) if blind else qs.image_paths(item)
    options = item.options if qs.is_ranked else ()
    return Request(item.text, item.lang, images, options, item.is_video)


def _asking_order(
    answerer: Answerer, qs: QuestionSet, blind: bool
) -> Callable[[Item], tuple[int, str, int, str, str]]:
    """Returns a sort key: images with the longest question first, equal questions in a row.

    Questions on the same images stand together, because what is before the question is computed
    once for neighbours.
    """
    requests = {item.question_id: _request(item, qs, blind) for item in qs.items}
    lengths = {key: answerer.num_tokens(request) for key, request in requests.items()}
    longest: dict[tuple[Path | None, ...], int] = {}
    for key, request in requests.items():
        longest[request.images] = max(lengths[key], longest.get(request.images, 0))

    def order(item: Item) -> tuple[int, str, int, str, str]:
        request, length = requests[item.question_id], lengths[item.question_id]
        return (
            -longest[request.images],
            str(request.images),
            -length,
            item.text,
            item.question_id,
        )

    return order


def _answer_items(
    config: EvalConfig,
    answerer: Answerer,
    qs: QuestionSet,
    blind: bool,
    items: Sequence[Item],
    progress: Progress | None,
    ranks: EvalRanks,
) -> None:
    """Answers this process's share of a file's questions; equal questions are asked once."""
    ordered = sorted(items, key=_asking_order(answerer, qs, blind))
    groups = [
        (request, list(same))
        for request, same in itertools.groupby(ordered, key=lambda item: _request(item, qs, blind))
    ]
    model_id = get_model_name_from_path(str(config.model_path))
    size = config.batch_size
    # batches come longest first, so taking turns is even
    starts = range(ranks.rank * size, len(groups), ranks.world_size * size)
    with PredictionWriter(ranks.path(qs.path(config.predictions_dir, blind))) as writer:
        for start in starts:
            batch = groups[start : start + size]
            answers: Sequence[Answer | None]
            fault: BrokenBatchError | None = None
            try:
                answers = answerer.answer([request for request, _ in batch])
            except BrokenBatchError as error:
                answers, fault = error.answers, error
            records = [
                _record(item, answer, qs.benchmark, model_id, blind)
                for (_, same), answer in zip(batch, answers, strict=True)
                for item in same
                if answer is not None
            ]
            writer.write(records)
            if fault is not None:
                raise fault
            if progress is not None:
                progress.advance(len(records))


def _record(
    item: Item, answer: Answer, benchmark: Benchmark, model_id: str, blind: bool
) -> dict[str, Any]:
    """Returns a line of answers: LLaVA's keys first, then what the answer is scored by.

    The answer's id is made from model and question, so that a run's bytes can be repeated.
    """
    name = "\n".join((model_id, benchmark.name, item.lang, item.question_id, str(blind)))
    prompt_id = f"{benchmark.prompt}/{item.answer_type}/{item.lang}" if benchmark.prompt else None
    described: dict[str, Any] = {
        "answer_type": item.answer_type,
        "kind": benchmark.kind,
        "version": benchmark.versions.get(item.lang),
        "prompt_id": prompt_id,
        "image_id": item.image_id,
        "group": item.group,
        "golds": list(item.answers),
        "supercategory": item.supercategory,
        "answer_lang": item.answer_lang,
    }
    if item.options:
        letters = {"options": list(item.options), "option_char": list(item.lettered())}
        described |= {**letters, "round_id": 0}
    return {
        "question_id": item.source_id or item.question_id,
        "prompt": item.text,
        "text": without_thinking(answer.text),
        "answer_id": hashlib.sha256(name.encode()).hexdigest()[:22],
        "model_id": model_id,
        "metadata": {},
        "key": item.question_id,
        "benchmark": benchmark.name,
        "lang": item.lang,
        "category": item.category,
        "image": item.image,
        "gold": item.answer,
        "blind": blind,
        "num_new_tokens": answer.num_new_tokens,
        "finish_reason": answer.finish_reason,
        **{key: value for key, value in described.items() if value not in (None, "", [])},
    }


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one benchmark in one language.

    Attributes:
        benchmark: Where they are from.
        lang: Their language.
        items: Those to ask, in file order.
        keys: The ids of all questions in the file, asked or not.
        sha256: Of the file.
        unasked: Questions whose image is missing: not asked, and wrong.
        is_ranked: Their options are ranked by likelihood.
    """

    benchmark: Benchmark
    lang: str
    items: tuple[Item, ...]
    keys: frozenset[str] = field(repr=False)
    sha256: str
    unasked: frozenset[str] = frozenset()
    is_ranked: bool = False

    def image_paths(self, item: Item) -> tuple[Path, ...]:
        """Returns where a question's images lie."""
        return tuple(map(self.benchmark.image_path, item.images))

    def path(self, folder: Path, blind: bool) -> Path:
        """Returns the path of its answers."""
        return prediction_path(folder, self.benchmark.name, self.lang, blind)


def load_questions(config: EvalConfig) -> list[QuestionSet]:
    """Reads the questions that a configuration asks for.

    Raises:
        ConfigError: A name is unknown.
        DataError: A file or line is wrong, or an image is missing or cannot be read.
    """
    config.validate()
    sets: list[QuestionSet] = []
    for name in config.names():
        benchmark = get_benchmark(name, config.benchmark_dir)
        # of an imported set also those that have no file here
        known = {*list_languages(), *benchmark.versions}
        languages = config.languages or in_language_order(known & {*benchmark.languages()})
        if not languages:
            raise DataError(f"benchmark {name}: no <lang>.jsonl in {benchmark.folder}")
        for lang in languages:
            if not benchmark.path(lang).is_file():
                get_language(lang)  # a mistyped code has a better message
            items = benchmark.read(lang)
            _check_images(items, benchmark, config.text_only)
            keys = frozenset(item.question_id for item in items)
            chosen = limit_items(items, config.limit)
            if config.rank is not None:
                chosen = [_bare(item, name) for item in chosen]
            digest, is_ranked = sha256_of(benchmark.path(lang)), config.rank is not None
            sets.append(
                QuestionSet(benchmark, lang, tuple(chosen), keys, digest, is_ranked=is_ranked)
            )
    images: dict[Path, str] = {}
    for qs in sets:
        for item in qs.items:
            asker = f"{qs.benchmark.name} {qs.lang}, question {item.question_id}"
            images.update((path, images.get(path, asker)) for path in qs.image_paths(item))
    bad = [path for path in sorted(images) if not _is_image(path)]
    if not bad:
        return sets
    shown = "".join(f"\n  {path} ({images[path]})" for path in bad[:NUM_SHOWN_IMAGES])
    if len(bad) > NUM_SHOWN_IMAGES:
        shown += f"\n  ... and {len(bad) - NUM_SHOWN_IMAGES} more"
    if not config.skip_missing_images:
        raise DataError(f"{len(bad)} images are missing or cannot be read:{shown}")
    lost = frozenset(bad)
    for place, qs in enumerate(sets):
        unasked = frozenset(
            i.question_id for i in qs.items if not lost.isdisjoint(qs.image_paths(i))
        )
        sets[place] = replace(qs, unasked=unasked)
    log.warning(
        "%d images are missing or cannot be read, so %d questions are not asked and count "
        "as wrong:%s", len(bad), sum(len(qs.unasked) for qs in sets), shown,
    )  # fmt: skip
    return sets


def _check_images(items: Sequence[Item], benchmark: Benchmark, text_only: bool) -> None:
    """Refuses questions about no image unless those are asked for, and then those about one."""
    others = [item.question_id for item in items if bool(item.images) == text_only]
    if not others:
        return
    where = f"{benchmark.name}: {len(others)} of {len(items)} questions, such as {others[0]},"
    if text_only:
        raise DataError(f"{where} are about an image; leave out --text-only")
    raise DataError(f"{where} are about no image; ask such sets with --text-only")


def _bare(item: Item, benchmark: str) -> Item:
    """Returns a question as it is asked for a ranking: alone, with the options beside it."""
    if not item.options:
        raise DataError(
            f"{benchmark}: question {item.question_id} has no options; --rank is for benchmarks "
            "of multiple choice, such as seed_bench"
        )
    text = item.question or item.text
    check_places(text, item.num_places, f"{benchmark}: question {item.question_id}, for --rank")
    return replace(item, text=text)


def _is_image(path: Path) -> bool:
    try:
        open_image(path)
    except DataError:
        return False
    return True


@dataclass(frozen=True)
class EvalRanks:
    """The place of this process among those that answer together.

    Attributes:
        rank: Its number.
        world_size: How many there are.
        local_rank: Its number on this machine, which is that of its GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> EvalRanks:
        """Reads what `torchrun` says; without it this process is alone."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        rank, world_size, local_rank = (int(os.environ.get(name, "0")) for name in names)
        return cls(rank, max(world_size, 1), local_rank)

    @property
    def is_first(self) -> bool:
        """This process reads and writes for all."""
        return self.rank == 0

    def device(self, asked: str | None) -> str | None:
        """Returns the device of this process: the one asked for, with the number of its GPU."""
        if self.world_size == 1 or asked not in (None, "cuda"):
            return asked
        import torch  # stored answers are scored without it

        return f"cuda:{self.local_rank}" if torch.cuda.is_available() else asked

    def barrier(self) -> None:
        """Waits for all."""
        if self.world_size == 1:
            return
        from torch import distributed

        if not distributed.is_initialized():
            distributed.init_process_group("gloo", timeout=_PATIENCE)
        distributed.barrier()

    def path(self, path: Path) -> Path:
        """Returns the path to which this process writes answers that belong in a file."""
        if self.world_size == 1:
            return path
        return path.parent / PARTS_DIR / f"{path.stem}.{self.rank}.jsonl"


def gather_parts(folder: Path) -> None:
    """Moves what processes wrote for themselves into the files where it belongs.

    Args:
        folder: The folder of predictions. Killed at any moment, the next call finishes the work.
    """
    for part in sorted((folder / PARTS_DIR).glob("*.jsonl")):
        cut_unfinished_line(part)
        name = part.stem.rpartition(".")[0]
        add_lines(folder / f"{name}.jsonl", read_lines(part))
        part.unlink()


class OptionRanker:
    """Answers with the likeliest option, as the owner of SEED-Bench does.

    Args:
        model: Says how likely an answer is.
        mode: `mean` or `sum` over an option's tokens.

    Raises:
        ConfigError: The model cannot say how likely an answer is.
    """

    def __init__(self, model: Answerer, mode: str) -> None:
        if not hasattr(model, "token_losses"):
            raise ConfigError("--rank needs a checkpoint in LLaVA's format that is loaded here")
        self._model: Any = model
        self._mode = mode

    def num_tokens(self, request: Request) -> int:
        """See `Answerer`."""
        return int(self._model.num_tokens(request))

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See `Answerer`."""
        pairs = [(request, text) for request in requests for text in request.options]
        costs: list[float] = []
        for start in range(0, len(pairs), len(requests)):
            batch = zip(*pairs[start : start + len(requests)], strict=True)
            losses = self._model.token_losses(*batch)
            totals = (getattr(one, self._mode)() for one in losses)
            costs += [round(float(total), _DECIMALS) for total in totals]
        answers: list[Answer] = []
        for request in requests:
            own, costs = costs[: len(request.options)], costs[len(request.options) :]
            answers.append(Answer(LETTERS[own.index(min(own))], 0, "stop"))
        return answers
