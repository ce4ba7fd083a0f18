"""Answer MMBench's multiple-choice questions.

In: its TSV (`index question hint A B C D image`, the picture as base64). Out: JSON Lines as
`model_vqa` writes, with `round_id options option_char`. With `--all-rounds` every rotation of the
options is asked; `option_char` says which letter each option has in the file. Usage:
python -m llava.eval.model_vqa_mmbench --model-path M --question-file Q.tsv --answers-file A
    --single-pred-prompt --temperature 0 --conv-mode vicuna_v1
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from llava.errors import DataError, run_script
from llava.eval.model_vqa import Question, Script, answer_questions
from llava.eval.records import OPTION_LETTERS, field, get_options, read_tsv
from llava.eval.records import get_chunk as get_chunk
from llava.eval.records import is_none as is_none
from llava.eval.records import split_list as split_list

SCRIPT = Script("model_vqa_mmbench", conv_mode="llava_v1", max_new_tokens=1024, plain_rule=True)
LETTERS = OPTION_LETTERS
LETTER_INSTRUCTIONS = {
    "en": "Answer with the option's letter from the given choices directly.",
    "cn": "请直接回答选项字母。",
}
MAX_REFERENCE_CHARS = 64
"""An image cell of up to so many characters names the row that holds the picture."""


def read_questions(
    question_file: str, all_rounds: bool, single_pred_prompt: bool, lang: str
) -> list[list[Question]]:
    """Read an MMBench file.

    Args:
        question_file: the TSV.
        all_rounds: ask once for each rotation of the options.
        single_pred_prompt: end the question by asking for the letter alone.
        lang: `en` or `cn`, the language of that sentence.

    Returns:
        The rounds of each row, one or as many as it has options.

    Raises:
        DataError: a column, the options or a picture are missing.
    """
    rows = read_tsv(question_file)
    images = {field(row, "index", where): field(row, "image", where) for where, row in rows}
    suffix = "\n" + LETTER_INSTRUCTIONS[lang] if single_pred_prompt else ""
    return [_rounds(row, where, images, all_rounds, suffix) for where, row in rows]


def _rounds(
    row: Mapping[str, str], where: str, images: Mapping[str, str], all_rounds: bool, suffix: str
) -> list[Question]:
    options = get_options(row)
    if not options:
        raise DataError(f"{where}: row {row['index']} has no option A")
    image = _decode_image(images, row["index"], where)
    question = field(row, "question", where)
    if not is_none(row.get("hint", "")):
        question = f"{row['hint']}\n{question}"
    chars = list(LETTERS[: len(options)])
    rounds = []
    for round_id in range(len(options) if all_rounds else 1):
        rotated = options[round_id:] + options[:round_id]
        # the letters stay in place, the texts move
        lines = [f"{letter}. {text}" for letter, text in zip(chars, rotated, strict=True)]
        prompt = "\n".join([question, *lines])
        extra = {
            "round_id": round_id,
            "options": rotated,
            "option_char": chars[round_id:] + chars[:round_id],
        }
        index = _as_number(row["index"])
        rounds.append(Question(index, prompt, prompt + suffix, image, where, extra))
    return rounds


def _as_number(index: str) -> int | str:
    return int(index) if index.isdecimal() else index


def _decode_image(images: Mapping[str, str], index: str, where: str) -> bytes:
    cell = images[index]
    if len(cell) <= MAX_REFERENCE_CHARS and cell in images:
        cell = images[cell]
    try:
        return base64.b64decode(cell, validate=True)
    except binascii.Error as error:
        raise DataError(f"{where}: row {index}: image is not base64 ({error})") from error


def eval_model(args: Any) -> None:
    """Answer the questions that `args` names; see `model_vqa.answer_questions`."""
    rows = read_questions(args.question_file, args.all_rounds, args.single_pred_prompt, args.lang)
    # a chunk is cut between rows, never between the rounds of one
    chunk = get_chunk(rows, args.num_chunks, args.chunk_idx)
    answer_questions(
        SCRIPT,
        args,
        args.question_file,
        [question for rounds in chunk for question in rounds],
        all_rounds=args.all_rounds,
        single_pred_prompt=args.single_pred_prompt,
        lang=args.lang,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and answer."""
    parser = SCRIPT.make_parser("Answer MMBench.")
    parser.add_argument("--all-rounds", action="store_true", help="ask every rotation")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the letter")
    parser.add_argument("--lang", choices=LETTER_INSTRUCTIONS, default="en")
    run_script(eval_model, parser, argv)


if __name__ == "__main__":
    main()
