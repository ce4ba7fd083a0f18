"""Questions about a scene, and their sentences in any language.

A question is drawn once per scene, without a language; `render_question` then says it in any
language, with pattern k of a question meaning the same in each. Words and patterns come from
`vocabulary.py`, names from `concepts.py`; there is nothing about any language in this file.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lrm_ext.corpus.emoji.concepts import (
    categories,
    concept_ids,
    concepts_by_id,
    related_concepts,
)
from lrm_ext.corpus.emoji.scenes import NUM_OBJECTS, Scene
from lrm_ext.corpus.emoji.vocabulary import NUM_PATTERNS, POSITIONS, get_vocabulary
from lrm_ext.languages.registry import get_language

T = TypeVar("T")

TASKS = ("existence", "naming", "position", "counting", "color", "category")


@dataclass(frozen=True)
class Question:
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


def render_question(question: Question, scene: Scene, lang: str) -> tuple[str, str]:
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


def truth(question: Question, scene: Scene) -> bool:
    """Whether the answer to a yes/no question is yes."""
    assert question.answer_type == "yesno", question
    if question.task == "existence":
        return any(placed.concept == question.target for placed in scene.objects)
    return question.target in _categories_of(scene)


def _answer(question: Question, scene: Scene, lang: str) -> str:
    vocabulary = get_vocabulary(lang)
    if question.task == "counting":
        return str(len(scene.objects))
    if question.task == "color":
        return vocabulary.color_answers[scene.background]
    places = [
        p for p in scene.objects if question.task == "naming" or p.position == question.target
    ]
    (placed,) = places
    return concepts_by_id()[placed.concept].names[lang]


def _categories_of(scene: Scene) -> set[str]:
    return {concepts_by_id()[placed.concept].category for placed in scene.objects}


def existence_question(scene: Scene, present: bool, rng: random.Random) -> Question:
    """Ask for something that is in the picture, or for something that is not.

    Both are drawn evenly over the concepts, so that the question alone tells nothing.
    """
    there = [placed.concept for placed in scene.objects]
    unclear = set(there).union(*(related_concepts()[name] for name in there))
    absent = [concept for concept in concept_ids() if concept not in unclear]
    choices = there if present else absent
    return Question("existence", _choice(rng, choices), _phrasing("existence", rng))


def content_question(scene: Scene, rng: random.Random) -> Question:
    """Ask what the picture shows (one object), or what lies in an occupied quadrant (several)."""
    if len(scene.objects) == 1:
        return Question("naming", None, _phrasing("naming", rng))
    occupied = [placed.position for placed in scene.objects]
    target = _choice(rng, [position for position in POSITIONS if position in occupied])
    return Question("position", target, _phrasing("position", rng))


def counting_question(scene: Scene, rng: random.Random) -> Question:
    """Ask how many objects there are."""
    return Question("counting", None, _phrasing("counting", rng))


def color_question(scene: Scene, rng: random.Random) -> Question:
    """Ask for the colour of the background."""
    return Question("color", None, _phrasing("color", rng))


def category_question(scene: Scene, rng: random.Random) -> Question:
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
            return Question("category", category.id, _phrasing("existence", rng))


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


_GENERAL: tuple[Callable[[Scene, random.Random], Question], ...] = (
    counting_question,
    color_question,
    category_question,
)


def make_questions(scene: Scene, rng: random.Random) -> tuple[Question, ...]:
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
