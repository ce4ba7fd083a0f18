"""Turn ScienceQA into LLaVA's training format.

In: the benchmark's folder (`problems.json`, `pid_splits.json`). Out, in it:
`llava_<split>_<format>.json` (a JSON array) or `.jsonl` (one record a line). Usage:
python scripts/convert_sqa_to_llava.py convert_to_llava --base-dir D --split test
    --prompt-format CQM-A
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from convert_sqa_to_llava_base_prompt import create_one_example  # beside this script

from llava.errors import run_script
from llava.eval.eval_science_qa import read_problems


def make_record(problem_id: str, problem: Mapping[str, Any], prompt_format: str) -> dict[str, Any]:
    """One problem in the training format; a picture's place is at the end of the question."""
    question, answer = create_one_example(prompt_format, problem)
    record: dict[str, Any] = {"id": problem_id}
    if problem.get("image"):
        record["image"] = f"{problem_id}/{problem['image']}"
        question += "\n<image>"
    record["conversations"] = [
        {"from": "human", "value": question},
        {"from": "gpt", "value": answer},
    ]
    return record


def convert_to_llava(base_dir: str, split: str, prompt_format: str = "QCM-LEA") -> Path:
    """Write a JSON array; return its file.

    Raises:
        ConfigError: there is no such format.
        DataError: the benchmark's files are not as they must be.
    """
    records = _records(base_dir, split, prompt_format)
    target = Path(base_dir) / f"llava_{split}_{prompt_format}.json"
    target.write_text(json.dumps(records, indent=2), encoding="utf-8")
    typer.echo(f"{len(records)} problems: {target}")
    return target


def convert_to_jsonl(base_dir: str, split: str, prompt_format: str = "QCM-LEPA") -> Path:
    """Write JSON Lines; return their file.

    Raises:
        ConfigError: there is no such format.
        DataError: the benchmark's files are not as they must be.
    """
    records = _records(base_dir, split, prompt_format)
    target = Path(base_dir) / f"llava_{split}_{prompt_format}.jsonl"
    lines = [json.dumps(record) + "\n" for record in records]
    target.write_text("".join(lines), encoding="utf-8")
    typer.echo(f"{len(records)} problems: {target}")
    return target


def _records(base_dir: str, split: str, prompt_format: str) -> list[dict[str, Any]]:
    problems = read_problems(base_dir, split)
    return [make_record(pid, problem, prompt_format) for pid, problem in problems.items()]


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(description="Convert ScienceQA to LLaVA's format.")
    commands = parser.add_subparsers(dest="command", required=True)
    actions: dict[str, tuple[Callable[..., Path], str]] = {
        "convert_to_llava": (convert_to_llava, "QCM-LEA"),
        "convert_to_jsonl": (convert_to_jsonl, "QCM-LEPA"),
    }
    for name, (_, prompt_format) in actions.items():
        command = commands.add_parser(name)
        command.add_argument("--base-dir", "--base_dir", required=True)
        command.add_argument("--split", required=True)
        command.add_argument("--prompt-format", "--prompt_format", default=prompt_format)
    run_script(
        lambda args: actions[args.command][0](args.base_dir, args.split, args.prompt_format),
        parser,
        argv,
    )


if __name__ == "__main__":
    main()
