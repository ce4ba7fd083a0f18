"""Check `repetition`: what says the same thing again and again, which the text does not."""

from __future__ import annotations

from collections.abc import Sequence

from lrm_ext.translation.quality.pair import Pair
from lrm_ext.translation.quality.thresholds import Thresholds
from lrm_ext.translation.quality.verdict import Measured

_SIZE = 3


def check_repetition(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """The share of a translation that repeats itself, beyond what the text repeats."""
    if not pair.target_words:
        return None
    value = repeated_share(pair.target_words)
    if value:
        value = max(0.0, value - repeated_share(pair.source_words))
    return Measured(value, f"{value:.0%} more is said twice than in the text")


def repeated_share(words: Sequence[str]) -> float:
    """The share of words that belong to a repetition.

    Counted are all runs of three words that occurred before, and a text that is one shorter text
    several times, however short.

    Example:
        >>> repeated_share("a dog a dog".split())
        0.5
    """
    num = len(words)
    if num < 2 or len(set(words)) == num:
        return 0.0
    half = num // 2
    if num % 2 == 0 and words[:half] == words[half:]:
        return 0.5
    if num <= _SIZE:
        return 0.0
    runs = num - _SIZE + 1
    distinct = len({tuple(words[i : i + _SIZE]) for i in range(runs)})
    return 1 - distinct / runs
