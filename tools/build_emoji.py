"""Implements `lrm corpus build-emoji`, which builds the packed corpus, the same bytes on every run.

Input: the emoji font of the Debian package `fonts-noto-color-emoji`, whose PNG bitmaps are copied,
and the CLDR annotations of the npm package `cldr-annotations-full`. Output: the committed files in
`playground/data/emoji_scenes/`, among them example images with conversations for the demo, the CLI
and the docs. The examples are test scenes, so a model has not seen them in training. Only the
example images depend on the version of a compressor or image library.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer
from PIL import Image
from rich.console import Console

from llava.data.sample import Sample
from llava.errors import DataError, run_command
from lrm_ext.emoji.conversations import IMAGE_PREFIX, SOURCE, question_turns
from lrm_ext.emoji.scenes import (
    CONCEPTS_FILE,
    LANGUAGES,
    NUM_OBJECTS,
    SCENES_FILE,
    SPLITS,
    Scene,
    iter_codepoints,
    load_scenes,
    load_sprites,
    packed_dir,
    render_scene,
    sample_scene,
    scene_to_line,
    sprite_file,
)
from lrm_ext.languages.registry import ENGLISH

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_PACKAGE = "fonts-noto-color-emoji"
CLDR_PACKAGE = "cldr-annotations-full@48.2.0"
# A language is left out if CLDR names fewer of the things.
MIN_NAMED = 0.9
# CLDR puts them around some names of right-to-left languages.
_DIRECTION_MARKS = dict.fromkeys(map(ord, "\u200e\u200f\u202a\u202b\u202c\u202d\u202e"))

SUMS_FILE = "SHA256SUMS"
NUM_SCENES = {"train": 24_000, "val": 600, "test": 600}
SEED = 20_240_601
EXAMPLES_DIR = "examples"
SAMPLE_FILE = f"{EXAMPLES_DIR}/llava_sample.json"
QUESTIONS_FILE = f"{EXAMPLES_DIR}/examples.json"
NUM_EXAMPLES = 12
SIZE_PX = 256


def build_files(annotations: Path) -> dict[str, bytes]:
    """Builds the generated files of the packed corpus, by relative path.

    Raises:
        DataError: A package is missing, or has no image or name for a concept.
    """
    files = {sprite_file(concept): data for concept, data in extract_sprites().items()}
    files[CONCEPTS_FILE] = _json(extract_names(annotations), 1)
    scenes = make_scenes()
    files[SCENES_FILE] = "".join(scene_to_line(scene) + "\n" for scene in scenes).encode()
    sums = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    files[SUMS_FILE] = "".join(sums).encode()
    return files


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Writes the packed corpus to a folder, leaving unchanged files alone."""
    for name, data in files.items():
        if not _is_same(folder / name, data):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


def differences(files: Mapping[str, bytes], folder: Path) -> list[str]:
    """Lists the files that differ in a folder: `<path>: missing` or `<path>: differs`."""
    found = [
        f"{name}: {'differs' if (folder / name).is_file() else 'missing'}"
        for name, data in sorted(files.items())
        if not _is_same(folder / name, data)
    ]
    stray = {f"sprites/{path.name}" for path in (folder / "sprites").glob("*")} - set(files)
    return found + [f"{name}: not part of the corpus" for name in sorted(stray)]


def _is_same(path: Path, data: bytes) -> bool:
    if not path.is_file():
        return False
    if path.parent.name != EXAMPLES_DIR or path.suffix != ".png":
        return path.read_bytes() == data
    # compares pixels, because the bytes of rendered images depend on the compressor's version
    with Image.open(path) as found, Image.open(io.BytesIO(data)) as built:
        return (found.mode, found.tobytes()) == (built.mode, built.tobytes())


def extract_sprites() -> dict[str, bytes]:
    """Extracts the PNG bitmap of every concept, 136 x 128, from the font.

    Raises:
        DataError: The font or a bitmap is missing.
    """
    from fontTools.ttLib import TTFont

    with TTFont(_existing_font(), lazy=True) as font:
        glyphs = font.getBestCmap()
        bitmaps = font["CBDT"].strikeData[0]
        sprites = {}
        for concept, codepoint, _ in iter_codepoints():
            glyph = glyphs.get(codepoint)
            if glyph not in bitmaps:
                raise DataError(f"{FONT}: no bitmap of U+{codepoint:04X} ({concept}).")
            sprites[concept] = bytes(bitmaps[glyph].imageData)
    return sprites


