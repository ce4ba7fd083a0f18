"""Let GPT compare two answers of LLaVA-Bench, whose pictures are described to it.

In and out as `eval_gpt_review`, with a context `image, caption` (a text or several) for each image;
the rule of a question is `llava_bench_<category>`. Usage:
python -m llava.eval.eval_gpt_review_bench -q questions.jsonl -c context.jsonl
    -a gpt4.jsonl model.jsonl -r llava/eval/table/rule.json -o reviews.jsonl
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llava.errors import DataError, run_script
from llava.eval.eval_gpt_review import Comparison, Rules, make_parser, review
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


def get_category(comparison: Comparison, rules: Rules) -> str:
    """Name of a question's rule."""
    return f"llava_bench_{field(comparison.question, 'category', comparison.where, str)}"


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and review."""
    parser = make_parser("Let GPT compare two models' answers to LLaVA-Bench.")
    run_script(lambda args: review(args, get_category, describe), parser, argv)


if __name__ == "__main__":
    main()
