"""Captions, questions and answers about scenes in any language, for training and benchmarks.

The questions of a scene depend only on its id, so they are the same in every language and on every
run. `unpack.py` writes the files.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from llava.data.sample import Turn
from lrm_ext.emoji.scenes import (
    NUM_OBJECTS,
    NUM_PATTERNS,
    POSITIONS,
    Scene,
    categories,
    concept_ids,
    concepts_by_id,
    get_vocabulary,
    related_concepts,
    unnamed_concepts,
)
from lrm_ext.languages.registry import get_language

T = TypeVar("T")

TASKS = ("existence", "naming", "position", "counting", "color", "category")
SOURCE = "emoji_scenes"
IMAGE_PREFIX = "<image>\n"

# Size of a benchmark: scenes with a pair of existence questions, questions of each other task, and
# questions of each category with each answer.
NUM_EXISTENCE_PAIRS = 250
NUM_PER_TASK = 100
NUM_PER_CATEGORY_ANSWER = 9


@dataclass(frozen=True)
class SceneQuestion:
    """A question about a scene, independent of language.

    Attributes:
        task: One of `TASKS`.
        target: The concept id (existence), quadrant (position) or category id (category) that it
            asks about; None for other tasks.
        phrasing: Index of the pattern of the task.
    """

    task: str
    target: str | None
    phrasing: int

    @property
    def answer_type(self) -> str:
        """`yesno` or `text`."""
        return "yesno" if self.task in ("existence", "category") else "text"


def noun_phrase(concept_id: str, lang: str) -> str:
    """Returns the name of a concept with its indefinite article, if the language has one."""
    article = get_vocabulary(lang).articles.get(concept_id, "")
    return article + concepts_by_id()[concept_id].names[lang]


def can_say(scene: Scene, questions: Iterable[SceneQuestion], lang: str) -> bool:
    """Tells whether CLDR names, in a language, everything in a scene and in questions about it."""
    unnamed = unnamed_concepts(lang)
    return not unnamed or unnamed.isdisjoint(
        itertools.chain((p.concept for p in scene.objects), (each.target for each in questions))
    )


def caption(scene: Scene, lang: str, phrasing: int) -> tuple[str, str]:
    """Returns a request for a description, and the description in one sentence.

    Args:
        scene: The scene.
        lang: Language code.
        phrasing: Index of the request's pattern, below `NUM_PATTERNS["caption"]`.

    Returns:
        Request and sentence; objects are in reading order.
    """
    vocabulary = get_vocabulary(lang)
    sentence = vocabulary.caption.format(
        objects=vocabulary.join([noun_phrase(placed.concept, lang) for placed in scene.objects]),
        background=vocabulary.color_backgrounds[scene.background],
    )
    return vocabulary.questions["caption"][phrasing], sentence[0].upper() + sentence[1:]


def render_question(question: SceneQuestion, scene: Scene, lang: str) -> tuple[str, str]:
    """Returns a question and its answer in a language; short answers have no full stop."""
    vocabulary = get_vocabulary(lang)
    # "Is there an animal ...?" uses the patterns of "Is there a dog ...?"
    kind = "existence" if question.task == "category" else question.task
    pattern = vocabulary.questions[kind][question.phrasing]
    target = question.target or ""
    text = pattern.format(
        thing=noun_phrase(target, lang)
        if question.task == "existence"
        else vocabulary.categories.get(target),
        position=vocabulary.positions.get(target),
    )
    if question.answer_type == "yesno":
        return text, get_language(lang).answer_to(text, truth(question, scene))
    return text, _answer(question, scene, lang)


def truth(question: SceneQuestion, scene: Scene) -> bool:
    """Tells whether the answer to a yes/no question is yes."""
    assert question.answer_type == "yesno", question
    if question.task == "existence":
        return any(placed.concept == question.target for placed in scene.objects)
    return question.target in _categories_of(scene)


def _answer(question: SceneQuestion, scene: Scene, lang: str) -> str:
    if question.task == "counting":
        return str(len(scene.objects))
    if question.task == "color":
        return get_vocabulary(lang).color_answers[scene.background]
    (concept,) = (
        placed.concept
        for placed in scene.objects
        if question.task == "naming" or placed.position == question.target
    )
    return concepts_by_id()[concept].names[lang]


def _categories_of(scene: Scene) -> set[str]:
    return {concepts_by_id()[placed.concept].category for placed in scene.objects}


def existence_question(scene: Scene, present: bool, rng: random.Random) -> SceneQuestion:
    """Asks for a concept that is in the scene, or for one that is not.

    Both are sampled uniformly over the concepts, so the question alone gives no hint.
    """
    there = [placed.concept for placed in scene.objects]
    unclear = set(there).union(*(related_concepts()[name] for name in there))
    absent = [concept for concept in concept_ids() if concept not in unclear]
    choices = there if present else absent
    return SceneQuestion("existence", _choice(rng, choices), _phrasing("existence", rng))


def content_question(scene: Scene, rng: random.Random) -> SceneQuestion:
    """Asks what the scene shows (one object), or what is in an occupied quadrant (several)."""
    if len(scene.objects) == 1:
        return SceneQuestion("naming", None, _phrasing("naming", rng))
    occupied = [placed.position for placed in scene.objects]
    target = _choice(rng, [position for position in POSITIONS if position in occupied])
    return SceneQuestion("position", target, _phrasing("position", rng))


def counting_question(scene: Scene, rng: random.Random) -> SceneQuestion:
    """Asks how many objects there are."""
    return SceneQuestion("counting", None, _phrasing("counting", rng))


def color_question(scene: Scene, rng: random.Random) -> SceneQuestion:
    """Asks for the colour of the background."""
    return SceneQuestion("color", None, _phrasing("color", rng))


def category_question(scene: Scene, rng: random.Random) -> SceneQuestion:
    """Asks for a category, so that each category has about as many yes as no answers.

    A category is sampled uniformly and kept with a probability that balances how often scenes show
    it and how often they clearly do not.
    """
    there = _categories_of(scene)
    asked = [category for category in categories().values() if category.asked]
    while True:
        category = _choice(rng, asked)
        if category.id not in there and there & set(category.unclear):
            continue
        yes, no = _category_shares(category.id)
        kept = no / yes if category.id in there else yes / no
        if rng.random() < kept:
            return SceneQuestion("category", category.id, _phrasing("existence", rng))


@functools.cache
def _category_shares(category_id: str) -> tuple[float, float]:
    """Returns the share of scenes that show a category, and of those that clearly do not."""
    category = categories()[category_id]
    unclear = sum(categories()[name].num_concepts for name in category.unclear)
    total = len(concept_ids())
    weight = sum(NUM_OBJECTS.values())

    def without(excluded: int) -> float:
        return sum(
            share / weight * math.comb(total - excluded, num) / math.comb(total, num)
            for num, share in NUM_OBJECTS.items()
        )

    return 1 - without(category.num_concepts), without(category.num_concepts + unclear)


_GENERAL: tuple[Callable[[Scene, random.Random], SceneQuestion], ...] = (
    counting_question,
    color_question,
    category_question,
)


def make_questions(scene: Scene, rng: random.Random) -> tuple[SceneQuestion, ...]:
    """Makes the four questions of a conversation, in random order.

    They ask for a concept that is there, for one that is not, for what the scene or a quadrant
    shows, and for one of number, background colour and category.
    """
    questions = [
        existence_question(scene, True, rng),
        existence_question(scene, False, rng),
        content_question(scene, rng),
        _choice(rng, _GENERAL)(scene, rng),
    ]
    order = sorted((rng.random(), index) for index in range(len(questions)))
    return tuple(questions[index] for _, index in order)


def _phrasing(question: str, rng: random.Random) -> int:
    return int(rng.random() * NUM_PATTERNS[question])


def _choice(rng: random.Random, items: Sequence[T]) -> T:
    # random.choice() may change between versions of Python, random() may not
    return items[int(rng.random() * len(items))]


@dataclass(frozen=True)
class BenchmarkItem:
    """A benchmark question, independent of language.

    Attributes:
        id: Id of the question, the same in every language.
        scene: The scene.
        question: The question.
    """

    id: str
    scene: Scene
    question: SceneQuestion

    def to_record(self, lang: str, image: str) -> dict[str, Any]:
        """Returns the record of the benchmark file in a language; `image` is the image path."""
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
    """Returns a request for a description and the description."""
    phrasing = int(_rng("caption", scene).random() * NUM_PATTERNS["caption"])
    return _turns([caption(scene, lang, phrasing)])


@functools.lru_cache(maxsize=16)  # a scene is asked about in many languages, one after the other
def questions_of(scene: Scene) -> tuple[SceneQuestion, ...]:
    """Returns the four questions of the conversation about a scene, the same in every language."""
    return make_questions(scene, _rng("questions", scene))


def question_turns(scene: Scene, lang: str) -> tuple[Turn, ...]:
    """Returns a conversation of four questions and answers."""
    return _turns(render_question(question, scene, lang) for question in questions_of(scene))


def benchmark_items(scenes: Iterable[Scene]) -> tuple[BenchmarkItem, ...]:
    """Makes the benchmark questions of scenes.

    Existence questions come in pairs on one scene (a concept that is there and one that is not);
    each category has as many yes as no answers. Fewer scenes give fewer questions.
    """
    numbers: dict[str, Iterator[int]] = defaultdict(itertools.count)
    return tuple(
        BenchmarkItem(f"{question.task}-{next(numbers[question.task]):04d}", scene, question)
        for scene, question in _benchmark_questions(tuple(scenes))
    )


def _benchmark_questions(scenes: tuple[Scene, ...]) -> Iterator[tuple[Scene, SceneQuestion]]:
    for scene in scenes[:NUM_EXISTENCE_PAIRS]:
        rng = _rng("existence", scene)
        yield from ((scene, existence_question(scene, there, rng)) for there in (True, False))
    for task, make, eligible in (
        ("naming", content_question, [scene for scene in scenes if len(scene.objects) == 1]),
        ("position", content_question, [scene for scene in scenes if len(scene.objects) > 1]),
        ("counting", counting_question, scenes),
        ("color", color_question, scenes[::-1]),
    ):
        for scene in eligible[:NUM_PER_TASK]:
            yield scene, make(scene, _rng(task, scene))
    made = Counter[tuple[str | None, bool]]()
    for scene in scenes:
        question = category_question(scene, _rng("category", scene))
        key = (question.target, truth(question, scene))
        made[key] += 1
        if made[key] <= NUM_PER_CATEGORY_ANSWER:
            yield scene, question


def _rng(purpose: str, scene: Scene) -> random.Random:
    return random.Random(f"{purpose}/{scene.id}")


def _turns(pairs: Iterable[tuple[str, str]]) -> tuple[Turn, ...]:
    talk = [Turn(*said) for pair in pairs for said in zip(("human", "gpt"), pair, strict=True)]
    return (replace(talk[0], text=IMAGE_PREFIX + talk[0].text), *talk[1:])
