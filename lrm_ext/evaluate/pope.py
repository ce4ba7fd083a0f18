"""POPE: is a thing in the image? There are three ways of choosing things that are not there.

The paper's figure is the mean of the three F1s, in percent; "yes" is positive.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from llava.errors import DataError
from llava.eval.eval_pope import PopeScore
from llava.eval.eval_pope import parse_answer as parse_official
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.kind import (
    LOCAL,
    MISSING,
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
from lrm_ext.evaluate.official import Files, Questions, Row, Source, cell, read_rows
from lrm_ext.evaluate.reading import yes_no_vlmevalkit

log = logging.getLogger(__name__)
CATEGORIES: Final = ("random", "popular", "adversarial")
# Questions that are not marked with a category are one set of their own.
UNNAMED: Final = "all"
UNPARSED: Final = "unparsed"
LMMS_EVAL: Final = "lmms-eval"
VLMEVALKIT: Final = "vlmevalkit"
PREFIX: Final = "coco_pope_"
IMAGE_FOLDERS: Final = ("val2014", "images")
_CELLS: Final = ("tp", "fp", "fn")


def parse_lmms_eval(text: str) -> str | None:
    """Reads `yes` or `no` as lmms-eval does: nothing else may be said."""
    text = text.strip().lower()
    return text if text in ("yes", "no") else None


def cell_of(gold: str, parsed: str, mode: str) -> str | None:
    """Returns where an answer counts: `tp`, `fp`, `tn`, `fn`, or nowhere.

    An answer that says neither counts as the wrong one. lmms-eval leaves it out of precision and
    recall, VLMEvalKit takes it for a no; in accuracy it is wrong everywhere. A question without an
    answer is wrong in every mode.
    """
    if parsed == UNPARSED and mode == LMMS_EVAL:
        return None
    if parsed == UNPARSED and mode == VLMEVALKIT:
        parsed = "no"
    elif parsed in (UNPARSED, MISSING):
        parsed = "no" if gold == "yes" else "yes"
    return ("t" if parsed == gold else "f") + ("p" if parsed == "yes" else "n")


def check(items: Sequence[Item], allow_missing: bool) -> int:
    """Demands the three categories, or none at all.

    Raises:
        DataError: A category is unknown.
    """
    if any(item.category != UNNAMED for item in items):
        refuse_categories(items, CATEGORIES, "pope")
    return 0


def _by_category(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    groups: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        groups[verdict.category].append(verdict)
    return {name: groups[name] for name in (*CATEGORIES, UNNAMED) if name in groups}


def count(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> UnitCounts:
    """Counts true and false yes and false no by category; images are drawn for all at once."""
    groups = _by_category(verdicts).values()
    rows = ((v.unit, "", _amounts(v, i, mode)) for i, group in enumerate(groups) for v in group)
    return gather(rows, 3 * len(groups), _mean_f1)


def _amounts(verdict: Verdict, number: int, mode: str) -> dict[int, float]:
    found = cell_of(verdict.gold, verdict.parsed, mode)
    return {3 * number + _CELLS.index(found): 1.0} if found in _CELLS else {}


def _mean_f1(sums: Array) -> Array:
    """Turns (true yes, false yes, false no) of each category into the mean F1 in percent."""
    true_yes, false_yes, false_no = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    whole = 2 * true_yes + false_yes + false_no
    f1 = np.divide(2 * true_yes, whole, out=np.zeros_like(whole), where=true_yes > 0)
    return 100.0 * f1.mean(axis=-1)


def _score(verdicts: Sequence[Verdict], mode: str) -> dict[str, Any]:
    """Returns counts and rates of some questions."""
    cells = Counter(cell_of(v.gold, v.parsed, mode) for v in verdicts)
    counted = PopeScore(*(cells[name] for name in ("tp", "fp", "tn", "fn")))
    num = len(verdicts)
    rates = {
        **{name.upper(): value for name, value in asdict(counted).items()},
        "accuracy": sum(verdict.correct for verdict in verdicts) / num,
        "precision": counted.precision,
        "recall": counted.recall,
        "f1": counted.f1,
        "yes_ratio": sum(verdict.parsed == "yes" for verdict in verdicts) / num,
        "num_questions": num,
    }
    if mode == LMMS_EVAL:
        # what lmms-eval prints as the share of yes is that of the expected answers
        rates["yes_ratio_gt"] = sum(verdict.gold == "yes" for verdict in verdicts) / num
    return rates


def details(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> dict[str, Any]:
    """Returns rates of each category and of all questions together, and the mean F1."""
    parts = {name: _score(group, mode) for name, group in _by_category(verdicts).items()}
    if without := [name for name, part in parts.items() if not part["TP"]]:
        log.warning(
            "pope, read as %s: no object was recognised in %s; rates without a denominator are 0",
            mode, ", ".join(without),
        )  # fmt: skip
    return {
        **(next(iter(parts.values())) if len(parts) == 1 else {}),
        "mean_f1": sum(part["f1"] for part in parts.values()) / len(parts),
        "per_category": {name: part["f1"] for name, part in parts.items()},
        "categories": parts,
        "num_categories": len(parts),
        "num_categories_expected": len(CATEGORIES),
        "pooled": _score(verdicts, mode),
    }


def normalise_question(question: str) -> str:
    """Returns the question without the instruction and the misspelling of one release."""
    return " ".join(question.split("\n")[0].replace("imange", "image").split())


def keys_of(lines: Sequence[AnswerLine]) -> list[str]:
    """Numbers the questions of each category, where ids are unique."""
    return [
        f"{line['category']}/{key}" if "key" not in line and line.get("category") else key
        for key, line in lines
    ]


def complete(item: Item) -> Item:
    """Fills in the category from a question's id."""
    prefix = item.question_id.split("/")[0]
    return replace(item, category=item.category or (prefix if prefix in CATEGORIES else UNNAMED))


