"""Let GPT compare two answers of LLaVA-Bench, whose pictures are described to it.

In and out as `eval_gpt_review`, with a context `image, caption` (a text or several) for each image;
the rule of a question is `llava_bench_<category>`. Usage:
python -m llava.eval.eval_gpt_review_bench -q questions.jsonl -c context.jsonl
    -a gpt4.jsonl model.jsonl -r llava/eval/table/rule.json -o reviews.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from llava.errors import DataError, run_main
from llava.eval import eval_gpt_review
from llava.eval.eval_gpt_review import parse_score as parse_score
from llava.eval.records import field


def describe(record: Mapping[str, Any], where: str) -> str:
    """The caption, or the captions one a line.

    Raises:
        DataError: it is neither.
    """
    caption = field(record, "caption", where)
    if isinstance(caption, str):
        return caption
    if isinstance(caption, list) and all(isinstance(line, str) for line in caption):
        return "\n".join(caption)
    raise DataError(f"{where}: caption is {caption!r}; expected a text or a list of texts")


def eval_gpt_review_bench(args: argparse.Namespace) -> None:
    """Review what `args` names; see `eval_gpt_review.review`."""
    comparisons = eval_gpt_review.read_comparisons(args.question, args.answer_list)
    categories = [
        f"llava_bench_{field(comparison.question, 'category', comparison.where, str)}"
        for comparison in comparisons
    ]
    contexts = eval_gpt_review.read_contexts(args.context, describe)
    eval_gpt_review.review(args, comparisons, categories, contexts)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and review."""
    parser = eval_gpt_review.make_parser("Let GPT compare two models' answers to LLaVA-Bench.")
    parser.add_argument("-c", "--context", required=True)
    args = parser.parse_args(argv)
    run_main(lambda: eval_gpt_review_bench(args))


if __name__ == "__main__":
    main()
