"""Benefit of caching the frozen tower's output on disk: arithmetic, and the mini preset measured.

Usage: python tools/bench/feature_cache.py [--json FILE]

Measured: one image's features, read from a `FeatureCache` ("ours"), and computed by the tower
("peer"), without and with opening and preparing a PNG of 64 x 64; the mini preset's shape,
float32, on one core; processor time. Equal means within 1e-5.

Arithmetic (no peer), for a given number of text tokens: the bytes of an image's features in 16
bits; the tower's share of the FLOPs of a sample in stage 1 (4 per parameter of the language model
and position, its weights being frozen) and in stage 2 (6); and the disk speed that each A100 at
40 % of its peak needs, to read features in the time that the tower would take. A cache saves at
most the tower's share.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _pair import SHAPES, Shape, build_llava
from _sides import apart, entry, finish, parser_of
from PIL import Image

from lrm_ext.training.feature_cache import FeatureCache, ImageLoader

NUM_PICTURES = 128
TEXT_TOKENS = {"mini": 60}
DEFAULT_TEXT_TOKENS = 250
A100_FLOPS = 0.4 * 312e12
CLIP_L = SHAPES["7b"]

CASES = {
    "mini": SHAPES["mini"],
    "0.5B with CLIP-L": CLIP_L._replace(
        hidden_size=1024, intermediate_size=2816, num_layers=24, num_heads=16
    ),
    "7B with CLIP-L": CLIP_L,
    "13B with CLIP-L": CLIP_L._replace(
        hidden_size=5120, intermediate_size=13_824, num_layers=40, num_heads=40
    ),
}


class Cost(NamedTuple):
    """The cost of an image and of a sample."""

    megabytes: float
    tower_flops: float
    stage_1_flops: float
    stage_2_flops: float


def main() -> None:
    """Computes, measures and prints."""
    parser = parser_of(__doc__)
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    reading, computing, opening, is_equal = apart(measure)
    name = "features of a picture, mini"
    for what, seconds in (("computed", computing), ("opened, prepared, computed", opening)):
        title = f"{name}: read against {what}"
        found.append(entry(title, reading * 1e3, seconds * 1e3, "ms", is_equal, True))
    for name, shape in CASES.items():
        cost = cost_of(shape, TEXT_TOKENS.get(name, DEFAULT_TEXT_TOKENS))
        shares = [
            100 * cost.tower_flops / (cost.tower_flops + flops)
            for flops in (cost.stage_1_flops, cost.stage_2_flops)
        ]
        rate = cost.megabytes / (cost.tower_flops / A100_FLOPS)
        found += [
            entry(f"features of a picture, {name}", cost.megabytes, None, "MB", None),
            entry(f"tower's share of stage 1, {name}", shares[0], None, "%", None),
            entry(f"tower's share of stage 2, {name}", shares[1], None, "%", None),
            entry(f"disk as fast as the tower, a GPU, {name}", rate, None, "MB/s", None),
        ]
    finish(found, arguments.json)


def cost_of(shape: Shape, text_tokens: int) -> Cost:
    """Computes bytes and FLOPs from the shapes alone; attention included, embeddings not."""
    patches = shape.num_patches + 1
    width, inner = shape.tower_hidden_size, shape.tower_intermediate_size
    # without the last layer, whose output is not used
    layers = shape.tower_num_layers - 1
    tower = layers * (2 * patches * (4 * width**2 + 2 * width * inner) + 4 * patches**2 * width)
    length = shape.num_patches + text_tokens
    hidden, wide = shape.hidden_size, shape.intermediate_size
    parameters = shape.num_layers * (4 * hidden**2 + 3 * hidden * wide) + hidden * shape.vocab_size
    attention = 2 * shape.num_layers * hidden * length**2  # forward, causal
    return Cost(
        megabytes=shape.num_patches * width * 2 / 1e6,
        tower_flops=tower,
        stage_1_flops=4 * parameters * length + 3 * attention,
        stage_2_flops=6 * parameters * length + 3 * attention,
    )


def measure() -> tuple[float, float, float, bool]:
    """Returns seconds to read, to compute, to open and compute; and whether they are equal."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        tower = build_llava(SHAPES["mini"], Path(folder)).get_vision_tower()
        paths = [Path(folder) / f"{number}.png" for number in range(NUM_PICTURES)]
        for path in paths:
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
        loader = ImageLoader(tower.image_processor, "pad")
        cache = FeatureCache(Path(folder) / "cache", tower, loader, "float32")
        cache.add(paths, tower)
        start = time.process_time()
        pixels = torch.stack([loader(path) for path in paths])
        opening = time.process_time() - start
        start = time.process_time()
        with torch.no_grad():
            computed = tower(pixels)
        computing = time.process_time() - start
        cache(paths[0])  # opens the file
        start = time.process_time()
        read = torch.stack([cache(path) for path in paths])
        reading = time.process_time() - start
    is_equal = bool(torch.allclose(read, computed, atol=1e-5))
    reading, computing, opening = (
        seconds / NUM_PICTURES for seconds in (reading, computing, opening)
    )
    return reading, computing, opening + computing, is_equal


if __name__ == "__main__":
    main()
