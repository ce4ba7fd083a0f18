"""Runs the benchmarks of this folder and writes their results into a document.

Usage: `python -m tools.bench [NAME ...]`, or `lrm bench`. A benchmark is a script in this folder
that takes `--json FILE`, into which it writes a list of objects with the keys `name, ours, peer,
ratio, unit, equal`. A line `Needs: PATH, from COMMAND` in its docstring names a file that a fresh
clone lacks. The results replace the text between `<!-- bench NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import ast
import datetime
import json
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from llava.errors import ConfigError, DataError
from llava.files import write_atomically

log = logging.getLogger(__name__)

SCRIPTS_DIR = Path(__file__).parent
ROOT = Path(__file__).parents[2]
_NEEDS = re.compile(r"^Needs: (\S+), from (.+?)\.?$", re.MULTILINE)
KEYS = ("name", "ours", "peer", "ratio", "unit", "equal")


@dataclass(frozen=True)
class Script:
    """A benchmark script.

    Attributes:
        name: File name without `.py`.
        path: Path of the file.
        title: First line of its docstring.
        needs: Paths within the checkout that it needs, and the command that makes each.
    """

    name: str
    path: Path
    title: str
    needs: tuple[tuple[str, str], ...] = ()

    @property
    def needs_gpu(self) -> bool:
        """Whether the benchmark only makes sense on a GPU."""
        return self.name.startswith("gpu_")

    def missing(self, root: Path = ROOT) -> str:
        """Describes the needed paths that are missing; "" if there are none."""
        return "; ".join(
            f"needs {path}, which is missing: {how}"
            for path, how in self.needs
            if not (root / path).exists()
        )


@dataclass(frozen=True)
class Entry:
    """A single measurement.

    Attributes:
        name: Name of the measured quantity.
        ours: Value for this project.
        peer: Value for the peer; None if there is no peer.
        ratio: How many times better ours is; None without a peer.
        unit: Unit of both values.
        equal: Whether the outputs agree; None if there was nothing to compare.
    """

    name: str
    ours: float | None
    peer: float | None
    ratio: float | None
    unit: str
    equal: bool | None


def find_scripts(folder: Path = SCRIPTS_DIR) -> list[Script]:
    """Returns the benchmarks that accept `--json`, by name.

    Raises:
        ConfigError: The folder is missing: a wheel does not contain it.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: there are no benchmark scripts; they come with the repository; run "
            "`lrm bench` in a checkout installed with pip install -e"
        )
    found = []
    for path in sorted(folder.glob("[a-z]*.py")):
        text = path.read_text(encoding="utf-8")
        if "--json" in text:
            words = ast.get_docstring(ast.parse(text)) or path.stem
            needs = tuple(_NEEDS.findall(words))
            found.append(Script(path.stem, path, words.splitlines()[0], needs))
    return found


def choose(scripts: Sequence[Script], names: Sequence[str]) -> list[Script]:
    """Returns the benchmarks with the given names; all if no name is given.

    Raises:
        ConfigError: A name is unknown.
    """
    by_name = {script.name: script for script in scripts}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise ConfigError(f"no benchmark {', '.join(unknown)}; choose from: {', '.join(by_name)}")
    return [by_name[name] for name in names] if names else list(scripts)


def run_script(script: Script) -> list[Entry]:
    """Runs a benchmark in its own process; its output goes to this process's output.

    Raises:
        DataError: The script failed, or did not write a valid list of entries.
    """
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        done = subprocess.run([sys.executable, str(script.path), "--json", str(figures)])
        if done.returncode != 0 or not figures.is_file():
            raise DataError(
                f"{script.path} ended with exit code {done.returncode}"
                f"{'' if figures.is_file() else ' and wrote no figures'}; see its output above"
            )
        return read_entries(figures)


def read_entries(path: Path) -> list[Entry]:
    """Reads the entries that a script wrote.

    Raises:
        DataError: The file is not a list of entries.
    """
    try:
        raw: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return [Entry(**{key: item[key] for key in KEYS}) for item in raw]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected a list of objects with {', '.join(KEYS)}: {error!r}"
        ) from error


PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Machine:
    """The hardware that the results depend on; no names of hosts or people.

    Attributes:
        num_cores: Number of cores that this process may use.
        cpu: Model of the processor.
        memory_gib: Memory of the machine; 0 if unknown.
        gpus: Models of the GPUs, one entry per GPU.
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
    """Describes this machine."""
    import torch

    has_affinity = hasattr(os, "sched_getaffinity")
    num_cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = tuple(torch.cuda.get_device_name(index) for index in range(num_gpus))
    return Machine(num_cores, _cpu_model(), _memory_gib(), gpus)


def versions() -> str:
    """Returns the versions of Python and of the packages that the results depend on."""
    listed = [f"Python {platform.python_version()}"]
    return ", ".join(listed + [f"{name} {metadata.version(name)}" for name in PACKAGES])


def section(script: Script, entries: Sequence[Entry], on: Machine) -> str:
    """Renders one benchmark in Markdown: command, machine, table."""
    today = datetime.date.today().isoformat()
    lines = [
        f"`python tools/bench/{script.path.name}` on {on}; {versions()}; {today}.",
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
    """Replaces the section with that name in a file, or appends it."""
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


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def bench(
    names: list[str] = typer.Argument(None, help="Benchmarks to run, as --list names them."),
    out: Path = typer.Option(
        Path("docs/performance.md"), help="Markdown file whose tables between marks are updated."
    ),
    list_only: bool = typer.Option(False, "--list", help="List the benchmarks and exit."),
) -> None:
    """Run benchmarks against their peers, and write a table of the results.

    If a benchmark fails, or a file that it needs is missing, the others still run.
    """
    console = Console(highlight=False, soft_wrap=True)
    scripts = find_scripts()
    if list_only:
        for script in scripts:
            console.print(f"{script.name:<14} {script.title}", markup=False)
            if missing := script.missing():
                console.print(f"{'':<14} {missing}", markup=False)
        return
    faults: list[str] = []
    for script in choose(scripts, names or []):
        if script.needs_gpu and not names and not machine().gpus:
            console.print(f"{script.name}: skipped, there is no GPU")
            continue
        console.print(f"{script.name}: {script.title}", markup=False)
        if missing := script.missing():
            faults.append(f"{script.name} {missing}")
            console.print(f"{script.name}: skipped, {missing}", markup=False)
            continue
        try:
            entries = run_script(script)
        except DataError as error:
            faults.append(f"{script.name}: {error}")
            console.print(f"{script.name}: failed, {error}", markup=False)
            continue
        write_section(out, script.name, section(script, entries, machine()))
        console.print(f"{script.name}: {len(entries)} figures written to {out}")
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise DataError(f"{len(faults)} benchmarks were not measured:\n{listed}")


if __name__ == "__main__":
    from lrm_ext.cli import main

    main(app)
