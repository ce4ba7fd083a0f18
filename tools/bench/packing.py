"""Packed against padded batches: the share of real positions, and samples a second of a step.

Usage: python tools/bench/packing.py [--samples 20000] [--steps 8] [--json FILE]

Two distributions of lengths: the built-in corpus (all languages and instructions, 16 positions per
image, the tests' tokenizer), and one shaped like LLaVA-1.5's 665k: the shares of its parts are
those of its paper, the text lengths are synthetic (log-normal, see `PARTS`), with 576 positions
per image, cut at 2048.

`share`: real positions over all positions computed until the slowest rank of each micro-step is
done, for 8 ranks with 16 samples, and with 4 samples and `--pack_window 16`. A packed row has no
padding, but ranks wait for the longest row; the wait counts as padding here. "ours" is
`PackedSampler`; "grouped" pads LLaVA's `group_by_modality_length`, "in order" pads the mixture in
its own order. `equal`: every sample comes once, and a run that is stopped half-way resumes in the
same order.

`step`: forward, backward and AdamW of a small model (2 layers of 192, features instead of a
tower), 16 samples a step, the same samples in the same order for "packed" and "in order"; one
thread, processor seconds, the better of two turns. Lengths like the 665k's are divided by eight.
`equal`: the losses of all steps agree within 1e-5.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.batching import get_modality_length_grouped_indices
from lrm_ext.training.dataset import PackedSampler

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "llava"
RANKS, STEP_BATCH = 8, 16
# part of LLaVA-1.5's mix: thousands of samples, whether they have an image, and text tokens:
# median and spread (standard deviation of the logarithm)
PARTS = (
    ("LLaVA-Instruct", 158, True, 330, 0.5),
    ("ShareGPT", 40, False, 1500, 0.8),
    ("VQAv2", 83, True, 200, 0.5),
    ("GQA", 72, True, 300, 0.4),
    ("OKVQA", 9, True, 90, 0.3),
    ("OCR-VQA", 80, True, 190, 0.3),
    ("A-OKVQA", 66, True, 130, 0.3),
    ("TextCaps", 22, True, 100, 0.3),
    ("RefCOCO", 48, True, 450, 0.6),
    ("Visual Genome", 86, True, 480, 0.4),
)
PICTURE, LONGEST = 576, 2048


def main() -> None:
    """Measures both distributions, prints the results and optionally saves them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000, help="samples for the shares")
    parser.add_argument("--steps", type=int, default=8, help="steps for the speed")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for name, lengths in (
        ("built-in corpus", corpus_lengths(arguments.samples)),
        ("like LLaVA's 665k", mix_lengths(arguments.samples)),
    ):
        found += share_entries(name, lengths, 16, 0)
        found += share_entries(name, lengths, 4, 16)
        is_long = name != "built-in corpus"
        found += step_entries(
            f"{name}{' / 8' if is_long else ''}", lengths, arguments.steps, is_long
        )
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def show(entries: list[dict[str, Any]]) -> None:
    """Prints the results as a table."""
    table = Table("measured", "packed", "padded", "times better", "same")
    for entry in entries:
        sides = (f"{entry[side]:.4g} {entry['unit']}" for side in ("ours", "peer"))
        same = "yes" if entry["equal"] else "NO"
        table.add_row(entry["name"], *sides, f"{entry['ratio']:.2f}", same)
    Console(soft_wrap=True).print(table)


def corpus_lengths(number: int) -> list[int]:
    """Returns the positions of the built-in corpus' first samples; negative without image."""
    from transformers import LlamaTokenizer

    from llava.conversation import get_conversation
    from llava.data.batching import token_lengths
    from lrm_ext.emoji.unpack import open_corpus
    from lrm_ext.mixture import Mixture, MixtureSpec

    tokenizer = LlamaTokenizer.from_pretrained(GOLDEN, add_bos_token=True, pad_token="<unk>")
    mixture = Mixture(MixtureSpec(), open_corpus(None))
    samples = [mixture.sample(i) for i in range(min(number, len(mixture)))]
    found = token_lengths(samples, get_conversation("v1"), tokenizer)
    return [
        length + 15 if sample.image is not None else -length
        for length, sample in zip(found, samples, strict=True)
    ]


def mix_lengths(number: int) -> list[int]:
    """Returns positions of samples shaped like LLaVA's mix; negative without an image."""
    rng = np.random.default_rng(0)
    shares = np.array([part[1] for part in PARTS], dtype=float)
    lengths = []
    for part in rng.choice(len(PARTS), number, p=shares / shares.sum()).tolist():
        _, _, has_picture, median, spread = PARTS[part]
        text = max(20, int(median * np.exp(spread * rng.standard_normal())))
        length = min(LONGEST, text + PICTURE * has_picture)
        lengths.append(length if has_picture else -length)
    return lengths


