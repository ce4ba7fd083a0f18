"""Lets GPT compare two answers of LLaVA-Bench, whose images are described to it.

In and out as `eval_gpt_review`, with a context `image, caption` (a text or several) for each image;
the rule of a question is `llava_bench_<category>`. Usage:
python -m llava.eval.eval_gpt_review_bench -q questions.jsonl -c context.jsonl
    -a gpt4.jsonl model.jsonl -r llava/eval/table/rule.json -o reviews.jsonl
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava.errors import DataError, script_main
from llava.eval.eval_gpt_review import CONTEXT_FLAG, FLAGS, Rules, review
from llava.eval.eval_gpt_review import parse_score as parse_score
from llava.eval.records import field


def describe(record: Mapping[str, Any], where: str) -> str:
    """Returns the caption, or the captions, one per line.

    Raises:
        DataError: It is neither.
    """
    caption = field(record, "caption", where)
    lines = [caption] if isinstance(caption, str) else caption
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise DataError(f"{where}: caption is {caption!r}; expected a text or a list of texts")
    return "\n".join(lines)


def get_category(question: Mapping[str, Any], where: str, rules: Rules) -> str:
    """Returns the name of a question's rule."""
    return f"llava_bench_{field(question, 'category', where, str)}"


main = script_main(
    "Let GPT compare two models' answers to LLaVA-Bench.",
    lambda args: review(args, get_category, describe),
    CONTEXT_FLAG,
    *FLAGS,
)


if __name__ == "__main__":
    main()
