"""Lets GPT compare two answers about images, whose captions and boxes it is told.

In and out as `eval_gpt_review`, with a context `image, captions, instances [{category, bbox}]` for
each image. Usage: python -m llava.eval.eval_gpt_review_visual -q questions.jsonl -c context.jsonl
    -a one.jsonl two.jsonl -r llava/eval/table/rule.json -o reviews.jsonl
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llava.errors import make_parser, run_script
from llava.eval.eval_gpt_review import CONTEXT_FLAG, FLAGS, ReviewPair, Rules, review
from llava.eval.eval_gpt_review import parse_score as parse_score
from llava.eval.records import field


def describe(record: Mapping[str, Any], where: str) -> str:
    """Returns captions, then objects with their boxes, one per line.

    Raises:
        DataError: The record has neither in the form that is expected.
    """
    captions = field(record, "captions", where, list)
    instances = [
        f"{field(instance, 'category', where)}: {field(instance, 'bbox', where)}"
        for instance in field(record, "instances", where, list)
    ]
    return "\n".join([*captions, *instances])


def get_category(pair: ReviewPair, rules: Rules) -> str:
    """Returns the name of a question's rule."""
    return str(field(pair.question, "category", pair.where, str))


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and runs the script."""
    run_script(
        lambda args: review(args, get_category, describe),
        make_parser("Let GPT compare two models' answers about images.", CONTEXT_FLAG, *FLAGS),
        argv,
    )


if __name__ == "__main__":
    main()
