"""Rows of the built-in corpus in several languages, as the calibration of checks needs them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from llava.data.sample import Turn
from lrm_ext.corpus.emoji.conversations import (
    IMAGE_PREFIX,
    caption_turns,
    content_question,
    counting_question,
    question_turns,
    render_question,
)
from lrm_ext.corpus.emoji.scenes import Scene, concept_ids, concepts_by_id
from lrm_ext.languages.registry import ENGLISH
from lrm_ext.translation.quality.damage import Row, Turns

_LETTERS = "ABCD"


def scene_row(scene: Scene, kind: str, languages: Sequence[str]) -> Row:
    """A scene as a row.

    Args:
        scene: The scene.
        kind: One of `KINDS`.
        languages: Codes of languages beside English.
    """
    make = _MAKERS[kind]
    return Row(make(scene, ENGLISH), {lang: make(scene, lang) for lang in languages}, kind)


def option_turns(scene: Scene, lang: str) -> Turns:
    """What is there, with four options to choose from, and how many things there are."""
    rng = random.Random(f"options/{scene.id}")
    asked, counted = content_question(scene, rng), counting_question(scene, rng)
    names = {concept: concepts_by_id()[concept].names for concept in concept_ids()}
    question, answer = render_question(asked, scene, lang)
    # by the English name, so that the same things stand there in each language
    right = render_question(asked, scene, ENGLISH)[1]
    wrong = [name for name in names.values() if name[ENGLISH] != right]
    options = [name[lang] for name in rng.sample(wrong, len(_LETTERS) - 1)]
    place = rng.randrange(len(_LETTERS))
    options.insert(place, answer)
    listed = [f"{letter}. {name}" for letter, name in zip(_LETTERS, options, strict=True)]
    count, number = render_question(counted, scene, lang)
    return (
        Turn("human", IMAGE_PREFIX + "\n".join([question, *listed])),
        Turn("gpt", _LETTERS[place]),
        Turn("human", count),
        Turn("gpt", number),
    )


_MAKERS: dict[str, Callable[[Scene, str], Turns]] = {
    "questions": question_turns,
    "caption": caption_turns,
    "options": option_turns,
}
KINDS = tuple(_MAKERS)
