"""Checks `length` and `ending`: what was cut off or added.

Gale and Church (1993): the length of a translation is about a constant times that of the text, and
the variance grows with it. The constant and the spread of each language are in its file.
"""

from __future__ import annotations

import math

from lrm_ext.translation.quality.pair import Pair
from lrm_ext.translation.quality.thresholds import Thresholds
from lrm_ext.translation.quality.verdict import Measured

# Words that are the same thing vary much in length; these many characters are added to both sides.
_SOFTENING = 8
_ENDS = ".!?…。！？"
_QUESTIONS = "?？;؟"
_CLOSERS = "\"'”’»“)]*_` "


def check_length(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """How many standard deviations a translation is too long or too short."""
    source, target = len(pair.source.strip()), len(pair.target.strip())
    if not source or not pair.source_words:
        return None
    value = deviation(source, target, thresholds.length_ratio, thresholds.length_spread)
    word = "long" if value > 0 else "short"
    return Measured(abs(value), f"{target} characters for {source} of the text, too {word}")


def deviation(source: float, target: float, ratio: float, spread: float) -> float:
    """How far a length is from what is expected, in standard deviations."""
    return (target - ratio * source) / (spread * math.sqrt(source + _SOFTENING))


def check_ending(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """1 if the text ends a sentence and the translation does not, or ends it in another way.

    Three words or more: labels take and lose a full stop as a language likes.
    """
    if len(pair.source_words) < 3:
        return None
    source = pair.source.rstrip(_CLOSERS)[-1:]
    target = pair.target.rstrip(_CLOSERS)[-1:]
    if source not in _ENDS or not source:
        return None
    is_question = source == "?"
    same = target in _QUESTIONS if is_question else target in _ENDS + ":："
    return Measured(
        0.0 if same and target else 1.0, f"the text ends with {source!r}, this with {target!r}"
    )
