"""Scores POPE: does the model see objects that are not there?

In: `coco_pope_<category>.json` (JSON Lines with `label`), the questions, their answers. Out: counts
and rates of each category, on the terminal. Usage:
python -m llava.eval.eval_pope --annotation-dir D --question-file Q --result-file A
"""

from __future__ import annotations

import argparse
import logging
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import typer

from llava.errors import DataError, flag, script_main
from llava.eval.records import answers_by_id, field, read_json_lines, refuse_missing

log = logging.getLogger(__name__)

_NO_WORDS: Final = ("No", "not", "no")
_FILE_NAME: Final = re.compile(r"coco_pope_.+\.json")


def parse_answer(text: str) -> str:
    """Reads yes or no as POPE's script: no where the first sentence has `No`, `no` or `not`."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in words for word in _NO_WORDS) else "yes"


@dataclass(frozen=True)
class PopeScore:
    """Counts of one category; "yes" is positive.

    Attributes:
        tp: Yes where there is one.
        fp: Yes where there is none.
        tn: No where there is none.
        fn: No where there is one.
    """

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return _ratio(self.tp + self.tn, self.tp + self.fp + self.tn + self.fn)

    @property
    def precision(self) -> float:
        """Share of right answers among those that say yes."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of objects that were seen."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> float:
        """Share of answers that say yes."""
        return _ratio(self.tp + self.fp, self.tp + self.fp + self.tn + self.fn)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def score_answers(answers: Iterable[str], labels: Iterable[str]) -> PopeScore:
    """Counts answers against their labels, `yes` or `no`."""
    pairs = [(parse_answer(answer), label) for answer, label in zip(answers, labels, strict=True)]
    return PopeScore(
        tp=pairs.count(("yes", "yes")),
        fp=pairs.count(("yes", "no")),
        tn=pairs.count(("no", "no")),
        fn=pairs.count(("no", "yes")),
    )


def read_labels(path: Path) -> list[dict[str, Any]]:
    """Reads an annotation file.

    Raises:
        DataError: A label is not `yes` or `no`.
    """
    records = []
    for where, record in read_json_lines(path):
        if field(record, "label", where) not in ("yes", "no"):
            raise DataError(f"{where}: label is {record['label']!r}; expected yes or no")
        records.append(record)
    return records


def match_labels(
    questions: Sequence[Mapping[str, Any]], labels: Sequence[Mapping[str, Any]], where: str
) -> list[str]:
    """Returns the label of each question.

    They are matched by image and question, because two releases of the file differ in length
    and a match by position would be off by some lines without a sign of it. Only labels that name
    no image are matched by position.

    Raises:
        DataError: Their numbers differ, or a question has no label.
    """
    if len(questions) != len(labels):
        raise DataError(
            f"{where}: {len(labels)} labels, but {len(questions)} questions of its category; use "
            "the release of the annotations that the question file was made from"
        )
    if not all("image" in label and "text" in label for label in labels):
        return [label["label"] for label in labels]
    by_key: dict[tuple[str, str], deque[str]] = defaultdict(deque)
    for label in labels:
        by_key[_key(label)].append(label["label"])
    missing = [question["question_id"] for question in questions if _key(question) not in by_key]
    refuse_missing(f"questions have no label in {where}", missing, "check --annotation-dir")
    try:
        return [by_key[_key(question)].popleft() for question in questions]
    except IndexError:
        raise DataError(f"{where}: a question is asked once too often") from None


def _key(record: Mapping[str, Any]) -> tuple[str, str]:
    # the question file adds an instruction in a line of its own; one release misspells "image"
    question = record["text"].split("\n")[0].replace("imange", "image")
    return record["image"], " ".join(question.split())


def eval_pope(annotation_dir: str, question_file: str, result_file: str) -> dict[str, PopeScore]:
    """Scores all categories that the folder has annotations for.

    Raises:
        DataError: A file is invalid, or a question has no answer or no label.
    """
    questions: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for where, record in read_json_lines(question_file):
        questions[field(record, "category", where, str)].append(record)
    answers = answers_by_id(result_file)
    folder = Path(annotation_dir)
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    if not paths or not all(_FILE_NAME.fullmatch(path.name) for path in paths):
        found = ", ".join(path.name for path in paths) or "nothing"
        raise DataError(f"{folder}: expected files named coco_pope_<category>.json, found: {found}")
    scores = {}
    for path in paths:
        category = path.name.removeprefix("coco_pope_").removesuffix(".json")
        ids = [question["question_id"] for question in questions[category]]
        missing = [question_id for question_id in ids if question_id not in answers]
        refuse_missing(f"questions of {category} have no answer", missing, "answer them first")
        labels = match_labels(questions[category], read_labels(path), str(path))
        scores[category] = score_answers([answers[question_id] for question_id in ids], labels)
    return scores


def show(category: str, score: PopeScore) -> None:
    """Prints a category's counts and rates."""
    if not score.tp:
        log.warning("%s: no object was recognised; rates without a denominator are 0", category)
    rates = (score.f1, score.accuracy, score.precision, score.recall, score.yes_ratio)
    lines = (
        f"Category: {category}, # samples: {score.tp + score.fp + score.tn + score.fn}",
        "TP\tFP\tTN\tFN",
        f"{score.tp}\t{score.fp}\t{score.tn}\t{score.fn}",
        f"Accuracy: {score.accuracy}",
        f"Precision: {score.precision}",
        f"Recall: {score.recall}",
        f"F1 score: {score.f1}",
        f"Yes ratio: {score.yes_ratio}",
        ", ".join(f"{rate:.3f}" for rate in rates),
        "====================================",
    )
    typer.echo("\n".join(lines))


def _show_all(args: argparse.Namespace) -> None:
    scores = eval_pope(args.annotation_dir, args.question_file, args.result_file)
    for category, score in scores.items():
        show(category, score)


main = script_main(
    "Score POPE.",
    _show_all,
    flag("--annotation-dir", required=True),
    flag("--question-file", required=True),
    flag("--result-file", required=True),
)


if __name__ == "__main__":
    main()
