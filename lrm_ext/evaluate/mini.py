"""Small versions of the four benchmarks, about test scenes of the built-in corpus.

They are written in the official formats, in every language, and read by the readers of those: what
works on them works on the real files. `mini-mme` and the others are made on first use, in the
corpus' folder.

They ask the question alone, as the built-in corpus trains it. After LLaVA's request for a short
answer or a letter, which that corpus does not have, a model of preset `mini` hardly ever answers.
Where there are options, the text of the answer chooses one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

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
    load_scenes,
    related_concepts,
)
from lrm_ext.emoji.unpack import COMPLETE_FILE, image_name
from lrm_ext.evaluate.importing import import_benchmark
from lrm_ext.evaluate.items import LETTERS, QUESTION
from lrm_ext.evaluate.kinds import DESCRIPTION_FILE
from lrm_ext.evaluate.mmbench import ROTATION
from lrm_ext.evaluate.mme import INSTRUCTION
from lrm_ext.evaluate.pope import PREFIX
from lrm_ext.evaluate.reading import text_key
from lrm_ext.evaluate.seed_bench import QUESTION_FILE
from lrm_ext.files import locked
from lrm_ext.languages._toml import load_toml

log = logging.getLogger(__name__)

# Raise it when the questions become others.
FORMAT: Final = 2
NAMES: Final = {f"mini-{kind}": kind for kind in ("mme", "pope", "seed_bench", "mmbench")}
OFFICIAL_DIR: Final = "official"
_SPLIT: Final = "test"


def ensure_mini(name: str, corpus: Path) -> Path:
    """The folder of a small benchmark, made now if it is not there.

    Args:
        name: One of `NAMES`.
        corpus: The unpacked built-in corpus.

    Raises:
        DataError: The corpus is damaged.
    """
    folder = corpus / "benchmarks" / name
    digest = hashlib.sha256(
        f"{FORMAT} {(corpus / COMPLETE_FILE).read_text()} {PATTERNS_FILE.read_text()}".encode()
    ).hexdigest()
    marker = folder / COMPLETE_FILE
    folder.parent.mkdir(parents=True, exist_ok=True)
    # several processes may answer together
    with locked(folder.parent):
        if not marker.is_file() or marker.read_text() != digest:
            log.info("making %s", folder)
            build_mini(name, corpus, folder)
            marker.write_text(digest)
    return folder


def build_mini(name: str, corpus: Path, folder: Path) -> None:
    """Write a small benchmark: its official files in every language, and the folder to ask."""
    kind = NAMES[name]
    shutil.rmtree(folder, ignore_errors=True)
    pictures = corpus / "images"
    # scenes of a corpus that was unpacked in part only
    scenes = [
        scene
        for scene in load_scenes()
        if scene.split == _SPLIT and (pictures / image_name(scene)).is_file()
    ]
    make_questions, write_files = _MAKERS[kind]
    questions = list(make_questions(scenes))
    for lang in mini_languages():
        official = folder / OFFICIAL_DIR / lang / name.replace("-", "_")
        official.mkdir(parents=True)
        source, images = write_files(questions, lang, official, pictures)
        import_benchmark(kind, source, folder, lang=lang, images=images, style=QUESTION)
    assert (folder / DESCRIPTION_FILE).is_file()


def _write_mme(
    questions: Sequence[YesNoQuestion], lang: str, folder: Path, pictures: Path
) -> tuple[Path, Path | None]:
    """A file of two lines for each picture; the pictures beside the English ones."""
    english = folder.parents[1] / "en" / folder.name
    for question in questions:
        texts = folder / question.category / "questions_answers_YN"
        images = english / question.category / "images"
        texts.mkdir(parents=True, exist_ok=True)
        images.mkdir(parents=True, exist_ok=True)
        image = images / f"{question.scene.id}.jpg"
        if not image.is_file():
            shutil.copyfile(pictures / image_name(question.scene), image)
        with (texts / f"{question.scene.id}.txt").open("a", encoding="utf-8") as file:
            answer = "Yes" if question.yes else "No"
            file.write(f"{question.say(lang)} {INSTRUCTION}\t{answer}\n")
    return folder, english


def _write_pope(
    questions: Sequence[YesNoQuestion], lang: str, folder: Path, pictures: Path
) -> tuple[Path, Path | None]:
    """A file for each category, an object a line."""
    numbers: dict[str, int] = {}
    for question in questions:
        number = numbers[question.category] = numbers.get(question.category, 0) + 1
        record = {
            "question_id": number,
            "image": image_name(question.scene),
            "text": question.say(lang),
            "label": "yes" if question.yes else "no",
        }
        path = folder / f"{PREFIX}{question.category}.json"
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return folder, pictures


def _write_seed_bench(
    questions: Sequence[ChoiceQuestion], lang: str, folder: Path, pictures: Path
) -> tuple[Path, Path | None]:
    """One JSON file of questions, with the names of the dimensions."""
    rows: list[dict[str, Any]] = []
    for number, question in enumerate(questions):
        options, right = question.shown(lang)
        choices = {
            f"choice_{letter.lower()}": text
            for letter, text in zip(LETTERS[:NUM_OPTIONS], options, strict=True)
        }
        rows.append(
            {
                "question_id": str(number),
                "question": question.say(lang),
                **choices,
                "answer": LETTERS[right],
                "data_id": image_name(question.scene),
                "data_type": "image",
                "question_type_id": SEED_DIMENSIONS[question.category][0],
            }
        )
    types = {name: number for name, (number, _) in SEED_DIMENSIONS.items()}
    content = {"questions": rows, "question_type": types}
    path = folder / QUESTION_FILE
    path.write_text(json.dumps(content, ensure_ascii=False, indent=0), encoding="utf-8")
    return path, pictures


def _write_mmbench(
    questions: Sequence[ChoiceQuestion], lang: str, folder: Path, pictures: Path
) -> tuple[Path, Path | None]:
    """A TSV with a row for each rotation; all but the first take the picture of the first."""
    letters = LETTERS[:NUM_OPTIONS]
    header = ["index", "question", "hint", *letters, "answer", "category", "image"]
    lines = [[*header, "l2-category"]]
    for number, question in enumerate(questions):
        picture = (pictures / image_name(question.scene)).read_bytes()
        for rotation in range(len(question.options)):
            options, right = question.shown(lang, rotation)
            padded = options + [""] * (NUM_OPTIONS - len(options))
            lines.append(
                [
                    str(number + rotation * ROTATION),
                    question.say(lang),
                    "nan",
                    *padded,
                    LETTERS[right],
                    question.category,
                    str(number) if rotation else base64.b64encode(picture).decode(),
                    MMBENCH_ABILITIES[question.category][0],
                ]
            )
    path = folder / "mini_mmbench_dev.tsv"
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    return path, None


PATTERNS_FILE: Final = Path(__file__).parent / "mini.toml"
MME_IMAGES_PER_CATEGORY: Final = 30  # as MME has in its coarse categories
POPE_IMAGES: Final = 40
POPE_PER_ANSWER: Final = 3
SEED_PER_DIMENSION: Final = 50
MMBENCH_PER_CATEGORY: Final = 15
NUM_OPTIONS: Final = 4
Say = Callable[[str], str]


@dataclass(frozen=True)
class YesNoQuestion:
    """A question that is answered by yes or no.

    Attributes:
        category: As the benchmark calls it.
        scene: The picture.
        yes: Whether the answer is yes.
        say: From a language to the question.
    """

    category: str
    scene: Scene
    yes: bool
    say: Say


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with options, the right one first.

    Attributes:
        category: As the benchmark calls it.
        scene: The picture.
        say: From a language to the question.
        options: From a language to the options.
        order: Places of the options as they are shown.
    """

    category: str
    scene: Scene
    say: Say
    options: tuple[Say, ...]
    order: tuple[int, ...]

    def shown(self, lang: str, rotation: int = 0) -> tuple[list[str], int]:
        """Options as they are shown, and the place of the right one."""
        order = self.order[rotation:] + self.order[:rotation]
        return [self.options[place](lang) for place in order], order.index(0)


