"""What a check says: figures of a row, and findings where a figure is over its limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

# What these find is a matter of degree, and people translate freely, too: look before you use it.
# What the others find is wrong.
DOUBTS = frozenset({"near", "meaning", "length", "ending"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One failed check.

    Attributes:
        check: Name of the check.
        value: What was measured; larger is worse.
        limit: The largest value that passes.
        message: What is wrong, for people to read.
    """

    check: str
    value: float
    limit: float
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.message}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the checks say of a text or of a row.

    Attributes:
        findings: The failed checks, each once, in the order in which checks run.
        figures: What each check measured, of a row the worst turn's; larger is worse. A check that
            cannot judge, such as the language of one word, has no figure.
    """

    findings: tuple[Finding, ...]
    figures: Mapping[str, float]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.findings

    @property
    def status(self) -> str:
        """What a row becomes: "rejected"; "suspect" if there are only doubts; "ok"."""
        if self.ok:
            return "ok"
        return "suspect" if all(f.check in DOUBTS for f in self.findings) else "rejected"

    @property
    def reasons(self) -> list[str]:
        """The findings as lines of text, what is wrong before what is doubtful."""
        return [str(f) for f in sorted(self.findings, key=lambda f: f.check in DOUBTS)]


class Measured(NamedTuple):
    """What one check measured of one text.

    Attributes:
        value: Larger is worse; 0 is perfect.
        message: What is wrong if the value is over the limit.
    """

    value: float
    message: str
