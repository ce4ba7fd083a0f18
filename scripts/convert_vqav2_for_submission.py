"""Turn answers to VQAv2 into a file for its evaluation server.

In: `<dir>/answers/<split>/<ckpt>/merge.jsonl` and all questions of the test set,
`<dir>/llava_vqav2_mscoco_test2015.jsonl`. Out: `<dir>/answers_upload/<split>/<ckpt>.json`, a JSON
array of `question_id, answer`; the server wants every question, so one outside the split gets "".
Usage: python scripts/convert_vqav2_for_submission.py --split S --ckpt C
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import typer

from llava.errors import DataError, run_script
from llava.eval.m4c_evaluator import EvalAIAnswerProcessor
from llava.eval.records import answers_by_id, field, read_json_lines

TEST_SET = "llava_vqav2_mscoco_test2015.jsonl"


def convert(folder: str, ckpt: str, split: str) -> Path:
    """Convert a checkpoint's answers; return the file that was written.

    Raises:
        DataError: a file is not as it must be, or an answer has no question in the test set.
    """
    root = Path(folder)
    source = root / "answers" / split / ckpt / "merge.jsonl"
    answers = answers_by_id(source)
    test_set = root / TEST_SET
    ids = [field(record, "question_id", where) for where, record in read_json_lines(test_set)]
    if strangers := answers.keys() - set(ids):
        raise DataError(
            f"{source}: {len(strangers)} answers have no question in {test_set}, e.g. "
            f"{sorted(strangers, key=str)[:5]}"
        )
    process = EvalAIAnswerProcessor()
    entries = [{"question_id": i, "answer": process(answers.get(i, ""))} for i in ids]
    target = root / "answers_upload" / split / f"{ckpt}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(entries), encoding="utf-8")
    typer.echo(f"{len(answers)} of {len(ids)} questions answered: {target}")
    return target


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(description="Convert answers for VQAv2's server.")
    parser.add_argument("--dir", default="./playground/data/eval/vqav2")
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--split", required=True)
    run_script(lambda args: convert(args.dir, args.ckpt, args.split), parser, argv)


if __name__ == "__main__":
    main()