def _item(
    source: Source, category: str, number: str, image: str, image_id: str, question: str, label: str
) -> Item:
    item = source.item(
        f"{category}/{number}", image, question.strip(), label.strip().lower(), "yesno",
        category=category, image_id=image_id, source_id=number,
    )  # fmt: skip
    return replace(item, question=normalise_question(question))


def _read_annotations(source: Source, path: Path) -> Questions:
    """Reads `coco_pope_<category>.json`, an object a line; one file for one category will do."""
    paths = [path] if path.is_file() else [path / f"{PREFIX}{name}.json" for name in CATEGORIES]
    found = [path for path in paths if path.is_file()]
    if not found:
        raise DataError(
            f"{path}: no {PREFIX}<category>.json; expected one for {', '.join(CATEGORIES)}"
        )
    items: list[Item] = []
    for file in found:
        for where, row in read_rows(file):
            category, image = file.stem.removeprefix(PREFIX), cell(row, "image", where)
            number, image_id = cell(row, "question_id", where), PurePosixPath(image).stem
            question, label = cell(row, "text", where), cell(row, "label", where)
            items.append(_item(source, category, number, image, image_id, question, label))
    return Questions(tuple(_once(items, path)), _image_root(source))


def _once(items: Sequence[Item], path: Path) -> Sequence[Item]:
    """Demands each question once in its category; translations may well make two the same."""
    asked = Counter((item.category, item.image_id, item.question) for item in items)
    if twice := [key for key, number in asked.items() if number > 1]:
        category, image, question = twice[0]
        raise DataError(
            f"{path}: {len(twice)} questions are asked twice in their category, such as "
            f"{question!r} about {image} in {category}"
        )
    return items


def _image_root(source: Source) -> Path:
    places = [p / name for p in (source.folder, source.folder.parent) for name in IMAGE_FOLDERS]
    return source.images or next(filter(Path.is_dir, places), source.folder)


def _read_table(source: Source, rows: Iterable[Row]) -> Sequence[Item]:
    return _once(list(_table_items(source, rows)), source.path)


def _table_items(source: Source, rows: Iterable[Row]) -> Iterator[Item]:
    """Reads Parquet or TSV; a question that several categories share is one of each."""
    for where, row in rows:
        image = source.store.put(row.get("image"), where)
        number = str(row.get("question_id") or row.get("index") or row.get("id"))
        image_id = str(row.get("image_source") or PurePosixPath(image).stem)
        question, label = cell(row, "question", where), cell(row, "answer", where)
        for category in cell(row, "category", where).split(","):
            yield _item(source, category.strip(), number, image, image_id, question, label)


def _row_key(source: Source, row: dict[str, Any], where: str) -> Hashable:
    """Joined by position, the two releases of the random questions (2,910 and 3,000) do not fit."""
    category, image = cell(row, "category", where), cell(row, "image", where)
    return category, image, normalise_question(cell(row, "text", where))


POPE: Final = Kind(
    name="pope",
    title="POPE",
    headline="mean F1",
    maximum=100.0,
    answer_type="yesno",
    modes={
        "llava": partial(judge_by, parse_official),
        LMMS_EVAL: partial(judge_by, parse_lmms_eval, undecided=UNPARSED),
        VLMEVALKIT: partial(judge_by, yes_no_vlmevalkit, undecided=UNPARSED),
        LOCAL: partial(judge_locally, rule="pope"),
    },
    aliases={"official": "llava"},
    default_mode="llava",
    check_together=check,
    keys_of=keys_of,
    complete=complete,
    count=count,
    details=details,
    files=Files(
        read_table=_read_table,
        read_own=_read_annotations,
        labels="coco",
        item_key=lambda item: (item.category, item.image_name, item.question),
        row_key=_row_key,
    ),
)
