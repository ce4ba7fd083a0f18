"""Makes small versions of the four benchmarks, about test scenes of the built-in corpus.

Their questions look as the readers of the official files make them, in every language. They ask the
question alone, as the built-in corpus trains it: after LLaVA's request for a short answer or a
letter, which that corpus does not have, a model of preset `mini` hardly ever answers. If there are
options, the text of the answer chooses one.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Final

from llava.files import load_toml
from lrm_ext.emoji.conversations import (
    SceneQuestion,
    color_question,
    content_question,
    counting_question,
    existence_question,
    noun_phrase,
    render_question,
)
from lrm_ext.emoji.scenes import (
    LANGUAGES,
    Scene,
    backgrounds,
    concept_ids,
    concepts_by_id,
    get_vocabulary,
    image_name,
    load_scenes,
    related_concepts,
)
from lrm_ext.evaluate.items import LETTERS, Item
from lrm_ext.evaluate.official import ImageStore
from lrm_ext.evaluate.reading import text_key

# Raise it when the questions become others.
FORMAT: Final = 2
PATTERNS_FILE: Final = Path(__file__).parent / "mini.toml"
MME_IMAGES_PER_CATEGORY: Final = 30  # as MME has in its coarse categories
POPE_IMAGES: Final = 40
POPE_PER_ANSWER: Final = 3
SEED_PER_DIMENSION: Final = 50
MMBENCH_PER_CATEGORY: Final = 15
MMBENCH_ROTATION: Final = 1_000_000
NUM_OPTIONS: Final = 4
# Tasks with a question that has one short answer, by the dimension that asks it.
SEED_DIMENSIONS: Final = {
    "2 Instance Identity": "naming",
    "3 Instance Attributes": "color",
    "4 Instance Location": "position",
    "5 Instances Counting": "counting",
}
# Leaf ability, group of abilities, task.
MMBENCH_ABILITIES: Final = {
    "image_topic": ("coarse_perception", "naming"),
    "attribute_recognition": ("finegrained_perception (instance-level)", "color"),
    "object_localization": ("finegrained_perception (instance-level)", "position"),
    "object_counting": ("finegrained_perception (cross-instance)", "counting"),
}


@dataclass(frozen=True)
class Mini:
    """A small benchmark.

    Attributes:
        kind: Whose rules score it.
        source: What its version is named after: as the official file is called.
        ask: From scenes and a language to questions, which name the corpus' images.
        name_image: From image folder of the corpus, own image folder, and a question to that
            question with an image of its own; None to leave images in the corpus.
    """

    kind: str
    source: str
    ask: Callable[[Sequence[Scene], str], Iterable[Item]]
    name_image: Callable[[Path, Path, Item], Item] | None = None

    def make(
        self, scenes: Sequence[Scene], lang: str, corpus_images: Path, images: Path
    ) -> tuple[list[Item], Path]:
        """Makes the questions in one language, with copies of images if they have names of theirs.

        Args:
            scenes: What to ask about; see `scenes_of`.
            lang: The language.
            corpus_images: Folder of the corpus' images.
            images: Folder for images of the benchmark's own.

        Returns:
            The questions, and the folder that their images are in.
        """
        items = list(self.ask(scenes, lang))
        if self.name_image is None:
            return items, corpus_images
        return [self.name_image(corpus_images, images, item) for item in items], images


def scenes_of(corpus_images: Path) -> list[Scene]:
    """Returns the test scenes of a corpus, which may have been unpacked in part only."""
    return [
        scene
        for scene in load_scenes()
        if scene.split == "test" and (corpus_images / image_name(scene)).is_file()
    ]


@cache
def _patterns() -> Mapping[str, Mapping[str, str]]:
    """Returns sentence patterns by language."""
    return load_toml(PATTERNS_FILE)


def mini_languages() -> tuple[str, ...]:
    """Returns the languages that have everything that the questions need."""
    return tuple(lang for lang in LANGUAGES if lang in _patterns())


def _said(question: SceneQuestion, scene: Scene, lang: str) -> str:
    return render_question(question, scene, lang)[0]


def _rng(purpose: str, scene: Scene) -> random.Random:
    return random.Random(f"{purpose}/{scene.id}")


def _choice(rng: random.Random, items: Sequence[Any]) -> Any:
    return items[int(rng.random() * len(items))]


def _draw(rng: random.Random, items: Sequence[Any], num: int) -> list[Any]:
    """Draws so many different ones, in random order."""
    ranked = sorted((rng.random(), place) for place in range(len(items)))
    return [items[place] for _, place in ranked[:num]]


def mme_items(scenes: Sequence[Scene], lang: str) -> Iterator[Item]:
    """Asks two questions about each image, one to be answered by yes and one by no."""
    several = [scene for scene in scenes if len(scene.objects) > 1]
    for category, ask_pair, eligible in (
        ("existence", _existence_pair, scenes),
        ("count", _count_pair, scenes),
        ("position", _position_pair, several),
        ("color", _color_pair, scenes[::-1]),
    ):
        for scene in sorted(eligible[:MME_IMAGES_PER_CATEGORY], key=lambda scene: scene.id):
            questions = ask_pair(scene, _rng(f"mini-mme/{category}", scene), lang)
            for i, (question, answer) in enumerate(zip(questions, ("Yes", "No"), strict=True)):
                yield Item(
                    f"{category}/{scene.id}#{i}", image_name(scene), question, category, answer,
                    lang, "yesno", question=question, image_id=f"{category}/{scene.id}",
                )  # fmt: skip


def _copy_mme_image(corpus_images: Path, images: Path, item: Item) -> Item:
    """Gives each category its own copies, named as MME's."""
    name = f"{item.category}/images/{PurePosixPath(item.image_name).name}"
    if not (images / name).is_file():
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(corpus_images / item.image_name, images / name)
    return replace(item, image=name, source_id=name)


