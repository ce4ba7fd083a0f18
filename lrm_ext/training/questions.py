"""Questions of a benchmark that a model is asked at a validation of its training.

Input: the model and a benchmark. Output: the share of right answers by language. Not imported by a
run that asks none, which therefore imports no evaluation. Non-goals: the validation loss
(`validation.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from llava.conversation import get_conversation
from llava.errors import ConfigError
from lrm_ext.evaluate.answerer import LlavaAnswerer, Request, Templates
from lrm_ext.evaluate.items import Item, limit_items
from lrm_ext.evaluate.kind import Reading, judge_answers, text_answers
from lrm_ext.evaluate.reading import answer_words
from lrm_ext.evaluate.registry import BENCHMARKS, Benchmark, get_benchmark
from lrm_ext.evaluate.statistics import wilson_interval
from lrm_ext.instructions.registry import ENGLISH
from lrm_ext.languages import list_languages

log = logging.getLogger(__name__)

_ANSWER_BATCH = 32


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
        ranks = PartialState()
        asked = [(lang, item) for lang, items in self.items.items() for item in items]
        own = asked[ranks.process_index :: ranks.num_processes]
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
            reading = Reading(answer_words(lang), native=native, english=english)
            verdicts = judge_answers(items, texts, reading)
            num_right = sum(verdict.correct for verdict in verdicts)
            figures[f"answers/{lang}"] = num_right / len(verdicts)
            right, total = right + num_right, total + len(verdicts)
        low, high = wilson_interval(right, total)
        mean = sum(figures.values()) / len(figures)
        return {**figures, "answers": mean, "answers_low": low, "answers_high": high}


def _benchmark(name: str) -> Benchmark:
    folder = Path(name)
    if name not in BENCHMARKS and folder.is_dir():
        return get_benchmark(folder.name, folder)
    return get_benchmark(name)