@cache
def patterns() -> Mapping[str, Mapping[str, str]]:
    """Sentence patterns by language."""
    return load_toml(PATTERNS_FILE)


def mini_languages() -> tuple[str, ...]:
    """The languages that have everything that the questions need."""
    return tuple(lang for lang in LANGUAGES if lang in patterns())


def _pattern(name: str, **values: Say) -> Say:
    def say(lang: str) -> str:
        found = {key: value(lang) for key, value in values.items()}
        return patterns()[lang][name].format(**found)

    return say


def _said(question: SceneQuestion, scene: Scene) -> Say:
    return lambda lang: render_question(question, scene, lang)[0]


def _rng(purpose: str, scene: Scene) -> random.Random:
    return random.Random(f"{purpose}/{scene.id}")


def _choice(rng: random.Random, items: Sequence[Any]) -> Any:
    return items[int(rng.random() * len(items))]


def mme_questions(scenes: Sequence[Scene]) -> Iterator[YesNoQuestion]:
    """Two questions about each picture, one to be answered by yes and one by no."""
    several = [scene for scene in scenes if len(scene.objects) > 1]
    for category, pair, eligible in (
        ("existence", _existence_pair, scenes),
        ("count", _count_pair, scenes),
        ("position", _position_pair, several),
        ("color", _color_pair, scenes[::-1]),
    ):
        for scene in eligible[:MME_IMAGES_PER_CATEGORY]:
            said = pair(scene, _rng(f"mini-mme/{category}", scene))
            for yes, say in zip((True, False), said, strict=True):
                yield YesNoQuestion(category, scene, yes, say)


