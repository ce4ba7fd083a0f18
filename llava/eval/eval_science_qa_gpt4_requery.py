"""Scores ScienceQA for GPT-4 as the judge between itself and a model.

As `eval_science_qa_gpt4`; where both give a letter and not the same, GPT-4 was asked once more, and
its second answer (an answers file) counts. Usage: python -m llava.eval.eval_science_qa_gpt4_requery
    --base-dir D --gpt4-result G.json --our-result A.jsonl --requery-result R.jsonl
    --output-result O.json
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from llava.errors import flag, script_main
from llava.eval import eval_science_qa
from llava.eval.eval_science_qa_gpt4 import FLAGS, Votes, read_votes, show


def judge(vote: Votes, second: Mapping[str, Any] | None, options: Sequence[str]) -> int:
    """Returns the choice of both if they agree, else the second answer, else GPT-4's first."""
    if vote.gpt4 in (-1, vote.ours) or second is None:
        return vote.ensemble
    letter = eval_science_qa.parse_answer(second["text"], options)
    index = eval_science_qa.option_index(letter, len(options), options)
    return vote.ensemble if index < 0 else index


def _score(args: argparse.Namespace) -> None:
    votes = read_votes(args)
    seconds = eval_science_qa.read_answers(args.requery_result)
    choices = {
        vote.problem_id: judge(vote, seconds.get(vote.problem_id), args.options) for vote in votes
    }
    is_right = [choices[vote.problem_id] == vote.truth for vote in votes]
    outputs = {pid: seconds[pid]["text"] for pid in choices if pid in seconds}
    eval_science_qa.write_result(args.output_result, choices, is_right, outputs)
    show(votes, list(choices.values()))


main = script_main(
    "Score ScienceQA for GPT-4 as the judge.",
    _score,
    *FLAGS,
    flag("--requery-result", required=True),
    flag("--output-result", required=True),
)


if __name__ == "__main__":
    main()