def extract_names(annotations: Path) -> dict[str, dict[str, str]]:
    """Extracts the CLDR short names of every concept, by language: those of the corpus come first.

    Args:
        annotations: The folder `annotations` of the npm package.

    Raises:
        DataError: The folder is missing, or it lacks a name in a language of the corpus.
    """
    if not (annotations / ENGLISH).is_dir():
        raise DataError(
            f"{annotations} has no folder {ENGLISH!r}; expected the annotations of CLDR: `npm pack "
            f"{CLDR_PACKAGE}`, unpack the archive and give --annotations package/annotations. "
            "(Only building needs it: the packed corpus is committed.)"
        )
    points = {concept: chr(codepoint) for concept, codepoint, _ in iter_codepoints()}
    names: dict[str, dict[str, str]] = {concept: {} for concept in points}
    for lang in (*LANGUAGES, *sorted({path.name for path in annotations.iterdir()} - {*LANGUAGES})):
        path = annotations / lang / "annotations.json"
        entries = json.loads(path.read_bytes())["annotations"].get("annotations", {})
        found = {
            # "केला, फल" is a banana and what that is, a fruit
            concept: entries[point]["tts"][0].translate(_DIRECTION_MARKS).partition(",")[0]
            for concept, point in points.items()
            if entries.get(point, {}).get("tts")
        }
        if lang in LANGUAGES and (missing := sorted(points.keys() - found.keys())):
            raise DataError(f"{path}: no short name of {', '.join(missing)}.")
        if len(found) >= MIN_NAMED * len(points):
            for concept, name in found.items():
                names[concept][lang] = name
    return names


def make_scenes() -> list[Scene]:
    """Samples the recipes of all scenes; no two splits share one."""
    scenes = []
    for split in SPLITS:
        rng = random.Random(f"{SEED}/{split}")
        for number in range(NUM_SCENES[split]):
            scenes.append(sample_scene(rng, split, f"{split}-{number:06d}"))
    return scenes


def _existing_font() -> Path:
    if not FONT.is_file():
        raise DataError(
            f"{FONT} is missing; it is in the Debian package {FONT_PACKAGE}: `sudo apt-get install "
            f"{FONT_PACKAGE}`. (Only building needs it: the packed corpus is committed.)"
        )
    return FONT


def _json(value: object, indent: int) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode()


def example_scenes(scenes: Sequence[Scene]) -> tuple[Scene, ...]:
    """Returns the example scenes: the first three test scenes of each size."""
    shown = Counter[int]()
    chosen = []
    for scene in scenes:
        if scene.split == "test":
            shown[len(scene.objects)] += 1
            if shown[len(scene.objects)] <= NUM_EXAMPLES // len(NUM_OBJECTS):
                chosen.append(scene)
    return tuple(chosen)


def example_files(scenes: Sequence[Scene]) -> dict[str, bytes]:
    """Builds the files of the examples, by path in the packed corpus.

    The LLaVA JSON has each example in English and in one other language; the questions that the
    demo offers are one for each example in every language.
    """
    files, records, questions = {}, [], {}
    sprites, others = load_sprites(), itertools.cycle(LANGUAGES[1:])
    for scene in example_scenes(scenes):
        image = f"{scene.id}.png"
        content = io.BytesIO()
        render_scene(scene, sprites, SIZE_PX).save(content, "PNG", optimize=True)
        files[f"{EXAMPLES_DIR}/{image}"] = content.getvalue()
        for lang in (LANGUAGES[0], next(others)):
            turns = question_turns(scene, lang)
            sample = Sample(f"{scene.id}-{lang}", image, turns, lang=lang, source=SOURCE)
            records.append(sample.to_record())
        questions[image] = {
            lang: question_turns(scene, lang)[0].text.removeprefix(IMAGE_PREFIX)
            for lang in LANGUAGES
        }
    return {**files, SAMPLE_FILE: _json(records, 2), QUESTIONS_FILE: _json(questions, 2)}


app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def build_emoji(
    annotations: Path = typer.Option(
        Path("package/annotations"), help=f"Folder of the npm package {CLDR_PACKAGE}."
    ),
    check: bool = typer.Option(False, help="Write nothing; compare with the committed files."),
) -> None:
    """Build the packed built-in corpus from the packages of Noto Emoji and CLDR."""
    folder = packed_dir()
    files = build_files(annotations)
    if not check:
        write_files(files, folder)
    # the sentences of examples use the packed names, which must be written before
    files |= example_files(load_scenes())
    if not check:
        write_files(files, folder)
    found = differences(files, folder)
    console = Console(highlight=False, soft_wrap=True)
    for line in found:
        console.print(f"[red]{line}[/]")
    size_kib = sum(map(len, files.values())) / 1024
    console.print(
        f"{folder}: {len(files)} files, {size_kib:,.0f} KiB, "
        + (f"{len(found)} differ from a fresh build" if found else "as a fresh build makes them")
    )
    raise typer.Exit(1 if found else 0)


if __name__ == "__main__":
    run_command(app)
