"""What a scene is, and how scenes are drawn so that test scenes show held-out combinations.

A combination is an unordered pair of concepts in one picture, or a concept alone with the colour
of the background. A hash assigns every combination to a split; a training scene holds training
combinations only, a test (validation) scene at least one test (validation) combination and none
of the other held-out split. Pure data: pictures are made in `render.py`, sentences in `text.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass

from llava.errors import DataError
from lrm_ext.corpus.emoji.concepts import backgrounds, concept_ids
from lrm_ext.corpus.emoji.packed import SCENES_FILE, packed_path

SPLITS = ("train", "val", "test")
TEST_PERMILLE = 80
VAL_PERMILLE = 40

# Number of objects and how often it occurs, in percent.
NUM_OBJECTS = {1: 30, 2: 35, 3: 20, 4: 15}

# Lengths and places are kept as thousandths of the canvas, so that recipes are exact text.
_UNIT = 1000
_SHADE_JITTER = 8
_QUADRANT_SIZES = (300, 460)
_SINGLE_SIZES = (400, 800)


@dataclass(frozen=True)
class Placed:
    """A concept in its place.

    Attributes:
        concept: Concept id.
        x: Horizontal centre, as a fraction of the canvas from its left edge.
        y: Vertical centre, as a fraction of the canvas from its top edge.
        size: Longer side of the picture, as a fraction of the canvas.
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
    """A picture's recipe.

    Attributes:
        id: Unique name, such as `train-000017`.
        split: One of `SPLITS`.
        background: Colour id.
        shade: The colour's realisation: red, green, blue, 0-255.
        objects: One to four different concepts, in reading order.
    """

    id: str
    split: str
    background: str
    shade: tuple[int, int, int]
    objects: tuple[Placed, ...]


def combinations(scene: Scene) -> tuple[tuple[str, str], ...]:
    """The combinations that a scene shows; each pair is sorted, or (concept, `on:<colour>`)."""
    return _combinations([placed.concept for placed in scene.objects], scene.background)


def _combinations(concepts: list[str], background: str) -> tuple[tuple[str, str], ...]:
    if len(concepts) == 1:
        return ((concepts[0], f"on:{background}"),)
    return tuple(itertools.combinations(sorted(concepts), 2))


def split_of_combination(combination: tuple[str, str]) -> str:
    """The split that a combination belongs to; a pure function of the two names."""
    digest = hashlib.sha256("|".join(combination).encode()).digest()
    permille = int.from_bytes(digest[:8], "big") % 1000
    if permille < TEST_PERMILLE:
        return "test"
    return "val" if permille < TEST_PERMILLE + VAL_PERMILLE else "train"


def split_of_combinations(combinations: Iterable[tuple[str, str]]) -> str | None:
    """The split that a scene with these combinations may be in; None if in no split."""
    held_out = {split_of_combination(c) for c in combinations} - {"train"}
    if len(held_out) > 1:
        return None
    return held_out.pop() if held_out else "train"


def sample_scene(rng: random.Random, split: str, scene_id: str | None = None) -> Scene:
    """Draw one scene of a split.

    The number of objects is drawn first and kept, so that holding combinations out does not
    make crowded training scenes rarer.

    Args:
        rng: Source of chance; only `random()` is used, which is the same in all Pythons.
        split: One of `SPLITS`.
        scene_id: Name of the scene; drawn from `rng` when left out.
    """
    assert split in SPLITS, split
    num_objects = _weighted(rng, NUM_OBJECTS)
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


def _weighted(rng: random.Random, weights: dict[int, int]) -> int:
    threshold = _below(rng, sum(weights.values()))
    for value, weight in weights.items():
        threshold -= weight
        if threshold < 0:
            return value
    raise AssertionError("weights are positive")


def _draw_concepts(rng: random.Random, num: int) -> list[str]:
    concepts = concept_ids()
    names: list[str] = []
    while len(names) < num:
        name = concepts[_below(rng, len(concepts))]
        if name not in names:
            names.append(name)
    return names


def _between(rng: random.Random, low: int, high: int) -> int:
    return low + _below(rng, high - low + 1)


def _place_single(rng: random.Random, name: str) -> Placed:
    size = _between(rng, *_SINGLE_SIZES)
    x, y = (_between(rng, size // 2, _UNIT - size // 2) for _ in range(2))
    return Placed(name, x / _UNIT, y / _UNIT, size / _UNIT, rng.random() < 0.5)


def _place_quadrants(rng: random.Random, names: list[str]) -> list[Placed]:
    """Put each concept wholly into its own quadrant."""
    free = [(0, 0), (500, 0), (0, 500), (500, 500)]
    objects = []
    for name in names:
        left, top = free.pop(_below(rng, len(free)))
        size = _between(rng, *_QUADRANT_SIZES)
        # one thousandth short of the far edge: a centre there would belong to the next quadrant
        x, y = (start + _between(rng, size // 2, 499 - size // 2) for start in (left, top))
        objects.append(Placed(name, x / _UNIT, y / _UNIT, size / _UNIT, rng.random() < 0.5))
    return objects


def scene_to_line(scene: Scene) -> str:
    """A scene as one line of the recipe file: id, background, shade and objects, by tabs."""
    objects = " ".join(
        f"{p.concept}:{round(p.x * _UNIT)}:{round(p.y * _UNIT)}:{round(p.size * _UNIT)}"
        + (":m" if p.mirrored else "")
        for p in scene.objects
    )
    return "\t".join((scene.id, scene.background, bytes(scene.shade).hex(), objects))


def scene_from_line(line: str, where: str) -> Scene:
    """Inverse of `scene_to_line`.

    Args:
        line: The text, without its end of line.
        where: `file:line`, for the error.

    Raises:
        DataError: The line is not a scene.
    """
    try:
        scene_id, background, shade, objects = line.split("\t")
        red, green, blue = bytes.fromhex(shade)
        scene = Scene(
            id=scene_id,
            split=scene_id.split("-")[0],
            background=background,
            shade=(red, green, blue),
            objects=tuple(_placed_from_text(text) for text in objects.split(" ")),
        )
    except ValueError as error:
        raise DataError(
            f"{where}: not a scene: {line[:80]!r} ({error}); restore the file from git."
        ) from error
    unknown = {p.concept for p in scene.objects} - set(concept_ids())
    if unknown or scene.split not in SPLITS or background not in backgrounds():
        raise DataError(
            f"{where}: scene {scene_id!r} has an unknown split, colour ({background!r}) or "
            f"concept ({sorted(unknown)}); restore the file from git."
        )
    return scene


def _placed_from_text(text: str) -> Placed:
    concept, x, y, size, *flags = text.split(":")
    if flags not in ([], ["m"]):
        raise ValueError(f"flags {flags}")
    return Placed(concept, int(x) / _UNIT, int(y) / _UNIT, int(size) / _UNIT, bool(flags))


def load_scenes(limit: int | None = None) -> tuple[Scene, ...]:
    """The recipes of the packed corpus, split by split.

    Args:
        limit: Take only the first so many of each split.

    Raises:
        DataError: The file is missing or damaged.
    """
    path = packed_path(SCENES_FILE)
    taken = dict.fromkeys(SPLITS, 0)
    scenes = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            scene = scene_from_line(line.rstrip("\n"), f"{path}:{number}")
            if limit is None or taken[scene.split] < limit:
                taken[scene.split] += 1
                scenes.append(scene)
    return tuple(scenes)
