"""Answer a file of questions with short answers: what most of LLaVA's benchmarks call.

In and out as `model_vqa`; other defaults. Usage:
python -m llava.eval.model_vqa_loader --model-path M --question-file Q --image-folder I
    --answers-file A --temperature 0 --conv-mode vicuna_v1 [--batch-size 16]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llava.errors import run_script
from llava.eval.model_vqa import Script, answer_questions, read_questions
from llava.eval.records import get_chunk as get_chunk
from llava.eval.records import split_list as split_list

SCRIPT = Script("model_vqa_loader", conv_mode="llava_v1", max_new_tokens=128, plain_rule=True)


def eval_model(args: Any) -> None:
    """Answer the questions that `args` names; see `model_vqa.answer_questions`."""
    questions = read_questions(args.question_file, args.image_folder)
    chunk = get_chunk(questions, args.num_chunks, args.chunk_idx)
    answer_questions(SCRIPT, args, args.question_file, chunk)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and answer."""
    parser = SCRIPT.make_parser("Answer questions about pictures briefly.")
    run_script(eval_model, parser, argv)


if __name__ == "__main__":
    main()