def _existence_pair(scene: Scene, rng: random.Random) -> list[Say]:
    return [_said(existence_question(scene, there, rng), scene) for there in (True, False)]


def _count_pair(scene: Scene, rng: random.Random) -> list[Say]:
    right = len(scene.objects)
    wrong = _choice(rng, [number for number in range(1, 5) if number != right])
    return [_pattern("count", number=_number(number)) for number in (right, wrong)]


def _color_pair(scene: Scene, rng: random.Random) -> list[Say]:
    wrong = _choice(rng, [color for color in backgrounds() if color != scene.background])
    return [_pattern("color", color=_color(color)) for color in (scene.background, wrong)]


def _position_pair(scene: Scene, rng: random.Random) -> list[Say]:
    """The same thing where it is, and where something else is."""
    placed = _choice(rng, scene.objects)
    elsewhere = _choice(rng, [o.position for o in scene.objects if o.position != placed.position])
    thing = _thing(placed.concept)
    return [
        _pattern("position", thing=thing, position=_position(place))
        for place in (placed.position, elsewhere)
    ]


def _number(number: int) -> Say:
    return lambda lang: str(number)


def _thing(concept: str) -> Say:
    return lambda lang: noun_phrase(concept, lang)


def _name(concept: str) -> Say:
    return lambda lang: concepts_by_id()[concept].names[lang]


def _color(color: str) -> Say:
    return lambda lang: get_vocabulary(lang).color_answers[color]


def _position(position: str) -> Say:
    return lambda lang: get_vocabulary(lang).positions[position]


def _absent(scene: Scene) -> list[str]:
    """Concepts that a scene clearly does not show."""
    there = [placed.concept for placed in scene.objects]
    unclear = set(there).union(*(related_concepts()[name] for name in there))
    return [concept for concept in concept_ids() if concept not in unclear]


def pope_questions(scenes: Sequence[Scene]) -> Iterator[YesNoQuestion]:
    """For things that are there, as many that are not: any, frequent ones, likely companions."""
    frequency = Counter(placed.concept for scene in scenes for placed in scene.objects)
    companions: dict[str, Counter[str]] = {concept: Counter() for concept in concept_ids()}
    for scene in scenes:
        names = [placed.concept for placed in scene.objects]
        for name in names:
            companions[name].update(other for other in names if other != name)
    crowded = [scene for scene in scenes if len(scene.objects) >= POPE_PER_ANSWER]
    for category in ("random", "popular", "adversarial"):
        for scene in crowded[:POPE_IMAGES]:
            there = [placed.concept for placed in scene.objects][:POPE_PER_ANSWER]
            absent = _absent(scene)
            near: Counter[str] = Counter()
            for name in there:
                near.update(companions[name])
            rng = _rng("mini-pope", scene)
            ranks: dict[str, dict[str, float]] = {
                "random": {concept: rng.random() for concept in concept_ids()},
                "popular": {concept: -frequency[concept] for concept in concept_ids()},
                "adversarial": {concept: -near[concept] for concept in concept_ids()},
            }
            order = [(ranks[category][c], -frequency[c], c) for c in absent]
            not_there = [concept for *_, concept in sorted(order)[:POPE_PER_ANSWER]]
            for pair in zip(there, not_there, strict=True):
                for yes, concept in zip((True, False), pair, strict=True):
                    say = _said(SceneQuestion("existence", concept, 0), scene)
                    yield YesNoQuestion(category, scene, yes, say)


