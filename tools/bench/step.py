"""A training step against transformers' `LlavaForConditionalGeneration` with its `Trainer`.

Usage: python tools/bench/step.py [--steps 12] [--batch 16] [--pairs 5] [--json FILE]
       python tools/bench/step.py --family qwen3 --tower siglip2 [--anyres]
       python tools/bench/step.py --profile

A model of the mini preset's shape with random weights, the same on both sides, trains on samples of
mixed lengths (see `_pair.py`), the same ones in each step, with pixels prepared beforehand. "peer"
groups samples by length (`LengthGroupedSampler`, 4,096 samples, of whose batches some are drawn),
pads each batch, runs the tower and computes logits for every position; in the row "random batches"
it pads batches of the same samples in random order. "ours" packs the same batches,
reads the frozen tower's output from a memory-mapped file, and computes the last layer's MLP and
logits for supervised positions. Both use fused AdamW in float32. Losses are compared step by step
(1e-3 relative). Each run has its own process and one thread. Runs of all sides take turns; a row
shows medians, its ratio is the median of the rounds' ratios. The first two steps are not counted;
memory is the peak growth of the process during training, the longest batch included. Each further
row disables one technique ("peer" is then ours without it), or enables an option ("peer" is ours
unchanged); with `--family`, `--tower` or `--anyres` there are the peer's rows only. With
`--anyres`, images have mixed sizes and one to nine tiles, and the peer is
`LlavaOnevisionForConditionalGeneration`. `--profile` prints what our step's time is spent on.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
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
    num_positions,
    our_batch,
    peer_batch,
    to_transformers,
)
from _sides import MemoryMeter, apart, entry, finish, parser_of
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import Dataset, SequentialSampler
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

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
NUM_GROUPED = 4096
MAX_TEXT = 480
NUM_WARM_UP = 2
TOLERANCE = 1e-3


class Setting(NamedTuple):
    """The settings of our side."""

    is_peer: bool = False
    is_grouped: bool = True
    packs: bool = True
    caches_features: bool = True
    selects_supervised: bool = True
    limits_mlp: bool = True
    compiles: bool = False
    checkpoints_every: int = 0
    optimizer: str = "adamw_torch_fused"


class Kinds(NamedTuple):
    """The kinds of language model and tower, and whether images are cut into tiles."""

    family: str = "llama"
    tower: str = "clip"
    anyres: bool = False


class Measured(NamedTuple):
    """The measurements and results of one side."""

    samples_per_s: float  # of processor time
    samples_per_wall_s: float
    growth_mib: float
    losses: list[float]
    shares: dict[str, float]  # of the parts of a step, only with a profile


PEER, RANDOM_PEER = Setting(is_peer=True), Setting(is_peer=True, is_grouped=False)
OURS, RANDOM_OURS = Setting(), Setting(is_grouped=False)
VARIANTS = {
    "without packing": Setting(packs=False),
    "without cached features": Setting(caches_features=False),
    "without selecting supervised positions": Setting(selects_supervised=False),
    "with all positions in the last MLP": Setting(limits_mlp=False),
    "with --optim adamw_torch": Setting(optimizer="adamw_torch"),
}
SWITCHES = {
    "with activation checkpointing": Setting(checkpoints_every=1),
    "with activation checkpointing of every second layer": Setting(checkpoints_every=2),
}


def main() -> None:
    """Measures both sides, then each technique."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=5, help="rounds in which the sides take turns")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile (slow)")
    parser.add_argument("--family", choices=family_names(), default="llama", metavar="FAMILY",
                        help="family of the language model, see docs/models.md")  # fmt: skip
    parser.add_argument("--tower", choices=TOWERS, default="clip", help="kind of the vision tower")
    parser.add_argument("--anyres", action="store_true", help="images in tiles")
    parser.add_argument("--peers-only", action="store_true", help="without a row per technique")
    parser.add_argument("--profile", action="store_true", help="print what our step consists of")
    arguments = parser.parse_args()
    kinds = Kinds(arguments.family, arguments.tower, arguments.anyres)
    if arguments.profile:
        show_profile(apart(run, OURS, arguments.steps, arguments.batch, kinds, True).shares)
        return
    name, variants, switches = "step", VARIANTS, dict(SWITCHES)
    if arguments.peers_only:
        variants, switches = {}, {}
    if kinds != Kinds():
        tiles = " in tiles" if kinds.anyres else ""
        name, variants, switches = f"step, {kinds.family} with {kinds.tower}{tiles}", {}, {}
    if arguments.compile and shutil.which("g++"):
        switches["with torch.compile"] = Setting(compiles=True)
    rows = {name: (OURS, PEER), f"{name}, random batches": (RANDOM_OURS, RANDOM_PEER)}
    rows |= {f"{name} {variant}": (OURS, setting) for variant, setting in variants.items()}
    rows |= {f"{name} {switch}": (setting, OURS) for switch, setting in switches.items()}
    settings = list(dict.fromkeys(setting for row in rows.values() for setting in row))
    few = {
        each: apart(run, each, NUM_WARM_UP + 1, arguments.batch, kinds, for_memory=True)
        for each in settings
    }
    rounds = [
        {each: apart(run, each, arguments.steps, arguments.batch, kinds) for each in settings}
        for _ in range(arguments.pairs)
    ]
    found = []
    for row, (ours, peer) in rows.items():
        found += compare(row, [(each[ours], each[peer]) for each in rounds])
        memory = few[ours].growth_mib, few[peer].growth_mib
        found.append(entry(f"{row}, memory", *memory, "MiB", found[-1]["equal"], True))
    finish(found, arguments.json)


