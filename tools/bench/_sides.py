"""Shared parts of the training benchmarks: one process per side, entries, a table."""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# the values of scripts/lib/common.sh; they must be set when a process starts
_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}


def parser_of(doc: str) -> argparse.ArgumentParser:
    """Returns a parser described by the first line of a docstring, with `--json`."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    return parser


def entry(
    name: str,
    ours: float,
    peer: float | None,
    unit: str,
    equal: bool | None,
    less_is_better: bool = False,
) -> dict[str, Any]:
    """Returns one measurement; the ratio is above 1 where ours is better."""
    ratio = None
    if peer is not None and ours and peer:
        ratio = peer / ours if less_is_better else ours / peer
    return {
        "name": name, "ours": ours, "peer": peer, "ratio": ratio, "unit": unit, "equal": equal,
    }  # fmt: skip


def finish(entries: Sequence[dict[str, Any]], path: Path | None) -> None:
    """Prints a table, and writes the entries if a path is given."""
    table = Table("measured", "ours", "peer", "times better", "equal")
    for item in entries:
        sides = [item["ours"], item["peer"]]
        shown = ["-" if side is None else f"{side:,.4g} {item['unit']}" for side in sides]
        ratio = "-" if item["ratio"] is None else f"{item['ratio']:.2f}"
        same = {True: "yes", False: "NO", None: "-"}[item["equal"]]
        table.add_row(item["name"], *shown, ratio, same)
    Console(soft_wrap=True).print(table)
    if path is not None:
        path.write_text(json.dumps(list(entries), indent=2) + "\n", encoding="utf-8")


def apart(run: Callable[..., Any], *arguments: Any, for_memory: bool = False) -> Any:
    """Calls a function of a module in a fresh process.

    Args:
        run: The function.
        *arguments: Arguments of the function.
        for_memory: Keep glibc's default allocator settings. Otherwise they are set as for
            training, which keeps freed memory and is faster.
    """
    for name, value in _ALLOCATOR.items():
        if for_memory:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    with multiprocessing.get_context("spawn").Pool(1, initializer=_quiet) as pool:
        return pool.apply(run, arguments)


def _quiet() -> None:
    import warnings

    import torch
    import transformers

    torch.set_num_threads(1)

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()


class MemoryMeter:
    """Measures by how much the memory of the process grows after its creation, in MiB.

    Example:
        >>> meter = MemoryMeter()
        >>> work()
        >>> meter.growth_mib()
    """

    def __init__(self) -> None:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        except OSError:
            pass
        self._before = _status_mib("VmRSS")

    def growth_mib(self) -> float:
        """Returns the peak growth since the meter was created."""
        return max(_status_mib("VmHWM") - self._before, 0.0)


def _status_mib(key: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Returns the median processor time of several calls, after one that is not counted."""
    work()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return sorted(taken)[len(taken) // 2]
