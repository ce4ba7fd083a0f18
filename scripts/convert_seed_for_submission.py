"""Score SEED-Bench, and turn the answers into a file for its leaderboard.

In: `SEED-Bench.json` and an answers file. Out: accuracies on the terminal (the answer must be the
letter and nothing else), JSON Lines of `question_id, prediction`. Usage:
python scripts/convert_seed_for_submission.py --annotation-file SEED-Bench.json
    --result-file merge.jsonl --result-upload-file upload.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from llava.errors import DataError, run_script
from llava.eval.records import answers_by_id, field, read_json, refuse_missing

Accuracies = dict[str, float]


def normalise_id(question_id: Any) -> Any:
    """Question ids are numbers where they can be: pictures have "1", videos "v1"."""
    try:
        return int(question_id)
    except (TypeError, ValueError):
        return question_id


def score(
    questions: Sequence[Mapping[str, Any]], types: Mapping[str, int], answers: Mapping[Any, str]
) -> Accuracies:
    """Accuracies, 0 to 1: per question type, `Total`, then `image` and `video`.

    Args:
        questions: those that were asked.
        types: question type ids by name.
        answers: by normalised id.
    """
    names = {type_id: name for name, type_id in types.items()}
    groups: dict[str, list[bool]] = defaultdict(list)
    for question in questions:
        is_right = answers[normalise_id(question["question_id"])] == question["answer"]
        name = names.get(question["question_type_id"], str(question["question_type_id"]))
        for group in (name, "Total", question["data_type"]):
            groups[group].append(is_right)
    kinds = [kind for kind in ("image", "video") if kind in groups]
    order = [*(name for name in types if name in groups), "Total", *kinds]
    return {name: sum(groups[name]) / len(groups[name]) for name in order}


def convert(annotation_file: str, result_file: str, result_upload_file: str) -> Accuracies:
    """Score and convert a file.

    Questions of a kind (image, video) of which none was answered were not asked.

    Raises:
        DataError: a file is not as it must be, or a question has no answer.
    """
    annotations = read_json(annotation_file, dict)
    questions = field(annotations, "questions", annotation_file, list)
    types = field(annotations, "question_type", annotation_file, dict)
    answers = {normalise_id(i): text for i, text in answers_by_id(result_file).items()}
    for question in questions:
        for name in ("question_id", "answer", "question_type_id", "data_type"):
            field(question, name, f"{annotation_file}: question {question.get('question_id')}")
    known = {normalise_id(question["question_id"]): question for question in questions}
    if strangers := answers.keys() - known.keys():
        raise DataError(
            f"{result_file}: {len(strangers)} answers have no question in {annotation_file}, e.g. "
            f"{sorted(strangers, key=str)[:5]}; use the release that the questions are from"
        )
    if not answers:
        raise DataError(f"{result_file}: holds no answers")
    kinds = {known[i]["data_type"] for i in answers}
    asked = [question for question in questions if question["data_type"] in kinds]
    missing = [q["question_id"] for q in asked if normalise_id(q["question_id"]) not in answers]
    refuse_missing("questions have no answer", missing, f"complete {result_file}")
    lines = [
        json.dumps({"question_id": i, "prediction": answers[normalise_id(i)]}) + "\n"
        for i in (question["question_id"] for question in asked)
    ]
    target = Path(result_upload_file)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(lines), encoding="utf-8")
    return score(asked, types, answers)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, score and convert."""
    parser = argparse.ArgumentParser(description="Score and convert answers to SEED-Bench.")
    parser.add_argument("--annotation-file", required=True)
    parser.add_argument("--result-file", required=True)
    parser.add_argument("--result-upload-file", required=True)

    def run(args: argparse.Namespace) -> None:
        accuracies = convert(args.annotation_file, args.result_file, args.result_upload_file)
        for name, accuracy in accuracies.items():
            label = f"{name} accuracy" if name in ("Total", "image", "video") else name
            typer.echo(f"{label}: {100 * accuracy:.2f}%")

    run_script(run, parser, argv)


if __name__ == "__main__":
    main()
