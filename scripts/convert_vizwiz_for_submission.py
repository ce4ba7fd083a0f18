"""Turn answers to VizWiz into a file for its evaluation server.

In: the questions and their answers, JSON Lines. Out: a JSON array of `image, answer`, normalised as
the VQA challenge does. Usage: python scripts/convert_vizwiz_for_submission.py
    --annotation-file Q --result-file A --result-upload-file U
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from llava.errors import run_script
from llava.eval.m4c_evaluator import EvalAIAnswerProcessor
from llava.eval.records import answers_by_id, field, read_json_lines, refuse_missing


def convert(annotation_file: str, result_file: str, result_upload_file: str) -> None:
    """Convert a file.

    Raises:
        DataError: a file is not as it must be, or a question has no answer.
    """
    answers = answers_by_id(result_file)
    images = {
        field(record, "question_id", where): field(record, "image", where)
        for where, record in read_json_lines(annotation_file)
    }
    missing = [question_id for question_id in images if question_id not in answers]
    refuse_missing("questions have no answer", missing, f"complete {result_file}")
    process = EvalAIAnswerProcessor()
    entries = [{"image": image, "answer": process(answers[i])} for i, image in images.items()]
    target = Path(result_upload_file)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(entries), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(description="Convert answers for VizWiz's server.")
    parser.add_argument("--annotation-file", required=True)
    parser.add_argument("--result-file", required=True)
    parser.add_argument("--result-upload-file", required=True)
    run_script(
        lambda args: convert(args.annotation_file, args.result_file, args.result_upload_file),
        parser,
        argv,
    )


if __name__ == "__main__":
    main()
