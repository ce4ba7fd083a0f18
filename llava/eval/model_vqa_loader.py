"""Answers a file of questions with short answers; most of LLaVA's benchmarks call this script.

In and out as `model_vqa`; other defaults. Usage:
python -m llava.eval.model_vqa_loader --model-path M --question-file Q --image-folder I
    --answers-file A --temperature 0 --conv-mode vicuna_v1 [--batch-size 16]
"""

from __future__ import annotations

from typing import Any

from llava.errors import script_main
from llava.eval import model_vqa
from llava.eval.records import get_chunk as get_chunk
from llava.eval.records import split_list as split_list

SCRIPT = model_vqa.Script(
    "model_vqa_loader", conv_mode="llava_v1", max_new_tokens=128, plain_rule=True
)


def eval_model(args: Any) -> None:
    """Answers the questions that `args` names; see `model_vqa.answer_questions`."""
    model_vqa.eval_model(args, SCRIPT)


main = script_main(
    "Answer questions about images briefly.",
    eval_model,
    *SCRIPT.flags(),
)


if __name__ == "__main__":
    main()
