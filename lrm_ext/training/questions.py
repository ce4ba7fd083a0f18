"""Asks a model questions of a benchmark when training validates.

Input: the model and a benchmark. Output: the share of correct answers by language. A run without
questions does not import this module, and thus no evaluation. Non-goals: the validation loss
(`llava.train.metrics`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from llava.errors import ConfigError
from lrm_ext.evaluate.answerer import LlavaAnswerer
from lrm_ext.evaluate.items import Request, limit_items
from lrm_ext.evaluate.kind import Reading, judge_answers, text_answers
from lrm_ext.evaluate.reading import answer_words
from lrm_ext.evaluate.registry import BENCHMARKS, get_benchmark
from lrm_ext.evaluate.statistics import wilson_interval
from lrm_ext.languages import list_languages
from lrm_ext.languages.registry import ENGLISH
from lrm_ext.languages.templates import Templates

log = logging.getLogger(__name__)

_ANSWER_BATCH, _MAX_NEW_TOKENS = 32, 32


class ValidationQuestions:
    """Asks a model questions of a benchmark, in all languages, and scores its answers.

    It is called with the model; each of several processes asks its share.

    Args:
        name: Name of a benchmark, or a folder of `<lang>.jsonl` files.
        num_questions: Questions per language.
        languages: Languages; those that the benchmark lacks are skipped with a warning.
        tokenizer: The model's tokenizer.
        image_processor: The tower's image processor.
        templates: The conversation template.

    Raises:
        ConfigError: There is no such benchmark.
        DataError: A question is invalid.
    """

    def __init__(
        self,
        name: str,
        num_questions: int,
        languages: Sequence[str],
        tokenizer: Any,
        image_processor: Any,
        templates: Templates,
    ) -> None:
        folder = Path(name)
        is_folder = name not in BENCHMARKS and folder.is_dir()
        self.benchmark = get_benchmark(folder.name, folder) if is_folder else get_benchmark(name)
        found = self.benchmark.languages()
        if missing := [lang for lang in languages if lang not in found]:
            log.warning("%s has no questions in: %s", self.benchmark.name, ", ".join(missing))
        chosen = [lang for lang in list_languages() if lang in languages and lang in found]
        if not chosen:
            raise ConfigError(f"--eval_benchmark {name} has questions in {', '.join(found)} only")
        self._all = {lang: self.benchmark.read(lang) for lang in chosen}
        self.items = {
            lang: list(limit_items(items, num_questions)) for lang, items in self._all.items()
        }
        self._make_answerer = lambda model: LlavaAnswerer(
            tokenizer, model, image_processor, templates, _MAX_NEW_TOKENS
        )

    def __call__(self, model: Any) -> dict[str, float]:
        """Asks the questions and scores the answers.

        Args:
            model: The model in training; its mode is restored.

        Returns:
            `answers/<lang>`, the share of correct answers; `answers`, the mean over languages, and
            the bounds of its 95 % interval.
        """
        was_training = model.training
        answerer = self._make_answerer(model.eval())
        ranks = PartialState()
        asked = [item for items in self.items.values() for item in items]
        own = asked[ranks.process_index :: ranks.num_processes]
        answers: list[tuple[tuple[str, str], str]] = []
        for start in range(0, len(own), _ANSWER_BATCH):
            batch = own[start : start + _ANSWER_BATCH]
            image_path = self.benchmark.image_path
            replies = answerer.answer(
                [Request(i.text, i.lang, tuple(map(image_path, i.images))) for i in batch]
            )
            keys = [(item.lang, item.question_id) for item in batch]
            answers += zip(keys, [reply.text for reply in replies], strict=True)
        model.train(was_training)
        return self._score(dict(gather_object(answers)))

    def _score(self, answers: Mapping[tuple[str, str], str]) -> dict[str, float]:
        english = text_answers(self._all[ENGLISH]) if ENGLISH in self._all else frozenset()
        right: dict[str, list[bool]] = {}
        for lang, items in self.items.items():
            texts = {key: text for (of, key), text in answers.items() if of == lang}
            native = text_answers(self._all[lang])
            reading = Reading(answer_words(lang), native=native, english=english)
            right[lang] = [verdict.correct for verdict in judge_answers(items, texts, reading)]
        shares = {f"answers/{lang}": sum(own) / len(own) for lang, own in right.items()}
        low, high = wilson_interval(sum(map(sum, right.values())), sum(map(len, right.values())))
        mean = sum(shares.values()) / len(shares)
        return {**shares, "answers": mean, "answers_low": low, "answers_high": high}
