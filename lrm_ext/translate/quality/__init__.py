"""How good a translation is, as far as a program can tell: figures, and findings where one fails.

Input: a text or a row in two languages. Output: a `Verdict`. Each check is one small file and one
number, larger is worse; what passes is in the language's file (`thresholds.py`). A check that finds
what is wrong rejects a row, one of `DOUBTS` makes it suspect (`verdict.py`).
"""

from __future__ import annotations

from lrm_ext.translate.quality.base import (
    DOUBTS,
    FailedCheck,
    Thresholds,
    Verdict,
    get_thresholds,
)
from lrm_ext.translate.quality.checking import CHECKS, Checker

# Goes up when the same text may get another verdict; translations remember it.
QUALITY_VERSION = 3

__all__ = [
    "CHECKS",
    "DOUBTS",
    "QUALITY_VERSION",
    "Checker",
    "FailedCheck",
    "Thresholds",
    "Verdict",
    "get_thresholds",
]
