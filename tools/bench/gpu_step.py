"""A step of a large model on one GPU: tokens/s, MFU, memory, and the gain from each technique.

Usage: python tools/bench/gpu_step.py [--shape 7b] [--batch 16] [--steps 20] [--json FILE]

Weights are random and all in bf16, as are AdamW's moments, so that 7B fits one card of 80 GB: this
measures speed and is no recipe for training. "ours" packs the batch, uses flash-attention if it is
installed (else SDPA, sample by sample), computes the loss for supervised positions only (with
Liger's kernel if it is installed) and keeps the activations of every second layer. "peer" is
transformers' Llava on the padded batch, with its own loss and all layers checkpointed, the usual
setup. Both see the same samples of mixed lengths (see `_pair.py`) in the same order; equal means
that the first losses agree within 2 %. Each further row changes one thing of ours; "peer" is then
ours unchanged. A side that runs out of memory has no value.

tokens/s counts real positions (images included, padding not). MFU is useful work over the card's
dense bf16 peak: 6 FLOPs per parameter of the layers and real position (recomputation not counted),
attention at half because it is causal, the head at supervised positions only, 2 per parameter of
the frozen tower. Both sides are measured against the same useful work.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _pair import (
    SHAPES,
    Item,
    Shape,
    build_llava,
    make_items,
    num_positions,
    our_batch,
    peer_batch,
    to_transformers,
)
from _sides import entry, finish, parser_of

from llava.model.language_model.causal_lm import PACKED_SDPA
from llava.train.build import compile_layers, memory_efficient_attention
from llava.train.flops import ALL, peak_tflops_of
from llava.train.metrics import shape_of
from lrm_ext.plan.memory import StageSettings, estimate_memory, num_trained

NUM_PICTURES = 32
NUM_WARM_UP = 5


class Setting(NamedTuple):
    """The settings of a side; the defaults are ours."""

    is_peer: bool = False
    packs: bool = True
    has_liger: bool = True
    checkpoints_every: int = 2
    compiles: bool = False
    fused_optimizer: bool = True


class Measured(NamedTuple):
    """The measurements of one side."""

    tokens_per_s: float
    mfu: float | None
    peak_gib: float
    first_loss: float
    planned_gib: float | None


VARIANTS = {
    "without packing": Setting(packs=False),
    "without Liger's loss": Setting(has_liger=False),
    "all layers checkpointed": Setting(checkpoints_every=1),
    "nothing checkpointed": Setting(checkpoints_every=0),
    "layers compiled": Setting(compiles=True),
    "optimizer not fused": Setting(fused_optimizer=False),
}


def main() -> None:
    """Measures both sides, then each change."""
    parser = parser_of(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--batch", type=int, default=16, help="samples per step")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--max-text", type=int, default=1400, help="longest text, in tokens")
    parser.add_argument("--peak-tflops", type=float, help="peak of a card unknown to this script")
    parser.add_argument("--cpu", action="store_true", help="only to try out the script")
    arguments = parser.parse_args()
    if not (arguments.cpu or torch.cuda.is_available()):
        parser.error("there is no GPU; --cpu --shape tiny tries out the script")
    ours, peer = (measure(arguments, Setting(is_peer=is_peer)) for is_peer in (False, True))
    found = rows("gpu step", ours, peer)
    for name, setting in VARIANTS.items():
        found += rows(f"gpu step, {name}", measure(arguments, setting), ours)
    finish(found, arguments.json)


def rows(name: str, ours: Measured | None, peer: Measured | None) -> list[dict[str, Any]]:
    """Returns the entries of one comparison; a side that is None ran out of memory."""
    if ours is None:
        return [entry(f"{name}: out of memory", 0, None, "tokens/s", None)]
    if peer is None:
        peer = Measured(0, None, 0, float("nan"), None)
    is_equal = abs(ours.first_loss / peer.first_loss - 1) < 0.02 if peer.tokens_per_s else None
    found = [
        entry(name, ours.tokens_per_s, peer.tokens_per_s or None, "tokens/s", is_equal),
        entry(f"{name}, peak memory", ours.peak_gib, peer.peak_gib or None, "GiB", is_equal, True),
    ]
    if ours.mfu is not None:
        found.append(
            entry(f"{name}, MFU", ours.mfu * 100, (peer.mfu or 0) * 100 or None, "%", None)
        )
    return found


def measure(arguments: Any, setting: Setting) -> Measured | None:
    """Trains on one side; returns None if there is not enough memory."""
    try:
        return train(arguments, setting)
    except torch.OutOfMemoryError:
        return None
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def train(arguments: Any, setting: Setting) -> Measured:
    """Trains for the given steps, after some that are not counted."""
    device = "cpu" if arguments.cpu else "cuda"
    shape = SHAPES[arguments.shape]
    num_steps = arguments.steps + NUM_WARM_UP
    items = make_items(shape, num_steps * arguments.batch, NUM_PICTURES, arguments.max_text)
    side = shape.image_size_px
    pixels = torch.randn(NUM_PICTURES, 3, side, side, generator=torch.Generator().manual_seed(2))
    model, make_batch = build(setting, shape, device, pixels.to(torch.bfloat16))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    is_fused = setting.fused_optimizer and device == "cuda"
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=is_fused)
    first_loss, start = 0.0, 0.0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for number in range(num_steps):
        if number == NUM_WARM_UP:
            synchronize(device)
            start = time.perf_counter()
        chosen = items[number * arguments.batch : (number + 1) * arguments.batch]
        batch = {key: move(value, device) for key, value in make_batch(chosen).items()}
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number == 0:
            first_loss = loss.item()
    synchronize(device)
    taken = time.perf_counter() - start
    timed = items[NUM_WARM_UP * arguments.batch :]
    peak = peak_flops(arguments.peak_tflops, device)
    return Measured(
        tokens_per_s=sum(num_positions(item, shape) for item in timed) / taken,
        mfu=None if peak is None else useful_flops(timed, shape, model) / taken / peak,
        peak_gib=torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0,
        first_loss=first_loss,
        planned_gib=plan(items, shape, arguments.batch, setting, model),
    )


def build(
    setting: Setting, shape: Shape, device: str, pixels: torch.Tensor
) -> tuple[Any, Callable[[list[Item]], dict[str, Any]]]:
    """Returns the model of one side and the function that makes its batches."""
    has_flash = device == "cuda" and memory_efficient_attention() == "flash_attention_2"
    attention = "flash_attention_2" if has_flash else PACKED_SDPA
    if setting.is_peer or not setting.packs:
        attention = attention if has_flash else "sdpa"
    with tempfile.TemporaryDirectory() as folder:
        model: Any = build_llava(shape, Path(folder), torch.bfloat16, device, attention)
    if setting.is_peer:
        model = to_transformers(model, torch.bfloat16, attention)
    model.train()
    every = 1 if setting.is_peer else setting.checkpoints_every
    if every:
        model.activation_checkpointing_enable(every_n_layers=every)
    if setting.is_peer:
        return model, lambda items: peer_batch(items, pixels, shape)
    model.liger_loss = setting.has_liger
    if setting.compiles:
        compile_layers(model)

    def batch(items: list[Item]) -> dict[str, Any]:
        made = our_batch(items, pixels, "images")
        made.pop("sample_ids")
        return {**made, "packing": setting.packs}

    return model, batch


def plan(items: list[Item], shape: Shape, batch: int, setting: Setting, model: Any) -> float | None:
    """Returns the estimate of `lrm plan` in GiB, with moments in bf16 and without CUDA's context.

    None for settings that it does not know: padding, and checkpointing of some layers.
    """
    sizes = shape_of(model)
    if setting.is_peer or not setting.packs or setting.checkpoints_every > 1 or sizes is None:
        return None
    # ZeRO: weights and gradients in 16 bits
    settings = StageSettings(ALL, batch, zero_stage=2, checkpointing=setting.checkpoints_every == 1)
    length = sum(num_positions(item, shape) for item in items) / len(items)
    answers = sum(len(item.answer) for item in items) / len(items)
    memory = estimate_memory(sizes, settings, length, answers)
    moments = 2 * 2 * num_trained(sizes, settings)
    return replace(memory, optimizer=moments, buffers=0).total / 2**30


def useful_flops(items: list[Item], shape: Shape, model: Any) -> float:
    """Returns the FLOPs that training on these samples needs, however it is implemented."""
    layers = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if ".layers." in name and "vision_tower" not in name
    )
    tower = sum(p.numel() for name, p in model.named_parameters() if "vision_tower" in name)
    head = shape.hidden_size * shape.vocab_size
    total = 0.0
    for item in items:
        length = num_positions(item, shape)
        attention = 6 * shape.num_layers * shape.hidden_size * length**2
        total += 6 * layers * length + attention + 6 * head * len(item.answer)
        total += 2 * tower * (shape.num_patches + 1)
    return total


def peak_flops(given_tflops: float | None, device: str) -> float | None:
    """Returns the card's dense bf16 peak in FLOP/s, if known."""
    if given_tflops is not None:
        return given_tflops * 1e12
    found = peak_tflops_of(torch.cuda.get_device_name()) if device == "cuda" else None
    return None if found is None else found * 1e12


def move(value: Any, device: str) -> Any:
    """Moves tensors to the device."""
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value


def synchronize(device: str) -> None:
    """Waits for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