def _existence_pair(scene: Scene, rng: random.Random, lang: str) -> list[str]:
    return [_said(existence_question(scene, there, rng), scene, lang) for there in (True, False)]


def _count_pair(scene: Scene, rng: random.Random, lang: str) -> list[str]:
    right = len(scene.objects)
    wrong = _choice(rng, [number for number in range(1, 5) if number != right])
    return [_patterns()[lang]["count"].format(number=number) for number in (right, wrong)]


def _color_pair(scene: Scene, rng: random.Random, lang: str) -> list[str]:
    wrong = _choice(rng, [color for color in backgrounds() if color != scene.background])
    names = get_vocabulary(lang).color_answers
    return [_patterns()[lang]["color"].format(color=names[c]) for c in (scene.background, wrong)]


def _position_pair(scene: Scene, rng: random.Random, lang: str) -> list[str]:
    """Asks for the same thing where it is, and where something else is."""
    placed = _choice(rng, scene.objects)
    elsewhere = _choice(rng, [o.position for o in scene.objects if o.position != placed.position])
    thing, names = noun_phrase(placed.concept, lang), get_vocabulary(lang).positions
    return [
        _patterns()[lang]["position"].format(thing=thing, position=names[position])
        for position in (placed.position, elsewhere)
    ]


def _absent(scene: Scene) -> list[str]:
    """Returns concepts that a scene clearly does not show."""
    there = [placed.concept for placed in scene.objects]
    unclear = set(there).union(*(related_concepts()[name] for name in there))
    return [concept for concept in concept_ids() if concept not in unclear]


def pope_items(scenes: Sequence[Scene], lang: str) -> Iterator[Item]:
    """Asks for things that are there and for as many others: any, frequent, likely companions."""
    frequency = Counter(placed.concept for scene in scenes for placed in scene.objects)
    companions: dict[str, Counter[str]] = {concept: Counter() for concept in concept_ids()}
    for scene in scenes:
        names = [placed.concept for placed in scene.objects]
        for name in names:
            companions[name].update(other for other in names if other != name)
    crowded = [scene for scene in scenes if len(scene.objects) >= POPE_PER_ANSWER]
    for category in ("random", "popular", "adversarial"):
        number = 0
        for scene in crowded[:POPE_IMAGES]:
            there = [placed.concept for placed in scene.objects][:POPE_PER_ANSWER]
            rng = _rng("mini-pope", scene)
            ranks: dict[str, Mapping[str, float]] = {
                "random": {concept: -rng.random() for concept in concept_ids()},
                "popular": frequency,
                "adversarial": sum((companions[name] for name in there), Counter()),
            }
            rank = ranks[category]
            order = sorted(_absent(scene), key=lambda c: (-rank.get(c, 0), -frequency[c], c))
            for pair in zip(there, order[:POPE_PER_ANSWER], strict=True):
                for answer, concept in zip(("yes", "no"), pair, strict=True):
                    number += 1
                    question = _said(SceneQuestion("existence", concept, 0), scene, lang)
                    yield Item(
                        f"{category}/{number}", image_name(scene), question, category, answer,
                        lang, "yesno", question=question, image_id=scene.id, source_id=f"{number}",
                    )  # fmt: skip


