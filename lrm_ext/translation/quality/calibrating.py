"""Measures what is normal for translations into a language, and what the checks find.

Input: rows that people translated. Output: `Thresholds` measured on some of them, and a `Report` on
others: false alarms on what people wrote, and how much of each kind of damage is found. Who reads
and writes files is `tools/calibrate_quality.py`.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from lrm_ext.languages.registry import ENGLISH
from lrm_ext.translation.quality.checking import Checker
from lrm_ext.translation.quality.damage import DAMAGES, Row, Turns, damaged
from lrm_ext.translation.quality.length import deviation
from lrm_ext.translation.quality.thresholds import DEFAULT_LIMITS, Thresholds, get_thresholds
from lrm_ext.translation.quality.verdict import Verdict

# Checks whose limit is a matter of degree, and the damage that each is there for.
GRADED: Mapping[str, str] = {
    "copy": "copied",
    "language": "wrong language",
    "repetition": "doubled",
    "length": "cut",
    "meaning": "shuffled rows",
}
# Of what people wrote so much may be called wrong by one check; there are several.
FALSE_ALARMS = 0.004
# A limit is midway between the clean and the damaged where these leave room between them.
MISSED = 0.1


@dataclass
class Report:
    """What the checks made of rows.

    Attributes:
        num_clean: Rows as people wrote them.
        false_alarms: Of those, how many each check called wrong; "any" for one or more, "rejected"
            for those that are rejected rather than suspect.
        num_damaged: Rows by kind of damage.
        found: By kind of damage, how many each check called wrong; "any" for one or more.
    """

    num_clean: int = 0
    false_alarms: Counter[str] = field(default_factory=Counter)
    num_damaged: Counter[str] = field(default_factory=Counter)
    found: dict[str, Counter[str]] = field(default_factory=dict)

    def recall(self, damage: str | None = None, check: str = "any") -> float:
        """Share of damaged rows that are found; of one kind, or of all rows."""
        kinds = [damage] if damage else list(self.found)
        total = sum(self.num_damaged[kind] for kind in kinds)
        return sum(self.found[kind][check] for kind in kinds) / total if total else float("nan")

    def false_alarm_rate(self, check: str = "any") -> float:
        """Share of what people wrote that is called wrong."""
        return self.false_alarms[check] / self.num_clean

    def precision(self, check: str = "any") -> float:
        """Share of damaged rows among those that are called wrong."""
        hits = sum(counts[check] for counts in self.found.values())
        total = hits + self.false_alarms[check]
        return hits / total if total else float("nan")


class _Values(NamedTuple):
    clean: list[Mapping[str, float]]
    damaged: dict[str, list[Mapping[str, float]]]


def measure_lengths(rows: Sequence[Row], lang: str) -> tuple[float, float]:
    """Characters of a translation for one of English, and the spread of the difference.

    Returns:
        Ratio, and standard deviation for a text of one character.
    """
    sizes: dict[str, list[tuple[int, int]]] = {}
    for row in rows:
        for english, text in zip(row.english, row.texts[lang], strict=True):
            if len(english.text.split()) > 1:
                size = len(english.text.strip()), len(text.text.strip())
                sizes.setdefault(row.kind, []).append(size)
    # by kind: else the one that has most sentences would decide alone
    ratios = [float(np.divide(*np.sum(some, axis=0)[::-1])) for some in sizes.values()]
    ratio = float(np.mean(ratios))
    squares = [
        np.mean([deviation(a, b, ratio, 1.0) ** 2 for a, b in some]) for some in sizes.values()
    ]
    return round(ratio, 2), round(float(np.sqrt(np.mean(squares))), 2)


def calibrate(rows: Sequence[Row], lang: str, seed: int = 0) -> Thresholds:
    """Measure lengths and limits.

    Args:
        rows: Rows that people translated.
        lang: Code of the language.
        seed: Decides what is damaged and how.

    Returns:
        The language's thresholds with what was measured in their place.
    """
    ratio, spread = measure_lengths(rows, lang)
    thresholds = replace(get_thresholds(lang), length_ratio=ratio, length_spread=spread)
    checker = Checker(ENGLISH, lang, thresholds)
    clean = [verdict.figures for verdict in _verdicts(checker, _pairs(rows, lang))]
    limits: dict[str, float] = {}
    for check, damage in GRADED.items():
        good = [figures[check] for figures in clean if check in figures]
        if not good:
            continue
        bad = [
            verdict.figures[check]
            for verdict in _verdicts(checker, damaged(damage, rows, lang, seed))
            if check in verdict.figures
        ]
        limit = float(np.quantile(good, 1 - FALSE_ALARMS, method="higher"))
        least = float(np.quantile(bad, MISSED)) if bad else 0.0
        # where damage does not show there is nothing to learn but what is too strict
        limit = (limit + least) / 2 if least > limit else max(limit, DEFAULT_LIMITS[check])
        limits[check] = math.ceil(limit * 100) / 100
    return thresholds.with_limits(limits)


def evaluate(
    rows: Sequence[Row], lang: str, thresholds: Thresholds | None = None, seed: int = 0
) -> Report:
    """Damage rows and see what is found.

    Args:
        rows: Rows that people translated.
        lang: Code of the language.
        thresholds: What passes; the language's own if left out.
        seed: Decides what is damaged and how.
    """
    checker = Checker(ENGLISH, lang, thresholds)
    report = Report(num_clean=len(rows))
    for verdict in _verdicts(checker, _pairs(rows, lang)):
        report.false_alarms.update(_named(verdict))
    for damage in DAMAGES:
        verdicts = _verdicts(checker, damaged(damage, rows, lang, seed))
        report.num_damaged[damage] = len(verdicts)
        report.found[damage] = Counter()
        for verdict in verdicts:
            report.found[damage].update(_named(verdict))
    return report


def built_in_rows(num_rows: int, languages: Sequence[str], seed: int = 0) -> list[Row]:
    """Rows of the built-in corpus, each of a scene of its own: conversations, captions, options.

    Args:
        num_rows: So many.
        languages: Codes of languages beside English.
        seed: Decides which scenes.

    Raises:
        DataError: The built-in corpus is not there, or has fewer scenes.
    """
    from lrm_ext.corpus.emoji.scenes import load_scenes
    from lrm_ext.translation.quality.scene_rows import KINDS, scene_row

    scenes = random.Random(seed).sample(load_scenes(), num_rows)
    kinds = [KINDS[i % len(KINDS)] for i in range(num_rows)]
    return [scene_row(scene, kind, languages) for scene, kind in zip(scenes, kinds, strict=True)]


def _pairs(rows: Sequence[Row], lang: str) -> list[tuple[Turns, Turns]]:
    return [(row.english, row.texts[lang]) for row in rows]


def _verdicts(checker: Checker, pairs: Sequence[tuple[Turns, Turns]]) -> list[Verdict]:
    return [checker.check_turns(english, turns) for english, turns in pairs]


def _named(verdict: Verdict) -> list[str]:
    names = [finding.check for finding in verdict.findings]
    status = ["rejected"] if verdict.status == "rejected" else []
    return ["any", *status, *names] if names else []
