"""Cuts benchmarks for `check.sh`, and compares what other tools say of them with `lrm eval`.

    python tools/interop/compare.py cut mini-pope --languages en,hr --questions 24 --out bench/pope
    python tools/interop/compare.py scores eval logs/from_log --benchmark-dir bench
    python tools/interop/compare.py answers eval eval-vllm

`scores` reads the results and samples that lmms-eval wrote with `--log_samples`: every answer and
every score must be the one of `lrm eval`, to the last digit. `answers` compares two runs of it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from llava.eval.records import read_json_lines
from lrm_ext.evaluate.items import limit_items
from lrm_ext.evaluate.registry import open_named, write_folder
from lrm_ext.evaluate.translating import kind_of_folder
from lrm_ext.export.evaluation import exported_task, read_run

log = logging.getLogger("compare")

ROW = "{:<28} {:>14} {:>22} {:>22}"


def cut(name: str, languages: list[str], num_questions: int, out: Path) -> None:
    """Writes about so many questions of a benchmark, the same in every language."""
    benchmark = open_named(name)
    for lang in languages:
        items = limit_items(benchmark.read(lang), num_questions)
        write_folder(
            out, kind_of_folder(benchmark).name, lang, items, benchmark.image_root,
            benchmark.path(lang),
        )  # fmt: skip


def scores(run: Path, logs: Path, benchmarks: Path) -> bool:
    """Prints lmms-eval's scores beside ours; returns whether all scores and answers are equal."""
    (path,) = logs.rglob("*_results.json")
    theirs = json.loads(path.read_text(encoding="utf-8"))["results"]
    log.info(ROW.format("task", "same answers", "lrm eval", "lmms-eval"))
    good = True
    for answers in read_run(run, benchmark_dir=benchmarks):
        result = answers.result
        task = exported_task(result.benchmark, result.lang)
        (samples,) = logs.rglob(f"*_samples_{task}.jsonl")
        said = {row["doc_id"]: row["filtered_resps"] for _, row in read_json_lines(samples)}
        same = sum(
            said.get(number) == result.texts[item.question_id].strip()
            for number, item in enumerate(result.items)
        )
        found = [v for k, v in theirs[task].items() if k.endswith(",none") and "stderr" not in k]
        ours = result.score().headline
        log.info(ROW.format(task, f"{same} of {len(result.items)}", ours, *map(str, found)))
        good &= same == len(result.items) == len(said) and found == [ours]
    return good


def answers(ours: Path, theirs: Path) -> bool:
    """Prints how many answers and which scores of two runs are equal; returns whether all are."""
    log.info(ROW.format("benchmark", "same answers", ours.name, theirs.name))
    good = True
    for a, b in zip(read_run(ours), read_run(theirs), strict=True):
        one, other = a.result, b.result
        same = sum(other.texts.get(key) == text for key, text in one.texts.items())
        pair = one.score().headline, other.score().headline
        name = f"{one.benchmark} {one.lang}"
        log.info(ROW.format(name, f"{same} of {len(one.texts)}", *pair))
        good &= same == len(one.texts) == len(other.texts) and pair[0] == pair[1]
    return good


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    cutting = commands.add_parser("cut", help="write some questions of a benchmark")
    cutting.add_argument("name")
    cutting.add_argument("--languages", required=True)
    cutting.add_argument("--questions", type=int, required=True)
    cutting.add_argument("--out", type=Path, required=True)
    for name in ("scores", "answers"):
        comparing = commands.add_parser(name)
        comparing.add_argument("run", type=Path)
        comparing.add_argument("other", type=Path)
        if name == "scores":
            comparing.add_argument("--benchmark-dir", type=Path, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if args.command == "cut":
        cut(args.name, args.languages.split(","), args.questions, args.out)
        return 0
    if args.command == "scores":
        good = scores(args.run, args.other, args.benchmark_dir)
    else:
        good = answers(args.run, args.other)
    log.info("all equal" if good else "NOT EQUAL")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