def share_entries(
    name: str, lengths: Sequence[int], batch_size: int, window: int
) -> list[dict[str, Any]]:
    """Returns the shares of real positions, ours against both ways to pad."""
    step_size = RANKS * batch_size
    whole = len(lengths) // (2 * step_size) * 2 * step_size
    lengths = lengths[:whole]
    sizes = [abs(length) for length in lengths]
    sampler = PackedSampler(whole, step_size, sizes.__getitem__, batch_size, window)
    packed = list(sampler)
    sampler.expect_skip(0, whole // 2)
    is_resumed = list(sampler)[whole // 2 :] == packed[whole // 2 :]
    torch.manual_seed(0)
    grouped = get_modality_length_grouped_indices(lengths, batch_size, RANKS)
    ours = share_of(packed, sizes, batch_size, sum)
    entries = []
    for peer, order in (("grouped", grouped), ("in order", list(range(whole)))):
        theirs = share_of(order, sizes, batch_size, lambda batch: len(batch) * max(batch))
        equal = sorted(packed) == sorted(order) == list(range(whole)) and is_resumed
        entries.append(
            {"name": f"share of real positions, {RANKS} x {batch_size}, {name}: {peer}",
             "ours": 100 * ours, "peer": 100 * theirs, "ratio": ours / theirs, "unit": "%",
             "equal": equal}
        )  # fmt: skip
    return entries


def share_of(
    order: Sequence[int],
    sizes: Sequence[int],
    batch_size: int,
    cost: Callable[[list[int]], int],
) -> float:
    """Returns real positions over the positions computable until the slowest rank is done."""
    real = computed = 0
    for start in range(0, len(order), RANKS * batch_size):
        step = [sizes[i] for i in order[start : start + RANKS * batch_size]]
        batches = [step[k : k + batch_size] for k in range(0, len(step), batch_size)]
        real += sum(step)
        computed += RANKS * max(cost(batch) for batch in batches)
    return real / computed


def step_entries(
    name: str, lengths: Sequence[int], num_steps: int, is_long: bool
) -> list[dict[str, Any]]:
    """Measures samples a second of training steps, packed against padded."""
    divisor = 8 if is_long else 1
    number = STEP_BATCH * num_steps
    picture = (PICTURE // divisor) if is_long else 16
    sizes = [max(4 + picture * (length > 0), abs(length) // divisor) for length in lengths[:number]]
    flags = [length > 0 for length in lengths[:number]]
    torch.manual_seed(0)
    grouped = get_modality_length_grouped_indices(
        [size if flag else -size for size, flag in zip(sizes, flags, strict=True)], STEP_BATCH, 1
    )
    model = make_model()
    rates: dict[str, list[float]] = {"packed": [], "in order": [], "grouped": []}
    losses: dict[str, list[float]] = {}
    for _ in range(2):
        for side in rates:
            order = grouped if side == "grouped" else range(number)
            batches = list(make_batches(order, sizes, flags, picture))
            trained = copy.deepcopy(model)
            start = time.process_time()
            losses[side] = train(trained, batches, side == "packed")
            rates[side].append(number / (time.process_time() - start))
    equal = bool(np.allclose(losses["packed"], losses["in order"], atol=1e-5, rtol=1e-5))
    best = {side: max(found) for side, found in rates.items()}
    return [
        {"name": f"step, {name}: {peer}", "ours": best["packed"], "peer": best[peer],
         "ratio": best["packed"] / best[peer], "unit": "samples/s", "equal": equal}
        for peer in ("grouped", "in order")
    ]  # fmt: skip


def make_batches(
    order: Sequence[int], sizes: Sequence[int], flags: Sequence[bool], picture: int
) -> Iterator[dict[str, Tensor]]:
    """Returns padded batches of random ids; the second half of each sample is supervised."""
    for start in range(0, len(order), STEP_BATCH):
        chosen = order[start : start + STEP_BATCH]
        num_ids = [sizes[i] - (picture - 1 if flags[i] else 0) for i in chosen]
        ids = torch.zeros(len(chosen), max(num_ids), dtype=torch.long)
        labels = torch.full_like(ids, IGNORE_INDEX)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        features = torch.zeros(len(chosen), picture, 64)
        for row, (i, number) in enumerate(zip(chosen, num_ids, strict=True)):
            generator = torch.Generator().manual_seed(i)
            ids[row, :number] = torch.randint(3, 2000, (number,), generator=generator)
            labels[row, number // 2 : number] = ids[row, number // 2 : number]
            mask[row, :number] = True
            if flags[i]:
                ids[row, 1], labels[row, 1] = IMAGE_TOKEN_INDEX, IGNORE_INDEX
                features[row] = torch.randn(picture, 64, generator=generator)
        yield {"input_ids": ids, "labels": labels, "attention_mask": mask,
               "image_features": features}  # fmt: skip


def make_model() -> Any:
    """Returns a small seeded language model with a projector."""
    from llava.model.language_model.causal_lm import PACKED_SDPA
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
    from llava.model.multimodal_projector.builder import build_vision_projector

    torch.manual_seed(0)
    config = LlavaConfig(
        vocab_size=2000, hidden_size=192, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=LONGEST,
        mm_hidden_size=64, mm_projector_type="mlp2x_gelu", attn_implementation=PACKED_SDPA,
    )  # fmt: skip
    model: Any = LlavaLlamaForCausalLM(config).train()
    model.get_model().mm_projector = build_vision_projector(config)
    return model


def train(model: Any, batches: Sequence[dict[str, Tensor]], packing: bool) -> list[float]:
    """Takes a step on each batch; returns the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for batch in batches:
        loss = model(**batch, packing=packing).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    main()
