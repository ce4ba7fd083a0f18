"""Scores ScienceQA for GPT-4 helped by a model: where GPT-4 gives no letter, the model answers.

In: the benchmark's folder, GPT-4's answers (`{"outputs": {id: text}}`) and the model's (an answers
file). Out: accuracies, on the terminal. Usage: python -m llava.eval.eval_science_qa_gpt4
    --base-dir D --gpt4-result G.json --our-result A.jsonl
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from llava.errors import flag, script_main
from llava.eval import eval_science_qa
from llava.eval.records import field, read_json


@dataclass(frozen=True)
class Votes:
    """The choices of both models for one problem, as indices.

    Attributes:
        problem_id: Its id.
        truth: The right choice.
        ours: The model's choice; one at random where it gives no letter.
        gpt4: GPT-4's choice, -1 where it gives no letter.
        has_image: Whether the model saw an image.
    """

    problem_id: str
    truth: int
    ours: int
    gpt4: int
    has_image: bool

    @property
    def ensemble(self) -> int:
        """GPT-4's choice, or the model's where there is none."""
        return self.ours if self.gpt4 < 0 else self.gpt4


FLAGS = (
    *eval_science_qa.FLAGS,
    flag("--gpt4-result", required=True),
    flag("--our-result", required=True),
)
"""The flags that both ensembles have."""


def read_votes(args: argparse.Namespace) -> list[Votes]:
    """Reads both files of answers.

    Raises:
        DataError: A file is invalid.
    """
    problems = eval_science_qa.read_problems(args.base_dir, args.split)
    gpt4 = field(read_json(args.gpt4_result, dict), "outputs", args.gpt4_result, dict)
    ours = eval_science_qa.read_answers(args.our_result)
    return [
        _votes(problem_id, problem, ours.get(problem_id), gpt4.get(problem_id, ""), args.options)
        for problem_id, problem in problems.items()
    ]


def _votes(
    problem_id: str,
    problem: Mapping[str, Any],
    our_answer: Mapping[str, Any] | None,
    gpt4_text: str,
    options: Sequence[str],
) -> Votes:
    num_choices = len(problem["choices"])

    def index_of(text: str) -> int:
        letter = eval_science_qa.parse_answer(text, options)
        return eval_science_qa.option_index(letter, num_choices, options)

    ours = -1 if our_answer is None else index_of(our_answer["text"])
    if ours < 0:
        # at random, but the same in every run
        ours = random.Random(problem_id).randrange(num_choices)
    return Votes(
        problem_id=problem_id,
        truth=problem["answer"],
        ours=ours,
        gpt4=index_of(gpt4_text),
        has_image=eval_science_qa.is_multimodal(our_answer),
    )


def show(votes: Sequence[Votes], choices: Sequence[int]) -> None:
    """Prints the accuracy of the final choices, and its upper bound."""
    is_right = [choice == vote.truth for vote, choice in zip(votes, choices, strict=True)]
    with_image = [right for vote, right in zip(votes, is_right, strict=True) if vote.has_image]
    bound = eval_science_qa.percent(vote.truth in (vote.ours, vote.gpt4) for vote in votes)
    typer.echo(
        f"Total: {len(votes)}, GPT-4 failed: {sum(vote.gpt4 < 0 for vote in votes)}, "
        f"Correct: {sum(is_right)}, Accuracy: {eval_science_qa.percent(is_right):.2f}%, "
        f"IMG-Accuracy: {eval_science_qa.percent(with_image):.2f}%, Upper bound: {bound:.2f}%"
    )


def _score(args: argparse.Namespace) -> None:
    votes = read_votes(args)
    show(votes, [vote.ensemble for vote in votes])


main = script_main(
    "Score ScienceQA for GPT-4 and a model.",
    _score,
    *FLAGS,
)


if __name__ == "__main__":
    main()
