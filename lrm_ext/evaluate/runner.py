"""Run a model over benchmarks in several languages, with and without the picture.

In: an `EvalConfig`. Out: files of answers below `<out>/predictions`, which `score` reads. What is
answered already is skipped, and without anything left to ask the model is not even loaded.
Everything that can be wrong with the input is found before the first answer. No scoring here.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

import lrm_ext
from llava.errors import ConfigError, DataError
from llava.eval.records import without_thinking
from llava.images import open_image
from llava.mm_utils import get_model_name_from_path
from lrm_ext.evaluate.answerer import Answer, Answerer, BrokenBatchError, LlavaAnswerer, Request
from lrm_ext.evaluate.backends import choose_backend, sha256_of
from lrm_ext.evaluate.items import LETTERS, Item, limit_items
from lrm_ext.evaluate.predictions import (
    Prediction,
    PredictionWriter,
    add_lines,
    check_keys,
    clear_run,
    cut_unfinished_line,
    open_run,
    prediction_path,
    read_lines,
    read_predictions,
    sort_lines,
)
from lrm_ext.evaluate.registry import Benchmark, get_benchmark, names_in
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


NUM_SHOWN_IMAGES: Final = 20


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one benchmark in one language.

    Attributes:
        benchmark: Where they are from.
        lang: Their language.
        items: Those to ask, in file order.
        keys: The ids of all questions in the file, asked or not.
        sha256: Of the file.
        unasked: Questions whose picture is missing: not asked, and wrong.
        is_ranked: Their options are ranked by likelihood.
    """

    benchmark: Benchmark
    lang: str
    items: tuple[Item, ...]
    keys: frozenset[str] = field(repr=False)
    sha256: str
    unasked: frozenset[str] = frozenset()
    is_ranked: bool = False

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
    for name in config.names():
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
            sets.append(
                QuestionSet(benchmark, lang, chosen, keys, sha256_of([benchmark.path(lang)]))
            )
    bad = find_bad_images(sets)
    if bad and not config.skip_missing_images:
        raise DataError(f"{len(bad)} pictures are missing or cannot be read:{_shown(bad)}")
    if bad:
        sets = [_without(qs, frozenset(bad)) for qs in sets]
        log.warning(
            "%d pictures are missing or cannot be read, so %d questions are not asked and count "
            "as wrong:%s", len(bad), sum(len(qs.unasked) for qs in sets), _shown(bad),
        )  # fmt: skip
    return sets


def find_bad_images(sets: Sequence[QuestionSet]) -> list[Path]:
    """Paths of pictures that are missing or cannot be read, sorted."""
    paths = {qs.benchmark.image_path(item.image) for qs in sets for item in qs.items}
    return [path for path in sorted(paths) if not _is_picture(path)]


def _is_picture(path: Path) -> bool:
    try:
        open_image(path)
    except DataError:
        return False
    return True


def _without(qs: QuestionSet, bad: frozenset[Path]) -> QuestionSet:
    unasked = (i.question_id for i in qs.items if qs.benchmark.image_path(i.image) in bad)
    return replace(qs, unasked=frozenset(unasked))


def _shown(bad: Sequence[Path]) -> str:
    more = len(bad) - NUM_SHOWN_IMAGES
    lines = "".join(f"\n  {path}" for path in bad[:NUM_SHOWN_IMAGES])
    return lines + (f"\n  ... and {more} more" if more > 0 else "")


