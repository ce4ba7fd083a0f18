"""Let GPT compare two answers about pictures, whose captions and boxes it is told.

In and out as `eval_gpt_review`, with a context `image, captions, instances [{category, bbox}]` for
each image. Usage: python -m llava.eval.eval_gpt_review_visual -q questions.jsonl -c context.jsonl
    -a one.jsonl two.jsonl -r llava/eval/table/rule.json -o reviews.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from llava.errors import run_main
from llava.eval import eval_gpt_review
from llava.eval.eval_gpt_review import parse_score as parse_score
from llava.eval.records import field


def describe(record: Mapping[str, Any], where: str) -> str:
    """Captions, then objects with their boxes, one a line.

    Raises:
        DataError: the record has neither in the form that is expected.
    """
    captions = field(record, "captions", where, list)
    instances = [
        f"{field(instance, 'category', where)}: {field(instance, 'bbox', where)}"
        for instance in field(record, "instances", where, list)
    ]
    return "\n".join([*captions, *instances])


def eval_gpt_review_visual(args: argparse.Namespace) -> None:
    """Review what `args` names; see `eval_gpt_review.review`."""
    comparisons = eval_gpt_review.read_comparisons(args.question, args.answer_list)
    categories = [field(c.question, "category", c.where, str) for c in comparisons]
    contexts = eval_gpt_review.read_contexts(args.context, describe)
    eval_gpt_review.review(args, comparisons, categories, contexts)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and review."""
    parser = eval_gpt_review.make_parser("Let GPT compare two models' answers about pictures.")
    parser.add_argument("-c", "--context", required=True)
    args = parser.parse_args(argv)
    run_main(lambda: eval_gpt_review_visual(args))


if __name__ == "__main__":
    main()
