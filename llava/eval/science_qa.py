"""ScienceQA's files and answers, as its scorers share them.

In: `problems.json`, `pid_splits.json`, answers. Out: problems of a split, parsed letters, totals.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import DataError
from llava.eval.records import field, read_json, read_json_lines

FAILED: Final = "FAILED"
OPTIONS: Final = ("A", "B", "C", "D", "E")
# LLaVA's full stop is not escaped: any one character may follow the letter, but one must
_SENTENCE: Final = re.compile(r"The answer is ([A-Z]).")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that all scorers of ScienceQA have."""
    parser.add_argument("--base-dir", required=True, help="has problems.json, pid_splits.json")
    parser.add_argument("--split", default="test")
    parser.add_argument("--options", nargs="+", default=list(OPTIONS))


def read_problems(base_dir: str, split: str) -> dict[str, Mapping[str, Any]]:
    """The problems of a split, by id, in its order.

    Raises:
        DataError: the split is unknown, or a problem is missing or has no such answer.
    """
    path = Path(base_dir) / "problems.json"
    problems = read_json(path, dict)
    ids = field(read_json(Path(base_dir) / "pid_splits.json", dict), split, "pid_splits.json", list)
    chosen: dict[str, Mapping[str, Any]] = {
        str(pid): field(problems, str(pid), str(path), dict) for pid in ids
    }
    for pid, problem in chosen.items():
        where = f"{path}: problem {pid}"
        choices, answer = field(problem, "choices", where, list), field(problem, "answer", where)
        if not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise DataError(f"{where}: answer {answer!r}, but there are {len(choices)} choices")
    return chosen


def read_answers(path: str) -> dict[str, Mapping[str, Any]]:
    """Answers by question id, which is text in `problems.json`."""
    answers: dict[str, Mapping[str, Any]] = {}
    for where, record in read_json_lines(path):
        field(record, "text", where, str)
        answers[str(field(record, "question_id", where))] = record
    return answers


def parse_answer(text: str, options: Sequence[str] = OPTIONS) -> str:
    """Read the letter from an answer.

    It is the letter alone, or begins with it and `. `, or says once `The answer is X`, followed by
    any character, as LLaVA reads it.

    Returns:
        The letter, or `FAILED`.
    """
    if text in options:
        return text
    if len(text) >= 3 and text[0] in options and text[1:3] == ". ":
        return text[0]
    found = _SENTENCE.findall(text)
    return found[0] if len(found) == 1 else FAILED


def option_index(letter: str, num_choices: int, options: Sequence[str] = OPTIONS) -> int:
    """Which of a problem's choices a letter is; -1 for none."""
    letters = list(options[:num_choices])
    return letters.index(letter) if letter in letters else -1


def is_multimodal(answer: Mapping[str, Any] | None) -> bool:
    """Whether the question was asked with a picture."""
    return answer is not None and DEFAULT_IMAGE_TOKEN in answer.get("prompt", "")


def percent(right: Iterable[bool]) -> float:
    """Share of true values in percent; 0 without any."""
    values = list(right)
    return 100 * sum(values) / len(values) if values else 0.0
