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
    found = thresholds.foreign_words.intersection(pair.target_words)
    text = pair.target_prose.casefold()
    if letters := [letter for letter in thresholds.foreign_letters if letter in text]:
        found |= {word for word in pair.target_words if not set(letters).isdisjoint(word)}
    if found:
        found = found.difference(pair.source_words)
    if not found:
        return Measured(0.0, "")
    foreign = [word for word in pair.target_words if word in found]
    listed = ", ".join(dict.fromkeys(foreign))
    return Measured(len(foreign) / len(pair.target_words), f"words of a near language: {listed}")
