"""Measures what `--alignment_loss` gains on the preset `mini`: paired runs, with intervals.

    python tools/ablate_alignment.py                       # five seeds, stage 2 of the preset
    python tools/ablate_alignment.py --seeds 3 --steps 60 --rows 300    # a few minutes on a core

Each seed is trained twice, with and without the term, on the same samples in the same order; a
tenth of the images is held out. The script prints the mean validation losses, the mean difference
of the pairs and its 95 % interval (Student's t over seeds), whichever way the result goes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# two-sided 95 % quantiles of Student's t, by degrees of freedom
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
MINI = ROOT / "playground" / "models" / "mini"


def main() -> None:
    """Trains, compares and prints."""
    args = parse()
    corpus = corpus_of(args)
    results: dict[float, list[dict[str, float]]] = {0.0: [], args.weight: []}
    for seed in range(args.seeds):
        for weight, finals in results.items():
            finals.append(train(args, corpus, seed, weight))
            say(f"seed {seed}, weight {weight:g}: validation loss {finals[-1]['eval_loss']:.4f}")
    say(report(args, results))


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--weight", type=float, default=0.1, help="weight of the alignment loss")
    parser.add_argument("--seeds", type=int, default=5, help="number of pairs of runs, 2 to 10")
    parser.add_argument("--steps", type=int, default=1800, help="optimizer steps per run")
    parser.add_argument("--batch", type=int, default=32, help="samples per step")
    parser.add_argument("--rows", type=int, help="scenes to unpack from each split; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/ablate_alignment"))
    parser.add_argument("--projector", type=Path, help="mm_projector.bin from the first stage")
    args = parser.parse_args()
    if not 2 <= args.seeds <= len(T_95) + 1:
        parser.error(f"--seeds is {args.seeds}, expected 2 to {len(T_95) + 1}")
    if args.weight <= 0:
        parser.error(f"--weight is {args.weight}, expected a positive number")
    return args


def corpus_of(args: argparse.Namespace) -> Path:
    """Returns the corpus for fine-tuning, unpacking it if necessary."""
    from lrm_ext.emoji.unpack import unpack

    root = None if args.rows is None else args.out / f"corpus-{args.rows}"
    return unpack(root, limit=args.rows) / "finetune"


def train(args: argparse.Namespace, corpus: Path, seed: int, weight: float) -> dict[str, float]:
    """Trains once, or reads the result of an earlier training.

    Returns:
        The metrics of the last validation.
    """
    out = args.out / f"seed{seed}-weight{weight:g}"
    flags = {
        "model_name_or_path": MINI / "llm",
        "vision_tower": MINI / "vision_tower",
        "version": "lrm_bare",
        "corpus_path": corpus,
        "feature_cache": "auto",
        "image_aspect_ratio": "pad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_use_im_patch_token": False,
        "model_max_length": 512,
        "per_device_train_batch_size": args.batch,
        "max_steps": args.steps,
        "learning_rate": 1e-3,
        "warmup_ratio": 0.03,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch_fused",
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "seed": seed,
        "alignment_loss": weight,
        "eval_share": 0.1,
        "eval_samples": 500,
        "eval_strategy": "steps",
        "eval_steps": args.steps,
        "logging_steps": 10,
        "save_strategy": "no",
        "use_cpu": True,
        "output_dir": out,
        "report_to": "none",
    }
    if args.projector is not None:
        flags["pretrain_mm_mlp_adapter"] = args.projector
    if not (out / "COMPLETE").is_file():
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "lrm_ext.training.train", *words]
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"training failed:\n{done.stderr[-2000:]}")
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for line in lines if "eval_loss" in (record := json.loads(line))][-1]


def report(args: argparse.Namespace, results: dict[float, list[dict[str, float]]]) -> str:
    """Formats a line for the overall loss and one for each group."""
    without, with_term = results[0.0], results[args.weight]
    names = [name for name in without[0] if name.startswith("eval_loss")]
    names = [name for name in names if name.count("/") < 2 and "per_" not in name]
    lines = [f"{'':<20}{'without':>9}{f'w {args.weight:g}':>9}{'difference':>12}  95 % interval"]
    for name in names:
        pairs = [(a[name], b[name]) for a, b in zip(without, with_term, strict=True)]
        differences = [b - a for a, b in pairs]
        mean = statistics.mean(differences)
        half = T_95[len(pairs) - 1] * statistics.stdev(differences) / math.sqrt(len(pairs))
        first, second = (statistics.mean(values) for values in zip(*pairs, strict=True))
        lines.append(
            f"{name:<20}{first:>9.4f}{second:>9.4f}{mean:>+12.4f}  "
            f"{mean - half:+.4f} .. {mean + half:+.4f}"
        )
    return "\n".join(lines)


def say(text: str) -> None:
    """Prints a line and flushes it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
