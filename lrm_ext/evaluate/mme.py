"""MME: two yes/no questions about each picture, in fourteen categories.

Scores of a category go up to 200: the share of right answers, and the share of pictures with both
answers right, each in percent. The paper's figure is perception, the sum over ten categories.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from statistics import fmean
from typing import Any, Final

import numpy as np

from llava.errors import DataError
from llava.eval.eval_mme import COGNITION as MME_COGNITION
from llava.eval.eval_mme import PERCEPTION as MME_PERCEPTION
from llava.eval.eval_mme import parse_answer as parse_mme_answer
from llava.eval.records import NUM_SHOWN, read_text
from lrm_ext.evaluate.items import Item, short_answer_prompt
from lrm_ext.evaluate.kind import (
    LOCAL,
    Array,
    Judgement,
    Kind,
    Reading,
    UnitCounts,
    Verdict,
    gather,
    gold_of,
    judge_locally,
    pair_up,
    yes_no_language,
)
from lrm_ext.evaluate.official import Questions, Source, cell, is_table, read_rows

INSTRUCTION: Final = "Please answer yes or no."
POINTS_PER_CATEGORY: Final = 200
NUM_PER_IMAGE: Final = 2
CATEGORIES: Final = (*MME_PERCEPTION, *MME_COGNITION)
_LETTERS: Final = {"y": "yes", "n": "no"}
# What VLMEvalKit deletes or blanks; the asterisk and the colon are not among them.
_KIT_PUNCTUATION: Final = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER: Final = re.compile(r"\d,\d")
_STOP_OUTSIDE_NUMBER: Final = re.compile(r"(?<!\d)\.|\.(?!\d)")


def parse_lmms_eval(text: str) -> str:
    """Read `yes`, `no` or `other` as lmms-eval does."""
    text = text.lower().strip().replace(".", "")
    if len(text) == 1:
        return _LETTERS.get(text, "other")
    return parse_mme_answer(text)


def parse_vlmevalkit(text: str) -> str:
    """Read `yes`, `no` or `other` as VLMEvalKit does: a whole word, and not the other one.

    A mark that stands beside a blank anywhere in the text is deleted wherever it stands, and so is
    every mark where a number has a comma; other marks separate words.
    """
    text = text.lower()
    joins_all = _COMMA_IN_NUMBER.search(text) is not None
    table = {
        ord(mark): "" if joins_all or f"{mark} " in text or f" {mark}" in text else " "
        for mark in _KIT_PUNCTUATION
    }
    words = _STOP_OUTSIDE_NUMBER.sub("", text.translate(table)).split()
    if ("yes" in words) == ("no" in words):
        return "other"
    return "yes" if "yes" in words else "no"


def _judge(parse: Any) -> Any:
    def judge(item: Item, text: str, reading: Reading) -> Judgement:
        parsed = parse(text)
        correct = parsed == gold_of(item, reading.words)
        return Judgement(parsed, correct, yes_no_language(text, reading))

    return judge


def check(items: Sequence[Item], allow_missing: bool) -> int:
    """Demand two questions a picture, one with yes and one with no, in known categories.

    Returns:
        How many questions are missing; 0 unless they are allowed to be.

    Raises:
        DataError: A category is unknown, or a picture has other questions.
    """
    if unknown := sorted({item.category for item in items} - set(CATEGORIES)):
        raise DataError(
            f"mme: unknown category {', '.join(unknown)}; known: {', '.join(CATEGORIES)}"
        )
    pairs: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        pairs[item.unit].append(item)
    num_missing = 0
    for image, pair in pairs.items():
        if len(pair) < NUM_PER_IMAGE and allow_missing:
            num_missing += NUM_PER_IMAGE - len(pair)
        elif len(pair) != NUM_PER_IMAGE:
            raise DataError(
                f"mme: picture {image} has {len(pair)} questions, expected {NUM_PER_IMAGE}: "
                "one that expects yes and one that expects no"
            )
        elif len({item.answer.lower() for item in pair}) != NUM_PER_IMAGE:
            raise DataError(f"mme: both questions about picture {image} expect {pair[0].answer!r}")
    return num_missing


def count(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> UnitCounts:
    """Points and pictures by category of perception; pictures are drawn within a category."""
    rows: list[tuple[str, str, Mapping[int, float]]] = []
    present = {item.category for item in items}
    names: list[str] = [name for name in MME_PERCEPTION if name in present] or [
        name for name in MME_COGNITION if name in present
    ]
    for (category, image), right in _by_image(items, verdicts).items():
        if category in names:
            column = 2 * names.index(category)
            points = 100 * sum(right) / NUM_PER_IMAGE + 100 * _both(right)
            rows.append((image, category, {column: points, column + 1: 1.0}))
    return gather(rows, 2 * len(names), _sum_of_means)


def _sum_of_means(sums: Array) -> Array:
    """From (points, pictures) of each category to the sum of means."""
    result: Array = np.sum(sums[..., 0::2] / sums[..., 1::2], axis=-1)
    return result


def _by_image(
    items: Sequence[Item], verdicts: Sequence[Verdict]
) -> dict[tuple[str, str], list[bool]]:
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for item, verdict in pair_up(items, verdicts):
        right[item.category, item.unit].append(verdict.correct)
    return right


def _both(right: Sequence[bool]) -> bool:
    return len(right) == NUM_PER_IMAGE and all(right)


def details(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> dict[str, Any]:
    """Scores of the categories and the two sums, with their parts."""
    images: dict[str, list[list[bool]]] = defaultdict(list)
    for (category, _), right in _by_image(items, verdicts).items():
        images[category].append(right)
    parts: dict[str, dict[str, Any]] = {}
    for category in CATEGORIES:
        if category not in images:
            continue
        accuracy = fmean(100 * sum(right) / NUM_PER_IMAGE for right in images[category])
        plus = fmean(100.0 * _both(right) for right in images[category])
        of_category = [v for i, v in pair_up(items, verdicts) if i.category == category]
        parts[category] = {
            "score": accuracy + plus,
            "accuracy": accuracy,
            "accuracy_plus": plus,
            "num_images": len(images[category]),
            "num_other": sum(verdict.parsed == "other" for verdict in of_category),
        }
    scores = {category: part["score"] for category, part in parts.items()}
    return {
        "perception": sum(scores.get(name, 0.0) for name in MME_PERCEPTION),
        "cognition": sum(scores.get(name, 0.0) for name in MME_COGNITION),
        "per_category": scores,
        "categories": parts,
        "num_categories": len(parts),
        "num_categories_expected": len(CATEGORIES),
        "maximum_perception": POINTS_PER_CATEGORY * sum(name in parts for name in MME_PERCEPTION),
        "maximum_cognition": POINTS_PER_CATEGORY * sum(name in parts for name in MME_COGNITION),
        "yes_ratio": sum(verdict.parsed == "yes" for verdict in verdicts) / len(verdicts),
    }


def bare_question(text: str) -> str:
    """A question of MME's own files without its instruction; some have two blanks before it."""
    return " ".join(text.split("\n")[0].replace(INSTRUCTION, "").split())


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


MME: Final = Kind(
    name="mme",
    read=read,
    title="MME",
    headline="perception",
    maximum=POINTS_PER_CATEGORY * len(MME_PERCEPTION),
    answer_type="yesno",
    modes={
        "lmms-eval": _judge(parse_lmms_eval),
        "official": _judge(parse_mme_answer),
        "vlmevalkit": _judge(parse_vlmevalkit),
        LOCAL: judge_locally,
    },
    # LLaVA hands its answers to MME's own tool
    aliases={"llava": "official"},
    default_mode="lmms-eval",
    prompt=short_answer_prompt,
    check=check,
    count=count,
    details=details,
)
