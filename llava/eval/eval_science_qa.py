"""Scores ScienceQA; the scripts `eval_science_qa*` share this module.

In: the benchmark's folder (`problems.json`, `pid_splits.json`) and an answers file. Out: accuracies
on the terminal; each answer as right or wrong in `--output-file`, the table for the leaderboard in
`--output-result`. Usage:
python -m llava.eval.eval_science_qa --base-dir D --result-file A --output-file O --output-result R
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import typer

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import DataError, flag, script_main
from llava.eval.records import field, read_json, read_json_lines
from llava.files import write_atomically

FAILED: Final = "FAILED"
OPTIONS: Final = ("A", "B", "C", "D", "E")
# LLaVA does not escape the full stop: exactly one character, of any kind, must follow the letter
_SENTENCE: Final = re.compile(r"The answer is ([A-Z]).")


log = logging.getLogger(__name__)

FLAGS: Final = (
    flag("--base-dir", required=True, help="has problems.json, pid_splits.json"),
    flag("--split", default="test"),
    flag("--options", nargs="+", default=list(OPTIONS)),
)
"""The flags that all scorers of ScienceQA have."""


def read_problems(base_dir: str, split: str) -> dict[str, Mapping[str, Any]]:
    """Returns the problems of a split by id, in its order.

    Raises:
        DataError: The split is unknown, or a problem is missing or has no such answer.
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
    """Returns the answers by question id, which is a string in `problems.json`."""
    lines = list(read_json_lines(path))
    for where, record in lines:
        field(record, "text", where, str)
    return {str(field(record, "question_id", where)): record for where, record in lines}


def parse_answer(text: str, options: Sequence[str] = OPTIONS) -> str:
    """Reads the letter from an answer.

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
    """Returns the index of a letter among a problem's choices; -1 for none."""
    letters = list(options[:num_choices])
    return letters.index(letter) if letter in letters else -1


def is_multimodal(answer: Mapping[str, Any] | None) -> bool:
    """Tells whether the question was asked with an image."""
    return answer is not None and DEFAULT_IMAGE_TOKEN in answer.get("prompt", "")


def percent(right: Iterable[bool]) -> float:
    """Returns the share of true values in percent; 0 without any."""
    values = list(right)
    return 100 * sum(values) / len(values) if values else 0.0


def write_result(
    path: str, choices: Mapping[str, int], is_right: Sequence[bool], outputs: Mapping[str, str]
) -> None:
    """Writes the leaderboard's table: the choice of each problem and what was answered."""
    result = {
        "acc": percent(is_right),
        "correct": sum(is_right),
        "count": len(is_right),
        "results": choices,
        "outputs": outputs,
    }
    write_atomically(Path(path), json.dumps(result, indent=2))


def eval_science_qa(args: argparse.Namespace) -> None:
    """Scores what `args` names; a problem without an answer is wrong.

    Raises:
        DataError: A file is invalid.
    """
    problems = read_problems(args.base_dir, args.split)
    answers = read_answers(args.result_file)
    if num_missing := len(problems.keys() - answers.keys()):
        log.warning("%d of %d problems have no answer; they are wrong", num_missing, len(problems))
    choices, records = {}, []
    for problem_id, problem in problems.items():
        answer = answers.get(problem_id, {"text": FAILED})
        letter = parse_answer(answer["text"], args.options)
        choices[problem_id] = option_index(letter, len(problem["choices"]), args.options)
        records.append(
            {
                "question_id": problem_id,
                "parsed_ans": letter,
                "ground_truth": args.options[problem["answer"]],
                "question": answer.get("prompt", ""),
                "pred": answer["text"],
                "is_multimodal": is_multimodal(answer),
            }
        )
    is_right = [
        choices[problem_id] == problem["answer"] for problem_id, problem in problems.items()
    ]
    judged = list(zip(records, is_right, strict=True))
    sides = {
        "correct": [record for record, right in judged if right],
        "incorrect": [record for record, right in judged if not right],
    }
    write_atomically(Path(args.output_file), json.dumps(sides, indent=2))
    outputs = {record["question_id"]: record["pred"] for record in records}
    write_result(args.output_result, choices, is_right, outputs)
    with_image = [right for record, right in judged if record["is_multimodal"]]
    typer.echo(
        f"Total: {len(records)}, Correct: {sum(is_right)}, Accuracy: {percent(is_right):.2f}%, "
        f"IMG-Accuracy: {percent(with_image):.2f}%"
    )


main = script_main(
    "Score ScienceQA.",
    eval_science_qa,
    *FLAGS,
    flag("--result-file", required=True),
    flag("--output-file", required=True),
    flag("--output-result", required=True),
)


if __name__ == "__main__":
    main()
