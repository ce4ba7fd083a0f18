"""Check `structure`: turns, roles, lines, `<image>` and option letters come back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.sample import Turn
from lrm_ext.translation.quality.pair import Pair
from lrm_ext.translation.quality.thresholds import Thresholds
from lrm_ext.translation.quality.verdict import Measured

# What a line begins with: "A.", "(b)", "3)", a bullet or a heading's marks.
_LEAD = re.compile(r"^[ \t]*(\(?[A-Ha-h][.):]|\(?\d{1,3}[.)]|[-*•]|#+)(?=\s)", re.M)
_LETTER = re.compile(r"\(?([A-H])[.)]?\Z")
_LONGEST_LETTER = len("(A).")


def check_structure(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """How many marks of structure of one text are missing or too much."""
    source, target = pair.source, pair.target
    faults: list[str] = []
    if source.strip() and not target.strip():
        faults.append("it is empty")
    if source.count("\n") != target.count("\n"):
        faults.append(f"{target.count(chr(10)) + 1} lines, expected {source.count(chr(10)) + 1}")
    if source.count(DEFAULT_IMAGE_TOKEN) != target.count(DEFAULT_IMAGE_TOKEN):
        num = source.count(DEFAULT_IMAGE_TOKEN)
        faults.append(f"{target.count(DEFAULT_IMAGE_TOKEN)} {DEFAULT_IMAGE_TOKEN}, expected {num}")
    leads, others = _LEAD.findall(source), _LEAD.findall(target)
    if leads != others:
        wanted, found = Counter(leads), Counter(others)
        faults += [f"no line begins with {lead}" for lead in wanted - found]
        faults += [f"a line begins with {lead}" for lead in found - wanted]
    letter = _LETTER.match(source) if len(source) <= _LONGEST_LETTER else None
    if letter and len(re.findall(rf"(?<!\w){letter[1]}(?!\w)", target)) != 1:
        faults.append(f"the answer was option {letter[1]}")
    return Measured(len(faults), "; ".join(faults))


def check_order(source: Sequence[Turn], target: Sequence[Turn]) -> Measured:
    """Whether a row has the same turns, by the same roles."""
    if len(source) != len(target):
        return Measured(1.0, f"{len(target)} turns, expected {len(source)}")
    roles = [(a.role, b.role) for a, b in zip(source, target, strict=True) if a.role != b.role]
    return Measured(float(len(roles)), f"roles of {len(roles)} turns differ")
