"""Finds the benchmark scripts and runs one.

Input: `scripts/bench/*.py` of a checkout. A script counts that has `--json FILE`, into which it
writes a list of objects `name, ours, peer, ratio, unit, equal`. Output: these. What a script needs
that a checkout does not have is said in a line of its docstring: `Needs: PATH, from COMMAND`.
Non-goals: showing them (`report.py`); what is measured (the scripts).
"""

from __future__ import annotations

import ast
import json
import logging
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.errors import ConfigError, DataError

log = logging.getLogger(__name__)

SCRIPTS_DIR = Path(__file__).parents[2] / "scripts" / "bench"
ROOT = Path(__file__).parents[2]
_NEEDS = re.compile(r"^Needs: (\S+), from (.+?)\.?$", re.MULTILINE)
KEYS = ("name", "ours", "peer", "ratio", "unit", "equal")


@dataclass(frozen=True)
class Script:
    """One benchmark.

    Attributes:
        name: The file's, without `.py`.
        path: The file.
        title: First line of its text.
        needs: Paths within the checkout that it needs, and what makes them.
    """

    name: str
    path: Path
    title: str
    needs: tuple[tuple[str, str], ...] = ()

    @property
    def needs_gpu(self) -> bool:
        """Whether it makes sense on a GPU only."""
        return self.name.startswith("gpu_")

    def missing(self, root: Path = ROOT) -> str:
        """What it needs and is not there, in words; "" if all is."""
        return "; ".join(
            f"needs {path}, which is missing: {how}"
            for path, how in self.needs
            if not (root / path).exists()
        )


@dataclass(frozen=True)
class Entry:
    """One measured thing.

    Attributes:
        name: What.
        ours: This project's figure.
        peer: The other side's; None if there is none.
        ratio: How many times better ours is; None without a peer.
        unit: Of both.
        equal: Whether the outputs were compared and agree; None if there was nothing to compare.
    """

    name: str
    ours: float | None
    peer: float | None
    ratio: float | None
    unit: str
    equal: bool | None


def find_scripts(folder: Path = SCRIPTS_DIR) -> list[Script]:
    """The benchmarks that can write their figures, by name.

    Raises:
        ConfigError: The folder is missing: a wheel does not contain it.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: there are no benchmark scripts; they come with the repository, run "
            "`lrm bench` in a checkout that was installed with pip install -e"
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
    """Those of the given names; all if none is given.

    Raises:
        ConfigError: There is no such benchmark.
    """
    by_name = {script.name: script for script in scripts}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise ConfigError(f"no benchmark {', '.join(unknown)}; choose from: {', '.join(by_name)}")
    return [by_name[name] for name in names] if names else list(scripts)


def run_script(script: Script) -> list[Entry]:
    """Run a benchmark in a process of its own; what it prints goes to this one's output.

    Raises:
        DataError: It failed, or did not write what it should.
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
    """Read what a script wrote.

    Raises:
        DataError: It is not a list of entries.
    """
    try:
        raw: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return [Entry(**{key: item[key] for key in KEYS}) for item in raw]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected a list of objects with {', '.join(KEYS)}: {error!r}"
        ) from error
