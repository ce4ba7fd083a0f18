"""Measures the cost of metrics per group: steps of the preset `mini` with and without them.

    python tools/bench/figures.py [--pairs 10] [--json FILE]

Both variants take the same steps on the same batches, in pairs whose order alternates. Processor
time is compared, because other processes disturb it less than wall-clock time. `ratio` is without
/ with: 0.99 means that the metrics cost a hundredth of a step. `equal` is whether the losses are
the same within 1e-6: with metrics, token losses are summed in another order. A test in
`tests/llava/train/test_metrics.py` checks that gradients are bit-identical.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.loss import token_loss_hook
from llava.train.metrics import (
    GroupSums,
    group_metrics,
    position_quantities,
    token_quantities,
)

MINI = Path(__file__).parents[2] / "playground" / "models" / "mini"
B, T, SUPERVISED, STEPS = 32, 101, 40, 3


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model, batch = make_model(), make_batch()
    step(model, batch, True)
    times: dict[bool, list[float]] = {True: [], False: []}
    losses: dict[bool, list[float]] = {True: [], False: []}
    for pair in range(args.pairs):
        for watched in (True, False) if pair % 2 else (False, True):
            start = time.process_time()
            losses[watched] += [step(model, batch, watched) for _ in range(STEPS)]
            times[watched].append((time.process_time() - start) / STEPS)
    ratios = [without / with_ for without, with_ in zip(times[False], times[True], strict=True)]
    ratio = statistics.median(ratios)
    ours, peer = (statistics.median(times[watched]) * 1e3 for watched in (True, False))
    equal = all(
        math.isclose(a, b, rel_tol=1e-6) for a, b in zip(losses[True], losses[False], strict=True)
    )
    sys.stdout.write(
        f"with metrics {ours:.0f} ms, without {peer:.0f} ms of processor time per step; ratio "
        f"{ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}); losses equal: {equal}\n"
    )
    if args.json is not None:
        row = {"name": "figures per group", "ours": ours, "peer": peer, "ratio": ratio}
        args.json.write_text(json.dumps([{**row, "unit": "ms", "equal": equal}]) + "\n")


def make_model() -> Any:
    """Returns the preset's model, with its tower, in training mode."""
    torch.manual_seed(0)
    folder = str(MINI / "llm")
    config = LlavaConfig.from_pretrained(folder)
    model: Any = LlavaLlamaForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    settings = {"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch"}
    model.get_model().initialize_vision_modules(
        SimpleNamespace(
            vision_tower=str(MINI / "vision_tower"),
            mm_projector_type="mlp2x_gelu",
            mm_patch_merge_type="flat",
            pretrain_mm_mlp_adapter=None,
            **settings,
        )
    )
    model.config.use_cache = False
    return model.train()


def make_batch() -> dict[str, torch.Tensor]:
    """Returns random sequences, each with an image's features; the last tokens are supervised."""
    ids = torch.randint(5, 4000, (B, T))
    ids[:, 3] = IMAGE_TOKEN_INDEX
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[:, -SUPERVISED:] = ids[:, -SUPERVISED:]
    return {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": torch.ones_like(ids, dtype=torch.bool),
        "image_features": torch.randn(B, 16, 160),
    }


def step(model: Any, batch: dict[str, torch.Tensor], watched: bool) -> float:
    """Runs forward and backward, and optionally the trainer's metrics, which are read once."""
    model.zero_grad()
    if not watched:
        loss = model(**batch).loss
    else:
        tokens: list[tuple[torch.Tensor, torch.Tensor]] = []
        sums = GroupSums()
        with token_loss_hook(lambda *token: tokens.append(token)):
            loss = model(**batch).loss
        losses, is_right = (torch.cat(parts) for parts in zip(*tokens, strict=True))
        names = [
            ("", f"lang{i % 10}", f"task{i % 3}", f"lang{i % 10}/task{i % 3}") for i in range(B)
        ]
        quantities = position_quantities(batch, 16)
        quantities |= token_quantities(batch["labels"], losses, is_right)
        sums.add({**quantities, "per_character": torch.full((B,), 50.0)}, names)
        group_metrics(sums.take())
    loss.backward()
    return float(loss.detach())


if __name__ == "__main__":
    main()
