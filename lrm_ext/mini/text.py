"""Text that the small language model is trained on: scenes told in words, and talk about them.

Input: scenes drawn from the training combinations only. Output: conversations, most of them
English, as Vicuna's text is, and a few in each other language. None has a picture: what LLaVA's
first stage must learn is to put pictures where these descriptions stand.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from llava.data.sample import Turn
from lrm_ext.corpus.emoji.concepts import concepts_by_id
from lrm_ext.corpus.emoji.packed import LANGUAGES
from lrm_ext.corpus.emoji.scenes import Scene, sample_scene
from lrm_ext.corpus.emoji.text import (
    caption,
    existence_question,
    make_questions,
    render_question,
)
from lrm_ext.corpus.emoji.vocabulary import NUM_PATTERNS, get_vocabulary

# Share of conversations that begin by repeating the description, in its language or in English:
# every token of such an answer is in the prompt, and from that a small model learns to look
# things up in a prompt (measured: docs/mini.md).
REPEAT_SHARE = 0.5
# Existence questions beyond the two that every conversation of the corpus has: the hardest thing to
# learn, and the one with the least to learn from in an answer.
NUM_MORE_EXISTENCE = 2
# Share of English descriptions that are repeated in another language instead.
TRANSLATE_SHARE = 0.1


def describe(scene: Scene, lang: str) -> str:
    """A scene in words: what stands where, and the background."""
    words = get_vocabulary(lang)
    places = [
        f"{words.positions[placed.position]}: {concepts_by_id()[placed.concept].names[lang]}"
        for placed in scene.objects
    ]
    return "; ".join([*places, words.color_backgrounds[scene.background]])


def talk(scene: Scene, lang: str, rng: random.Random) -> tuple[Turn, ...]:
    """A conversation about a described scene: its questions, a caption, perhaps a repetition."""
    questions = list(make_questions(scene, rng))
    for _ in range(NUM_MORE_EXISTENCE):
        questions.append(existence_question(scene, rng.random() < 0.5, rng))
    pairs = [render_question(question, scene, lang) for question in questions]
    pairs.append(caption(scene, lang, rng.randrange(NUM_PATTERNS["caption"])))
    rng.shuffle(pairs)
    if rng.random() < REPEAT_SHARE:
        target = "en"
        if lang == "en" and rng.random() < TRANSLATE_SHARE:
            target = rng.choice(_others())
        pairs.insert(0, ("=" if target == lang else f"{target} =", describe(scene, target)))
    first, answer = pairs[0]
    pairs[0] = (f"{describe(scene, lang)}\n{first}", answer)
    return tuple(
        turn
        for question, answer in pairs
        for turn in (Turn("human", question), Turn("gpt", answer))
    )


def iter_conversations(num: int, english_share: float, seed: int) -> Iterator[tuple[Turn, ...]]:
    """Conversations in a fixed order.

    Args:
        num: How many.
        english_share: Share of English ones; the rest is split evenly.
        seed: Of the order and of all that is drawn.
    """
    rng = random.Random(seed)
    for _ in range(num):
        lang = "en" if rng.random() < english_share else rng.choice(_others())
        yield talk(sample_scene(rng, "train"), lang, rng)


def iter_tokenizer_sentences(num_per_language: int, seed: int) -> Iterator[str]:
    """Sentences with every language at equal weight, so that none is cut into more pieces.

    A tokenizer that mostly saw English spells the others letter by letter; here each name is
    seen about as often in each language.
    """
    rng = random.Random(seed)
    for _ in range(num_per_language):
        scene = sample_scene(rng, "train")
        phrasing = rng.randrange(NUM_PATTERNS["caption"])
        questions = make_questions(scene, rng)
        for lang in LANGUAGES:
            yield from caption(scene, lang, phrasing)
            for question in questions:
                yield from render_question(question, scene, lang)


def _others() -> list[str]:
    return [lang for lang in LANGUAGES if lang != "en"]
