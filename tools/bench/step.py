"""A training step against transformers' `LlavaForConditionalGeneration` with its `Trainer`.

Usage: python tools/bench/step.py [--steps 8] [--batch 16] [--json FILE]
       python tools/bench/step.py --family qwen3 --tower siglip2 [--anyres]

A model of the mini preset's shape with random weights, the same on both sides, trains on samples of
mixed lengths (see `_pair.py`), the same ones in each step, with pixels prepared beforehand. "peer"
pads each batch, runs the tower and computes logits for every position. "ours" packs the batch,
reads the frozen tower's output from a memory-mapped file, and computes logits for supervised
positions. Both use AdamW in float32. Losses are compared step by step (1e-3 relative). Each side
runs in its own process on one core; samples a second are per processor time, without the first two
steps; memory is the peak growth of the process during training. Each further row disables one
technique ("peer" is then ours without it), or enables an option ("peer" is ours unchanged); with
`--family`, `--tower` or `--anyres` there is the first row only. With `--anyres`, images have mixed
sizes and one to nine tiles, and the peer is `LlavaOnevisionForConditionalGeneration`.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from _pair import (
    SHAPES,
    TOWERS,
    Item,
    Tiles,
    build_llava,
    make_items,
    make_tiles,
    our_batch,
    peer_batch,
    to_transformers,
)
from _sides import MemoryMeter, apart, entry, finish, parser_of
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import TrainerCallback

from llava.constants import IGNORE_INDEX
from llava.model.families import family_names
from llava.model.language_model import causal_lm
from llava.train.arguments import TrainingArguments
from llava.train.build import compile_layers
from llava.train.llava_trainer import LLaVATrainer

# pixels or features of all images, or of each one, if they are cut into tiles
Pictures = Tensor | Sequence[Tensor]
SHAPE = SHAPES["mini"]
NUM_PICTURES = 64
MAX_TEXT = 480
NUM_WARM_UP = 2
TOLERANCE = 1e-3


class Setting(NamedTuple):
    """The settings of our side."""

    packs: bool = True
    caches_features: bool = True
    selects_supervised: bool = True
    compiles: bool = False
    checkpoints_every: int = 0
    optimizer: str = "adamw_torch"


class Kinds(NamedTuple):
    """The kinds of language model and tower, and whether images are cut into tiles."""

    family: str = "llama"
    tower: str = "clip"
    anyres: bool = False


class Measured(NamedTuple):
    """The measurements and results of one side."""

    samples_per_s: float
    growth_mib: float
    losses: list[float]


VARIANTS = {
    "without packing": Setting(packs=False),
    "without cached features": Setting(caches_features=False),
    "without selecting supervised positions": Setting(selects_supervised=False),
}
SWITCHES = {
    "with --optim adamw_torch_fused": Setting(optimizer="adamw_torch_fused"),
    "with activation checkpointing": Setting(checkpoints_every=1),
    "with activation checkpointing of every second layer": Setting(checkpoints_every=2),
}


def main() -> None:
    """Measures both sides, then each technique."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile (slow)")
    parser.add_argument("--family", choices=family_names(), default="llama", metavar="FAMILY",
                        help="family of the language model, see docs/models.md")  # fmt: skip
    parser.add_argument("--tower", choices=TOWERS, default="clip", help="kind of the vision tower")
    parser.add_argument("--anyres", action="store_true", help="images in tiles")
    arguments = parser.parse_args()
    kinds = Kinds(arguments.family, arguments.tower, arguments.anyres)
    name, variants, switches = "step", VARIANTS, dict(SWITCHES)
    if kinds != Kinds():
        tiles = " in tiles" if kinds.anyres else ""
        name, variants, switches = f"step, {kinds.family} with {kinds.tower}{tiles}", {}, {}
    if arguments.compile and shutil.which("g++"):
        switches["with torch.compile"] = Setting(compiles=True)

    def measure(setting: Setting | None) -> Measured:
        speed = apart(run, setting, arguments.steps, arguments.batch, kinds)
        few = apart(run, setting, NUM_WARM_UP + 1, arguments.batch, kinds, for_memory=True)
        return speed._replace(growth_mib=few.growth_mib)

    peer, ours = measure(None), measure(Setting())
    found = pair(name, ours, peer)
    for variant, setting in variants.items():
        found += pair(f"{name} {variant}", ours, measure(setting))
    for switch, setting in switches.items():
        found += pair(f"{name} {switch}", measure(setting), ours)
    finish(found, arguments.json)


def pair(name: str, ours: Measured, peer: Measured) -> list[dict[str, Any]]:
    """Returns the entries of one comparison."""
    is_equal = bool(np.allclose(ours.losses, peer.losses, rtol=TOLERANCE))
    return [
        entry(name, ours.samples_per_s, peer.samples_per_s, "samples/s", is_equal),
        entry(f"{name}, memory", ours.growth_mib, peer.growth_mib, "MiB", is_equal, True),
    ]


