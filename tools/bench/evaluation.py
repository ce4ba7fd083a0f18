"""`lrm eval`'s batched questions, against one at a time and against plain batches; equal answers.

Usage: python tools/bench/evaluation.py [--model runs/mini] [--limit 20] [--json FILE]
Needs: runs/mini, from bash scripts/quickstart.sh, for the first part.

The questions are those of the built-in benchmark, about the same test images in every language.
"peer" is the usual loop of an evaluation script: open the image, run the tower, generate, next
question. "ours" asks in batches, as `lrm eval` does: language by language, questions on an image
next to each other. The tower runs once per image, and what neighbouring questions begin with is
computed once. Both load the model once; loading is not measured. The sides take turns; the best
time counts.

The second part needs no trained model: a random Llama of 8 layers under LLaVA-1.5's tower (576
positions an image), eight questions on each of two images. "peer" is a batch padded on the left
with the tower's output at hand, as an expert would ask it; "ours" computes what the questions on
an image begin with once. Processor time of one thread, sides in turns, median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import pad_left
from llava.model.language_model.causal_lm import get_family
from lrm_ext.evaluate.answerer import LlavaAnswerer, load_answerer
from lrm_ext.evaluate.items import Answer, Request
from lrm_ext.evaluate.registry import get_benchmark
from lrm_ext.languages import list_languages
from lrm_ext.languages.templates import Templates

MAX_NEW_TOKENS = 32
NUM_IMAGES, QUESTIONS_PER_IMAGE = 2, 8


def main() -> None:
    """Times both sides, prints the results and optionally saves them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("runs/mini"))
    parser.add_argument("--limit", type=int, default=20, help="number of questions per language")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    console = Console(soft_wrap=True)
    entries = []
    if arguments.model.is_dir():
        entries.append(measure_batches(arguments.model, arguments))
    else:
        console.print(f"{arguments.model} is not there: its part is not measured")
    entries.append(measure_prefixes(arguments.rounds))
    table = Table("measured", "ours", "peer", "times better", "same answers")
    for each in entries:
        shown = [f"{each[side]:,.1f} {each['unit']}" for side in ("ours", "peer")]
        equal = "yes" if each["equal"] else "NO"
        table.add_row(each["name"], *shown, f"{each['ratio']:.1f}", equal)
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def measure_batches(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compares batches with one question at a time, on a trained model."""
    requests = make_requests(arguments.limit)
    templates = Templates.of_checkpoint(folder, None)
    model = load_answerer(folder, None, templates, MAX_NEW_TOKENS)
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    answers: dict[str, list[Answer]] = {}
    for _ in range(arguments.rounds):
        for side, size in (("peer", 1), ("ours", arguments.batch_size)):
            start = time.perf_counter()
            answers[side] = ask(model, requests, size, keeps_features=side == "ours")
            times[side].append(time.perf_counter() - start)
    speeds = {side: len(requests) / min(seconds) for side, seconds in times.items()}
    languages = {request.lang for request in requests}
    return {
        "name": f"questions: {len(requests)} in {len(languages)} languages",
        **speeds,
        "ratio": speeds["ours"] / speeds["peer"],
        "unit": "questions/s",
        "equal": answers["ours"] == answers["peer"],
    }


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


def measure_prefixes(rounds: int) -> dict[str, Any]:
    """Compares a batch with shared beginnings with a plain one, on a random model.

    On one thread: threads that wait for each other take processor time.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(folder)
    generator = torch.Generator().manual_seed(0)
    begin = [1, *range(10, 45), IMAGE_TOKEN_INDEX]
    rows = [
        begin + torch.randint(50, 3_000, (20 + i % 5,), generator=generator).tolist()
        for i in range(NUM_IMAGES * QUESTIONS_PER_IMAGE)
    ]
    ids, mask = pad_left(rows, 0)
    tower = model.get_vision_tower()
    pixels = torch.randn(NUM_IMAGES, 3, 336, 336, generator=generator)
    with torch.inference_mode():
        features = tower(pixels).repeat_interleave(QUESTIONS_PER_IMAGE, 0)
    length = len(begin) - 1 + tower.num_image_tokens
    sides: dict[str, dict[str, Any]] = {
        "peer": {},
        "ours": {"prefix_lengths": [length] * len(rows)},
    }
    answers: dict[str, torch.Tensor] = {}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, extra in sides.items():
            start = time.process_time()
            answers[side] = model.generate(
                ids, attention_mask=mask, image_features=features, do_sample=False,
                image_sizes=[(336, 336)] * len(rows), max_new_tokens=8, pad_token_id=0, **extra,
            )  # fmt: skip
            times[side].append(time.process_time() - start)
    ratios = [peer / ours for ours, peer in zip(times["ours"], times["peer"], strict=True)]
    return {
        "name": f"{QUESTIONS_PER_IMAGE} questions an image of {tower.num_image_tokens} positions",
        "ours": len(rows) / statistics.median(times["ours"]),
        "peer": len(rows) / statistics.median(times["peer"]),
        "ratio": statistics.median(ratios),
        "unit": "questions/s of processor time",
        "equal": torch.equal(answers["ours"], answers["peer"]),
    }


def random_model(folder: str) -> Any:
    """Builds a small Llama under a narrow tower with the positions of LLaVA-1.5's."""
    torch.manual_seed(0)
    size = {"height": 336, "width": 336}
    tower = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        image_size=336, patch_size=14,
    )  # fmt: skip
    CLIPVisionModel(tower).save_pretrained(folder)
    CLIPImageProcessor(size=size, crop_size=size).save_pretrained(folder)
    family = get_family("llama")
    config = family.config_class(
        hidden_size=512, intermediate_size=1_376, num_hidden_layers=8, num_attention_heads=8,
        vocab_size=4_000, max_position_embeddings=2_048, mm_vision_tower=folder, mm_hidden_size=64,
        mm_projector_type="mlp2x_gelu", mm_vision_select_layer=-2, mm_use_im_patch_token=False,
    )  # fmt: skip
    model = family.model_class(config).eval()
    model.get_vision_tower().load_model()
    return model


if __name__ == "__main__":
    main()
