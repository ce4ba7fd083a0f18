"""Answer a file of questions about pictures.

In: JSON Lines `question_id, image, text`. Out: JSON Lines `question_id, prompt, text, answer_id,
model_id, metadata`, in the same order. Usage:
python -m llava.eval.model_vqa --model-path M --question-file Q --image-folder I --answers-file A
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llava.eval.answering import Question
from llava.eval.generator import Script, answer_questions, run_main
from llava.eval.records import field, image_path, read_json_lines
from llava.eval.records import get_chunk as get_chunk
from llava.eval.records import split_list as split_list

SCRIPT = Script("model_vqa", conv_mode="llava_v1", max_new_tokens=1024)


def read_questions(question_file: str, image_folder: str) -> list[Question]:
    """Read LLaVA's question format.

    Raises:
        DataError: a line lacks a key, or its picture is not in the folder.
    """
    questions = []
    for where, record in read_json_lines(question_file):
        text = field(record, "text", where, str)
        image = image_path(image_folder, field(record, "image", where), where)
        questions.append(Question(field(record, "question_id", where), text, text, image, where))
    return questions


def eval_model(args: Any) -> None:
    """Answer the questions that `args` names; see `generator.answer_questions`."""
    questions = read_questions(args.question_file, args.image_folder)
    chunk = get_chunk(questions, args.num_chunks, args.chunk_idx)
    answer_questions(SCRIPT, args, args.question_file, chunk)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and answer."""
    parser = SCRIPT.make_parser("Answer questions about pictures.")
    parser.add_argument("--question-file", default="tables/question.jsonl")
    args = parser.parse_args(argv)
    run_main(lambda: eval_model(args))


if __name__ == "__main__":
    main()
