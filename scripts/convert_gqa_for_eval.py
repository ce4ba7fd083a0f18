"""Turn answers to GQA into what its own scorer reads.

In: an answers file. Out: a JSON array of `questionId, prediction`, lower-case, without a closing
full stop. Usage: python scripts/convert_gqa_for_eval.py --src answers.jsonl --dst predictions.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from llava.errors import run_script
from llava.eval.records import field, read_json_lines


def convert(src: str, dst: str) -> None:
    """Convert a file.

    Raises:
        DataError: a line of `src` lacks `question_id` or `text`.
    """
    predictions = [
        {
            "questionId": field(record, "question_id", where),
            "prediction": field(record, "text", where, str).rstrip(".").lower(),
        }
        for where, record in read_json_lines(src)
    ]
    Path(dst).write_text(json.dumps(predictions), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(description="Convert answers for GQA's scorer.")
    parser.add_argument("--src", required=True)
    parser.add_argument("--dst", required=True)
    run_script(lambda args: convert(args.src, args.dst), parser, argv)


if __name__ == "__main__":
    main()
