"""Text that the small language model is trained on: scenes told in words, and talk about them.

Input: scenes drawn from the training combinations only. Output: conversations, most of them
English and a few in each other language. None has a picture: what LLaVA's first stage must learn
is to put the patches of pictures where the words of these descriptions stand.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from llava.data.sample import Turn
from lrm_ext.corpus.emoji.conversations import (
    Question,
    caption,
    category_question,
    existence_question,
    make_questions,
    render_question,
)
from lrm_ext.corpus.emoji.scenes import (
    LANGUAGES,
    NUM_PATTERNS,
    Placed,
    Scene,
    concepts_by_id,
    get_vocabulary,
    sample_scene,
)

Conversation: TypeAlias = tuple[Turn, ...]

# Patches on a side of the tower's picture: a description has a word for each patch.
GRID = 4
# A patch is told as an object when so much of it lies in the object's box.
COVERED_SHARE = 0.4

# "Is there a dog?" is the hardest thing to learn, and there is least to learn from in its answer:
# so many such questions more than the two that a conversation of the corpus has, ...
NUM_MORE_EXISTENCE = 2
# ... and this share of conversations that ask nothing else, so many times. "Is there an animal?"
# among them slows them down: that is asked once more in the other conversations instead.
DRILL_SHARE = 0.4
NUM_DRILLED = 8
# Share of the other conversations that begin with a list of what is where: every word of such an
# answer translates one of the prompt, and from that a small model learns to look things up.
LIST_SHARE = 0.2


def describe(scene: Scene) -> str:
    """A scene as a grid of English words, patch by patch: an object's name or the background.

    Pictures will stand in the place of these words and have no language, so it is always the same.
    A name of several words takes turns from patch to patch.
    """
    cells = [scene.background] * GRID**2
    for placed in scene.objects:
        shares = [_covered_share(placed, index) for index in range(GRID**2)]
        words = concepts_by_id()[placed.concept].names["en"].split()
        covered = [index for index, share in enumerate(shares) if share > COVERED_SHARE]
        if len(covered) < len(words):
            best = shares.index(max(shares))
            covered = [(best + offset) % GRID**2 for offset in range(len(words))]
        for turn, index in enumerate(covered):
            cells[index] = words[turn % len(words)]
    return " ".join(cells)


def list_objects(scene: Scene, lang: str) -> str:
    """What is where, and the background."""
    words = get_vocabulary(lang)
    places = [
        f"{words.positions[placed.position]}: {concepts_by_id()[placed.concept].names[lang]}"
        for placed in scene.objects
    ]
    return "; ".join([*places, words.color_backgrounds[scene.background]])


def talk(scene: Scene, lang: str, rng: random.Random) -> Conversation:
    """A conversation about a described scene: its questions, a caption, perhaps a list."""
    questions = list(make_questions(scene, rng))
    questions += _existence_questions(scene, NUM_MORE_EXISTENCE, rng)
    questions.append(category_question(scene, rng))
    pairs = [render_question(question, scene, lang) for question in questions]
    pairs.append(caption(scene, lang, rng.randrange(NUM_PATTERNS["caption"])))
    rng.shuffle(pairs)
    if rng.random() < LIST_SHARE:
        pairs.insert(0, (f"{lang} =", list_objects(scene, lang)))
    return _turns(describe(scene), pairs)


def drill(scene: Scene, lang: str, rng: random.Random) -> Conversation:
    """A conversation about a described scene that only asks what is there."""
    questions = _existence_questions(scene, NUM_DRILLED, rng)
    return _turns(describe(scene), [render_question(q, scene, lang) for q in questions])


def iter_conversations(english_share: float, seed: int) -> Iterator[Conversation]:
    """Conversations without end, in a fixed order.

    Args:
        english_share: Share of English ones; the rest is split evenly.
        seed: Of the order and of all that is drawn.
    """
    rng = random.Random(seed)
    others = [lang for lang in LANGUAGES if lang != "en"]
    while True:
        lang = "en" if rng.random() < english_share else rng.choice(others)
        make = drill if rng.random() < DRILL_SHARE else talk
        yield make(sample_scene(rng, "train"), lang, rng)


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


def _covered_share(placed: Placed, index: int) -> float:
    """Share of a patch that lies in an object's box."""
    row, column = divmod(index, GRID)
    half = placed.size / 2
    width = min((column + 1) / GRID, placed.x + half) - max(column / GRID, placed.x - half)
    height = min((row + 1) / GRID, placed.y + half) - max(row / GRID, placed.y - half)
    return max(0.0, width) * max(0.0, height) * GRID**2


def _existence_questions(scene: Scene, num: int, rng: random.Random) -> list[Question]:
    return [existence_question(scene, rng.random() < 0.5, rng) for _ in range(num)]


def _turns(description: str, pairs: Sequence[tuple[str, str]]) -> Conversation:
    texts = [text for pair in pairs for text in pair]
    texts[0] = f"{description}\n{texts[0]}"
    return tuple(Turn(("human", "gpt")[index % 2], text) for index, text in enumerate(texts))