def run(setting: Setting | None, num_steps: int, batch_size: int, kinds: Kinds) -> Measured:
    """Trains on one side; None is the peer."""
    items = make_items(SHAPE, num_steps * batch_size, NUM_PICTURES, MAX_TEXT)
    side = SHAPE.image_size_px
    generator, tiles = torch.Generator().manual_seed(2), None
    pixels: Pictures = torch.randn(NUM_PICTURES, 3, side, side, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        model = build_llava(
            SHAPE,
            Path(folder),
            family=kinds.family,
            tower_kind=kinds.tower,
            anyres=kinds.anyres,
        )
        if kinds.anyres:
            pixels, tiles = make_tiles(SHAPE, model, NUM_PICTURES)
        common = {
            "output_dir": folder, "max_steps": num_steps, "use_cpu": True, "report_to": "none",
            "per_device_train_batch_size": batch_size, "learning_rate": 1e-4, "logging_steps": 1,
            "save_strategy": "no", "remove_unused_columns": False, "disable_tqdm": True,
            "lr_scheduler_type": "constant", "bf16": False, "dataloader_pin_memory": False,
        }  # fmt: skip
        if setting is None:
            trainer = make_peer(model, items, pixels, tiles, common)
        else:
            trainer = make_ours(model, items, pixels, tiles, common, setting, Path(folder))
        clock = Clock()
        trainer.add_callback(clock)
        meter = MemoryMeter()
        trainer.train()
        growth = meter.growth_mib()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    taken = clock.times[-1] - clock.times[NUM_WARM_UP - 1]
    return Measured((num_steps - NUM_WARM_UP) * batch_size / taken, growth, losses)


class Clock(TrainerCallback):
    """Records the processor time at the end of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Records the processor time."""
        self.times.append(time.process_time())


class Items(Dataset[Item]):
    """Samples as they are; the collator makes tensors."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]


def make_peer(
    model: Any, items: list[Item], pixels: Pictures, tiles: Tiles | None, common: dict[str, Any]
) -> Any:
    """Returns transformers' model with its trainer."""
    return transformers.Trainer(
        model=to_transformers(model, torch.float32, "sdpa"),
        args=transformers.TrainingArguments(
            **common, optim="adamw_torch", train_sampling_strategy="sequential"
        ),
        train_dataset=Items(items),
        data_collator=lambda batch: peer_batch(batch, pixels, SHAPE, tiles),
    )


def make_ours(
    model: Any,
    items: list[Item],
    pixels: Pictures,
    tiles: Tiles | None,
    common: dict[str, Any],
    setting: Setting,
    folder: Path,
) -> Any:
    """Returns our model with our trainer."""
    key, pictures = "images", pixels
    if setting.caches_features:
        with torch.no_grad():
            features = model.get_vision_tower()(torch.cat([*pixels]) if tiles else pixels).numpy()
        np.save(folder / "features.npy", features)
        key = "image_features"
        pictures = torch.from_numpy(np.load(folder / "features.npy", mmap_mode="r"))
        pictures = pictures.split([len(picture) for picture in pixels]) if tiles else pictures
    if not setting.selects_supervised:
        causal_lm.causal_lm_loss = loss_of_all_positions  # type: ignore[attr-defined]
    if not setting.packs:
        model.set_attn_implementation("sdpa")
    if setting.compiles:
        compile_layers(model)
    extra: dict[str, Any] = {}
    if setting.checkpoints_every:
        kinds = {"every_n_layers": setting.checkpoints_every}
        extra = {"activation_checkpointing": True, "activation_checkpointing_kwargs": kinds}
    args = TrainingArguments(**common, **extra, optim=setting.optimizer, packing=setting.packs)
    return LLaVATrainer(
        model=model,
        args=args,
        train_dataset=Items(items),
        data_collator=lambda batch: our_batch(batch, pictures, key, tiles),
        train_sampler=SequentialSampler(items),
    )


def loss_of_all_positions(
    hidden_states: Tensor,
    labels: Tensor,
    lm_head: nn.Linear,
    num_items_in_batch: Tensor | int | None = None,
    max_chunk_logits: int = 0,
    use_liger: bool = False,
    logits_of: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Stands in for `causal_lm_loss`; computes the loss as transformers does."""
    assert num_items_in_batch is not None, "the trainer counts the supervised tokens"
    logits = lm_head(hidden_states).float()[:, :-1].flatten(0, 1)
    targets = labels[:, 1:].flatten()
    total = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / num_items_in_batch


if __name__ == "__main__":
    main()
