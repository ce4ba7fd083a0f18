"""Let GPT compare two language models' answers, question by question.

In and out as `gpt_review`; a category without a rule of its own is judged by `default`. Usage:
python -m llava.eval.eval_gpt_review -q questions.jsonl -a one.jsonl two.jsonl
    -r llava/eval/table/rule.json -o reviews.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llava.eval import gpt_review
from llava.eval.generator import run_main
from llava.eval.gpt_review import parse_score as parse_score


def eval_gpt_review(args: argparse.Namespace) -> None:
    """Review what `args` names; see `gpt_review.review`."""
    comparisons = gpt_review.read_comparisons(args.question, args.answer_list)
    rules = gpt_review.read_rules(args.rule)
    named = [str(comparison.question.get("category", "default")) for comparison in comparisons]
    categories = [name if name in rules else "default" for name in named]
    gpt_review.review(args, comparisons, categories)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and review."""
    args = gpt_review.make_parser("Let GPT compare two models.").parse_args(argv)
    run_main(lambda: eval_gpt_review(args))


if __name__ == "__main__":
    main()
