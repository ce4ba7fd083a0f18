"""MME's files: the released folder, LLaVA's bundle, Parquet or TSV (EVAL_SPEC 2).

A question's id here is `category/stem#ordinal`, its place among the two of its picture; in LLaVA's
bundle both share one id.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from llava.errors import DataError
from llava.eval.records import NUM_SHOWN, read_text
from lrm_ext.benchmarks.items import Item
from lrm_ext.benchmarks.mme import CATEGORIES, INSTRUCTION, bare_question
from lrm_ext.benchmarks.official.source import Questions, Source, cell, is_table
from lrm_ext.benchmarks.tables import read_rows

TEXT_FOLDER: Final = "questions_answers_YN"
IMAGE_FOLDER: Final = "images"
RELEASE: Final = "MME_Benchmark_release_version"
LABELS: Final = ("Yes", "No")
IMAGE_SUFFIXES: Final = (".jpg", ".png", ".jpeg", ".JPG", ".PNG")


def read(source: Source) -> Questions:
    """Read MME.

    Raises:
        DataError: A file is not as it must be, or the expected answers are not found.
    """
    if source.path.suffix == ".jsonl":
        return _bundle(source)
    if is_table(source.path):
        return Questions(tuple(_table(source)))
    return _folder(source, source.path)


def _item(
    source: Source, category: str, stem: str, ordinal: int, file: str, image: str,
    question: str, label: str, where: str,
) -> Item:  # fmt: skip
    if category not in CATEGORIES:
        raise DataError(f"{where}: unknown category {category!r}; known: {', '.join(CATEGORIES)}")
    if label not in LABELS:
        raise DataError(f"{where}: the answer is {label!r}; expected Yes or No")
    bare = _strip(question, source)
    return Item(
        question_id=f"{category}/{stem}#{ordinal}",
        image=image,
        text=source.prompt(bare),
        category=category,
        answer=label,
        lang=source.lang,
        answer_type="yesno",
        question=bare,
        image_id=f"{category}/{stem}",
        source_id=file,
    )


def _strip(question: str, source: Source) -> str:
    """The question without the request to answer yes or no, in English or its own language."""
    own = source.language.fixed_prompts.get("yes_no", INSTRUCTION)
    return bare_question(re.sub(rf"\s*{re.escape(own)}\s*$", "", question))


def _folder(source: Source, folder: Path) -> Questions:
    """The released folder: a file of two lines beside each picture, or in a folder of its own."""
    items: list[Item] = []
    without: list[str] = []
    root = source.images or folder
    present = [name for name in CATEGORIES if (folder / name).is_dir()]
    if not present:
        raise DataError(
            f"{folder}: none of MME's folders in it ({', '.join(CATEGORIES[:3])}, ...); expected "
            f"{RELEASE}"
        )
    for category in present:
        texts = folder / category / TEXT_FOLDER
        pictures = root / category / IMAGE_FOLDER
        texts = texts if texts.is_dir() else folder / category
        pictures = pictures if pictures.is_dir() else root / category
        paths = sorted(texts.glob("*.txt"))
        if not paths:
            raise DataError(f"{texts}: no .txt files with questions; is the benchmark complete?")
        for path in paths:
            image = _find_image(pictures, path.stem)
            if image is None:
                without.append(str(pictures / path.stem))
                continue
            relative = image.relative_to(root).as_posix()
            for ordinal, (question, label) in enumerate(_two_lines(path)):
                items.append(
                    _item(source, category, path.stem, ordinal, relative, relative, question,
                          label, f"{path}:{ordinal + 1}")
                )  # fmt: skip
    if without:
        raise DataError(
            f"{len(without)} pictures are missing: {', '.join(without[:NUM_SHOWN])}; expected "
            f"them with one of the endings {', '.join(IMAGE_SUFFIXES[:3])}"
        )
    return Questions(tuple(items), root)


def _find_image(folder: Path, stem: str) -> Path | None:
    found = (folder / f"{stem}{suffix}" for suffix in IMAGE_SUFFIXES)
    return next((path for path in found if path.is_file()), None)


def _two_lines(path: Path) -> list[tuple[str, str]]:
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    pairs = [tuple(line.rsplit("\t", 1)) for line in lines]
    if len(pairs) != 2 or any(len(pair) != 2 for pair in pairs):
        raise DataError(f"{path}: expected two lines of a question, a tab, and Yes or No")
    return [(str(pair[0]), str(pair[1]).strip()) for pair in pairs]


def _bundle(source: Source) -> Questions:
    """LLaVA's questions, without answers; those are in the released folder."""
    release = source.labels or source.path.parent / RELEASE
    gold = _folder(source, release)
    by_question = {(item.image_id, item.question): item for item in gold.items}
    items: list[Item] = []
    for where, row in read_rows(source.path):
        name = PurePosixPath(cell(row, "question_id", where))
        key = (f"{name.parts[0]}/{name.stem}", _strip(cell(row, "text", where), source))
        if key not in by_question:
            raise DataError(f"{where}: {release} has no question {key[1]!r} about {key[0]}")
        items.append(by_question[key])
    return Questions(tuple(items), gold.image_root)


def _table(source: Source) -> Iterator[Item]:
    """Parquet or TSV, a picture in each row."""
    ordinals: dict[tuple[str, str], int] = defaultdict(int)
    for where, row in read_rows(source.path):
        name = row.get("question_id") or row.get("image_path") or row.get("index")
        category = cell(row, "category", where)
        stem = PurePosixPath(str(name)).stem
        ordinal = ordinals[category, stem]
        ordinals[category, stem] += 1
        image = source.store.put(row.get("image"), where)
        yield _item(
            source, category, stem, ordinal, str(name), image, cell(row, "question", where),
            cell(row, "answer", where).strip().capitalize(), where,
        )  # fmt: skip
