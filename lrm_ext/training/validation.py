"""Validation while training: samples in every language, questions that are asked, and when to stop.

Input: a mixture of held-out rows; a benchmark. Output: a dataset for the trainer's validation loss,
figures of answers by language, callbacks that stop a run and mark its best checkpoint. Non-goals:
which rows are held out (`holdout.py`), the loss itself (`llava.train.figures`).
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import Dataset
from transformers import TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from llava.conversation import get_conversation
from llava.errors import ConfigError
from lrm_ext.benchmarks.items import Item, limit_items
from lrm_ext.benchmarks.registry import BENCHMARKS, Benchmark, get_benchmark
from lrm_ext.benchmarks.score import score_answers, text_answers
from lrm_ext.benchmarks.words import answer_words
from lrm_ext.evaluation.answerer import LlavaAnswerer, Request, Templates
from lrm_ext.evaluation.stats import wilson_interval
from lrm_ext.files import write_atomically
from lrm_ext.instructions.registry import ENGLISH
from lrm_ext.languages import list_languages
from lrm_ext.training.arguments import LrmArguments
from lrm_ext.training.dataset import MixtureDataset

log = logging.getLogger(__name__)

BEST_FILE = "best.json"
_ANSWER_BATCH = 32


class ValidationSet(Dataset[dict[str, Any]]):
    """A fixed choice of a mixture's samples: as many of every language, sorted by length.

    Args:
        dataset: Of held-out rows.
        num_samples: About how many, all languages together.
    """

    def __init__(self, dataset: MixtureDataset, num_samples: int) -> None:
        self.dataset = dataset
        wanted = -(-num_samples // len(dataset.mixture.corpus.languages))
        by_language: Counter[str] = Counter()
        chosen = []
        for index in range(len(dataset)):
            lang = dataset.mixture.draw(index).lang
            if by_language[lang] < wanted:
                by_language[lang] += 1
                chosen.append(index)
        self.counts = dict(by_language)
        self.indices = sorted(chosen, key=lambda index: (dataset.length(index), index))

    @property
    def has_features(self) -> bool:
        """As of the training set."""
        return self.dataset.has_features

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[self.indices[index]]


class Questions:
    """Asks a model questions of a benchmark, in all languages, and scores its answers.

    Called with the model; under several processes each asks its part.

    Args:
        name: Of a benchmark, or a folder of `<lang>.jsonl` files.
        num_questions: Of each language.
        languages: Which; those that the benchmark lacks are left out and named.
        tokenizer: The model's.
        image_processor: The tower's.
        version: Template of the conversation.
        max_new_tokens: Longest answer.

    Raises:
        ConfigError: There is no such benchmark.
        DataError: A question is not as it must be.
    """

    def __init__(
        self,
        name: str,
        num_questions: int,
        languages: Sequence[str],
        tokenizer: Any,
        image_processor: Any,
        version: str,
        max_new_tokens: int = 32,
    ) -> None:
        self.benchmark = _benchmark(name)
        found = self.benchmark.languages()
        missing = [lang for lang in languages if lang not in found]
        if missing:
            log.warning("%s has no questions in: %s", self.benchmark.name, ", ".join(missing))
        chosen = [lang for lang in list_languages() if lang in languages and lang in found]
        if not chosen:
            raise ConfigError(f"--eval_benchmark {name} has questions in {', '.join(found)} only")
        self._all = {lang: self.benchmark.read(lang) for lang in chosen}
        self.items = {
            lang: list(limit_items(items, num_questions)) for lang, items in self._all.items()
        }
        self._model_parts = (tokenizer, image_processor)
        self._templates = Templates(version, get_conversation(version))
        self._max_new_tokens = max_new_tokens

    def __call__(self, model: Any) -> dict[str, float]:
        """Ask and score.

        Args:
            model: As it is trained; its mode is put back.

        Returns:
            `answers/<lang>`, the share of right answers; `answers`, the mean over languages, with
            the ends of its 95 % interval.
        """
        tokenizer, image_processor = self._model_parts
        was_training = model.training
        answerer = LlavaAnswerer(
            tokenizer, model.eval(), image_processor, self._templates, self._max_new_tokens
        )
        rank, world = _place()
        asked = [(lang, item) for lang, items in self.items.items() for item in items]
        own = asked[rank::world]
        answers: list[tuple[str, str, str]] = []
        for start in range(0, len(own), _ANSWER_BATCH):
            batch = own[start : start + _ANSWER_BATCH]
            replies = answerer.answer([self._request(item) for _, item in batch])
            answers += [
                (lang, item.question_id, reply.text)
                for (lang, item), reply in zip(batch, replies, strict=True)
            ]
        model.train(was_training)
        return self._score(gather_object(answers))

    def _request(self, item: Item) -> Request:
        return Request(item.text, item.lang, self.benchmark.image_path(item.image))

    def _score(self, answers: Sequence[tuple[str, str, str]]) -> dict[str, float]:
        figures: dict[str, float] = {}
        right = total = 0
        english = text_answers(self._all[ENGLISH]) if ENGLISH in self._all else frozenset()
        for lang, items in self.items.items():
            texts = {key: text for of, key, text in answers if of == lang}
            native = text_answers(self._all[lang])
            verdicts = score_answers(items, texts, answer_words(lang), native, english)
            num_right = sum(verdict.correct for verdict in verdicts)
            figures[f"answers/{lang}"] = num_right / len(verdicts)
            right, total = right + num_right, total + len(verdicts)
        low, high = wilson_interval(right, total)
        mean = sum(figures.values()) / len(figures)
        return {**figures, "answers": mean, "answers_low": low, "answers_high": high}


class StopEarly(TrainerCallback):
    """Ends a run whose validation loss has not improved for a while.

    It goes by the run's logged history, so a run that was interrupted counts on.

    Args:
        patience: Validations without a better loss.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look back."""
        logged = [(e["step"], e["eval_loss"]) for e in state.log_history if "eval_loss" in e]
        losses = [loss for _, loss in dict(logged).items()]
        if not losses:
            return
        since_best = len(losses) - 1 - losses.index(min(losses))
        if since_best >= self.patience:
            log.info(
                "stopped early in step %d: the validation loss has not fallen for %d validations",
                state.global_step,
                since_best,
            )
            control.should_training_stop = True


class MarkBest(TrainerCallback):
    """Writes which checkpoint is the best one into `best.json`."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the file, if the best checkpoint is there, or is being written right now."""
        best = state.best_model_checkpoint
        if not state.is_world_process_zero or not best:
            return
        if state.best_global_step != state.global_step and not Path(best).is_dir():
            return
        record = {
            "checkpoint": Path(best).name,
            "step": state.best_global_step,
            f"eval_{args.metric_for_best_model.removeprefix('eval_')}": state.best_metric,
        }
        path = Path(args.output_dir) / BEST_FILE
        write_atomically(path, json.dumps(record))


