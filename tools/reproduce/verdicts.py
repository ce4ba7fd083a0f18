"""Judges the paper's claims by the results, with a bootstrap over images and seeds.

Input: `Results` and claims. Output: a difference with its interval and a verdict for each claim and
benchmark. The same draws of images serve all settings, seeds and languages. Seeds are drawn as
well, the same ones for both settings, since equal seeds share the order of English samples. With
three seeds, the contribution of their spread to an interval is a rough estimate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llava.errors import ConfigError
from llava.files import load_toml
from lrm_ext.evaluate.kind import UnitCounts, gather, percentage
from lrm_ext.evaluate.results import ENGLISH
from lrm_ext.evaluate.statistics import Difference, difference, replicate
from tools.reproduce.results import Results
from tools.reproduce.settings import Study, study_file

SUPPORTED: Final = "supported"
CONTRADICTED: Final = "contradicted"
OPEN: Final = "open"
HIGHER, LOWER, NOT_HIGHER, NOT_LOWER = "higher", "lower", "not higher", "not lower"
NUM_REPLICATES: Final = 2000
_KEYS: Final = ("text", "figures", "a", "b", "languages", "expect")
_GROUPS: Final = ("en", "others")


@dataclass(frozen=True)
class Claim:
    """A difference between two settings that the paper claims.

    Attributes:
        text: The claim in words.
        figures: The paper's scores.
        a: Setting to compare against.
        b: Setting that the claim is about.
        languages: `en`, `others` for the mean of all but English, or a group of the study.
        expect: Expected difference b - a: higher, lower, not higher, not lower.
        margin: Points that count as no difference in the last two.
    """

    text: str
    figures: str
    a: str
    b: str
    languages: str
    expect: str
    margin: float


@dataclass(frozen=True)
class Judgement:
    """The verdict on a claim for one benchmark.

    Attributes:
        found: Difference b - a; None without runs of both.
        num_seeds: Number of seeds that both have.
        verdict: `supported`, `contradicted` or `open`.
    """

    found: Difference | None
    num_seeds: int
    verdict: str


def read_claims(study: Study) -> tuple[tuple[str, ...], tuple[Claim, ...]]:
    """Reads the benchmarks and claims about a study.

    Raises:
        ConfigError: A claim lacks a key, or has an unknown value.
    """
    path = study_file(f"{study.name}_claims")
    data, groups = load_toml(path), (*_GROUPS, *study.groups)
    claims: list[Claim] = []
    for entry in data["claims"]:
        where = f"{path}: claim {entry.get('text')!r}"
        if set(entry) != set(_KEYS):
            raise ConfigError(f"{where}: keys are {', '.join(entry)}; expected {', '.join(_KEYS)}")
        if entry["expect"] not in (HIGHER, LOWER, NOT_HIGHER, NOT_LOWER):
            raise ConfigError(f"{where}: expect is {entry['expect']!r}")
        if entry["languages"] not in groups:
            raise ConfigError(
                f"{where}: languages is {entry['languages']!r}; expected {', '.join(groups)}"
            )
        claims.append(Claim(**entry, margin=float(data["margin"])))
    return tuple(data["benchmarks"]), tuple(claims)


def judge(found: Difference, claim: Claim) -> str:
    """Returns the verdict of an interval on a claim."""
    if claim.expect in (LOWER, NOT_LOWER):
        low, high = found.low, found.high
    else:
        low, high = -found.high, -found.low
    # below, every claim is "lower" or "not lower"; "higher" ones have a mirrored difference
    if claim.expect in (HIGHER, LOWER):
        if high < 0:
            return SUPPORTED
        return CONTRADICTED if low > 0 else OPEN
    if low > -claim.margin:
        return SUPPORTED
    return CONTRADICTED if high < -claim.margin else OPEN


class Bootstrap:
    """Scores of all runs on the same draws of images; right answers in percent."""

    def __init__(
        self, results: Results, study: Study, seed: int = 0, num: int = NUM_REPLICATES
    ) -> None:
        self._results = results
        self._groups = study.groups
        self._seed = seed
        self._num = num
        self._drawn = cache(self._draw)

    def _units(self, setting: str, seed: int, benchmark: str, lang: str) -> UnitCounts:
        right = self._results.right(setting, seed, benchmark, lang)
        pictures = self._results.pictures[benchmark]
        rows = [(p, "", {0: float(r), 1: 1.0}) for p, r in zip(pictures, right, strict=True)]
        return gather(rows, 2, percentage)

    def _draw(self, benchmark: str) -> dict[tuple[str, int, str], NDArray[np.float64]]:
        """Returns [1 + B] scores by setting, seed and language; the first is the measured one."""
        langs = self._results.languages(benchmark)
        keys = [(*run, lang) for run in self._results.runs for lang in langs]
        systems = [self._units(setting, seed, benchmark, lang) for setting, seed, lang in keys]
        drawn = replicate(systems, self._seed, self._num)
        return {
            key: np.concatenate([[system.score()], scores])
            for key, system, scores in zip(keys, systems, drawn, strict=True)
        }

    def group(self, setting: str, seed: int, benchmark: str, group: str) -> NDArray[np.float64]:
        """Returns [1 + B] scores in English, or the mean over the others or a group of them."""
        there = self._results.languages(benchmark)
        others = [lang for lang in there if lang != ENGLISH]
        langs = {"en": [ENGLISH], "others": others, **self._groups}[group]
        drawn = self._drawn(benchmark)
        mean: NDArray[np.float64] = np.mean([drawn[setting, seed, lang] for lang in langs], axis=0)
        return mean

    def difference(
        self, a: str, b: str, benchmark: str, group: str
    ) -> tuple[Difference | None, int]:
        """Returns second minus first over the seeds that both have, and their number."""
        seeds = sorted(set(self._results.seeds(a)) & set(self._results.seeds(b)))
        if not seeds:
            return None, 0
        table = np.stack(
            [
                self.group(b, seed, benchmark, group) - self.group(a, seed, benchmark, group)
                for seed in seeds
            ]
        )
        rng = np.random.Generator(np.random.PCG64(self._seed + 1))
        chosen = rng.integers(len(seeds), size=(len(seeds), self._num))
        replicates = np.take_along_axis(table[:, 1:], chosen, axis=0).mean(axis=0)
        return difference(float(table[:, 0].mean()), replicates), len(seeds)

    def judge(self, claim: Claim, benchmark: str) -> Judgement:
        """Judges a claim on one benchmark."""
        found, num = self.difference(claim.a, claim.b, benchmark, claim.languages)
        verdict = OPEN if found is None else judge(found, claim)
        # one seed gives no estimate of the variation between trainings
        return Judgement(found, num, OPEN if num < 2 else verdict)


def judge_all(
    results: Results, study: Study, benchmarks: Sequence[str], claims: Sequence[Claim]
) -> list[dict[str, Judgement]]:
    """Returns a judgement of each claim on each benchmark."""
    bootstrap = Bootstrap(results, study)
    return [{name: bootstrap.judge(claim, name) for name in benchmarks} for claim in claims]


def answer_languages(run: Mapping[str, Any], benchmark: str) -> dict[str, int]:
    """Counts the languages of answers: the question's, English, another, undecided."""
    counts = {"own": 0, "English": 0, "another": 0, "undecided": 0}
    for lang, language in run["benchmarks"][benchmark]["languages"].items():
        if lang == ENGLISH:
            continue
        for found, number in language["counts"]["answer_lang"].items():
            if found == lang:
                counts["own"] += number
            elif found == ENGLISH:
                counts["English"] += number
            elif found in ("undecided", "letter"):
                counts["undecided"] += number
            else:
                counts["another"] += number
    return counts
