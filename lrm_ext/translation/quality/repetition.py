"""Check `repetition`: what says the same thing again and again, which the text does not."""

from __future__ import annotations

from collections.abc import Sequence

from lrm_ext.translation.quality.pair import Pair
from lrm_ext.translation.quality.thresholds import Thresholds
from lrm_ext.translation.quality.verdict import Measured

_SIZE = 3


def check_repetition(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """The share of a translation that repeats itself, beyond what the text repeats.

    "Fire! Fire! Fire!" may be said two or three times; six times is half of it too much.
    """
    if not pair.target_words:
        return None
    value = repeated_share(pair.target_words)
    if value:
        in_source = repeated_share(pair.source_words)
        value = max(0.0, (value - in_source) / (1 - in_source))
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
    for size in range(1, num // 2 + 1):
        if num % size == 0 and words[:-size] == words[size:]:
            return 1 - size / num
    if num <= _SIZE:
        return 0.0
    runs = num - _SIZE + 1
    distinct = len({tuple(words[i : i + _SIZE]) for i in range(runs)})
    return 1 - distinct / runs