PARTS_DIR: Final = "parts"
# the slowest process may have the longest questions
_PATIENCE: Final = timedelta(hours=12)
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that answer together.

    Attributes:
        rank: Its number.
        world_size: How many there are.
        local_rank: Its number on this machine, which is that of its GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> Ranks:
        """As `torchrun` says; without it this process is alone."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        rank, world_size, local_rank = (int(os.environ.get(name, "0")) for name in names)
        return cls(rank, max(world_size, 1), local_rank)

    @property
    def is_first(self) -> bool:
        """Whether this process reads and writes for all."""
        return self.rank == 0

    def device(self, asked: str | None) -> str | None:
        """The device of this process: that which is asked for, with the number of its GPU."""
        if self.world_size == 1 or asked not in (None, "cuda") or not torch.cuda.is_available():
            return asked
        return f"cuda:{self.local_rank}"

    def barrier(self) -> None:
        """Wait for all."""
        if self.world_size == 1:
            return
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
        torch.distributed.barrier()

    def share(self, batches: Sequence[T]) -> list[T]:
        """The batches that this process asks; they come longest first, so by turns is even."""
        return list(islice(batches, self.rank, None, self.world_size))

    def path(self, path: Path) -> Path:
        """Where this process writes answers that belong into a file."""
        if self.world_size == 1:
            return path
        return path.parent / PARTS_DIR / f"{path.stem}.{self.rank}.jsonl"


def gather_parts(folder: Path) -> None:
    """Put what processes wrote for themselves into the files where it belongs.

    Args:
        folder: The folder of predictions. Killed at any moment, the next call finishes the work.
    """
    for part in sorted((folder / PARTS_DIR).glob("*.jsonl")):
        cut_unfinished_line(part)
        name = part.stem.rpartition(".")[0]
        add_lines(folder / f"{name}.jsonl", read_lines(part))
        part.unlink()


MODES: Final = ("mean", "sum")
# Batches differ in the last digits of a sum; what is nearer than this is a tie.
_DECIMALS: Final = 4


class RankingAnswerer:
    """Ranks where there are options.

    Args:
        model: Says how likely an answer is.
        mode: `mean` or `sum` over an option's tokens.
    """

    def __init__(self, model: LlavaAnswerer, mode: str) -> None:
        self._model = model
        self._mode = mode

    def num_tokens(self, request: Request) -> int:
        """See `Answerer`."""
        return self._model.num_tokens(request)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See `Answerer`."""
        pairs = [(request, text) for request in requests for text in request.options]
        costs: list[float] = []
        for start in range(0, len(pairs), len(requests)):
            some = pairs[start : start + len(requests)]
            losses = self._model.token_losses([r for r, _ in some], [text for _, text in some])
            for one in losses:
                total = one.mean() if self._mode == "mean" else one.sum()
                costs.append(round(float(total), _DECIMALS))
        answers: list[Answer] = []
        for request in requests:
            own, costs = costs[: len(request.options)], costs[len(request.options) :]
            answers.append(Answer(LETTERS[own.index(min(own))], 0, "stop"))
        return answers


def check_mode(mode: str | None) -> None:
    """Refuse an unknown way of ranking.

    Raises:
        ConfigError: It is unknown.
    """
    if mode is not None and mode not in MODES:
        raise ConfigError(f"--rank is {mode!r}; expected {' or '.join(MODES)}")


def ranked(answerer: Answerer, mode: str) -> RankingAnswerer:
    """Have a model rank.

    Raises:
        ConfigError: It cannot say how likely an answer is.
    """
    if not isinstance(answerer, LlavaAnswerer):
        raise ConfigError("--rank needs a checkpoint in LLaVA's format that is loaded here")
    return RankingAnswerer(answerer, mode)


def without_options(questions: QuestionSet) -> QuestionSet:
    """The questions as they are asked for a ranking: bare, with the options beside them.

    Raises:
        DataError: There are questions without options.
    """
    for item in questions.items:
        if not item.options:
            raise DataError(
                f"{questions.benchmark.name}: question {item.question_id} has no options; --rank "
                "is for benchmarks of multiple choice, such as seed_bench"
            )
    items = tuple(replace(item, text=item.question or item.text) for item in questions.items)
    return replace(questions, items=items, is_ranked=True)


LINE_INTERVAL_S: Final = 10.0


class Reporter(Protocol):
    """What the runner tells about its progress."""

    def stage(self, name: str) -> None:
        """Name what is being done now."""
        ...

    def advance(self, num_done: int) -> None:
        """Count finished questions."""
        ...


class _Bar:
    def __init__(self, progress: Progress, num_total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=num_total)

    def stage(self, name: str) -> None:
        self._progress.update(self._task, description=name)

    def advance(self, num_done: int) -> None:
        self._progress.advance(self._task, num_done)


class _Lines:
    def __init__(self, console: Console, num_total: int) -> None:
        self._console = console
        self._num_total = num_total
        self._num_done = 0
        self._stage = "starting"
        self._start = self._last = time.monotonic()

    def stage(self, name: str) -> None:
        self._stage = name

    def advance(self, num_done: int) -> None:
        self._num_done += num_done
        now = time.monotonic()
        if now - self._last < LINE_INTERVAL_S and self._num_done < self._num_total:
            return
        self._last = now
        per_second = self._num_done / max(now - self._start, 1e-9)
        left_s = round((self._num_total - self._num_done) / per_second)
        self._console.print(
            f"evaluate {self._stage}: {self._num_done:,} of {self._num_total:,} questions, "
            f"{per_second:,.0f} a second, {left_s // 60}:{left_s % 60:02d} left"
        )


@contextmanager
def show_progress(console: Console, num_total: int) -> Iterator[Reporter]:
    """Show the progress over `num_total` questions while the block runs."""
    if not console.is_terminal:
        yield _Lines(console, num_total)
        return
    columns = (
        TextColumn("[bold]evaluate[/] {task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bar(progress, num_total)
