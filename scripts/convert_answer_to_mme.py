"""Turn answers to MME into the files that its official tool (and `llava.eval.eval_mme`) scores.

In: `<data-dir>/answers/<experiment>.jsonl` and, for the right answers, the benchmark's folder
`<data-dir>/MME_Benchmark_release_version`. Out:
`<data-dir>/eval_tool/answers/<experiment>/<category>.txt`.
Usage: python scripts/convert_answer_to_mme.py --experiment my-model
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from llava.errors import DataError, run_script
from llava.eval.eval_mme import COGNITION, LABELS, PERCEPTION
from llava.eval.records import field, read_json_lines, read_text, refuse_missing

BENCHMARK = "MME_Benchmark_release_version"
TEXT_FOLDER = "questions_answers_YN"
INSTRUCTION = "Please answer yes or no."

Key = tuple[str, str, str]
"""Category, picture without suffix, question."""


def read_labels(folder: Path) -> dict[Key, str]:
    """Right answers, in the benchmark's order.

    Raises:
        DataError: a category is missing, or a line is not as it must be.
    """
    labels: dict[Key, str] = {}
    for category in (*PERCEPTION, *COGNITION):
        texts = folder / category / TEXT_FOLDER
        texts = texts if texts.is_dir() else folder / category
        paths = sorted(texts.glob("*.txt"))
        if not paths:
            raise DataError(f"{texts}: no .txt files with questions; is the benchmark complete?")
        for path in paths:
            for number, line in enumerate(read_text(path).splitlines(), 1):
                question, _, label = line.partition("\t")
                if not line.strip():
                    continue
                if label.strip() not in LABELS:
                    raise DataError(
                        f"{path}:{number}: expected a question, a tab, and Yes or No; found "
                        f"{line!r}"
                    )
                labels[category, path.stem, normalise(question)] = label.strip()
    return labels


def normalise(question: str) -> str:
    """The question without its instruction; some have two spaces before it."""
    return " ".join(question.split("\n")[0].replace(INSTRUCTION, "").split())


def make_lines(answers_file: Path, labels: Mapping[Key, str]) -> dict[str, list[str]]:
    """Lines of each category's file; the two questions of a picture follow each other.

    Raises:
        DataError: an answer has no question in the benchmark, or the reverse.
    """
    found: dict[Key, str] = {}
    for where, record in read_json_lines(answers_file):
        picture = PurePosixPath(field(record, "question_id", where, str))
        question = normalise(field(record, "prompt", where, str))
        key = (picture.parts[0], picture.stem, question)
        if key not in labels:
            raise DataError(f"{where}: the benchmark has no question {question!r} about {picture}")
        # one line with tabs between its cells
        answer = re.sub(r"[\t\r\n]", " ", field(record, "text", where, str))
        full = f"{question} {INSTRUCTION}"
        found[key] = f"{picture.name}\t{full}\t{labels[key]}\t{answer}\n"
    missing = [key for key in labels if key not in found]
    refuse_missing("questions have no answer", missing, f"complete {answers_file}")
    lines: dict[str, list[str]] = {}
    for key in labels:
        lines.setdefault(key[0], []).append(found[key])
    return lines


def convert(data_dir: str, experiment: str) -> Path:
    """Convert an experiment's answers; return the folder that was written."""
    root = Path(data_dir)
    lines = make_lines(root / "answers" / f"{experiment}.jsonl", read_labels(root / BENCHMARK))
    target = root / "eval_tool" / "answers" / experiment
    target.mkdir(parents=True, exist_ok=True)
    for category, texts in lines.items():
        (target / f"{category}.txt").write_text("".join(texts), encoding="utf-8")
    return target


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(description="Convert answers for MME's tool.")
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--data-dir", default="./playground/data/eval/MME")
    run_script(lambda args: convert(args.data_dir, args.experiment), parser, argv)


if __name__ == "__main__":
    main()
