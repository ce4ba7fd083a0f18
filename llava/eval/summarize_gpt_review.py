"""Sum up GPT's reviews.

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

from llava.errors import ConfigError, DataError, run_script
from llava.eval.eval_gpt_review import NO_SCORES
from llava.eval.records import field, read_json_lines

log = logging.getLogger(__name__)

PREFIXES = ("gpt4_text", "reviews_", "review_")
VERSIONS = ("0314", "0613")
MEAN_DECIMALS = 3
Row = tuple[str, float, float, float]


def summarize(path: str | Path, ignored_ids: Sequence[Any] = ()) -> list[Row]:
    """Mean scores of a file of reviews.

    A review without scores says nothing and is left out, with a warning.

    Args:
        path: the file.
        ignored_ids: question ids to leave out, as texts.

    Returns:
        `(category, percent, first score, second score)`, sorted by category; `all` is among them.

    Raises:
        DataError: a review lacks a key, or none has scores.
    """
    scores: dict[str, list[Sequence[float]]] = defaultdict(list)
    num_left_out = 0
    for where, record in read_json_lines(path):
        if str(field(record, "question_id", where)) in {str(i) for i in ignored_ids}:
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
        first, second = (
            round(fmean(pair[side] for pair in pairs), MEAN_DECIMALS) for side in (0, 1)
        )
        if not first:
            raise DataError(f"{path}: {category}: the first model's mean score is 0")
        rows.append((category, second / first * 100, first * 10, second * 10))
    return rows


def find_files(folder: str, select: Sequence[str], version: str | None) -> list[Path]:
    """Files of reviews in a folder.

    Args:
        folder: every `.jsonl` in it counts if its name contains `review`, else those with a name
            that begins as one of reviews.
        select: words that must all be in the name.
        version: of the judge, as it is in the name; a name without one is of the first.
    """
    paths = sorted(path for path in Path(folder).glob("*.jsonl"))
    if "review" not in folder:
        paths = [path for path in paths if path.name.startswith(PREFIXES)]
    paths = [path for path in paths if all(word in path.name for word in select)]
    if version is not None:
        paths = [path for path in paths if _version_of(path) == version]
    return paths


def _version_of(path: Path) -> str:
    return next((version for version in VERSIONS if version in path.name), VERSIONS[0])


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and sum up."""
    parser = argparse.ArgumentParser(description="Sum up GPT's reviews.")
    parser.add_argument("-d", "--dir")
    parser.add_argument("-v", "--version", choices=VERSIONS)
    parser.add_argument("-s", "--select", nargs="*", default=[])
    parser.add_argument("-f", "--files", nargs="*", default=[])
    parser.add_argument("-i", "--ignore", nargs="*", default=[], help="question ids")

    def run(args: argparse.Namespace) -> None:
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

    run_script(run, parser, argv)


if __name__ == "__main__":
    main()
