"""Score ScienceQA.

In: the benchmark's folder and an answers file. Out: accuracies on the terminal; each answer as
right or wrong in `--output-file`, the table for the leaderboard in `--output-result`. Usage:
python -m llava.eval.eval_science_qa --base-dir D --result-file A --output-file O --output-result R
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from llava.eval import science_qa
from llava.eval.generator import run_main

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What became of one problem.

    Attributes:
        problem_id: its id.
        record: as it is written down, with `parsed_ans` and `ground_truth`.
        index: the choice that was answered, -1 for none.
        is_correct: whether that is the right one.
    """

    problem_id: str
    record: Mapping[str, Any]
    index: int
    is_correct: bool


def judge(
    problems: Mapping[str, Mapping[str, Any]],
    answers: Mapping[str, Mapping[str, Any]],
    options: Sequence[str],
) -> list[Verdict]:
    """Judge every problem; one without an answer is wrong.

    Args:
        problems: by id.
        answers: lines of the answers file, by id.
        options: the letters.
    """
    verdicts = []
    for problem_id, problem in problems.items():
        answer = answers.get(problem_id)
        text = science_qa.FAILED if answer is None else answer["text"]
        letter = science_qa.parse_answer(text, options)
        index = science_qa.option_index(letter, len(problem["choices"]), options)
        record = {
            "question_id": problem_id,
            "parsed_ans": letter,
            "ground_truth": options[problem["answer"]],
            "question": "" if answer is None else answer.get("prompt", ""),
            "pred": text,
            "is_multimodal": science_qa.is_multimodal(answer),
        }
        verdicts.append(Verdict(problem_id, record, index, index == problem["answer"]))
    return verdicts


def write_results(verdicts: Sequence[Verdict], output_file: str, output_result: str) -> None:
    """Write both files."""
    sides = {
        "correct": [verdict.record for verdict in verdicts if verdict.is_correct],
        "incorrect": [verdict.record for verdict in verdicts if not verdict.is_correct],
    }
    result = {
        "acc": science_qa.percent(verdict.is_correct for verdict in verdicts),
        "correct": len(sides["correct"]),
        "count": len(verdicts),
        "results": {verdict.problem_id: verdict.index for verdict in verdicts},
        "outputs": {verdict.problem_id: verdict.record["pred"] for verdict in verdicts},
    }
    for name, content in ((output_file, sides), (output_result, result)):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def eval_science_qa(args: argparse.Namespace) -> None:
    """Score what `args` names.

    Raises:
        DataError: a file is not as it must be.
    """
    problems = science_qa.read_problems(args.base_dir, args.split)
    answers = science_qa.read_answers(args.result_file)
    num_missing = len(problems.keys() - answers.keys())
    if num_missing:
        log.warning("%d of %d problems have no answer; they are wrong", num_missing, len(problems))
    verdicts = judge(problems, answers, args.options)
    write_results(verdicts, args.output_file, args.output_result)
    num_correct = sum(verdict.is_correct for verdict in verdicts)
    accuracy = science_qa.percent(verdict.is_correct for verdict in verdicts)
    with_image = [verdict for verdict in verdicts if verdict.record["is_multimodal"]]
    image_accuracy = science_qa.percent(verdict.is_correct for verdict in with_image)
    typer.echo(
        f"Total: {len(verdicts)}, Correct: {num_correct}, Accuracy: {accuracy:.2f}%, "
        f"IMG-Accuracy: {image_accuracy:.2f}%"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and score."""
    parser = argparse.ArgumentParser(description="Score ScienceQA.")
    science_qa.add_arguments(parser)
    parser.add_argument("--result-file", required=True)
    parser.add_argument("--output-file", required=True)
    parser.add_argument("--output-result", required=True)
    args = parser.parse_args(argv)
    run_main(lambda: eval_science_qa(args))


if __name__ == "__main__":
    main()