def seed_items(scenes: Sequence[Scene], lang: str) -> Iterator[Item]:
    """Asks questions of four options, in the dimensions that scenes can be asked about."""
    number = 0
    for dimension, task in SEED_DIMENSIONS.items():
        for scene in _eligible(scenes, task)[:SEED_PER_DIMENSION]:
            question, options, order = _options(scene, task, NUM_OPTIONS, "mini-seed", lang)
            item = _letter_item(str(number), scene, dimension, lang, question, options, order)
            yield replace(item, image_id=item.image_name)
            number += 1


def mmbench_items(scenes: Sequence[Scene], lang: str) -> Iterator[Item]:
    """Asks questions of two to four options, as MMBench has them, in all rotations."""
    number = 0
    for category, (ability, task) in MMBENCH_ABILITIES.items():
        for i, scene in enumerate(_eligible(scenes[::-1], task)[:MMBENCH_PER_CATEGORY]):
            question, options, order = _options(scene, task, 2 + i % 3, "mini-mmbench", lang)
            for k in range(len(options)):
                turned, index = order[k:] + order[:k], str(number + k * MMBENCH_ROTATION)
                item = _letter_item(index, scene, category, lang, question, options, turned)
                yield replace(item, group=str(number), supercategory=ability)
            number += 1


def _store_mmbench_image(corpus_images: Path, images: Path, item: Item) -> Item:
    """Names images by their content, as those of a table are named."""
    name = ImageStore(images).put((corpus_images / item.image_name).read_bytes(), item.image_name)
    return replace(item, image=name, image_id=PurePosixPath(name).stem)


def _letter_item(
    number: str, scene: Scene, category: str, lang: str, question: str, options: list[str],
    order: list[int],
) -> Item:  # fmt: skip
    shown, right = tuple(options[place] for place in order), LETTERS[order.index(0)]
    return Item(
        number, image_name(scene), question, category, right, lang, "letter", shown,
        question=question, source_id=number,
    )  # fmt: skip


def _eligible(scenes: Sequence[Scene], task: str) -> list[Scene]:
    fits: Mapping[str, Callable[[int], bool]] = {
        "naming": lambda number: number == 1,
        "position": lambda number: number > 1,
    }
    return [scene for scene in scenes if task not in fits or fits[task](len(scene.objects))]


def _options(
    scene: Scene, task: str, num_options: int, purpose: str, lang: str
) -> tuple[str, list[str], list[int]]:
    """Returns a question, its options with the right one first, and the order to show them in."""
    rng = _rng(f"{purpose}/{task}", scene)
    if task == "counting":
        question = counting_question(scene, rng)
        right, wrong = len(scene.objects), [n for n in range(1, 5) if n != len(scene.objects)]
        options = [str(number) for number in (right, *_draw(rng, wrong, num_options - 1))]
    elif task == "color":
        question = color_question(scene, rng)
        others = [color for color in backgrounds() if color != scene.background]
        colors = (scene.background, *_draw(rng, others, num_options - 1))
        options = [get_vocabulary(lang).color_answers[color] for color in colors]
    else:
        question = content_question(scene, rng)
        right_concept = next(
            placed.concept for placed in scene.objects if question.target in (None, placed.position)
        )
        # what lies elsewhere in the image is the better wrong answer
        near = [p.concept for p in scene.objects if p.concept != right_concept]
        wrong_concepts = _distinct(right_concept, [*near, *_draw(rng, _absent(scene), 20)])
        concepts = (right_concept, *wrong_concepts[: num_options - 1])
        options = [concepts_by_id()[concept].names[lang] for concept in concepts]
    order = _draw(rng, range(num_options), num_options)
    return _said(question, scene, lang), options, order


def _distinct(right: str, concepts: Sequence[str]) -> list[str]:
    """Returns those whose names differ from the right one's, and each other's, in all languages."""
    chosen: list[str] = []
    taken = _name_keys(right)
    for concept in concepts:
        if not taken & _name_keys(concept):
            chosen.append(concept)
            taken |= _name_keys(concept)
    return chosen


@cache
def _name_keys(concept: str) -> frozenset[tuple[str, str]]:
    names = concepts_by_id()[concept].names
    return frozenset((lang, text_key(names[lang])) for lang in mini_languages())


MINI: Final = {
    "mini-mme": Mini("mme", "mini_mme", mme_items, _copy_mme_image),
    "mini-pope": Mini("pope", "mini_pope", pope_items),
    "mini-seed_bench": Mini("seed_bench", "SEED-Bench.json", seed_items),
    "mini-mmbench": Mini("mmbench", "mini_mmbench_dev.tsv", mmbench_items, _store_mmbench_image),
}
