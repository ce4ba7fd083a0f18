"""Measures the quality of translations, as far as a program can.

A `Checker` returns a `RowVerdict` of a text or row in two languages. Each check measures one
number; larger is worse. The language file says what passes (`Thresholds`). A failed check rejects a
row; a failed check of `DOUBTS` makes it suspect.
"""

from __future__ import annotations

from lrm_ext.translate.quality.base import (
    DOUBTS,
    FailedCheck,
    RowVerdict,
    Thresholds,
    get_thresholds,
)
from lrm_ext.translate.quality.checking import CHECKS, Checker

# Increases when the same text may get another verdict; translations store it.
QUALITY_VERSION = 3

__all__ = [
    "CHECKS",
    "DOUBTS",
    "QUALITY_VERSION",
    "Checker",
    "FailedCheck",
    "RowVerdict",
    "Thresholds",
    "get_thresholds",
]
