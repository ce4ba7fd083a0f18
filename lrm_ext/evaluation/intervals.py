"""The interval of a benchmark's score: Wilson's for a share of questions, else the bootstrap's."""

from __future__ import annotations

from typing import Any

from lrm_ext.benchmarks.kind import percentage
from lrm_ext.benchmarks.scoring import ScoreReport
from lrm_ext.evaluation.bootstrap import NUM_REPLICATES, bootstrap_interval
from lrm_ext.evaluation.stats import wilson_interval


def headline_interval(report: ScoreReport, seed: int = 0) -> dict[str, Any]:
    """95 % interval of a score, in its unit, and how it was found.

    A share of questions gets Wilson's, anything else the bootstrap's.

    Args:
        report: The score.
        seed: Of the bootstrap.
    """
    if report.units.combine is percentage:
        right, total = (round(value) for value in report.units.counts.sum(axis=0))
        low, high = wilson_interval(right, total)
        return {"low": 100 * low, "high": 100 * high, "method": "wilson", "n": total}
    low, high = bootstrap_interval(report.units, seed)
    return {
        "low": low,
        "high": high,
        "method": "bootstrap",
        "n": len(report.units.units),
        "replicates": NUM_REPLICATES,
        "seed": seed,
    }
