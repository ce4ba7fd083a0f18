"""POPE: is there such a thing in the picture? Three ways of choosing things that are not there.

The paper's figure is the mean of the three F1s, in percent; "yes" is positive.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from llava.errors import DataError
from llava.eval.eval_pope import PopeScore
from llava.eval.eval_pope import parse_answer as parse_pope_answer
from lrm_ext.evaluate.items import Item, short_answer_prompt
from lrm_ext.evaluate.kind import (
    LOCAL,
    MISSING,
    Array,
    Judgement,
    Kind,
    Reading,
    UnitCounts,
    Verdict,
    by_category,
    gather,
    gold_of,
    judge_locally,
    pair_up,
    yes_no_language,
)
from lrm_ext.evaluate.mme import parse_vlmevalkit
from lrm_ext.evaluate.official import Questions, Source, cell, is_table, read_rows

log = logging.getLogger(__name__)
CATEGORIES: Final = ("random", "popular", "adversarial")
# Questions that are not marked with a category are one set of their own.
UNNAMED: Final = "all"
UNPARSED: Final = "unparsed"
LMMS_EVAL: Final = "lmms-eval"
VLMEVALKIT: Final = "vlmevalkit"


def parse_lmms_eval(text: str) -> str:
    """Read `yes` or `no` as lmms-eval does: nothing else may be said."""
    text = text.strip().lower()
    return text if text in ("yes", "no") else UNPARSED


def _parse_vlmevalkit(text: str) -> str:
    parsed = parse_vlmevalkit(text)
    return UNPARSED if parsed == "other" else parsed


def _judge(parse: Callable[[str], str]) -> Callable[[Item, str, Reading], Judgement]:
    def judge(item: Item, text: str, reading: Reading) -> Judgement:
        parsed = parse(text)
        correct = parsed == gold_of(item, reading.words)
        return Judgement(parsed, correct, yes_no_language(text, reading))

    return judge


def _judge_locally(item: Item, text: str, reading: Reading) -> Judgement:
    return judge_locally(item, text, reading, "pope")


def cell_of(gold: str, parsed: str, mode: str) -> str | None:
    """Where an answer counts: `tp`, `fp`, `tn` or `fn`, or nowhere.

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
    if gold == "yes":
        return "tp" if parsed == "yes" else "fn"
    return "fp" if parsed == "yes" else "tn"


def check(items: Sequence[Item], allow_missing: bool) -> int:
    """Demand the three categories, or none at all.

    Raises:
        DataError: A category is unknown.
    """
    present = {item.category for item in items}
    if present != {UNNAMED} and (unknown := sorted(present - set(CATEGORIES))):
        raise DataError(
            f"pope: unknown category {', '.join(unknown)}; known: {', '.join(CATEGORIES)}"
        )
    return 0


def _rows(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> list[Any]:
    names = [name for name in (*CATEGORIES, UNNAMED) if any(i.category == name for i in items)]
    columns = ("tp", "fp", "fn")
    rows: list[tuple[str, str, Mapping[int, float]]] = []
    for item, verdict in pair_up(items, verdicts):
        cell = cell_of(verdict.gold, verdict.parsed, mode)
        amounts = {}
        if cell in columns:
            amounts = {3 * names.index(item.category) + columns.index(cell): 1.0}
        rows.append((verdict.unit, "", amounts))
    return [rows, 3 * len(names)]


def count(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> UnitCounts:
    """True and false yes and false no by category; pictures are drawn for all at once."""
    rows, num_columns = _rows(items, verdicts, mode)
    return gather(rows, num_columns, _mean_f1)


def _mean_f1(sums: Array) -> Array:
    """From (true yes, false yes, false no) of each category to the mean F1 in percent."""
    true_yes, false_yes, false_no = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    whole = 2 * true_yes + false_yes + false_no
    f1 = np.divide(2 * true_yes, whole, out=np.zeros_like(whole), where=true_yes > 0)
    result: Array = 100.0 * f1.mean(axis=-1)
    return result


def score_category(verdicts: Sequence[Verdict], mode: str) -> dict[str, Any]:
    """Counts and rates of some questions."""
    cells = Counter(cell_of(v.gold, v.parsed, mode) for v in verdicts)
    counted = PopeScore(*(cells[name] for name in ("tp", "fp", "tn", "fn")))
    if not counted.tp:
        log.warning("pope: no object was recognised; rates without a denominator are 0")
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
    """Rates of each category, of all questions together, and the mean F1."""
    groups = by_category(items, verdicts)
    names = [name for name in (*CATEGORIES, UNNAMED) if name in groups]
    parts = {name: score_category(groups[name], mode) for name in names}
    pooled = score_category(verdicts, mode)
    return {
        **(parts[names[0]] if len(names) == 1 else {}),
        "mean_f1": sum(part["f1"] for part in parts.values()) / len(parts),
        "per_category": {name: part["f1"] for name, part in parts.items()},
        "categories": parts,
        "num_categories": len(parts),
        "num_categories_expected": len(CATEGORIES),
        "pooled": pooled,
    }


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


POPE: Final = Kind(
    name="pope",
    read=read,
    title="POPE",
    headline="mean F1",
    maximum=100.0,
    answer_type="yesno",
    modes={
        "llava": _judge(parse_pope_answer),
        LMMS_EVAL: _judge(parse_lmms_eval),
        VLMEVALKIT: _judge(_parse_vlmevalkit),
        LOCAL: _judge_locally,
    },
    aliases={"official": "llava"},
    default_mode="llava",
    prompt=short_answer_prompt,
    check=check,
    count=count,
    details=details,
)
