"""Answer a file of questions without pictures, by a language model.

In: JSON Lines `question_id, text`. Out: JSON Lines as `model_vqa` writes. Answers are sampled at a
temperature of 0.7. Usage:
python -m llava.eval.model_qa --model-name lmsys/vicuna-7b-v1.5 --question-file Q --answers-file A
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from llava.errors import run_script
from llava.eval.model_vqa import Question, Script, add_run_arguments, answer_questions
from llava.eval.records import field, read_json_lines

SCRIPT = Script("model_qa", conv_mode=None, max_new_tokens=1024)
TEMPERATURE = 0.7
RUN_FLAGS = ("batch_size", "device", "fresh")


def eval_model(
    model_name: str, questions_file: str, answers_file: str, options: Any = None
) -> None:
    """Answer questions; see `model_vqa.answer_questions`.

    Args:
        model_name: a folder or a Hub id.
        questions_file: JSON Lines.
        answers_file: JSON Lines.
        options: perhaps with `batch_size`, `device`, `fresh`.
    """
    questions = []
    for where, record in read_json_lines(questions_file):
        text = field(record, "text", where, str)
        questions.append(Question(field(record, "question_id", where), text, text, None, where))
    args = SimpleNamespace(
        model_path=model_name,
        model_base=None,
        answers_file=answers_file,
        conv_mode=None,
        num_chunks=1,
        chunk_idx=0,
        temperature=TEMPERATURE,
        top_p=None,
        num_beams=1,
        **{name: getattr(options, name) for name in RUN_FLAGS if hasattr(options, name)},
    )
    answer_questions(SCRIPT, args, questions_file, questions)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and answer."""
    parser = argparse.ArgumentParser(description="Answer questions without pictures.")
    parser.add_argument("--model-name", default="facebook/opt-350m")
    parser.add_argument("--question-file", default="tables/question.jsonl")
    parser.add_argument("--answers-file", default="answer.jsonl")
    add_run_arguments(parser)
    run_script(
        lambda args: eval_model(args.model_name, args.question_file, args.answers_file, args),
        parser,
        argv,
    )


if __name__ == "__main__":
    main()
