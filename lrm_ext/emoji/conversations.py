"""Captions, questions and answers about scenes in any language, for training and as benchmarks.

Which questions a scene gets depends on its id alone, so that the same scene has the same questions
in every language and on every run. Files are written in `unpack.py`.
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

from llava.data.sample import Sample, Turn
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
)
from lrm_ext.languages.registry import get_language

T = TypeVar("T")

TASKS = ("existence", "naming", "position", "counting", "color", "category")
SOURCE = "emoji_scenes"
IMAGE_PREFIX = "<image>\n"

# Questions of a benchmark: scenes that get a pair of existence questions, and questions of the
# other tasks. Categories are balanced: so many yes and so many no for each of them.
NUM_EXISTENCE_PAIRS = 250
NUM_PER_TASK = 100
NUM_PER_CATEGORY_ANSWER = 9


@dataclass(frozen=True)
class SceneQuestion:
    """A question about a scene, in no language yet.

    Attributes:
        task: One of `TASKS`.
        target: What is asked about: a concept id (existence), a quadrant (position), a category
            id (category), or nothing.
        phrasing: Which of the task's patterns says it.
    """

    task: str
    target: str | None
    phrasing: int

    @property
    def answer_type(self) -> str:
        """`yesno` or `text`."""
        return "yesno" if self.task in ("existence", "category") else "text"


def noun_phrase(concept_id: str, lang: str) -> str:
    """A concept's name with its indefinite article, where the language has one."""
    article = get_vocabulary(lang).articles.get(concept_id, "")
    return article + concepts_by_id()[concept_id].names[lang]


def caption(scene: Scene, lang: str, phrasing: int) -> tuple[str, str]:
    """A request for a description, and the description in one sentence.

    Args:
        scene: What is in the picture.
        lang: Language code.
        phrasing: Pattern of the request, below `NUM_PATTERNS["caption"]`.

    Returns:
        Request and sentence; objects stand in reading order.
    """
    vocabulary = get_vocabulary(lang)
    sentence = vocabulary.caption.format(
        objects=vocabulary.join([noun_phrase(placed.concept, lang) for placed in scene.objects]),
        background=vocabulary.color_backgrounds[scene.background],
    )
    return vocabulary.questions["caption"][phrasing], sentence[0].upper() + sentence[1:]


def render_question(question: SceneQuestion, scene: Scene, lang: str) -> tuple[str, str]:
    """A question and its answer in a language; short answers have no full stop."""
    vocabulary = get_vocabulary(lang)
    # "Is there an animal ...?" is said with the patterns of "Is there a dog ...?"
    kind = "existence" if question.task == "category" else question.task
    pattern = vocabulary.questions[kind][question.phrasing]
    target = question.target or ""
    if question.task == "existence":
        text = pattern.format(thing=noun_phrase(target, lang))
    elif question.task == "category":
        text = pattern.format(thing=vocabulary.categories[target])
    else:
        text = pattern.format(position=vocabulary.positions[target] if target else "")
    if question.answer_type == "yesno":
        return text, get_language(lang).answer_to(text, truth(question, scene))
    return text, _answer(question, scene, lang)


def truth(question: SceneQuestion, scene: Scene) -> bool:
    """Whether the answer to a yes/no question is yes."""
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
    """Ask for something that is in the picture, or for something that is not.

    Both are drawn evenly over the concepts, so that the question alone tells nothing.
    """
    there = [placed.concept for placed in scene.objects]
    unclear = set(there).union(*(related_concepts()[name] for name in there))
    absent = [concept for concept in concept_ids() if concept not in unclear]
    choices = there if present else absent
    return SceneQuestion("existence", _choice(rng, choices), _phrasing("existence", rng))


def content_question(scene: Scene, rng: random.Random) -> SceneQuestion:
    """Ask what the picture shows (one object), or what lies in an occupied quadrant (several)."""
    if len(scene.objects) == 1:
        return SceneQuestion("naming", None, _phrasing("naming", rng))
    occupied = [placed.position for placed in scene.objects]
    target = _choice(rng, [position for position in POSITIONS if position in occupied])
    return SceneQuestion("position", target, _phrasing("position", rng))


def counting_question(scene: Scene, rng: random.Random) -> SceneQuestion:
    """Ask how many objects there are."""
    return SceneQuestion("counting", None, _phrasing("counting", rng))


def color_question(scene: Scene, rng: random.Random) -> SceneQuestion:
    """Ask for the colour of the background."""
    return SceneQuestion("color", None, _phrasing("color", rng))


def category_question(scene: Scene, rng: random.Random) -> SceneQuestion:
    """Ask for a category, so that for each category about as many answers are yes as no.

    Which categories a scene shows is given; a category is drawn evenly and kept with a
    probability that evens out how often it is there and how often it clearly is not.
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
    """Share of scenes that show the category, and of those that clearly do not."""
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
    """The four questions of a conversation, in random order.

    Existence of something that is there, existence of something that is not, what the picture or
    a quadrant shows, and one of counting, colour of the background and category.
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
    """One benchmark question, in no language yet.

    Attributes:
        id: Name of the question, the same in every language.
        scene: The picture it is about.
        question: What is asked.
    """

    id: str
    scene: Scene
    question: SceneQuestion

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
