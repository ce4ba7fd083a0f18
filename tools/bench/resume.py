"""Checkpoints and resumption: the wait of training for a save, and the cost of resuming.

Usage: python tools/bench/resume.py [--size-mib 600] [--json FILE]

1. A save as training sees it: the seconds until training continues, with the files being written
   in the background ("ours") and while training waits ("peer", the same files). The process writes
   weights and AdamW's state of a Llama of about `--size-mib`, flushed to the disk; a median of
   three. Equal means that both checkpoints have the same tensors.
2. Reading the whole checkpoint that a run resumes from, and comparing checksums. No peer.
3. Resuming deep in an epoch of a million samples: the sampler skips the samples that are already
   learnt ("ours") or plans all of them again ("peer"). Equal means that the same samples follow.
   Lengths cost nothing here; in a real run each requires tokenising a sample.
4. From the start of a process to its first step: resuming from a checkpoint ("ours"), against
   a fresh start ("peer"); the mini shape of `_pair.py`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from _pair import SHAPES, build_llava, make_items, our_batch
from _sides import apart, entry, finish, parser_of
from safetensors.torch import load_file
from torch.utils.data import SequentialSampler

from llava.train.arguments import TrainingArguments
from llava.train.checkpoint import find_last_checkpoint, problem_of
from llava.train.llava_trainer import LLaVATrainer
from lrm_ext.training.dataset import LengthWindowSampler

NUM_SAVES = 3
STEPS_A_SAVE = 4
SAMPLES, STEP_SIZE, STEP = 1_000_000, 128, 7000


def main() -> None:
    """Measures all four."""
    parser = parser_of(__doc__)
    parser.add_argument("--size-mib", type=int, default=600, help="size of a checkpoint")
    parser.add_argument("--start", type=Path, help=argparse_hidden())
    arguments = parser.parse_args()
    if arguments.start is not None:
        first_step(arguments.start)
        return
    found = saves(arguments.size_mib)
    found.append(skipping())
    found.append(starting())
    finish(found, arguments.json)


def argparse_hidden() -> str:
    """Returns the help of an option that only the script itself passes."""
    import argparse

    return argparse.SUPPRESS


def saves(size_mib: int) -> list[dict[str, Any]]:
    """Compares saving in the background with waiting, and measures reading back."""
    with tempfile.TemporaryDirectory() as folder:
        background, waiting = (
            apart(run_with_saves, Path(folder) / name, size_mib, name)
            for name in ("background", "waiting")
        )
        last = []
        for name in ("background", "waiting"):
            found = find_last_checkpoint(Path(folder) / name)
            assert found is not None, f"{name}: no checkpoint was written"
            last.append(found)
        is_equal = same_tensors(*last)
        size = sum(path.stat().st_size for path in last[0].rglob("*") if path.is_file()) / 2**20
        start = time.perf_counter()
        assert problem_of(last[0], read_all=True) is None
        checked = time.perf_counter() - start
    name = f"{size:,.0f} MiB"
    medians = [sorted(waits)[NUM_SAVES // 2] for waits in (background, waiting)]
    return [
        entry(f"resume: training waits for a save, {name}", *medians, "s", is_equal, True),
        entry(f"resume: reading and checking, {name}", checked, None, "s", None),
    ]


def same_tensors(left: Path | None, right: Path | None) -> bool:
    """Returns whether two checkpoints have the same weights and optimizer state."""
    assert left is not None and right is not None
    weights = [load_file(folder / "model.safetensors") for folder in (left, right)]
    states = [torch.load(folder / "optimizer.pt")["state"] for folder in (left, right)]
    return weights[0].keys() == weights[1].keys() and all(
        torch.equal(value, weights[1][name]) for name, value in weights[0].items()
    ) and all(
        torch.equal(value, states[1][number][name])
        for number, state in states[0].items()
        for name, value in state.items()
    )  # fmt: skip


def run_with_saves(folder: Path, size_mib: int, way: str) -> list[float]:
    """Returns the seconds that training waits for each save, with few tokens per step."""
    # weights and AdamW's two moments, in float32: 12 bytes per parameter
    hidden = 512
    num_layers = max(round(size_mib * 2**20 / 12 / (12 * hidden**2)) - 5, 1)
    shape = SHAPES["mini"]._replace(
        hidden_size=hidden, intermediate_size=hidden * 8 // 3, num_layers=num_layers, num_heads=8,
        vocab_size=16_000,
    )  # fmt: skip
    num_steps = (NUM_SAVES + 1) * STEPS_A_SAVE
    trainer = make_trainer(
        shape, folder, num_steps, batch_size=2,
        save_steps=STEPS_A_SAVE, save_total_limit=2, async_save=way == "background",
    )  # fmt: skip
    waits: list[float] = []
    save = trainer._save_checkpoint

    def timed(*args: Any) -> None:
        start = time.perf_counter()
        save(*args)
        waits.append(time.perf_counter() - start)

    trainer._save_checkpoint = timed
    trainer.train()
    trainer.wait_for_save()
    return waits[:NUM_SAVES]


def make_trainer(shape: Any, folder: Path, num_steps: int, batch_size: int, **changes: Any) -> Any:
    """Returns a trainer on random samples."""
    folder.mkdir(parents=True, exist_ok=True)
    model = build_llava(shape, folder)
    items = make_items(shape, num_steps * batch_size, 4, max_text=32)
    pixels = torch.zeros(4, 3, shape.image_size_px, shape.image_size_px)
    args = TrainingArguments(
        output_dir=str(folder), max_steps=num_steps, per_device_train_batch_size=batch_size,
        use_cpu=True, report_to="none", bf16=False, logging_steps=1, packing=True,
        learning_rate=1e-4, dataloader_pin_memory=False, **changes,
    )  # fmt: skip
    return LLaVATrainer(
        model=model,
        args=args,
        train_dataset=items,
        data_collator=lambda batch: our_batch(batch, pixels, "images"),
        train_sampler=SequentialSampler(items),
    )


def skipping() -> dict[str, Any]:
    """Measures the sampler of a mixture, deep in an epoch."""
    lengths = torch.randint(20, 500, (SAMPLES,), generator=torch.Generator().manual_seed(0))
    table = lengths.tolist()
    num_skipped = STEP * STEP_SIZE
    taken, following = [], []
    for announces in (True, False):
        sampler = LengthWindowSampler(SAMPLES, STEP_SIZE, lambda i: table[i], window=64)
        if announces:
            sampler.expect_skip(0, num_skipped)
        start = time.perf_counter()
        following.append(list(islice(sampler, num_skipped, num_skipped + 10 * STEP_SIZE)))
        taken.append(time.perf_counter() - start)
    name = f"resume: skipping {num_skipped:,} samples"
    return entry(name, *taken, "s", following[0] == following[1], True)


def starting() -> dict[str, Any]:
    """Measures real processes, from their start to the end of their first step."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = time_to_first_step(Path(folder))
        resumed = time_to_first_step(Path(folder))
    return entry("resume: process start to first step", resumed, fresh, "s", None, True)


def time_to_first_step(folder: Path) -> float:
    """Starts this script again; that process saves and exits after one step."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, __file__, "--start", str(folder)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return float((folder / "first_step").read_text()) - start


def first_step(folder: Path) -> None:
    """Runs in its own process: resumes if there is a checkpoint, takes a step, saves, exits."""
    from transformers import TrainerCallback

    from llava.train.train import run

    class StopAfterOne(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # all processes of a machine share the monotonic clock
            (folder / "first_step").write_text(str(time.perf_counter()))
            control.should_save = control.should_training_stop = True

    trainer = make_trainer(SHAPES["mini"], folder, num_steps=10, batch_size=4, save_steps=100)
    trainer.add_callback(StopAfterOne())
    run(trainer)


if __name__ == "__main__":
    main()
