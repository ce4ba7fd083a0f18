"""Scenes as training conversations and as benchmark questions, in any language.

Which questions a scene gets depends on its id alone, so that the same scene has the same
questions in every language and on every run. Files are written in `unpack.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from llava.data.sample import Sample, Turn
from lrm_ext.corpus.emoji.concepts import categories
from lrm_ext.corpus.emoji.scenes import Scene
from lrm_ext.corpus.emoji.text import (
    Question,
    caption,
    category_question,
    color_question,
    content_question,
    counting_question,
    existence_question,
    make_questions,
    render_question,
    truth,
)
from lrm_ext.corpus.emoji.vocabulary import NUM_PATTERNS

SOURCE = "emoji_scenes"
IMAGE_PREFIX = "<image>\n"

# Questions of a benchmark: scenes that get a pair of existence questions, and questions of the
# other tasks. Categories are balanced: so many yes and so many no for each of them.
NUM_EXISTENCE_PAIRS = 250
NUM_PER_TASK = 100
NUM_PER_CATEGORY_ANSWER = 9


@dataclass(frozen=True)
class BenchmarkItem:
    """One benchmark question, in no language yet.

    Attributes:
        id: Name of the question, the same in every language.
        scene: The picture it is about.
        question: What is asked.
    """

    id: str
    scene: Scene
    question: Question

    def to_record(self, lang: str, image: str) -> dict[str, Any]:
        """The benchmark file's line in a language; `image` is the picture's path."""
        text, answer = render_question(self.question, self.scene, lang)
        return {
            "question_id": self.id,
            "image": image,
            "text": text,
            "category": self.question.task,
            "answer": answer,
            "lang": lang,
            "answer_type": self.question.answer_type,
        }


def caption_turns(scene: Scene, lang: str) -> tuple[Turn, ...]:
    """A request for a description and the description."""
    phrasing = int(_rng("caption", scene).random() * NUM_PATTERNS["caption"])
    return _turns([caption(scene, lang, phrasing)])


def question_turns(scene: Scene, lang: str) -> tuple[Turn, ...]:
    """A conversation of four questions and answers."""
    questions = make_questions(scene, _rng("questions", scene))
    return _turns(render_question(question, scene, lang) for question in questions)


def conversation_sample(scene: Scene, lang: str, image: str) -> Sample:
    """A scene's conversation as a sample of LLaVA's kind."""
    turns = question_turns(scene, lang)
    return Sample(id=scene.id, image=image, turns=turns, lang=lang, source=SOURCE)


def benchmark_items(scenes: Iterable[Scene]) -> tuple[BenchmarkItem, ...]:
    """The questions of the benchmark that these scenes give.

    Existence comes in pairs on one picture (something that is there, something that is not);
    each category has as many yes as no. Fewer scenes give fewer questions.
    """
    scenes = tuple(scenes)
    items: list[BenchmarkItem] = []
    for scene in scenes[:NUM_EXISTENCE_PAIRS]:
        rng = _rng("existence", scene)
        for present in (True, False):
            items.append(_item(items, scene, existence_question(scene, present, rng)))
    singles = [scene for scene in scenes if len(scene.objects) == 1]
    crowded = [scene for scene in scenes if len(scene.objects) > 1]
    for task, make, eligible in (
        ("naming", content_question, singles),
        ("position", content_question, crowded),
        ("counting", counting_question, scenes),
        ("color", color_question, scenes[::-1]),
    ):
        of_task: list[BenchmarkItem] = []
        for scene in eligible[:NUM_PER_TASK]:
            of_task.append(_item(of_task, scene, make(scene, _rng(task, scene))))
        items += of_task
    return (*items, *_category_items(scenes))


def _category_items(scenes: Iterable[Scene]) -> Iterator[BenchmarkItem]:
    quota = {
        (category.id, answer): NUM_PER_CATEGORY_ANSWER
        for category in categories().values()
        if category.asked
        for answer in (True, False)
    }
    made: list[BenchmarkItem] = []
    for scene in scenes:
        question = category_question(scene, _rng("category", scene))
        key = (question.target or "", truth(question, scene))
        if quota[key]:
            quota[key] -= 1
            made.append(_item(made, scene, question))
    yield from made


def _item(earlier: list[BenchmarkItem], scene: Scene, question: Question) -> BenchmarkItem:
    return BenchmarkItem(f"{question.task}-{len(earlier):04d}", scene, question)


def _rng(purpose: str, scene: Scene) -> random.Random:
    return random.Random(f"{purpose}/{scene.id}")


def _turns(pairs: Iterable[tuple[str, str]]) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    for question, answer in pairs:
        prefix = "" if turns else IMAGE_PREFIX
        turns += [Turn("human", prefix + question), Turn("gpt", answer)]
    return tuple(turns)