def compare(name: str, rounds: list[tuple[Measured, Measured]]) -> list[dict[str, Any]]:
    """Returns the entries of speed: medians of both sides, and the median of the ratios."""
    is_equal = all(np.allclose(o.losses, p.losses, rtol=TOLERANCE) for o, p in rounds)
    entries = []
    for key, suffix in (("samples_per_s", ""), ("samples_per_wall_s", ", wall time")):
        speeds = [(getattr(ours, key), getattr(peer, key)) for ours, peer in rounds]
        medians = (statistics.median(side) for side in zip(*speeds, strict=True))
        found = entry(f"{name}{suffix}", *medians, "samples/s", is_equal)
        entries.append({**found, "ratio": statistics.median(o / p for o, p in speeds)})
    return entries


def draw_batches(num_steps: int, batch_size: int, is_grouped: bool) -> list[Item]:
    """Returns the samples of some batches, grouped by length, or the same samples in random order.

    The batch with the longest sample comes first, as in `Trainer`.
    """
    items = make_items(SHAPE, NUM_GROUPED, NUM_PICTURES, MAX_TEXT)
    lengths = [num_positions(item, SHAPE) for item in items]
    generator = torch.Generator().manual_seed(3)
    order = list(LengthGroupedSampler(batch_size, lengths=lengths, generator=generator))
    batches = torch.tensor(order).split(batch_size)
    chosen = torch.randperm(NUM_GROUPED // batch_size, generator=generator)[:num_steps].tolist()
    chosen.sort(key=lambda number: -max(lengths[i] for i in batches[number]))
    rest = torch.randperm(num_steps - 1, generator=generator) + 1
    indices = torch.stack([batches[chosen[i]] for i in [0, *rest.tolist()]]).flatten()
    if not is_grouped:
        indices = indices[torch.randperm(len(indices), generator=generator)]
    return [items[i] for i in indices]


def run(
    setting: Setting, num_steps: int, batch_size: int, kinds: Kinds, profiles: bool = False
) -> Measured:
    """Trains on one side."""
    items = draw_batches(num_steps, batch_size, setting.is_grouped)
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
            "optim": setting.optimizer,
        }  # fmt: skip
        if setting.is_peer:
            trainer = make_peer(model, items, pixels, tiles, common)
        else:
            trainer = make_ours(model, items, pixels, tiles, common, setting, Path(folder))
        clock = Clock(name_parts(trainer, model) if profiles else None)
        trainer.add_callback(clock)
        meter = MemoryMeter()
        trainer.train()
        growth = meter.growth_mib()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    num_samples = (num_steps - NUM_WARM_UP) * batch_size
    processor, wall = (end - start for start, end in zip(*clock.counted(), strict=True))
    # an operator's time in a profile is wall time
    shares = shares_of(clock.profiler, wall) if profiles else {}
    return Measured(num_samples / processor, num_samples / wall, growth, losses, shares)


