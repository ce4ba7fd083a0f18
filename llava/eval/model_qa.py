"""Answers a file of questions without images, by a language model.

In: JSON Lines `question_id, text`. Out: JSON Lines as `model_vqa` writes. Answers are sampled at a
temperature of 0.7. Usage:
python -m llava.eval.model_qa --model-name lmsys/vicuna-7b-v1.5 --question-file Q --answers-file A
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from llava.errors import flag, script_main
from llava.eval.model_vqa import RUN_FLAGS, Script, VqaQuestion, answer_questions
from llava.eval.records import field, read_json_lines

SCRIPT = Script("model_qa", conv_mode=None, max_new_tokens=1024)
SETTINGS = {
    "model_base": None,
    "conv_mode": None,
    "num_chunks": 1,
    "chunk_idx": 0,
    "temperature": 0.7,
    "top_p": None,
    "num_beams": 1,
}


def eval_model(model_name: str, questions_file: str, answers_file: str, **options: Any) -> None:
    """Answers questions; see `model_vqa.answer_questions`.

    Args:
        model_name: A folder or a Hub id.
        questions_file: JSON Lines.
        answers_file: JSON Lines.
        **options: Perhaps `batch_size`, `device`, `fresh`.
    """
    questions = []
    for where, record in read_json_lines(questions_file):
        text = field(record, "text", where, str)
        questions.append(VqaQuestion(field(record, "question_id", where), text, text, None, where))
    args = SimpleNamespace(**SETTINGS, model_path=model_name, answers_file=answers_file, **options)
    answer_questions(SCRIPT, args, questions_file, questions)


main = script_main(
    "Answer questions without images.",
    lambda args: eval_model(**vars(args)),
    flag("--model-name", default="facebook/opt-350m"),
    flag(
        "--question-file",
        dest="questions_file",
        metavar="QUESTION_FILE",
        default="tables/question.jsonl",
    ),
    flag("--answers-file", default="answer.jsonl"),
    *RUN_FLAGS,
)


if __name__ == "__main__":
    main()
