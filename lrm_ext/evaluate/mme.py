"""MME: two yes/no questions about each image, in fourteen categories.

Scores of a category go up to 200: the share of right answers, and the share of images with both
answers right, each in percent. The paper's figure is perception, the sum over ten categories.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from statistics import fmean
from typing import Any, Final

from llava.errors import DataError
from llava.eval.eval_mme import COGNITION, PERCEPTION
from llava.eval.eval_mme import parse_answer as parse_official
from llava.eval.records import read_text, refuse_missing
from lrm_ext.evaluate.items import Item, stated_gold
from lrm_ext.evaluate.kind import (
    LOCAL,
    AnswerLine,
    Array,
    Kind,
    UnitCounts,
    Verdict,
    gather,
    judge_by,
    judge_locally,
    refuse_categories,
)
from lrm_ext.evaluate.official import IMAGE_SUFFIXES, Files, Questions, Row, Source, cell
from lrm_ext.evaluate.reading import yes_no_vlmevalkit

INSTRUCTION: Final = "Please answer yes or no."
POINTS_PER_CATEGORY: Final = 200
CATEGORIES: Final = (*PERCEPTION, *COGNITION)
TEXT_FOLDER: Final = "questions_answers_YN"
IMAGE_FOLDER: Final = "images"
RELEASE: Final = "MME_Benchmark_release_version"


def parse_lmms_eval(text: str) -> str:
    """Reads `yes`, `no` or `other` as lmms-eval does."""
    text = text.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "other")
    return parse_official(text)


def check(items: Sequence[Item], allow_missing: bool) -> int:
    """Demands two questions an image, one with yes and one with no, in known categories.

    Raises:
        DataError: A category is unknown, or an image has other questions.
    """
    refuse_categories(items, CATEGORIES, "mme")
    answers: dict[str, list[str]] = defaultdict(list)
    for item in items:
        answers[item.unit].append(item.answer.lower())
    num_missing = 0
    for image, expected in answers.items():
        if len(expected) == 1 and allow_missing:
            num_missing += 1
        elif len(expected) != 2 or len(set(expected)) != 2:
            raise DataError(
                f"mme: image {image} has {len(expected)} questions, which expect "
                f"{', '.join(expected)}; expected two, one with yes and one with no"
            )
    return num_missing


def _right_by_image(verdicts: Iterable[Verdict]) -> Mapping[str, Mapping[str, list[bool]]]:
    """Returns by category and image which answers are right; categories in MME's order."""
    found: dict[str, dict[str, list[bool]]] = {name: defaultdict(list) for name in CATEGORIES}
    for verdict in verdicts:
        found[verdict.category][verdict.unit].append(verdict.correct)
    return {category: images for category, images in found.items() if images}


def _accuracy(right: Sequence[bool]) -> float:
    return 100 * sum(right) / 2


def _accuracy_plus(right: Sequence[bool]) -> float:
    return 100.0 * (sum(right) == 2)


