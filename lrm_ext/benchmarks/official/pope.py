"""POPE's files: the annotations with COCO's pictures, LLaVA's bundle, Parquet or TSV (EVAL_SPEC 3).

A question's id here is `category/id`: the owner's ids begin anew in each category.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Final

from llava.errors import DataError
from lrm_ext.benchmarks.items import Item
from lrm_ext.benchmarks.official.source import Questions, Source, cell, is_table
from lrm_ext.benchmarks.pope import CATEGORIES
from lrm_ext.benchmarks.tables import read_rows

PREFIX: Final = "coco_pope_"
LABELS_FOLDER: Final = "coco"
IMAGE_FOLDERS: Final = ("val2014", "images")


def read(source: Source) -> Questions:
    """Read POPE.

    Raises:
        DataError: A file is not as it must be, or questions and annotations do not match.
    """
    if source.path.suffix == ".jsonl":
        questions = _bundle(source)
    elif is_table(source.path):
        questions = Questions(tuple(_table(source)))
    else:
        questions = _annotations(source, source.path)
    _refuse_repeated(questions, source.path)
    return questions


def _refuse_repeated(questions: Questions, path: Path) -> None:
    asked = Counter((item.category, item.image_id, item.question) for item in questions.items)
    if twice := [key for key, number in asked.items() if number > 1]:
        category, image, question = twice[0]
        raise DataError(
            f"{path}: {len(twice)} questions are asked twice in their category, such as "
            f"{question!r} about {image} in {category}"
        )


def mend(question: str) -> str:
    """The question without the instruction, and without the misspelling of one release."""
    return " ".join(question.split("\n")[0].replace("imange", "image").split())


def _item(
    source: Source, category: str, number: str, image: str, image_id: str, question: str,
    label: str, where: str,
) -> Item:  # fmt: skip
    if category not in CATEGORIES:
        raise DataError(f"{where}: unknown category {category!r}; known: {', '.join(CATEGORIES)}")
    if label not in ("yes", "no"):
        raise DataError(f"{where}: the label is {label!r}; expected yes or no")
    return Item(
        question_id=f"{category}/{number}",
        image=image,
        text=source.prompt(question.strip()),
        category=category,
        answer=label,
        lang=source.lang,
        answer_type="yesno",
        question=mend(question),
        image_id=image_id,
        source_id=number,
    )


def _annotations(source: Source, folder: Path) -> Questions:
    """`coco_pope_<category>.json`, an object a line; a file for one category will do, too."""
    paths = [folder / f"{PREFIX}{name}.json" for name in CATEGORIES]
    if folder.is_file():
        folder, paths = folder.parent, [folder]
    found = [path for path in paths if path.is_file()]
    if not found:
        raise DataError(
            f"{folder}: no {PREFIX}<category>.json; expected one for {', '.join(CATEGORIES)}"
        )
    items: list[Item] = []
    for path in found:
        category = path.stem.removeprefix(PREFIX)
        for where, row in read_rows(path):
            image = cell(row, "image", where)
            items.append(
                _item(source, category, cell(row, "question_id", where), image,
                      PurePosixPath(image).stem, cell(row, "text", where),
                      cell(row, "label", where), where)
            )  # fmt: skip
    return Questions(tuple(items), _image_root(source, folder))


def _image_root(source: Source, folder: Path) -> Path:
    if source.images is not None:
        return source.images
    for parent in (folder, folder.parent):
        for name in IMAGE_FOLDERS:
            if (parent / name).is_dir():
                return parent / name
    return folder


def _bundle(source: Source) -> Questions:
    """LLaVA's questions; their labels are joined by category, picture and question.

    Joined by position, the two releases of the random questions (2,910 and 3,000) would not fit.
    """
    labels = source.labels or source.path.parent / LABELS_FOLDER
    gold = _annotations(source, labels)
    known = {(i.category, i.image, i.question): i for i in gold.items}
    asked: Counter[str] = Counter()
    items: list[Item] = []
    for where, row in read_rows(source.path):
        key = (
            cell(row, "category", where),
            cell(row, "image", where),
            mend(cell(row, "text", where)),
        )
        if key not in known:
            raise DataError(
                f"{where}: {labels} has no question {key[2]!r} about {key[1]} in {key[0]}"
            )
        asked[key[0]] += 1
        items.append(replace(known[key], source_id=cell(row, "question_id", where)))
    for category, number in Counter(item.category for item in gold.items).items():
        if asked[category] != number:
            raise DataError(
                f"{labels}: {number} labels in {category}, but {asked[category]} questions; use "
                "the release of the annotations that the question file was made from"
            )
    return Questions(tuple(items), _image_root(source, source.path.parent))


def _table(source: Source) -> Iterator[Item]:
    """Parquet or TSV; a question that several categories share is one of each."""
    for where, row in read_rows(source.path):
        image = source.store.put(row.get("image"), where)
        number = str(row.get("question_id") or row.get("index") or row.get("id"))
        image_id = str(row.get("image_source") or PurePosixPath(image).stem)
        for category in cell(row, "category", where).split(","):
            yield _item(
                source, category.strip(), number, image, image_id, cell(row, "question", where),
                cell(row, "answer", where).strip().lower(), where,
            )  # fmt: skip
