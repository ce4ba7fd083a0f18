"""Check `copy`: what came back untranslated."""

from __future__ import annotations

from lrm_ext.languages.registry import get_language
from lrm_ext.translation.quality.pair import Pair, words
from lrm_ext.translation.quality.thresholds import Thresholds
from lrm_ext.translation.quality.verdict import Measured

# "hamburger", "New York" and "Mona Lisa" are the same in many languages; a sentence is not.
_MIN_WORDS = 3


def check_copy(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """The share of the text's words that are in the translation as they were; None if too short.

    Words with a capital inside a sentence are names and not counted.
    """
    total = len(pair.source_words)
    if total < _MIN_WORDS or pair.source_lang == pair.target_lang:
        return None
    target = pair.target_words
    if not get_language(pair.target_lang).spaced:  # they are letters; English words may stand there
        target = words(pair.target_prose, pair.source_lang)
    common = set(pair.source_words).intersection(target)
    if not common:
        return Measured(0.0, "")
    capitals = [word for word in pair.source_prose.split()[1:] if word[0].isupper()]
    names = set(map(str.casefold, capitals))
    source = [word for word in pair.source_words if word not in names]
    total = len(source)
    if total < _MIN_WORDS:
        return None
    left: dict[str, int] = {}
    for word in target:
        if word in common:
            left[word] = left.get(word, 0) + 1
    same = 0
    for word in source:
        if num := left.get(word):
            left[word] = num - 1
            same += 1
    return Measured(same / total, f"{same} of {total} words are those of the text")
