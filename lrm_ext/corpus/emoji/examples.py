"""A few committed pictures with their conversations, for the demo, the CLI and the documents.

Input: the first test scenes. Output: PNG pictures, a question for each, and one LLaVA JSON file,
which shows what a sample looks like in every language. Test scenes, so that a model that is shown
them has not seen them in training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from lrm_ext.corpus.emoji.concepts import load_sprites
from lrm_ext.corpus.emoji.conversations import IMAGE_PREFIX, conversation_sample, question_turns
from lrm_ext.corpus.emoji.packed import LANGUAGES
from lrm_ext.corpus.emoji.render import render_scene
from lrm_ext.corpus.emoji.scenes import Scene

EXAMPLES_DIR = "examples"
SAMPLE_FILE = f"{EXAMPLES_DIR}/llava_sample.json"
QUESTIONS_FILE = f"{EXAMPLES_DIR}/examples.json"
NUM_EXAMPLES = 12
SIZE_PX = 256


def example_scenes(scenes: Sequence[Scene]) -> tuple[Scene, ...]:
    """The scenes that are shown as examples: the first test scenes, three of each size."""
    quota = dict.fromkeys((1, 2, 3, 4), NUM_EXAMPLES // 4)
    chosen = []
    for scene in scenes:
        if scene.split == "test" and quota[len(scene.objects)]:
            quota[len(scene.objects)] -= 1
            chosen.append(scene)
    return tuple(chosen)


def sample_json(scenes: Sequence[Scene]) -> bytes:
    """LLaVA JSON: each example scene in English and in one of the other languages."""
    others = LANGUAGES[1:]
    records = []
    for number, scene in enumerate(example_scenes(scenes)):
        for lang in ("en", others[number % len(others)]):
            record = conversation_sample(scene, lang, f"{scene.id}.png").to_record()
            records.append({**record, "id": f"{scene.id}-{lang}"})
    return (json.dumps(records, ensure_ascii=False, indent=2) + "\n").encode()


def questions_json(scenes: Sequence[Scene]) -> bytes:
    """A question for each example picture in every language: what the demo offers."""
    questions = {
        f"{scene.id}.png": {
            lang: question_turns(scene, lang)[0].text.removeprefix(IMAGE_PREFIX)
            for lang in LANGUAGES
        }
        for scene in example_scenes(scenes)
    }
    return (json.dumps(questions, ensure_ascii=False, indent=2) + "\n").encode()


def text_files(scenes: Sequence[Scene]) -> dict[str, bytes]:
    """The text files of the examples, by path in the packed corpus."""
    return {SAMPLE_FILE: sample_json(scenes), QUESTIONS_FILE: questions_json(scenes)}


def write_pictures(scenes: Sequence[Scene], folder: Path) -> None:
    """Write the example pictures that are missing or show something else."""
    for path, picture in _pictures(scenes, folder):
        if not _shows(path, picture):
            path.parent.mkdir(exist_ok=True)
            picture.save(path, optimize=True)


def picture_differences(scenes: Sequence[Scene], folder: Path) -> list[str]:
    """Example pictures that are missing or show something else.

    Pixels are compared, not bytes: those depend on the version of the compressor.
    """
    return [
        f"{EXAMPLES_DIR}/{path.name}: missing or other pixels"
        for path, picture in _pictures(scenes, folder)
        if not _shows(path, picture)
    ]


def _pictures(scenes: Sequence[Scene], folder: Path) -> Iterator[tuple[Path, Image.Image]]:
    sprites = load_sprites()
    for scene in example_scenes(scenes):
        path = folder / EXAMPLES_DIR / f"{scene.id}.png"
        yield path, render_scene(scene, sprites, SIZE_PX)


def _shows(path: Path, picture: Image.Image) -> bool:
    if not path.is_file():
        return False
    with Image.open(path) as image:
        return image.mode == picture.mode and image.tobytes() == picture.tobytes()