class Clock(TrainerCallback):
    """Records processor and wall time at the end of each step, and profiles after the warm-up."""

    def __init__(self, profiler: Any = None) -> None:
        self.times: list[tuple[float, float]] = []
        self.profiler = profiler

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Records the times."""
        if self.profiler is not None and state.global_step == NUM_WARM_UP:
            self.profiler.start()
        self.times.append((time.process_time(), time.perf_counter()))
        if self.profiler is not None and state.global_step == state.max_steps:
            self.profiler.stop()

    def counted(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Returns the times at the beginning and the end of what counts."""
        return self.times[NUM_WARM_UP - 1], self.times[-1]


# parts of a step by their names in a profile; the first match counts, also of an enclosing event
PARTS: dict[str, tuple[str, ...]] = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention, sample by sample": ("scaled_dot_product", "ScaledDotProduct"),
    "optimizer and gradient norm": ("Optimizer.", "part: norm"),
    "splice": ("part: splice",),
    "logging and metrics": ("part: log",),
    "data": ("enumerate(DataLoader)",),
    "loss, without the head's products": ("log_softmax", "nll_loss", "LogSoftmax", "part: loss"),
}
COPIES = ("copy_", "cat", "fill_", "zero_", "clone", "index", "slice_backward")


def name_parts(trainer: Any, model: Any) -> Any:
    """Gives parts of our step names in a profile, and returns a profiler."""

    def name(owner: Any, attribute: str, part: str) -> None:
        function = getattr(owner, attribute)

        def named(*args: Any, **kwargs: Any) -> Any:
            with record_function(f"part: {part}"):
                return function(*args, **kwargs)

        setattr(owner, attribute, named)

    name(model, "pack_inputs", "splice")
    name(causal_lm, "causal_lm_loss", "loss")
    name(trainer, "_clip_grad_norm", "norm")
    name(trainer, "_measure", "log")
    name(trainer, "log", "log")
    return profile(activities=[ProfilerActivity.CPU])


def shares_of(profiler: Any, seconds: float) -> dict[str, float]:
    """Returns the share of each part in the time; what is in no operator is Python's."""
    totals: Counter[str] = Counter()
    for event in profiler.events():
        totals[part_of(event)] += event.self_cpu_time_total / 1e6
    del totals[""]
    shares = {part: total / seconds for part, total in totals.most_common()}
    return {**shares, "Python and autograd": 1 - sum(shares.values())}


def part_of(event: Any) -> str:
    """Returns the part that an event of a profile belongs to, empty if in no operator."""
    names = [event.name]
    while (event := event.cpu_parent) is not None:
        names.append(event.name)
    for part, keys in PARTS.items():
        own = names[:1] if part == "matrix products" else names
        if any(key in name for name in own for key in keys):
            return part
    if not names[0].startswith("aten::"):
        return ""
    if any(key in names[0] for key in COPIES):
        return "copies and zeros"
    return "element-wise operations and norms"


def show_profile(shares: dict[str, float]) -> None:
    """Prints the parts of a step."""
    table = Table("part of a step", "share of its time")
    for part, share in shares.items():
        table.add_row(part, f"{share:.1%}")
    Console(soft_wrap=True).print(table)


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
        args=transformers.TrainingArguments(**common, train_sampling_strategy="sequential"),
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
    if not (setting.selects_supervised and setting.limits_mlp):
        vars(causal_lm)["answers_only"] = lambda *args: nullcontext()
    if not setting.packs:
        model.set_attn_implementation("sdpa")
    if setting.compiles:
        compile_layers(model)
    extra: dict[str, Any] = {}
    if setting.checkpoints_every:
        kinds = {"every_n_layers": setting.checkpoints_every}
        extra = {"activation_checkpointing": True, "activation_checkpointing_kwargs": kinds}
    args = TrainingArguments(**common, **extra, packing=setting.packs)
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