def check_validation_flags(arguments: LrmArguments, args: Any) -> None:
    """Find contradictions between what is validated on and when.

    Args:
        arguments: Ours.
        args: transformers' training arguments.

    Raises:
        ConfigError: naming the flags.
    """
    is_on = args.eval_strategy != "no"
    if is_on and not arguments.validates:
        raise ConfigError(
            "--eval_strategy: there is nothing to validate on; hold rows out with --eval_share "
            "0.01, or name a corpus with --eval_corpus_path"
        )
    if arguments.validates and not is_on:
        raise ConfigError("--eval_share and --eval_corpus_path need --eval_strategy steps")
    if (arguments.eval_questions or arguments.early_stop_patience) and not arguments.validates:
        raise ConfigError("--eval_questions and --early_stop_patience need --eval_share")
    if arguments.eval_questions and (args.fsdp or is_deepspeed_zero3_enabled()):
        raise ConfigError(
            "--eval_questions does not work where weights are dealt out (ZeRO-3, FSDP): leave it "
            "out, and measure checkpoints with `lrm eval`"
        )


def _benchmark(name: str) -> Benchmark:
    folder = Path(name)
    if name not in BENCHMARKS and folder.is_dir():
        return get_benchmark(folder.name, folder)
    return get_benchmark(name)


def _place() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