# Tasks with a question that has one short answer, by the dimension that asks it.
SEED_DIMENSIONS: Final = {
    "Instance Identity": (2, "naming"),
    "Instance Attributes": (3, "color"),
    "Instance Location": (4, "position"),
    "Instances Counting": (5, "counting"),
}
# Leaf ability, group of abilities, task.
MMBENCH_ABILITIES: Final = {
    "image_topic": ("coarse_perception", "naming"),
    "attribute_recognition": ("finegrained_perception (instance-level)", "color"),
    "object_localization": ("finegrained_perception (instance-level)", "position"),
    "object_counting": ("finegrained_perception (cross-instance)", "counting"),
}


def seed_questions(scenes: Sequence[Scene]) -> Iterator[ChoiceQuestion]:
    """Four options each, in the dimensions that scenes can be asked about."""
    for dimension, (_, task) in SEED_DIMENSIONS.items():
        for scene in _eligible(scenes, task)[:SEED_PER_DIMENSION]:
            yield _choice_question(scene, task, dimension, NUM_OPTIONS, "mini-seed")


def mmbench_questions(scenes: Sequence[Scene]) -> Iterator[ChoiceQuestion]:
    """Two to four options each, as MMBench has them."""
    for category, (_, task) in MMBENCH_ABILITIES.items():
        for number, scene in enumerate(_eligible(scenes[::-1], task)[:MMBENCH_PER_CATEGORY]):
            yield _choice_question(scene, task, category, 2 + number % 3, "mini-mmbench")


def _eligible(scenes: Sequence[Scene], task: str) -> list[Scene]:
    if task == "naming":
        return [scene for scene in scenes if len(scene.objects) == 1]
    if task == "position":
        return [scene for scene in scenes if len(scene.objects) > 1]
    return list(scenes)


def _choice_question(
    scene: Scene, task: str, category: str, num_options: int, purpose: str
) -> ChoiceQuestion:
    rng = _rng(f"{purpose}/{task}", scene)
    if task == "counting":
        question = counting_question(scene, rng)
        right, wrong = len(scene.objects), [n for n in range(1, 5) if n != len(scene.objects)]
        options = [_number(number) for number in (right, *_draw(rng, wrong, num_options - 1))]
    elif task == "color":
        question = color_question(scene, rng)
        others = [color for color in backgrounds() if color != scene.background]
        colors = (scene.background, *_draw(rng, others, num_options - 1))
        options = [_color(color) for color in colors]
    else:
        question = content_question(scene, rng)
        right_concept = next(
            placed.concept for placed in scene.objects if question.target in (None, placed.position)
        )
        # what lies elsewhere in the picture is the better wrong answer
        near = [p.concept for p in scene.objects if p.concept != right_concept]
        wrong_concepts = _distinct(right_concept, [*near, *_draw(rng, _absent(scene), 20)])
        options = [_name(c) for c in (right_concept, *wrong_concepts[: num_options - 1])]
    order = tuple(_draw(rng, range(num_options), num_options))
    return ChoiceQuestion(category, scene, _said(question, scene), tuple(options), order)


def _draw(rng: random.Random, items: Sequence[Any], num: int) -> list[Any]:
    """So many different ones, in random order."""
    ranked = sorted((rng.random(), place) for place in range(len(items)))
    return [items[place] for _, place in ranked[:num]]


def _distinct(right: str, concepts: Sequence[str]) -> list[str]:
    """Those whose names differ from the right one's, and from one another's, in all languages."""
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


_MAKERS: Final[Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]]] = {
    "mme": (mme_questions, _write_mme),
    "pope": (pope_questions, _write_pope),
    "seed_bench": (seed_questions, _write_seed_bench),
    "mmbench": (mmbench_questions, _write_mmbench),
}
