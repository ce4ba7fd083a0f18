"""Answer Q-Bench's multiple-choice questions about picture quality.

In: its JSON array (`img_path question candidates`, perhaps `id`). Out: JSON Lines as `model_vqa`
writes, with `options`; `question_id` is the record's number where it has no `id`. LLaVA's scripts
call this module without bringing it, so the wording of the prompt is that of its other
multiple-choice benchmarks. Usage:
python -m llava.eval.model_vqa_qbench --model-path M --questions-file Q.json --image-folder I
    --answers-file A --conv-mode llava_v1 --lang en
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from llava.errors import DataError, run_script
from llava.eval.model_vqa import Question, Script, answer_questions
from llava.eval.model_vqa_mmbench import LETTER_INSTRUCTIONS
from llava.eval.records import field, get_chunk, image_path, read_json

SCRIPT = Script("model_vqa_qbench", conv_mode="llava_v1", max_new_tokens=128)
LANGUAGES = {"en": "en", "cn": "cn", "zh": "cn"}


def read_questions(questions_file: str, image_folder: str, lang: str) -> list[Question]:
    """Read a file of Q-Bench.

    Raises:
        DataError: a record lacks a key, or its picture is not in the folder.
    """
    questions = []
    for number, record in enumerate(read_json(questions_file, list)):
        where = f"{questions_file}: record {number}"
        options = field(record, "candidates", where, list)
        if not 1 <= len(options) <= len(string.ascii_uppercase):
            raise DataError(f"{where}: {len(options)} candidates; expected 1 to 26")
        lines = [f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, options)]  # noqa: B905
        prompt = "\n".join(
            [field(record, "question", where, str), *lines, LETTER_INSTRUCTIONS[LANGUAGES[lang]]]
        )
        image = image_path(image_folder, field(record, "img_path", where), where)
        question_id = record.get("id", number)
        questions.append(Question(question_id, prompt, prompt, image, where, {"options": options}))
    return questions


def eval_model(args: Any) -> None:
    """Answer the questions that `args` names; see `model_vqa.answer_questions`."""
    questions = read_questions(args.questions_file, args.image_folder, args.lang)
    chunk = get_chunk(questions, args.num_chunks, args.chunk_idx)
    answer_questions(SCRIPT, args, args.questions_file, chunk, lang=args.lang)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and answer."""
    parser = SCRIPT.make_parser("Answer Q-Bench.", question_file=None)
    parser.add_argument("--questions-file", required=True)
    parser.add_argument("--lang", choices=LANGUAGES, default="en")
    run_script(eval_model, parser, argv)


if __name__ == "__main__":
    main()
