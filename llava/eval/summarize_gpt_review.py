"""Sums up GPT's reviews.

In: files that the `eval_gpt_review*` scripts wrote. Out, for each: per category and for all, the
second model's score in percent of the first one's, and both scores (of 100), on the terminal.
Usage: python -m llava.eval.summarize_gpt_review -f reviews.jsonl, or -d DIR [-s word ...]
"""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import typer

from llava.errors import ConfigError, DataError, flag, script_main
from llava.eval.eval_gpt_review import NO_SCORES
from llava.eval.records import field, read_json_lines

log = logging.getLogger(__name__)

PREFIXES = ("gpt4_text", "reviews_", "review_")
VERSIONS = ("0314", "0613")
MEAN_DECIMALS = 3


def summarize(
    path: str | Path, ignored_ids: Sequence[Any] = ()
) -> list[tuple[str, float, float, float]]:
    """Returns the mean scores of a file of reviews.

    A review without scores says nothing and is left out, with a warning.

    Args:
        path: The file.
        ignored_ids: Question ids to leave out, as texts.

    Returns:
        `(category, percent, first score, second score)`, sorted by category; `all` is among them.

    Raises:
        DataError: A review lacks a key, or none has scores.
    """
    scores: dict[str, list[Sequence[float]]] = defaultdict(list)
    num_left_out = 0
    for where, record in read_json_lines(path):
        if str(field(record, "question_id", where)) in map(str, ignored_ids):
            continue
        pair = field(record, "tuple", where, list)
        if pair == NO_SCORES:
            num_left_out += 1
            continue
        for category in (field(record, "category", where, str), "all"):
            scores[category].append(pair)
    if num_left_out:
        log.warning("%s: %d reviews have no scores and do not count", path, num_left_out)
    if not scores:
        raise DataError(f"{path}: no review with scores")
    rows = []
    for category, pairs in sorted(scores.items()):
        # LLaVA rounds the means before it divides, which shows in the last digit of the percentage
        first, second = (round(fmean(side), MEAN_DECIMALS) for side in zip(*pairs, strict=True))
        if not first:
            raise DataError(f"{path}: {category}: the first model's mean score is 0")
        rows.append((category, second / first * 100, first * 10, second * 10))
    return rows


def find_files(folder: str, select: Sequence[str], version: str | None) -> list[Path]:
    """Returns the files of reviews in a folder.

    Args:
        folder: Every `.jsonl` in it counts if its name contains `review`, else those with a name
            that begins as one of reviews.
        select: Words that must all be in the name.
        version: Of the judge, as it is in the name; a name without one is of the first.
    """
    return [
        path
        for path in sorted(Path(folder).glob("*.jsonl"))
        if ("review" in folder or path.name.startswith(PREFIXES))
        and all(word in path.name for word in select)
        and version in (None, next((v for v in VERSIONS if v in path.name), VERSIONS[0]))
    ]


def _show(args: argparse.Namespace) -> None:
    paths = [Path(name) for name in args.files]
    if not paths and args.dir:
        paths = find_files(args.dir, args.select, args.version)
    if not paths:
        raise ConfigError("no reviews found: name them with -f, or their folder with -d")
    for path in paths:
        typer.echo(path.stem)
        for name, *numbers in summarize(path, args.ignore):
            typer.echo(" ".join([name, *(f"{number:.1f}" for number in numbers)]))
        typer.echo("=================================")


main = script_main(
    "Sum up GPT's reviews.",
    _show,
    flag("-d", "--dir"),
    flag("-v", "--version", choices=VERSIONS),
    flag("-s", "--select", nargs="*", default=[]),
    flag("-f", "--files", nargs="*", default=[]),
    flag("-i", "--ignore", nargs="*", default=[], help="question ids"),
)


if __name__ == "__main__":
    main()
