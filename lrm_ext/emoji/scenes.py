"""Scenes of emoji: their concepts, words in every language, recipes and images.

The packed form is committed in `playground/data/emoji_scenes/`: one PNG for each concept, its names
in all languages, and the recipes of all scenes. `tools/build_emoji.py` creates it; `unpack.py`
turns it into images and conversations in the git-ignored `corpus/` next to it. Words and sentence
patterns are in the tables `scenes` of the language files, concepts in `data/concepts.toml`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import random
import string
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from llava.errors import ConfigError, DataError
from llava.files import load_toml
from lrm_ext.languages.registry import PAPER_LANGUAGES, get_language, list_languages

SPRITES_DIR = "sprites"
CONCEPTS_FILE = "concepts.json"
SCENES_FILE = "scenes.tsv"

_DATA_DIR = Path(__file__).parent / "data"
# The languages of the corpus unless others are asked for; English first.
LANGUAGES = PAPER_LANGUAGES
POSITIONS = ("top_left", "top_right", "bottom_left", "bottom_right")

# Number of patterns of each question, in every language, and their placeholders.
NUM_PATTERNS = {
    "caption": 3,
    "existence": 3,
    "naming": 2,
    "position": 2,
    "counting": 2,
    "color": 2,
}
_FIELDS = {"existence": {"thing"}, "position": {"position"}}
SPLITS = ("train", "val", "test")
TEST_PERMILLE = 80
VAL_PERMILLE = 40

# Frequency of each number of objects, in percent.
NUM_OBJECTS = {1: 30, 2: 35, 3: 20, 4: 15}

# Sizes and positions are thousandths of the canvas, so that recipes are exact text.
_UNIT = 1000
_SHADE_JITTER = 8
_QUADRANT_SIZES = (300, 460)
_SINGLE_SIZES = (400, 800)
DEFAULT_SIZE = 128


def packed_dir() -> Path:
    """Returns the folder of the packed corpus in this checkout."""
    return Path(__file__).resolve().parents[2] / "playground" / "data" / "emoji_scenes"


def packed_path(name: str) -> Path:
    """Returns the path of a packed file.

    Raises:
        DataError: The file does not exist.
    """
    path = packed_dir() / name
    if not path.exists():
        raise DataError(
            f"{path} is missing; it is part of the repository. Restore it with "
            f"`git checkout -- {packed_dir()}` or rebuild it with `lrm corpus build-emoji`."
        )
    return path


@functools.cache
def _concepts_file() -> dict[str, Any]:
    return load_toml(_DATA_DIR / "concepts.toml")


def available_languages() -> tuple[str, ...]:
    """Returns the languages with words and sentence patterns of the corpus, in registry order."""
    return tuple(code for code in list_languages() if get_language(code).scenes)


@dataclass(frozen=True)
class Concept:
    """A thing that a scene can show.

    Attributes:
        id: English name with underscores.
        codepoint: The emoji's Unicode code point.
        category: Key of `categories()`.
        names: Short name by language code, a singular noun without an article: that of the
            language's file (`[scenes.names]`), else Unicode CLDR's. It may lack languages, but not
            those of `LANGUAGES`.
    """

    id: str
    codepoint: int
    category: str
    names: Mapping[str, str]


@dataclass(frozen=True)
class Category:
    """A group of concepts.

    Attributes:
        id: Its name in the data files.
        asked: Whether there are questions about it.
        unclear: Categories whose presence makes a "no" debatable.
        num_concepts: Number of its concepts.
    """

    id: str
    asked: bool
    unclear: tuple[str, ...]
    num_concepts: int


def iter_codepoints() -> Iterator[tuple[str, int, str]]:
    """Yields (concept id, code point, category id) in the order of the data file."""
    for category, entry in _concepts_file()["categories"].items():
        for concept, codepoint in entry["concepts"].items():
            yield concept, int(codepoint, 16), category


@functools.cache
def concept_ids() -> tuple[str, ...]:
    """Returns the ids of all concepts, in the order of the data file."""
    return tuple(concept for concept, _, _ in iter_codepoints())


@functools.cache
def categories() -> Mapping[str, Category]:
    """Returns all categories by id."""
    found = {}
    for key, entry in _concepts_file()["categories"].items():
        unclear, num_concepts = tuple(entry["unclear"]), len(entry["concepts"])
        found[key] = Category(key, entry.get("asked", True), unclear, num_concepts)
    return found


@functools.cache
def load_concepts() -> tuple[Concept, ...]:
    """Returns all concepts, in the order of the data file.

    Raises:
        DataError: The packed data is missing.
    """
    names = json.loads(packed_path(CONCEPTS_FILE).read_text(encoding="utf-8"))
    for lang in available_languages():
        for concept, name in get_language(lang).scenes.get("names", {}).items():
            names.get(concept, {})[lang] = name
    return tuple(
        Concept(id=concept, codepoint=codepoint, category=category, names=names[concept])
        for concept, codepoint, category in iter_codepoints()
    )


@functools.cache
def concepts_by_id() -> Mapping[str, Concept]:
    """Returns all concepts by id."""
    return {concept.id: concept for concept in load_concepts()}


@functools.cache
def unnamed_concepts(lang: str) -> frozenset[str]:
    """Returns the ids of the concepts without a name in a language."""
    return frozenset(concept.id for concept in load_concepts() if lang not in concept.names)


@functools.cache
def related_concepts() -> Mapping[str, frozenset[str]]:
    """Returns, for each concept, those whose word may include it in some language."""
    pairs = _concepts_file()["related"]["pairs"]
    return {
        concept: frozenset(other for pair in pairs if concept in pair for other in pair) - {concept}
        for concept in concept_ids()
    }


@functools.cache
def backgrounds() -> Mapping[str, tuple[int, int, int]]:
    """Returns background colours (red, green, blue; 0-255) by id."""
    return {key: (r, g, b) for key, (r, g, b) in _concepts_file()["backgrounds"].items()}


def sprite_file(concept_id: str) -> str:
    """Returns the path of the image of a concept within the packed data."""
    return f"{SPRITES_DIR}/{concept_id}.png"


def load_sprites() -> dict[str, Image.Image]:
    """Loads the RGBA image of every concept by id, cropped to its opaque part.

    Raises:
        DataError: The packed data is missing.
    """
    sprites = {}
    for concept in concept_ids():
        with Image.open(packed_path(sprite_file(concept))) as image:
            sprite = image.convert("RGBA")
        sprites[concept] = sprite.crop(sprite.getchannel("A").getbbox())
    return sprites


@dataclass(frozen=True)
class Vocabulary:
    """The words and patterns of a language.

    Attributes:
        questions: Patterns by question.
        caption: Pattern of the answer to "caption".
        separator: Separator of list items.
        last: Separator before the last item.
        positions: Words for the four quadrants.
        categories: Category nouns, with an article where the language uses one.
        color_answers: Colour words as answers to the question "color".
        color_backgrounds: Colour words as in a caption.
        articles: Article of each concept with the space after it; empty without articles.
    """

    questions: Mapping[str, tuple[str, ...]]
    caption: str
    separator: str
    last: str
    positions: Mapping[str, str]
    categories: Mapping[str, str]
    color_answers: Mapping[str, str]
    color_backgrounds: Mapping[str, str]
    articles: Mapping[str, str]

    def join(self, parts: list[str]) -> str:
        """Joins a list in words: "a dog, a cat and a car"."""
        *head, tail = parts
        return self.separator.join(head) + self.last + tail if head else tail


@functools.cache
def get_vocabulary(lang: str) -> Vocabulary:
    """Returns the vocabulary of a language.

    Raises:
        ConfigError: The language is unknown, or the tables `scenes` of its file are incomplete.
    """
    if lang not in available_languages():
        raise ConfigError(
            f"the built-in corpus has no language {lang!r}; it has "
            f"{', '.join(available_languages())}. A language needs the tables [scenes.*] in its "
            "file (docs/languages.md)."
        )
    spoken = get_language(lang)
    data, where = spoken.scenes, f"{spoken.path}: scenes"
    listed = [
        (name, article) for article, names in data.get("articles", {}).items() for name in names
    ]
    if twice := [name for name, count in Counter(name for name, _ in listed).items() if count > 1]:
        raise ConfigError(f"{where}: {twice[0]!r} has two articles.")
    if unknown := sorted(data.get("names", {}).keys() - {*concept_ids()}):
        raise ConfigError(f"{where}.names.{unknown[0]}: there is no such thing in concepts.toml.")
    colors = {
        key: word if isinstance(word, dict) else {"answer": word, "background": word}
        for key, word in data.get("colors", {}).items()
    }
    try:
        vocabulary = Vocabulary(
            questions={key: tuple(value) for key, value in data["questions"].items()},
            caption=data["caption"]["answer"],
            separator=data["list"]["separator"],
            last=data["list"]["last"],
            positions=data["positions"],
            categories=data["categories"],
            color_answers={key: word["answer"] for key, word in colors.items()},
            color_backgrounds={key: word["background"] for key, word in colors.items()},
            articles=dict(listed),
        )
    except KeyError as error:
        raise ConfigError(f"{where} lacks the key {error}.") from error
    _check(vocabulary, where)
    return vocabulary


def _check(words: Vocabulary, where: str) -> None:
    asked = {key for key, category in categories().items() if category.asked}
    for section, found, expected in (
        ("questions", words.questions.keys(), NUM_PATTERNS.keys()),
        ("positions", words.positions.keys(), set(POSITIONS)),
        ("categories", words.categories.keys(), asked),
        ("colors", words.color_answers.keys(), backgrounds().keys()),
        ("articles", words.articles.keys(), set(concept_ids()) if words.articles else set()),
    ):
        if found != expected:
            raise ConfigError(
                f"{where}: [{section}] lacks {sorted(expected - found)} and has "
                f"{sorted(found - expected)} too many."
            )
    for question, patterns in words.questions.items():
        if len(patterns) != NUM_PATTERNS[question]:
            raise ConfigError(
                f"{where}: question {question!r} has {len(patterns)} patterns, expected "
                f"{NUM_PATTERNS[question]}, as in every language."
            )
        for pattern in patterns:
            _check_fields(pattern, _FIELDS.get(question, set()), where)
    _check_fields(words.caption, {"objects", "background"}, where)


def _check_fields(pattern: str, expected: set[str], where: str) -> None:
    found = {field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None}
    if found != expected:
        raise ConfigError(
            f"{where}: {pattern!r} has the placeholders {sorted(found)}, expected "
            f"{sorted(expected)}."
        )


@dataclass(frozen=True)
class Placed:
    """A concept at a position.

    Attributes:
        concept: Concept id.
        x: Horizontal centre, as a fraction of the canvas from its left edge.
        y: Vertical centre, as a fraction of the canvas from its top edge.
        size: Longer side of the sprite, as a fraction of the canvas.
        mirrored: Whether it is flipped left to right.
    """

    concept: str
    x: float
    y: float
    size: float
    mirrored: bool

    @property
    def position(self) -> str:
        """The quadrant of its centre, such as `top_left`."""
        return ("top" if self.y < 0.5 else "bottom") + ("_left" if self.x < 0.5 else "_right")


@dataclass(frozen=True)
class Scene:
    """The recipe of an image.

    Attributes:
        id: Unique name, such as `train-000017`.
        split: One of `SPLITS`.
        background: Colour id.
        shade: The exact colour: red, green, blue, 0-255.
        objects: One to four distinct concepts, in reading order.
    """

    id: str
    split: str
    background: str
    shade: tuple[int, int, int]
    objects: tuple[Placed, ...]


def combinations(scene: Scene) -> tuple[tuple[str, str], ...]:
    """Returns the combinations of a scene: sorted pairs, or (concept, `on:<colour>`)."""
    return _combinations([placed.concept for placed in scene.objects], scene.background)


def _combinations(concepts: list[str], background: str) -> tuple[tuple[str, str], ...]:
    if len(concepts) == 1:
        return ((concepts[0], f"on:{background}"),)
    return tuple(itertools.combinations(sorted(concepts), 2))


def split_of_combination(combination: tuple[str, str]) -> str:
    """Returns the split of a combination, a pure function of the two names."""
    digest = hashlib.sha256("|".join(combination).encode()).digest()
    permille = int.from_bytes(digest[:8], "big") % 1000
    if permille < TEST_PERMILLE:
        return "test"
    return "val" if permille < TEST_PERMILLE + VAL_PERMILLE else "train"


def split_of_combinations(combinations: Iterable[tuple[str, str]]) -> str | None:
    """Returns the split of a scene with these combinations; None if it fits no split."""
    held_out = {split_of_combination(c) for c in combinations} - {"train"}
    if len(held_out) > 1:
        return None
    return held_out.pop() if held_out else "train"


def sample_scene(rng: random.Random, split: str, scene_id: str | None = None) -> Scene:
    """Samples a scene of a split.

    The number of objects is sampled first and kept, so that holding out combinations does not make
    crowded training scenes rarer.

    Args:
        rng: Source of randomness; only `random()` is used, which is stable across Python versions.
        split: One of `SPLITS`.
        scene_id: Id of the scene; sampled from `rng` if omitted.
    """
    assert split in SPLITS, split
    limits = list(itertools.accumulate(NUM_OBJECTS.values()))
    num_objects = list(NUM_OBJECTS)[bisect_right(limits, _below(rng, limits[-1]))]
    while True:
        names = _draw_concepts(rng, num_objects)
        background = list(backgrounds())[_below(rng, len(backgrounds()))]
        if split_of_combinations(_combinations(names, background)) == split:
            break
    objects = [_place_single(rng, names[0])] if num_objects == 1 else _place_quadrants(rng, names)
    red, green, blue = (
        min(255, max(0, value + _below(rng, 2 * _SHADE_JITTER + 1) - _SHADE_JITTER))
        for value in backgrounds()[background]
    )
    return Scene(
        id=scene_id or f"{split}-{_below(rng, 1 << 32):08x}",
        split=split,
        background=background,
        shade=(red, green, blue),
        objects=tuple(sorted(objects, key=lambda p: (p.y >= 0.5, p.x >= 0.5))),
    )


def _below(rng: random.Random, limit: int) -> int:
    return int(rng.random() * limit)


def _draw_concepts(rng: random.Random, num: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < num:
        names[concept_ids()[_below(rng, len(concept_ids()))]] = None
    return list(names)


def _between(rng: random.Random, low: int, high: int) -> int:
    return low + _below(rng, high - low + 1)


def _place_single(rng: random.Random, name: str) -> Placed:
    size = _between(rng, *_SINGLE_SIZES)
    x, y = (_between(rng, size // 2, _UNIT - size // 2) for _ in range(2))
    return Placed(name, x / _UNIT, y / _UNIT, size / _UNIT, rng.random() < 0.5)


def _place_quadrants(rng: random.Random, names: list[str]) -> list[Placed]:
    """Places each concept entirely in its own quadrant."""
    free = [(0, 0), (500, 0), (0, 500), (500, 500)]
    objects = []
    for name in names:
        corner = free.pop(_below(rng, len(free)))
        size = _between(rng, *_QUADRANT_SIZES)
        # one thousandth short of the far edge: a centre there would belong to the next quadrant
        x, y = (start + _between(rng, size // 2, 499 - size // 2) for start in corner)
        objects.append(Placed(name, x / _UNIT, y / _UNIT, size / _UNIT, rng.random() < 0.5))
    return objects


def scene_to_line(scene: Scene) -> str:
    """Writes a scene as a line of the recipe file: id, background, shade, objects; with tabs."""
    objects = " ".join(
        f"{p.concept}:{round(p.x * _UNIT)}:{round(p.y * _UNIT)}:{round(p.size * _UNIT)}"
        + (":m" if p.mirrored else "")
        for p in scene.objects
    )
    return "\t".join((scene.id, scene.background, bytes(scene.shade).hex(), objects))


def scene_from_line(line: str, where: str) -> Scene:
    """Reads a scene from a line of the recipe file.

    Args:
        line: The line without its line break.
        where: `file:line`, for the error.

    Raises:
        DataError: The line is not a scene.
    """
    try:
        scene_id, background, shade, objects = line.split("\t")
        red, green, blue = bytes.fromhex(shade)
        placed = tuple(map(_placed_from_text, objects.split(" ")))
        split = scene_id.split("-")[0]
        if split not in SPLITS or background not in backgrounds():
            raise ValueError(f"split {split!r} or colour {background!r} is unknown")
    except ValueError as error:
        raise DataError(
            f"{where}: not a scene: {line[:80]!r} ({error}); restore the file from git."
        ) from error
    return Scene(scene_id, split, background, (red, green, blue), placed)


def _placed_from_text(text: str) -> Placed:
    concept, x, y, size, *flags = text.split(":")
    if flags not in ([], ["m"]) or concept not in concept_ids():
        raise ValueError(f"concept {concept!r} or flags {flags} are unknown")
    return Placed(concept, int(x) / _UNIT, int(y) / _UNIT, int(size) / _UNIT, bool(flags))


def image_name(scene: Scene) -> str:
    """Returns the path of the image of a scene below `images/`."""
    return f"{scene.split}/{scene.id}.jpg"


def load_scenes(limit: int | None = None) -> tuple[Scene, ...]:
    """Loads the recipes of the packed corpus, split by split.

    Args:
        limit: Maximum number of scenes of each split.

    Raises:
        DataError: The file is missing or damaged.
    """
    path = packed_path(SCENES_FILE)
    taken = Counter[str]()
    scenes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        split = line.partition("-")[0]
        if limit is None or taken[split] < limit:
            scenes.append(scene_from_line(line, f"{path}:{number}"))
            taken[split] += 1
    return tuple(scenes)


def render_scene(
    scene: Scene, sprites: Mapping[str, Image.Image], size: int = DEFAULT_SIZE
) -> Image.Image:
    """Renders a scene.

    Args:
        scene: The recipe.
        sprites: RGBA images by concept id, as from `load_sprites()`.
        size: Side of the square canvas in pixels.

    Returns:
        RGB image of `size` x `size` pixels.
    """
    canvas = Image.new("RGB", (size, size), scene.shade)
    for placed in scene.objects:
        sprite = sprites[placed.concept]
        factor = placed.size * size / max(sprite.size)
        shape = (max(1, round(sprite.width * factor)), max(1, round(sprite.height * factor)))
        # premultiplied, so that the colour of transparent pixels does not bleed into the edges
        sprite = sprite.convert("RGBa").resize(shape, Image.Resampling.BICUBIC).convert("RGBA")
        if placed.mirrored:
            sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left = round(placed.x * size - sprite.width / 2)
        top = round(placed.y * size - sprite.height / 2)
        canvas.paste(sprite, (left, top), sprite)
    return canvas
