"""The figures of a benchmark as a section of a Markdown file.

Input: entries, and the machine they were measured on. Output: text between two marks in the file,
`<!-- bench NAME -->` and `<!-- end NAME -->`; the rest of the file stays as it is.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from lrm_ext.bench.scripts import Entry, Script
from lrm_ext.files import write_atomically

PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Machine:
    """What figures depend on; no names of hosts or people.

    Attributes:
        num_cores: Cores that this process may use.
        cpu: The processor's model.
        memory_gib: Of the machine; 0 if it is not known.
        gpus: Models, one an entry.
    """

    num_cores: int
    cpu: str
    memory_gib: int
    gpus: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.num_cores} cores of {self.cpu}"
        if self.memory_gib:
            text += f", {self.memory_gib} GiB"
        return f"{text}, {' + '.join(self.gpus)}" if self.gpus else f"{text}, no GPU"


@lru_cache(maxsize=1)
def machine() -> Machine:
    """Describe this machine."""
    import torch

    has_affinity = hasattr(os, "sched_getaffinity")
    num_cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = tuple(torch.cuda.get_device_name(index) for index in range(num_gpus))
    return Machine(num_cores, _cpu_model(), _memory_gib(), gpus)


def versions() -> str:
    """Of Python and the packages that figures depend on."""
    listed = [f"Python {platform.python_version()}"]
    return ", ".join(listed + [f"{name} {metadata.version(name)}" for name in PACKAGES])


def section(script: Script, entries: Sequence[Entry], on: Machine) -> str:
    """One benchmark in Markdown: command, machine, table."""
    today = datetime.date.today().isoformat()
    lines = [
        f"`python scripts/bench/{script.path.name}` on {on}; {versions()}; {today}.",
        "",
        "| measured | ours | peer | times better | equal |",
        "|---|---:|---:|---:|---|",
    ]
    lines += [
        f"| {entry.name} | {_figure(entry.ours, entry.unit)} | {_figure(entry.peer, entry.unit)} "
        f"| {'-' if entry.ratio is None else f'{entry.ratio:.3g}'} | {_equal(entry.equal)} |"
        for entry in entries
    ]
    return "\n".join(lines)


def write_section(path: Path, name: str, text: str) -> None:
    """Put a section into a file in place of the one of that name, or at the end."""
    begin, end = f"<!-- bench {name} -->", f"<!-- end {name} -->"
    block = f"{begin}\n{text}\n{end}"
    before = path.read_text(encoding="utf-8") if path.is_file() else "# Figures\n"
    pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    if pattern.search(before):
        after = pattern.sub(lambda match: block, before)
    else:
        after = f"{before.rstrip()}\n\n## {name}\n\n{block}\n"
    write_atomically(path, after)


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{digits} {unit}"


def _equal(value: bool | None) -> str:
    return {True: "yes", False: "**no**", None: "-"}[value]


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def _memory_gib() -> int:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (ValueError, OSError, AttributeError):
        return 0
