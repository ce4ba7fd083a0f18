"""Runs the steps of the GPU check one after the other, each in a process with a time limit.

Usage: bash tools/gpu/check.sh [--dry-run] [--only STEP ...] [--skip STEP ...]

`--dry-run` runs every step on the CPU at tiny shapes and says what takes the place of what. Each
step appends one JSON line to `results.jsonl` of the output folder (step, state, reason, seconds,
figures, replaced), and what it prints goes to `STEP.log` there. A step that fails or takes too long
does not stop the next. Exit status: 0 if all steps passed (or were left out by `--skip`, `--only`),
1 if one failed, 3 if none failed but one could not run, for instance for a missing package.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
OK, SKIPPED, FAILED = "ok", "skipped", "failed"
LEFT_OUT = "left out"
# a dry run has slow processors, perhaps busy ones
DRY_RUN_PATIENCE = 3


class Step(NamedTuple):
    """A step of the check."""

    title: str
    limit_s: int
    needs: tuple[str, ...]
    replaced: str  # in a dry run


STEPS = {
    "versions": Step("versions, driver, GPU", 20, (), "no GPU is asked for"),
    "data": Step("the built-in corpus, unpacked", 60, (), "nothing"),
    "attention": Step(
        "packed losses and gradients: flash-attention, SDPA, eager", 40, ("flash-attn",),
        "CPU; flash-attention's functions by a stand-in that checks its arguments",
    ),
    "liger": Step(
        "Liger's loss and gradients, plain ones", 40, ("liger-kernel",),
        "Triton's interpreter on the CPU, float32",
    ),
    "qlora": Step(
        "one QLoRA step, 4-bit loading, an answer", 60, ("bitsandbytes", "peft"),
        "bitsandbytes' CPU kernels",
    ),
    "finetune": Step(
        "the quickstart's stage 1 (100 steps) and fine-tuning (200 steps)", 100, (),
        "CPU; 2 and 3 steps",
    ),
    "step-7b": Step(
        "packed steps of a 7B shape: tokens/s, MFU, memory beside the plan", 110, (),
        "CPU; a shape of 2 layers and 64 dimensions; no MFU and no memory",
    ),
    "evaluation": Step("batched evaluation", 40, (), "CPU; 1 question a language"),
    "serving": Step("a worker with 16 clients", 60, (), "CPU; 4 clients"),
    "vllm": Step("vLLM on an export, same answers", 70, ("vllm",), "vLLM for CPUs"),
}  # fmt: skip

# What the steps download, in MB: wheels for CPython 3.11 and Linux x86-64, without what they need
# besides. A text says why there is no number.
WHEELS = {
    "torch": ("2.13.0 with CUDA; bash scripts/setup.sh installs it on a machine with a GPU", "?"),
    "triton": ("3.9.0; torch with CUDA brings its own", "286"),
    "liger-kernel": ("0.8.5; setup.sh --extras gpu", "0.9"),
    "bitsandbytes": ("0.50.2; setup.sh --extras gpu", "43"),
    "peft": ("0.21.2; setup.sh --extras train", "0.8"),
    "deepspeed": ("0.19.8, built from source; setup.sh --extras train", "2.0"),
    "flash-attn": ("2.8.3, built from source with nvcc; optional", "8.5"),
    "vllm": ("0.33.0, in an environment of its own, which needs gigabytes; optional", "336"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at tiny shapes")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP")
    parser.add_argument("--skip", nargs="+", choices=STEPS, default=[], metavar="STEP")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"), help="output folder")
    parser.add_argument("--vllm-python", help="interpreter of an environment with vLLM")
    parser.add_argument("--list", action="store_true", help="list steps, limits, packages")
    given = parser.parse_args(arguments)
    if given.list:
        list_steps()
        return 0
    out = given.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    extra = ["--dry-run"] * given.dry_run
    extra += ["--vllm-python", given.vllm_python] * (given.vllm_python is not None)
    command = [sys.executable, str(Path(__file__).with_name("steps.py"))]
    results = []
    for name, step in STEPS.items():
        result = {"step": name, "state": SKIPPED, "reason": LEFT_OUT, "seconds": 0.0, "figures": {}}
        if name in given.only and name not in given.skip:
            print(f"{name}: {step.title}", flush=True)  # noqa: T201
            limit = step.limit_s * (DRY_RUN_PATIENCE if given.dry_run else 1)
            result = run_step(name, [*command, name, "--out", str(out), *extra], out, limit)
        if given.dry_run:
            result["replaced"] = step.replaced
        results.append(result)
        with (out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    show(results, out)
    return exit_status(results)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the paragraphs of the docstring."""


def run_step(name: str, command: Sequence[str], out: Path, limit_s: float) -> dict[str, Any]:
    """Runs a step in a process of its own and returns its result; never raises for the step.

    Args:
        name: Its name; it writes `NAME.json` (state, reason, figures) into `out`.
        command: Starts it.
        out: Output folder, also for `NAME.log`.
        limit_s: Seconds after which it, and all that it started, is ended.
    """
    path, log = out / f"{name}.json", out / f"{name}.log"
    path.unlink(missing_ok=True)
    start, found = time.monotonic(), {"state": FAILED, "figures": {}}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout=limit_s)
            if path.is_file():
                found = json.loads(path.read_text(encoding="utf-8"))
            else:
                lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
                last = next((line for line in reversed(lines) if line.strip()), "no output")
                found["reason"] = f"exit code {code}: {last.strip()[:300]} (see {log})"
        except subprocess.TimeoutExpired:
            found["reason"] = f"not finished after {limit_s:.0f} s (see {log})"
        finally:
            _end_group(process)
    seconds = round(time.monotonic() - start, 1)
    return {"step": name, "reason": "", **found, "seconds": seconds}


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a step and what it may have left, such as a worker that holds GPU memory."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def exit_status(results: Sequence[dict[str, Any]]) -> int:
    """Returns 1 if a step failed, 3 if one could not run, else 0."""
    if any(result["state"] == FAILED for result in results):
        return 1
    could_not = [r for r in results if r["state"] == SKIPPED and r["reason"] != LEFT_OUT]
    return 3 if could_not else 0


def show(results: Sequence[dict[str, Any]], out: Path) -> None:
    """Prints the results as a table."""
    table = Table("step", "state", "seconds", "reason, figures", title=str(out / "results.jsonl"))
    for result in results:
        told = [result["reason"]] * bool(result["reason"])
        told += [f"{name}: {_short(value)}" for name, value in result["figures"].items()]
        if result.get("replaced") and result["reason"] != LEFT_OUT:
            told.append(f"(replaced: {result['replaced']})")
        table.add_row(result["step"], result["state"], f"{result['seconds']:.1f}", "\n".join(told))
    Console(markup=False).print(table)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def list_steps() -> None:
    """Prints steps, time limits, and what has to be installed."""
    console = Console(markup=False)
    steps = Table("step", "what", "limit", "needs", "dry run")
    for name, step in STEPS.items():
        needs = ", ".join(step.needs)
        steps.add_row(name, step.title, f"{step.limit_s} s", needs, step.replaced)
    console.print(steps)
    wheels = Table("package", "version", "MB")
    for package, (version, size) in WHEELS.items():
        wheels.add_row(package, version, size)
    console.print(wheels)


if __name__ == "__main__":
    sys.exit(main())
