"""Scores MME as its official tool does.

In: a folder with `<category>.txt`, lines `image <tab> question <tab> Yes|No <tab> answer`, as
`scripts/convert_answer_to_mme.py` writes them. Out: scores of the categories and the two sums, on
the terminal. Usage: python -m llava.eval.eval_mme --results_dir eval_tool/answers/my-model
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Final

import typer

from llava.errors import DataError, flag, script_main
from llava.eval.records import read_text

PERCEPTION: Final = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION: Final = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
NUM_LEADING_CHARS: Final = 4
LABELS: Final = ("Yes", "No")

Verdicts = Mapping[str, Sequence[bool]]
"""For each image, whether the answers to its two questions are right."""


def parse_answer(text: str) -> str:
    """Reads `yes` or `no` from the beginning of an answer, else `other`, as MME's tool does."""
    text = text.lower()
    if text in ("yes", "no"):
        return text
    head = text[:NUM_LEADING_CHARS]
    return "yes" if "yes" in head else "no" if "no" in head else "other"


def score_category(verdicts: Verdicts) -> float:
    """Returns MME's score, 0 to 200: for each image its accuracy, plus 100 if both are right."""
    return fmean(100 * sum(pair) / len(pair) + 100 * all(pair) for pair in verdicts.values())


def read_verdicts(path: Path) -> dict[str, list[bool]]:
    """Reads a category's file.

    Raises:
        DataError: A line is invalid, or an image does not have two questions.
    """
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line:
            continue
        cells = line.split("\t")
        if len(cells) != 4 or cells[2] not in LABELS:
            raise DataError(
                f"{path}:{number}: expected image, question, Yes or No, and answer, separated by "
                f"tabs; found {cells}"
            )
        verdicts[cells[0]].append(parse_answer(cells[3]) == cells[2].lower())
    if not verdicts:
        raise DataError(f"{path}: holds no answers")
    for image, pair in verdicts.items():
        if len(pair) != 2:
            raise DataError(f"{path}: {image} has {len(pair)} questions; expected 2")
    return verdicts


def score_folder(results_dir: str) -> dict[str, float]:
    """Scores of each category, in the benchmark's order.

    Raises:
        DataError: A category's file is missing or invalid.
    """
    paths = {name: Path(results_dir) / f"{name}.txt" for name in (*PERCEPTION, *COGNITION)}
    return {name: score_category(read_verdicts(path)) for name, path in paths.items()}


def _show(args: argparse.Namespace) -> None:
    scores = score_folder(args.results_dir)
    for title, names in (("Perception", PERCEPTION), ("Cognition", COGNITION)):
        typer.echo(f"=========== {title} ===========")
        typer.echo(f"total score: {sum(scores[name] for name in names)}\n")
        for name in names:
            typer.echo(f"\t {name}  score: {scores[name]}")
        typer.echo("")


main = script_main(
    "Score MME.",
    _show,
    flag("--results_dir", "--results-dir", required=True),
)


if __name__ == "__main__":
    main()