def count(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> UnitCounts:
    """Counts points and images by category of perception; images are drawn within a category."""
    found = _right_by_image(verdicts)
    names = [name for name in PERCEPTION if name in found] or list(found)
    rows = (
        (image, name, {2 * i: _accuracy(right) + _accuracy_plus(right), 2 * i + 1: 1.0})
        for i, name in enumerate(names)
        for image, right in found[name].items()
    )
    return gather(rows, 2 * len(names), _sum_of_means)


def _sum_of_means(sums: Array) -> Array:
    """Turns (points, images) of each category into the sum of means."""
    return (sums[..., 0::2] / sums[..., 1::2]).sum(axis=-1)


def details(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> dict[str, Any]:
    """Returns scores of the categories and the two sums, with their parts."""
    num_other = Counter(v.category for v in verdicts if v.parsed == "other")
    parts: dict[str, dict[str, Any]] = {}
    for category, images in _right_by_image(verdicts).items():
        accuracy = fmean(map(_accuracy, images.values()))
        plus = fmean(map(_accuracy_plus, images.values()))
        parts[category] = {
            "score": accuracy + plus,
            "accuracy": accuracy,
            "accuracy_plus": plus,
            "num_images": len(images),
            "num_other": num_other[category],
        }
    scores = {category: part["score"] for category, part in parts.items()}
    return {
        "perception": sum(scores.get(name, 0.0) for name in PERCEPTION),
        "cognition": sum(scores.get(name, 0.0) for name in COGNITION),
        "per_category": scores,
        "categories": parts,
        "num_categories": len(parts),
        "num_categories_expected": len(CATEGORIES),
        "maximum_perception": POINTS_PER_CATEGORY * sum(name in parts for name in PERCEPTION),
        "maximum_cognition": POINTS_PER_CATEGORY * sum(name in parts for name in COGNITION),
        "yes_ratio": sum(verdict.parsed == "yes" for verdict in verdicts) / len(verdicts),
    }


def bare_question(text: str) -> str:
    """Returns a question of MME's files without its instruction and repeated blanks."""
    return " ".join(text.split("\n")[0].replace(INSTRUCTION, "").split())


def image_of(path: str) -> str:
    """Returns `category/stem` of an image, whose files lie in one of two places."""
    parts = PurePosixPath(path)
    return f"{parts.parts[0]}/{parts.stem}" if parts.parts else ""


def keys_of(lines: Sequence[AnswerLine]) -> list[str]:
    """Numbers the questions about an image, which share an id, by wording and expected answer."""
    asked: dict[str, list[str]] = defaultdict(list)
    keys: list[str] = []
    for key, line in lines:
        if "key" not in line:
            prompt = f"{line.get('prompt') or ''}\t{stated_gold(line)}"
            if prompt not in asked[key]:
                asked[key].append(prompt)
            key = f"{image_of(key)}#{asked[key].index(prompt)}"
        keys.append(key)
    return keys


def wording_of(key: str, line: Mapping[str, Any]) -> tuple[str, str]:
    """Returns image and wording of a question from the line of its answer."""
    return image_of(key.split("#")[0]), bare_question(str(line.get("prompt", "")))


def complete(item: Item) -> Item:
    """Fills in image and category from a question's id."""
    image = item.image_id or item.question_id.rsplit("#", 1)[0]
    return replace(item, image_id=image, category=item.category or image.split("/")[0])


def _bare(source: Source, text: str) -> str:
    """Returns a question without the request for yes or no, in English or its own language."""
    own = source.language.fixed_prompts.get("yes_no", INSTRUCTION)
    return bare_question(re.sub(rf"\s*{re.escape(own)}\s*$", "", text))


def _item(
    source: Source, category: str, stem: str, ordinal: int, file: str, image: str,
    question: str, label: str,
) -> Item:  # fmt: skip
    return source.item(
        f"{category}/{stem}#{ordinal}",
        image,
        _bare(source, question),
        label.strip().capitalize(),
        "yesno",
        category=category,
        image_id=f"{category}/{stem}",
        source_id=file,
    )


def _read_release(source: Source, folder: Path) -> Questions:
    """Reads the released folder: two lines of text for each image, beside it or in a folder."""
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
        texts, images = folder / category / TEXT_FOLDER, root / category / IMAGE_FOLDER
        texts = texts if texts.is_dir() else texts.parent
        images = images if images.is_dir() else images.parent
        paths = sorted(texts.glob("*.txt"))
        if not paths:
            raise DataError(f"{texts}: no .txt files with questions; is the benchmark complete?")
        for path in paths:
            named = (images / f"{path.stem}{suffix}" for suffix in IMAGE_SUFFIXES)
            image = next((one.relative_to(root).as_posix() for one in named if one.is_file()), "")
            if not image:
                without.append(str(images / path.stem))
            lines = [line.rsplit("\t", 1) for line in read_text(path).splitlines() if line.strip()]
            if [len(line) for line in lines] != [2, 2]:
                raise DataError(f"{path}: expected two lines of a question, a tab, and Yes or No")
            items += [
                _item(source, category, path.stem, ordinal, image, image, question, label)
                for ordinal, (question, label) in enumerate(lines)
            ]
    ends = ", ".join(IMAGE_SUFFIXES[:3])
    refuse_missing("images are missing", without, f"expected them with one of the endings {ends}")
    return Questions(tuple(items), root)


def _row_key(source: Source, row: dict[str, Any], where: str) -> Hashable:
    return image_of(cell(row, "question_id", where)), _bare(source, cell(row, "text", where))


def _read_table(source: Source, rows: Iterable[Row]) -> Iterator[Item]:
    ordinals: Counter[tuple[str, str]] = Counter()
    for where, row in rows:
        name = str(row.get("question_id") or row.get("image_path") or row.get("index"))
        category, stem = cell(row, "category", where), PurePosixPath(name).stem
        image = source.store.put(row.get("image"), where)
        question, label = cell(row, "question", where), cell(row, "answer", where)
        yield _item(source, category, stem, ordinals[category, stem], name, image, question, label)
        ordinals[category, stem] += 1


MME: Final = Kind(
    name="mme",
    title="MME",
    headline="perception",
    maximum=POINTS_PER_CATEGORY * len(PERCEPTION),
    answer_type="yesno",
    modes={
        "lmms-eval": partial(judge_by, parse_lmms_eval),
        "official": partial(judge_by, parse_official),
        "vlmevalkit": partial(judge_by, yes_no_vlmevalkit),
        LOCAL: judge_locally,
    },
    # LLaVA hands its answers to MME's own tool
    aliases={"llava": "official"},
    default_mode="lmms-eval",
    check_together=check,
    keys_of=keys_of,
    wording_of=wording_of,
    complete=complete,
    count=count,
    details=details,
    files=Files(
        read_table=_read_table,
        read_own=_read_release,
        labels=RELEASE,
        item_key=lambda item: (item.image_id, item.question),
        row_key=_row_key,
        is_whole=False,
    ),
)
