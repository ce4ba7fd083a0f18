"""Prints benchmarks and their scores on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Column, Table

from lrm_ext.evaluate.kind import Kind
from lrm_ext.evaluate.kinds import ANSWERS, KINDS, PAPER
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
# Groups that a report may have scores of, under `per_<group>`.
_GROUPS: Final = ("category", "dimension", "ability")
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
_STYLE: Final[dict[str, Any]] = {"box": box.SIMPLE_HEAD, "show_edge": False}


def print_score(report: Mapping[str, Any], console: Console) -> None:
    """Prints a report as `ScoreReport.to_json` gives it, with `interval` if there is one."""
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
    sums = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name in _SUMS:
        if isinstance(report.get(name), float):
            sums.add_row(name.replace("_", " "), f"{report[name]:.4f}")
    console.print(sums)
    for name in _GROUPS:
        groups = report.get(f"per_{name}") or {}
        if len(groups) > 1:
            table = Table(name, Column("score", justify="right"), **_STYLE)
            for group, value in groups.items():
                table.add_row(group, f"{value:.4f}")
            console.print(table)
    for line in remarks(report):
        console.print(line, highlight=False, soft_wrap=True)


def _whole(report: Mapping[str, Any]) -> str:
    """Says what part of the benchmark a score is of, if it is not the whole."""
    expected = report.get("num_categories_expected")
    if expected is None or report["num_categories"] == expected:
        return ""
    top = report.get("maximum_perception")
    points = f" of {top} possible" if top else ""
    return f"{points}; {report['num_categories']} of {expected} categories are there"


def remarks(report: Mapping[str, Any]) -> list[str]:
    """Says how many of how many questions, and which answers a reader should know of."""
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


def known_benchmarks() -> list[dict[str, Any]]:
    """Returns name, title, origin of the files, what is scored, modes and languages of each."""
    rows = [_row(name, KINDS[name].title, "import", KINDS[name]) for name in PAPER]
    for name in set_names():
        mapping = load_mapping(SETS_DIR / f"{name}.toml")
        row = _row(name, mapping.title, "import", KINDS[mapping.kind])
        rows.append({**row, "languages": list(mapping.languages), "licence": mapping.licence})
    for name in BENCHMARKS:
        kind = KINDS.get(name.removeprefix("mini-"), ANSWERS)
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
    """Prints a table of every benchmark."""
    table = Table("name", "files", "score", "read as", "languages", **_STYLE)
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
