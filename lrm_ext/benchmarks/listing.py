"""Every benchmark that there is: those of the paper, further sets, and the built-in ones."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lrm_ext.benchmarks.kind import Kind
from lrm_ext.benchmarks.kinds import KINDS, PAPER
from lrm_ext.benchmarks.mapping import SETS_DIR, load_mapping, set_names
from lrm_ext.benchmarks.registry import BENCHMARKS

_MINI = "mini-"


def known_benchmarks() -> list[dict[str, Any]]:
    """Name, title, where the files are from, what is scored, modes and languages of each."""
    rows = [_row(name, KINDS[name].title, "import", KINDS[name]) for name in PAPER]
    for name in set_names():
        mapping = load_mapping(SETS_DIR / f"{name}.toml")
        row = _row(name, mapping.title, "import", KINDS[mapping.kind])
        rows.append({**row, "languages": list(mapping.languages), "licence": mapping.licence})
    for name in BENCHMARKS:
        kind = KINDS[name.removeprefix(_MINI) if name.startswith(_MINI) else "answers"]
        rows.append(_row(name, f"{kind.title}, scenes of the built-in corpus", "built-in", kind))
    return rows


def _row(name: str, title: str, files: str, kind: Kind) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "files": files,
        "headline": kind.headline,
        "modes": list(dict.fromkeys((*kind.modes, *kind.aliases))),
        "default_mode": kind.default_mode,
        "languages": None,
        "licence": "",
    }


def print_benchmarks(console: Console) -> None:
    """Print a table of every benchmark."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for column in ("name", "files", "score", "read as", "languages"):
        table.add_column(column)
    for row in known_benchmarks():
        languages = "any" if row["languages"] is None else " ".join(row["languages"])
        modes = ", ".join(row["modes"])
        table.add_row(row["name"], row["files"], row["headline"], modes, languages)
    console.print(table)
    console.print(
        "import: `lrm benchmark import NAME FILES --out DIR/NAME`, then `lrm eval --benchmarks "
        "NAME --benchmark-dir DIR`; a mapping file of your own (.toml) is a name, too",
        highlight=False,
    )
