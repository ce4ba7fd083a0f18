"""Lets GPT compare two answers about images, whose captions and boxes it is told.

In and out as `eval_gpt_review`, with a context `image, captions, instances [{category, bbox}]` for
each image. Usage: python -m llava.eval.eval_gpt_review_visual -q questions.jsonl -c context.jsonl
    -a one.jsonl two.jsonl -r llava/eval/table/rule.json -o reviews.jsonl
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava.errors import script_main
from llava.eval.eval_gpt_review import CONTEXT_FLAG, FLAGS, Rules, review
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


def get_category(question: Mapping[str, Any], where: str, rules: Rules) -> str:
    """Returns the name of a question's rule."""
    return str(field(question, "category", where, str))


main = script_main(
    "Let GPT compare two models' answers about images.",
    lambda args: review(args, get_category, describe),
    CONTEXT_FLAG,
    *FLAGS,
)


if __name__ == "__main__":
    main()
