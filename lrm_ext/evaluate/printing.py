"""Benchmarks and their scores on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from lrm_ext.evaluate.kind import Kind
from lrm_ext.evaluate.kinds import KINDS, PAPER
from lrm_ext.evaluate.mapping import SETS_DIR, load_mapping, set_names
from lrm_ext.evaluate.registry import BENCHMARKS

_DOUBTFUL: Final = {
    "missing": "without an answer (wrong)",
    "refused": "refused by the service (wrong)",
    "empty": "with an empty answer",
    "cut": "with an answer cut off at the length limit",
    "unparsed": "with an answer that decides nothing",
    "default_yes": "read as yes because nothing in the answer negates",
    "ambiguous_cyrillic": "answered by a Cyrillic letter that may be the second or the third",
    "answered_twice": "answered twice, equally",
}
# Tables of a report, and what their figures are.
_GROUPS: Final = {
    "per_category": "category",
    "per_dimension": "dimension",
    "per_ability": "ability",
}
_SUMS: Final = (
    "perception",
    "cognition",
    "mean_f1",
    "all",
    "circular_accuracy",
    "vanilla_accuracy",
    "all_rows_accuracy",
    "accuracy",
    "chrf",
)


def print_score(report: Mapping[str, Any], console: Console) -> None:
    """Print a report as `ScoreReport.to_json` gives it, with `interval` where there is one."""
    version = f" {report['version']}" if report["version"] else ""
    console.print(
        f"[bold]{report['benchmark']}[/]{version}, {report['lang']}, read as {report['mode']}",
        highlight=False,
    )
    span = ""
    if found := report.get("interval"):
        span = f"  (95 %: {found['low']:.2f} to {found['high']:.2f}, {found['method']})"
    console.print(
        f"{report['headline_name']}: [bold]{report['headline']:.2f}[/]{span}{_whole(report)}",
        highlight=False,
    )
    console.print(_sums(report))
    for field, title in _GROUPS.items():
        if len(report.get(field) or {}) > 1:
            console.print(_group_table(report[field], title))
    for line in remarks(report):
        console.print(line, highlight=False, soft_wrap=True)


def _whole(report: Mapping[str, Any]) -> str:
    """What part of the benchmark a score is of, where it is not the whole."""
    expected = report.get("num_categories_expected")
    if expected is None or report["num_categories"] == expected:
        return ""
    top = report.get("maximum_perception")
    points = f" of {top} possible" if top else ""
    return f"{points}; {report['num_categories']} of {expected} categories are there"


def _sums(report: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name in _SUMS:
        if isinstance(report.get(name), float):
            table.add_row(name.replace("_", " "), f"{report[name]:.4f}")
    return table


def _group_table(values: Mapping[str, float], title: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column(title)
    table.add_column("score", justify="right")
    for name, value in values.items():
        table.add_row(name, f"{value:.4f}")
    return table


def remarks(report: Mapping[str, Any]) -> list[str]:
    """How many of how many questions, and which answers a reader should know of."""
    counts = report["counts"]
    lines = [f"{counts['answered']} of {counts['questions']} questions are answered"]
    lines += [
        f"{counts[field]} of {counts['questions']} questions {what}"
        for field, what in _DOUBTFUL.items()
        if counts.get(field)
    ]
    if without := report.get("num_without_options"):
        lines.append(
            f"{without} rows came without their options: whether rotations are missing at the end "
            "was not checked, and options named by their text were not read"
        )
    fidelity = report["fidelity"]
    if fidelity["decided"]:
        lines.append(
            f"fidelity: {fidelity['in_language']} of {fidelity['decided']} answers that have a "
            f"language are in {report['lang']} ({fidelity['undecided']} are too short to tell)"
        )
    return lines


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
