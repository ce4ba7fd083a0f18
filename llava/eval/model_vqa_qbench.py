"""Answers Q-Bench's multiple-choice questions about image quality.

In: its JSON array (`img_path question candidates`, perhaps `id`). Out: JSON Lines as `model_vqa`
writes, with `options`; `question_id` is the record's number where it has no `id`. LLaVA's scripts
call this module without bringing it, so the wording of the prompt is that of its other
multiple-choice benchmarks. Usage:
python -m llava.eval.model_vqa_qbench --model-path M --questions-file Q.json --image-folder I
    --answers-file A --conv-mode llava_v1 --lang en
"""

from __future__ import annotations

from typing import Any

from llava.errors import DataError, flag, script_main
from llava.eval.model_vqa import Script, VqaQuestion, answer_questions
from llava.eval.model_vqa_mmbench import LETTER_INSTRUCTIONS
from llava.eval.records import OPTION_LETTERS, field, get_chunk, image_path, read_json

SCRIPT = Script("model_vqa_qbench", conv_mode="llava_v1", max_new_tokens=128)
LANGUAGES = {"en": "en", "cn": "cn", "zh": "cn"}


def read_questions(questions_file: str, image_folder: str, lang: str) -> list[VqaQuestion]:
    """Reads a file of Q-Bench.

    Raises:
        DataError: A record lacks a key, or its image is not in the folder.
    """
    questions = []
    for number, record in enumerate(read_json(questions_file, list)):
        where = f"{questions_file}: record {number}"
        options = field(record, "candidates", where, list)
        if not 1 <= len(options) <= len(OPTION_LETTERS):
            raise DataError(f"{where}: {len(options)} candidates; expected 1 to 26")
        lines = [f"{OPTION_LETTERS[i]}. {text}" for i, text in enumerate(options)]
        question = field(record, "question", where, str)
        prompt = "\n".join([question, *lines, LETTER_INSTRUCTIONS[LANGUAGES[lang]]])
        image = image_path(image_folder, field(record, "img_path", where), where)
        question_id = record.get("id", number)
        questions.append(
            VqaQuestion(question_id, prompt, prompt, image, where, {"options": options})
        )
    return questions


def eval_model(args: Any) -> None:
    """Answers the questions that `args` names; see `model_vqa.answer_questions`."""
    questions = read_questions(args.questions_file, args.image_folder, args.lang)
    chunk = get_chunk(questions, args.num_chunks, args.chunk_idx)
    answer_questions(SCRIPT, args, args.questions_file, chunk, lang=args.lang)


main = script_main(
    "Answer Q-Bench.",
    eval_model,
    *SCRIPT.flags(question_file=""),
    flag("--questions-file", required=True),
    flag("--lang", choices=LANGUAGES, default="en"),
)


if __name__ == "__main__":
    main()
