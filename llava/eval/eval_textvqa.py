"""Scores TextVQA.

In: the annotations `{"data": [{image_id, question, answers}]}` and an answers file, or a folder of
them. Out: accuracy, on the terminal. An answer belongs to the annotation with its image and
question; the question is read back from the prompt. Usage:
python -m llava.eval.eval_textvqa --annotation-file T.json --result-file A
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from llava.errors import ConfigError, DataError, flag, script_main
from llava.eval.m4c_evaluator import TextVQAAccuracyEvaluator
from llava.eval.records import field, read_json, read_json_lines

Annotations = Mapping[tuple[Any, str], Mapping[str, Any]]

_OCR_PROMPT = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)
_OCR_LINE = "Reference OCR token: "


def prompt_processor(prompt: str) -> str:
    """Reads the question, in lower case, from one of the three prompts that LLaVA uses.

    Raises:
        DataError: It is none of them.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        if match := _OCR_PROMPT.search(prompt):
            return match[1].lower()
    elif len(lines) == 3 and _OCR_LINE in prompt:
        return lines[1 if prompt.startswith(_OCR_LINE) else 0].lower()
    elif len(lines) == 2:
        return lines[0].lower()
    raise DataError(
        f"cannot tell the question in the prompt {prompt!r}; expected the question and a line with "
        f"the instruction, with or without a line {_OCR_LINE!r}, or 'OCR tokens: ... Question: ...'"
    )


def read_annotations(path: str) -> Annotations:
    """Returns the annotations by image and lower-case question."""
    entries = field(read_json(path, dict), "data", path, list)
    where = f"{path}: data"
    return {
        (field(entry, "image_id", where), field(entry, "question", where, str).lower()): entry
        for entry in entries
    }


def eval_single(annotations: Annotations, result_file: str | Path) -> tuple[int, float]:
    """Scores an answers file.

    Returns:
        Number of answers, and the accuracy from 0 to 1.

    Raises:
        DataError: An answer's question is not annotated, or not with ten answers.
    """
    entries = []
    for where, record in read_json_lines(result_file):
        image_id = field(record, "question_id", where)
        try:
            key = image_id, prompt_processor(field(record, "prompt", where, str))
        except DataError as error:
            raise DataError(f"{where}: question {image_id}: {error}") from error
        if key not in annotations:
            raise DataError(
                f"{where}: no annotation for image {image_id} and question {key[1]!r}; check "
                "--annotation-file (it must be of the same split)"
            )
        answers = field(annotations[key], "answers", f"annotation of {image_id}", list)
        entries.append({"pred_answer": field(record, "text", where, str), "gt_answers": answers})
    if not entries:
        raise DataError(f"{result_file}: holds no answers")
    return len(entries), TextVQAAccuracyEvaluator().eval_pred_list(entries)


def _show(args: argparse.Namespace) -> None:
    files = [Path(args.result_file)] if args.result_file else []
    if args.result_dir:
        files += sorted(Path(args.result_dir).glob("*.jsonl"))
    if not files:
        raise ConfigError("no answers: give --result-file, or --result-dir with .jsonl files")
    annotations = read_annotations(args.annotation_file)
    for path in files:
        num_samples, accuracy = eval_single(annotations, path)
        typer.echo(f"{path.stem}\nSamples: {num_samples}\nAccuracy: {100 * accuracy:.2f}%\n")


main = script_main(
    "Score TextVQA.",
    _show,
    flag("--annotation-file", required=True),
    flag("--result-file"),
    flag("--result-dir", help="score every .jsonl in it"),
)


if __name__ == "__main__":
    main()
