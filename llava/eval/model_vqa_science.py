"""Answers ScienceQA's questions, with and without images.

In: a JSON array in LLaVA's training format; of each record `id`, the first turn, perhaps `image`.
Out: JSON Lines as `model_vqa` writes; `prompt` begins with `<image>` where there was an image,
which `eval_science_qa` relies on. Usage:
python -m llava.eval.model_vqa_science --model-path M --question-file Q.json --image-folder I
    --answers-file A --single-pred-prompt --temperature 0 --conv-mode vicuna_v1
"""

from __future__ import annotations

from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import flag, script_main
from llava.eval.model_vqa import Script, VqaQuestion, answer_questions
from llava.eval.model_vqa_mmbench import LETTER_INSTRUCTIONS
from llava.eval.records import field, get_chunk, image_path, read_json
from llava.eval.records import split_list as split_list

SCRIPT = Script("model_vqa_science", conv_mode="llava_v0", max_new_tokens=1024)


def read_questions(
    question_file: str, image_folder: str, single_pred_prompt: bool
) -> list[VqaQuestion]:
    """Reads a file of ScienceQA.

    Args:
        question_file: The JSON array.
        image_folder: Where the images are.
        single_pred_prompt: End the question by asking for the letter alone.

    Raises:
        DataError: A record lacks a key, or its image is not in the folder.
    """
    suffix = "\n" + LETTER_INSTRUCTIONS["en"] if single_pred_prompt else ""
    questions = []
    for number, record in enumerate(read_json(question_file, list)):
        where = f"{question_file}: record {number}"
        question_id = field(record, "id", where)
        (turn, *_) = field(record, "conversations", where, list) or [{}]
        value = field(turn, "value", f"{where} ({question_id})", str)
        text = value.replace(DEFAULT_IMAGE_TOKEN, "").strip() + suffix
        image, prompt = None, text
        if "image" in record:
            image = image_path(image_folder, record["image"], where)
            prompt = f"{DEFAULT_IMAGE_TOKEN}\n{text}"
        questions.append(VqaQuestion(question_id, prompt, text, image, where))
    return questions


def eval_model(args: Any) -> None:
    """Answers the questions that `args` names; see `model_vqa.answer_questions`."""
    single = args.single_pred_prompt
    questions = read_questions(args.question_file, args.image_folder, single)
    chunk = get_chunk(questions, args.num_chunks, args.chunk_idx)
    answer_questions(SCRIPT, args, args.question_file, chunk, single_pred_prompt=single)


main = script_main(
    "Answer ScienceQA.",
    eval_model,
    *SCRIPT.flags("tables/question.json"),
    flag("--single-pred-prompt", action="store_true", help="ask for the letter"),
    flag("--answer-prompter", action="store_true", help="accepted, without effect"),
)


if __name__ == "__main__":
    main()
