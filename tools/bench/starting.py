"""Starting: commands, the parts of a demo, and a training up to its first step.

Usage: python tools/bench/starting.py [--before CHECKOUT] [--model FOLDER] [--json FILE]
Needs: runs/mini/config.json, from bash scripts/quickstart.sh.

Each row is the median of `--repeats` fresh processes: wall time, processor time and memory. Parts
are imported and nothing else is done; `lrm demo` (page, API, controller, worker) is measured until
it says that it answers, and `lrm_finetune.sh` until it has logged its first step, both with all
their processes, whose shared memory counts once. With `--before`, the starts of another checkout,
in turns with ours, are the peer.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from _sides import entry, finish, parser_of

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    "import llava": "llava",
    "modules of lrm demo": "lrm_ext.demo",
    "modules of lrm eval": "lrm_ext.evaluate.runner",
    "modules of lrm report": "lrm_ext.report.evaluation",
    "controller": "llava.serve.controller",
    "API": "llava.serve.openai_api",
    "page": "llava.serve.gradio_web_server",
    "worker": "llava.serve.model_worker",
    "training": "lrm_ext.training.train",
}
EVALUATION, TRAINING, DEMO = "lrm eval, all answered", "lrm_finetune.sh", "lrm demo"
UNITS = {"wall": "s", "processor": "s", "memory": "MiB"}


class Cost(NamedTuple):
    """What a start takes: seconds on the clock and of processors, and MiB."""

    wall: float
    processor: float
    memory: float


def main() -> None:
    """Measures all starts, or those that are named."""
    parser = parser_of(__doc__)
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    parser.add_argument("--model", type=Path, default=ROOT / "runs/mini")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="regular expression: the rows to measure")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        finish(measure(args, Path(folder)), args.json)


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Returns three entries for each start."""
    model, python = str(args.model.resolve()), sys.executable
    lrm = [python, "-c", "from lrm_ext.cli import main; main()"]
    commands = {name: [python, "-c", f"import {module}"] for name, module in MODULES.items()} | {
        "lrm --help": [*lrm, "--help"],
        EVALUATION: [
            *lrm, "eval", "--model", model, "--benchmarks", "mini-pope", "--languages", "en",
            "--limit", "4",
        ],
        TRAINING: [
            "bash", "scripts/v1_5/lrm_finetune.sh", "--logging_steps", "1",
            "--pretrain_mm_mlp_adapter", f"{model}/mm_projector.bin",
        ],
        DEMO: [*lrm, "demo", "--model", model, "--device", "cpu", "--log-dir", str(folder)],
    }  # fmt: skip
    roots = [ROOT, *([args.before.resolve()] if args.before else [])]
    entries = []
    for name, command in commands.items():
        if not re.search(args.only, name):
            continue
        if name == EVALUATION:
            start(name, command, ROOT, folder)  # what is not answered yet is asked now
        costs = [
            [start(name, command, root, folder) for root in roots] for _ in range(args.repeats)
        ]
        for what, unit in UNITS.items():
            ours, *peer = (
                median(getattr(cost, what) for cost in side) for side in zip(*costs, strict=True)
            )
            before = peer[0] if peer else None
            entries.append(entry(f"{name}: {what}", ours, before, unit, None, True))
    return entries


def start(name: str, command: Sequence[str], root: Path, folder: Path) -> Cost:
    """Starts a command of a checkout, and waits until it has ended or got where `measure` says.

    Raises:
        RuntimeError: It failed; the message ends with what it said.
    """
    if name == DEMO:
        command = [*command, "--port", str(free_port()), "--api-port", str(free_port())]
    path = os.pathsep.join((str(root), os.environ.get("PYTHONPATH", "")))
    output = Path(tempfile.mkdtemp(dir=folder))
    env = {**os.environ, "PYTHONPATH": path, "OUTPUT_DIR": str(output), "COLUMNS": "200"}
    signs = {DEMO: (output / "said", "answers at"), TRAINING: (output / "metrics.jsonl", '"loss"')}
    sign, words = signs.get(name, (output / "said", ""))
    with open(output / "said", "w", encoding="utf-8") as said:
        begun = time.perf_counter()
        process = subprocess.Popen(command, cwd=root, env=env, stdout=said, stderr=said)
        while words and process.poll() is None:
            if sign.is_file() and words in sign.read_text(encoding="utf-8"):
                pids = tree(process.pid)
                cost = Cost(time.perf_counter() - begun, *cost_of(pids))
                # a demo stops its parts
                for pid in pids[:1] if name == DEMO else reversed(pids):
                    os.kill(pid, signal.SIGINT if name == DEMO else signal.SIGKILL)
                process.wait()
                return cost
            time.sleep(0.02)
        # a process that was to get somewhere has ended before
        status = process.returncode
        if not words:
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - begun
    if status or words:
        text = (output / "said").read_text(encoding="utf-8")
        raise RuntimeError(f"{' '.join(command)} ended with {status}: {text[-2000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def tree(pid: int) -> list[int]:
    """Returns a process and all below it, parents first."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in tree(int(child)))]


def cost_of(pids: Sequence[int]) -> tuple[float, float]:
    """Returns the processor time of processes and of what they waited for, and their memory."""
    ticks = pss_kib = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        ticks += sum(map(int, fields[11:15]))
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        pss_kib += int(re.findall(r"^Pss:\s+(\d+)", rollup, re.M)[0])
    return ticks / os.sysconf("SC_CLK_TCK"), pss_kib / 1024


def free_port() -> int:
    """Returns a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
