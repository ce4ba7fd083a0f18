"""The things that scenes are made of: their names in all languages, categories and pictures.

Input: `data/concepts.toml` (which emoji, in which category) and the packed `concepts.json` and
sprites. Output: `Concept` records and RGBA pictures. Knows nothing of scenes or sentences.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lrm_ext.corpus.emoji.packed import CONCEPTS_FILE, SPRITES_DIR, load_toml, packed_path


@dataclass(frozen=True)
class Concept:
    """One thing that can lie in a picture.

    Attributes:
        id: English name with underscores.
        codepoint: The emoji's Unicode code point.
        category: Key of `categories()`.
        names: Unicode CLDR short name by language code: a singular noun without article.
    """

    id: str
    codepoint: int
    category: str
    names: Mapping[str, str]


@dataclass(frozen=True)
class Category:
    """A group of concepts.

    Attributes:
        id: Its name in our data files.
        asked: Whether there are questions about it.
        unclear: Categories whose presence makes "there is none of this" debatable.
        num_concepts: How many concepts it has.
    """

    id: str
    asked: bool
    unclear: tuple[str, ...]
    num_concepts: int


def iter_codepoints() -> Iterator[tuple[str, int, str]]:
    """(concept id, code point, category id) as the data file has them, in its order."""
    for category, entry in load_toml("concepts")["categories"].items():
        for concept, codepoint in entry["concepts"].items():
            yield concept, int(codepoint, 16), category


@functools.cache
def concept_ids() -> tuple[str, ...]:
    """The ids of all concepts, in the order of the data file."""
    return tuple(concept for concept, _, _ in iter_codepoints())


@functools.cache
def categories() -> Mapping[str, Category]:
    """All categories by id."""
    return {
        key: Category(
            id=key,
            asked=entry.get("asked", True),
            unclear=tuple(entry["unclear"]),
            num_concepts=len(entry["concepts"]),
        )
        for key, entry in load_toml("concepts")["categories"].items()
    }


@functools.cache
def load_concepts() -> tuple[Concept, ...]:
    """All concepts, in the order of the data file.

    Raises:
        DataError: The packed data is missing.
    """
    names = json.loads(packed_path(CONCEPTS_FILE).read_text(encoding="utf-8"))
    return tuple(
        Concept(id=concept, codepoint=codepoint, category=category, names=names[concept])
        for concept, codepoint, category in iter_codepoints()
    )


@functools.cache
def concepts_by_id() -> Mapping[str, Concept]:
    """All concepts by id."""
    return {concept.id: concept for concept in load_concepts()}


@functools.cache
def related_concepts() -> Mapping[str, frozenset[str]]:
    """For each concept, those whose word may cover it in some language."""
    related: dict[str, set[str]] = {concept.id: set() for concept in load_concepts()}
    for first, second in load_toml("concepts")["related"]["pairs"]:
        related[first].add(second)
        related[second].add(first)
    return {key: frozenset(value) for key, value in related.items()}


@functools.cache
def backgrounds() -> Mapping[str, tuple[int, int, int]]:
    """Background colours (red, green, blue; 0-255) by id."""
    return {key: (r, g, b) for key, (r, g, b) in load_toml("concepts")["backgrounds"].items()}


def sprite_file(concept_id: str) -> str:
    """Path of a concept's picture inside the packed data."""
    return f"{SPRITES_DIR}/{concept_id}.png"


def load_sprites() -> dict[str, Image.Image]:
    """Every concept's picture, RGBA, by concept id, cropped to what is not transparent.

    Raises:
        DataError: The packed data is missing.
    """
    return {
        concept.id: _load_sprite(packed_path(sprite_file(concept.id)))
        for concept in load_concepts()
    }


def _load_sprite(path: Path) -> Image.Image:
    with Image.open(path) as image:
        sprite = image.convert("RGBA")
    return sprite.crop(sprite.getchannel("A").getbbox())
