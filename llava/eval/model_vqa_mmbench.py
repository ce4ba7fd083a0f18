"""Answers MMBench's multiple-choice questions.

In: its TSV (`index question hint A B C D image`, the image as base64). Out: JSON Lines as
`model_vqa` writes, with `round_id options option_char`. With `--all-rounds` every rotation of the
options is asked; `option_char` says which letter each option has in the file. Usage:
python -m llava.eval.model_vqa_mmbench --model-path M --question-file Q.tsv --answers-file A
    --single-pred-prompt --temperature 0 --conv-mode vicuna_v1
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from llava.errors import DataError, flag, script_main
from llava.eval.model_vqa import Script, VqaQuestion, answer_questions
from llava.eval.records import OPTION_LETTERS, field, get_chunk, is_none, read_tsv
from llava.eval.records import split_list as split_list

SCRIPT = Script("model_vqa_mmbench", conv_mode="llava_v1", max_new_tokens=1024, plain_rule=True)
LETTER_INSTRUCTIONS = {
    "en": "Answer with the option's letter from the given choices directly.",
    "cn": "请直接回答选项字母。",
}
MAX_REFERENCE_CHARS = 64
"""An image cell of up to so many characters names the row that holds the image."""


def read_questions(
    question_file: str, all_rounds: bool, single_pred_prompt: bool, lang: str
) -> list[list[VqaQuestion]]:
    """Reads an MMBench file.

    Args:
        question_file: The TSV.
        all_rounds: Ask once for each rotation of the options.
        single_pred_prompt: End the question by asking for the letter alone.
        lang: `en` or `cn`, the language of that sentence.

    Returns:
        The rounds of each row, one or as many as it has options.

    Raises:
        DataError: A column, the options or an image are missing.
    """
    rows = read_tsv(question_file)
    images = {field(row, "index", where): field(row, "image", where) for where, row in rows}
    suffix = "\n" + LETTER_INSTRUCTIONS[lang] if single_pred_prompt else ""
    return [_rounds(row, where, images, all_rounds, suffix) for where, row in rows]


def _rounds(
    row: Mapping[str, str], where: str, images: Mapping[str, str], all_rounds: bool, suffix: str
) -> list[VqaQuestion]:
    letters = list(takewhile(lambda letter: not is_none(row.get(letter, "")), OPTION_LETTERS))
    if not letters:
        raise DataError(f"{where}: row {row['index']} has no option A")
    question = field(row, "question", where)
    if not is_none(row.get("hint", "")):
        question = f"{row['hint']}\n{question}"
    image = _decode_image(images, row["index"], where)
    index = int(row["index"]) if row["index"].isdecimal() else row["index"]
    rounds = []
    for round_id in range(len(letters) if all_rounds else 1):
        # the letters stay in place, the texts move
        rotated = letters[round_id:] + letters[:round_id]
        options = [row[letter] for letter in rotated]
        lines = [f"{letter}. {text}" for letter, text in zip(letters, options, strict=True)]
        prompt = "\n".join([question, *lines])
        extra = {"round_id": round_id, "options": options, "option_char": rotated}
        rounds.append(VqaQuestion(index, prompt, prompt + suffix, image, where, extra))
    return rounds


def _decode_image(images: Mapping[str, str], index: str, where: str) -> bytes:
    cell = images[index]
    if len(cell) <= MAX_REFERENCE_CHARS and cell in images:
        cell = images[cell]
    try:
        return base64.b64decode(cell, validate=True)
    except binascii.Error as error:
        raise DataError(f"{where}: row {index}: image is not base64 ({error})") from error


def eval_model(args: Any) -> None:
    """Answers the questions that `args` names; see `model_vqa.answer_questions`."""
    settings = {name: getattr(args, name) for name in ("all_rounds", "single_pred_prompt", "lang")}
    rows = read_questions(args.question_file, **settings)
    # a chunk is cut between rows, never between the rounds of one
    chunk = get_chunk(rows, args.num_chunks, args.chunk_idx)
    questions = [question for rounds in chunk for question in rounds]
    answer_questions(SCRIPT, args, args.question_file, questions, **settings)


main = script_main(
    "Answer MMBench.",
    eval_model,
    *SCRIPT.flags(),
    flag("--all-rounds", action="store_true", help="ask every rotation"),
    flag("--single-pred-prompt", action="store_true", help="ask for the letter"),
    flag("--lang", choices=LETTER_INSTRUCTIONS, default="en"),
)


if __name__ == "__main__":
    main()
