"""Makes the packed corpus from two Debian packages, the same bytes on every run.

Input: the emoji font of `fonts-noto-color-emoji` (its PNG bitmaps are copied as they are) and the
CLDR annotations of `unicode-cldr-core`. Output: the files under `playground/data/emoji_scenes/`
that are committed. Nothing here depends on the version of a compressor or of an image library.
"""

from __future__ import annotations

import hashlib
import json
import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

from llava.errors import DataError
from lrm_ext.corpus.emoji.concepts import iter_codepoints, sprite_file
from lrm_ext.corpus.emoji.packed import CONCEPTS_FILE, LANGUAGES, SCENES_FILE
from lrm_ext.corpus.emoji.scenes import SPLITS, Scene, sample_scene, scene_to_line

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
ANNOTATIONS_DIR = Path("/usr/share/unicode/cldr/common/annotations")
FONT_PACKAGE = "fonts-noto-color-emoji"
CLDR_PACKAGE = "unicode-cldr-core"

SUMS_FILE = "SHA256SUMS"
NUM_SCENES = {"train": 24_000, "val": 600, "test": 600}
SEED = 20_240_601


def build_files() -> dict[str, bytes]:
    """All files of the packed corpus that are made by rule, by relative path.

    Raises:
        DataError: A Debian package is missing, or holds no picture or name for a concept.
    """
    files = {sprite_file(concept): data for concept, data in extract_sprites().items()}
    files[CONCEPTS_FILE] = _json(extract_names())
    scenes = make_scenes()
    files[SCENES_FILE] = "".join(scene_to_line(scene) + "\n" for scene in scenes).encode()
    sums = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    files[SUMS_FILE] = "".join(sums).encode()
    return files


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Write the packed corpus into a folder; files that are right already are left alone."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != data:
            path.write_bytes(data)


def differences(files: Mapping[str, bytes], folder: Path) -> list[str]:
    """What is not the same in a folder: `<path>: missing` or `<path>: differs`."""
    found = []
    for name, data in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            found.append(f"{name}: missing")
        elif path.read_bytes() != data:
            found.append(f"{name}: differs ({path.stat().st_size} bytes, built {len(data)})")
    stray = {f"sprites/{path.name}" for path in (folder / "sprites").glob("*")} - set(files)
    return found + [f"{name}: not part of the corpus" for name in sorted(stray)]


def extract_sprites() -> dict[str, bytes]:
    """The PNG bitmap of every concept, 136 x 128, as the font holds it.

    Raises:
        DataError: The font or a picture is missing.
    """
    from fontTools.ttLib import TTFont

    with TTFont(_existing(FONT, FONT_PACKAGE), lazy=True) as font:
        glyphs = font.getBestCmap()
        bitmaps = font["CBDT"].strikeData[0]
        sprites = {}
        for concept, codepoint, _ in iter_codepoints():
            glyph = glyphs.get(codepoint)
            if glyph not in bitmaps:
                raise DataError(f"{FONT}: no picture of U+{codepoint:04X} ({concept}).")
            sprites[concept] = bytes(bitmaps[glyph].imageData)
    return sprites


def extract_names() -> dict[str, dict[str, str]]:
    """The CLDR short name of every concept in every language.

    Raises:
        DataError: An annotation file or a name is missing.
    """
    names: dict[str, dict[str, str]] = {concept: {} for concept, _, _ in iter_codepoints()}
    for lang in LANGUAGES:
        path = _existing(ANNOTATIONS_DIR / f"{lang}.xml", CLDR_PACKAGE)
        short_names = {
            element.get("cp"): element.text
            for element in ElementTree.parse(path).iter("annotation")
            if element.get("type") == "tts"
        }
        for concept, codepoint, _ in iter_codepoints():
            name = short_names.get(chr(codepoint))
            if not name:
                raise DataError(f"{path}: no short name of U+{codepoint:04X} ({concept}).")
            names[concept][lang] = name
    return names


def make_scenes() -> list[Scene]:
    """The recipes of all scenes; no two splits share one."""
    scenes = []
    for split in SPLITS:
        rng = random.Random(f"{SEED}/{split}")
        scenes += [
            sample_scene(rng, split, f"{split}-{number:06d}") for number in range(NUM_SCENES[split])
        ]
    return scenes


def _existing(path: Path, package: str) -> Path:
    if not path.is_file():
        raise DataError(
            f"{path} is missing; it is in the Debian package {package}: "
            f"`sudo apt-get install {package}`. (Only building needs it: the packed corpus is "
            "committed.)"
        )
    return path


def _json(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()
