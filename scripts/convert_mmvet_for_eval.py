"""Turn answers to MM-Vet into what its own scorer reads.

In: an answers file. Out: a JSON object `{"v1_<question id>": answer}`.
Usage: python scripts/convert_mmvet_for_eval.py --src answers.jsonl --dst results.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from llava.errors import run_script
from llava.eval.records import answers_by_id


def convert(src: str, dst: str) -> None:
    """Convert a file.

    Raises:
        DataError: a line of `src` is not as it must be.
    """
    results = {f"v1_{question_id}": text for question_id, text in answers_by_id(src).items()}
    Path(dst).write_text(json.dumps(results, indent=2), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(description="Convert answers for MM-Vet's scorer.")
    parser.add_argument("--src", required=True)
    parser.add_argument("--dst", required=True)
    run_script(lambda args: convert(args.src, args.dst), parser, argv)


if __name__ == "__main__":
    main()
