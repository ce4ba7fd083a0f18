"""Check `near`: words and letters of a near language, such as Serbian in Croatian.

What an identifier cannot tell apart in a sentence, a few words can: "šta" and "gde" are Serbian,
"ľ" is Slovak and not Czech. The language's file lists them.
"""

from __future__ import annotations

from lrm_ext.translation.quality.pair import Pair
from lrm_ext.translation.quality.thresholds import Thresholds
from lrm_ext.translation.quality.verdict import Measured


def check_near(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """The share of words that a near language has and this one has not.

    Words that stand in the text too are names; they are not counted.
    """
    if not pair.target_words or not (thresholds.foreign_letters or thresholds.foreign_words):
        return None
    letters = set(thresholds.foreign_letters)
    kept = set(pair.source_words)
    foreign = [
        word
        for word in pair.target_words
        if (word in thresholds.foreign_words or not letters.isdisjoint(word)) and word not in kept
    ]
    listed = ", ".join(dict.fromkeys(foreign))
    return Measured(len(foreign) / len(pair.target_words), f"words of a near language: {listed}")
