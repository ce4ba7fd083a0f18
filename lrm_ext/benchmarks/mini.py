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
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lrm_ext.benchmarks.folder import DESCRIPTION_FILE
from lrm_ext.benchmarks.importing import import_benchmark
from lrm_ext.benchmarks.items import LETTERS
from lrm_ext.benchmarks.mini_questions import (
    MMBENCH_ABILITIES,
    NUM_OPTIONS,
    PATTERNS_FILE,
    SEED_DIMENSIONS,
    ChoiceQuestion,
    YesNoQuestion,
    mini_languages,
    mmbench_questions,
    mme_questions,
    pope_questions,
    seed_questions,
)
from lrm_ext.benchmarks.mmbench import ROTATION
from lrm_ext.benchmarks.mme import INSTRUCTION
from lrm_ext.benchmarks.official.pope import PREFIX
from lrm_ext.benchmarks.official.seed_bench import QUESTION_FILE
from lrm_ext.benchmarks.prompts import QUESTION
from lrm_ext.corpus.emoji.scenes import load_scenes
from lrm_ext.corpus.emoji.unpack import COMPLETE_FILE, image_name, locked

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


_MAKERS: Final[Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]]] = {
    "mme": (mme_questions, _write_mme),
    "pope": (pope_questions, _write_pope),
    "seed_bench": (seed_questions, _write_seed_bench),
    "mmbench": (mmbench_questions, _write_mmbench),
}
