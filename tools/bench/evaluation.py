"""`lrm eval`'s batched questions, against one question at a time; the answers must be equal.

Usage: python tools/bench/evaluation.py [--model runs/mini] [--limit 20] [--json FILE]
Needs: runs/mini, from bash scripts/quickstart.sh.

The questions are those of the built-in benchmark, about the same test images in every language.
"peer" is the usual loop of an evaluation script: open the image, run the tower, generate, next
question. "ours" asks in batches, as `lrm eval` does: language by language, questions on an image
next to each other. The tower runs once per image, and what neighbouring questions begin with is
computed once. Both load the model once; loading is not measured. The sides take turns; the best
time counts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lrm_ext.evaluate.answerer import Answer, LlavaAnswerer, Request, Templates, load_answerer
from lrm_ext.evaluate.registry import get_benchmark
from lrm_ext.languages import list_languages

MAX_NEW_TOKENS = 32


def main() -> None:
    """Times both sides, prints the results and optionally saves them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("runs/mini"))
    parser.add_argument("--limit", type=int, default=20, help="number of questions per language")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    requests = make_requests(arguments.limit)
    templates = Templates.of_checkpoint(arguments.model, None)
    model = load_answerer(arguments.model, None, templates, MAX_NEW_TOKENS)
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    answers: dict[str, list[Answer]] = {}
    for _ in range(arguments.rounds):
        for side, size in (("peer", 1), ("ours", arguments.batch_size)):
            start = time.perf_counter()
            answers[side] = ask(model, requests, size, keeps_features=side == "ours")
            times[side].append(time.perf_counter() - start)
    speeds = {side: len(requests) / min(seconds) for side, seconds in times.items()}
    languages = {request.lang for request in requests}
    entry: dict[str, Any] = {
        "name": f"questions: {len(requests)} in {len(languages)} languages",
        **speeds,
        "ratio": speeds["ours"] / speeds["peer"],
        "unit": "questions/s",
        "equal": answers["ours"] == answers["peer"],
    }
    table = Table("measured", "ours", "one at a time", "times better", "same answers")
    shown = [f"{speeds[side]:,.1f} {entry['unit']}" for side in ("ours", "peer")]
    equal = "yes" if entry["equal"] else "NO"
    table.add_row(entry["name"], *shown, f"{entry['ratio']:.1f}", equal)
    Console(soft_wrap=True).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps([entry], indent=2) + "\n", encoding="utf-8")


def make_requests(limit: int) -> list[Request]:
    """Returns the first questions of every language, which are about the same images."""
    benchmark = get_benchmark("scenes")
    return [
        Request(item.text, lang, tuple(map(benchmark.image_path, item.images)))
        for lang in list_languages()
        if lang in benchmark.languages()
        for item in benchmark.read(lang)[:limit]
    ]


def ask(
    model: LlavaAnswerer, requests: Sequence[Request], batch_size: int, keeps_features: bool
) -> list[Answer]:
    """Asks all questions, sorted; returns the answers in the order of the questions."""
    model.forget_images()

    def key(i: int) -> tuple[str, str, int]:
        request = requests[i]
        return request.lang, str(request.images), -model.num_tokens(request)

    order = sorted(range(len(requests)), key=key)
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        answers.update(zip(batch, model.answer([requests[i] for i in batch]), strict=True))
        if not keeps_features:
            model.forget_images()
    return [answers[i] for i in range(len(requests))]


if __name__ == "__main__":
    main()
