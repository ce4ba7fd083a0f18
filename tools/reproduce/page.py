"""Renders the parts of docs/reproduce.md that come from result files.

Each part is between `<!-- reproduce NAME -->` and `<!-- end NAME -->`. Scores and verdicts are
computed here, never written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from llava.errors import DataError
from tools.reproduce.results import Results
from tools.reproduce.settings import Study
from tools.reproduce.verdicts import (
    Bootstrap,
    Judgement,
    answer_languages,
    judge_all,
    read_claims,
)

_ALL_BENCHMARKS: Final = ("mini-mmbench", "mini-mme", "mini-pope", "mini-seed_bench", "scenes")
_LANGUAGE_BENCHMARK: Final = "scenes"


def runs_block(results: Results, study: Study) -> str:
    """Lists the runs that are present, out of those expected."""
    lines = [
        "| setting | what it is | paper | steps | seeds that are there |",
        "|---|---|---|---|---|",
    ]
    num = 0
    for setting in study.settings:
        seeds = results.seeds(setting.name)
        num += len(seeds)
        steps = "-"
        if seeds:
            found = results.runs[setting.name, seeds[0]]["steps"]
            steps = f"{found['pretrain']} + {found['finetune']}"
        shown = ", ".join(map(str, seeds)) or "none"
        lines.append(f"| {setting.name} | {setting.words} | {setting.paper} | {steps} | {shown} |")
    wanted = len(study.settings) * len(study.seeds)
    rest = "" if num >= wanted else "; what rests on the others is open"
    lines += ["", f"{num} of {wanted} runs are there{rest}."]
    return "\n".join(lines)


def scores_block(results: Results, study: Study) -> str:
    """Lists each setting's right answers: English and the others' mean, on every benchmark."""
    if not results.runs:
        return "No runs are there."
    bootstrap = Bootstrap(results, study, num=1)
    names = [name for name in _ALL_BENCHMARKS if name in results.pictures]
    groups = ("en", *(study.groups or ("others",)))
    titles = " | ".join(["En", *groups[1:]])
    lines = [
        "| setting | seeds | " + " | ".join(f"{name}: {titles}" for name in names) + " |",
        "|---|---:|" + "---:|" * (len(groups) * len(names)),
    ]
    for setting in study.settings:
        seeds = results.seeds(setting.name)
        if not seeds:
            continue
        cells = []
        for name in names:
            for group in groups:
                scores = [float(bootstrap.group(setting.name, s, name, group)[0]) for s in seeds]
                spread = f" ({min(scores):.1f}-{max(scores):.1f})" if len(scores) > 1 else ""
                cells.append(f"{np.mean(scores):.1f}{spread}")
        lines.append(f"| {setting.name} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def claims_block(results: Results, study: Study) -> str:
    """Lists each claim, the paper's scores, the miniature's with intervals, and the verdicts."""
    benchmarks, claims = read_claims(study)
    judged = judge_all(results, study, benchmarks, claims)
    titles = " | ".join(f"{name} | verdict" for name in benchmarks)
    lines = [f"| claim | paper | {titles} |", "|---|---|" + "---:|---|" * len(benchmarks)]
    for claim, found in zip(claims, judged, strict=True):
        cells = " | ".join(_cells(found[name], len(study.seeds)) for name in benchmarks)
        lines.append(f"| {claim.text} | {claim.figures} | {cells} |")
    return "\n".join(lines)


def _cells(one: Judgement, wanted: int) -> str:
    if one.found is None:
        return f"- | {one.verdict}: no runs"
    found = one.found
    figure = f"{found.value:+.1f} ({found.low:+.1f} to {found.high:+.1f})"
    seeds = "" if one.num_seeds >= wanted else f", {one.num_seeds} seed{'s' * (one.num_seeds > 1)}"
    return f"{figure} | **{one.verdict}**{seeds}"


def languages_block(results: Results, study: Study) -> str:
    """Lists the languages in which the settings answer non-English questions."""
    lines = [
        "| setting | of so many | the question's | English | another | too short to tell |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for setting in study.settings:
        counts = [
            answer_languages(results.runs[setting.name, seed], _LANGUAGE_BENCHMARK)
            for seed in results.seeds(setting.name)
        ]
        if not counts:
            continue
        sums = {key: sum(one[key] for one in counts) for key in counts[0]}
        total = sum(sums.values())
        cells = " | ".join(f"{100 * number / total:.1f} %" for number in sums.values())
        lines.append(f"| {setting.name} | {total:,} | {cells} |")
    return "\n".join(lines)


BLOCKS: Final[Mapping[str, Callable[[Results, Study], str]]] = {
    "runs": runs_block,
    "scores": scores_block,
    "claims": claims_block,
    "languages": languages_block,
}


def renew(text: str, results: Results, study: Study, where: Path) -> str:
    """Returns the page with every block rendered again.

    Args:
        text: Text of the page.
        results: Results that the blocks show.
        study: Settings that the blocks show.
        where: Name of the page, for errors.

    Raises:
        DataError: The page lacks a block.
    """
    for name, make in BLOCKS.items():
        begin, end = f"<!-- reproduce {name} -->", f"<!-- end {name} -->"
        pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
        found = pattern.search(text)
        if found is None:
            raise DataError(f"{where}: no block between {begin} and {end}")
        block = f"{begin}\n\n{make(results, study)}\n\n{end}"
        text = text[: found.start()] + block + text[found.end() :]
    return text
