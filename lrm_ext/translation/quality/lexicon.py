"""Which words of a language mean an English word: a small table, learnt from names people gave.

Input: `data/<lang>.json`, made by `tools/build_lexicon.py` from Unicode CLDR's names and keywords
of 1,900 emoji: mostly things that can be seen, and colours, places and actions. Output: for a text,
which of its words are known, and whether the translation has them. Languages bend their words, so
stems are compared. A language without a file has no lexicon.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path

DATA_DIR = Path(__file__).parent / "data"
_MIN_STEM, _MAX_STEM = 3, 6
# Letters that a bent word may have in place of the last ones of its name.
_BENT = 2


class Lexicon:
    """English words and the stems of their translations.

    Args:
        stems: For an English key (see `english_key`) stems in the other language.
        is_spaced: Whether blanks separate the words of the language.
    """

    def __init__(self, stems: Mapping[str, Iterable[str]], is_spaced: bool) -> None:
        self._stems = {key: frozenset(values) for key, values in stems.items()}
        self._is_spaced = is_spaced

    def __len__(self) -> int:
        return len(self._stems)

    def __contains__(self, key: str) -> bool:
        return key in self._stems

    def look_up(self, keys: Iterable[str], target: Sequence[str]) -> dict[str, bool]:
        """Say which known words of a text are in its translation.

        Args:
            keys: Folded English words as `english_key` gives them.
            target: Folded words of the translation; letters if it has no blanks between words.

        Returns:
            For each known word of the text, by its key, whether the translation has it.
        """
        known = sorted([key for key in keys if key in self._stems])
        if not known:
            return {}
        there = units(target, self._is_spaced)
        return {key: not self._stems[key].isdisjoint(there) for key in known}


@cache
def get_lexicon(lang: str, is_spaced: bool) -> Lexicon | None:
    """The lexicon from English into a language; None if there is none."""
    path = DATA_DIR / f"{lang}.json"
    if not path.is_file():
        return None
    return Lexicon(json.loads(path.read_text(encoding="utf-8")), is_spaced)


@lru_cache(maxsize=1 << 15)
def english_key(word: str) -> str:
    """A folded English word without its plural's ending.

    Example:
        >>> english_key("foxes"), english_key("berries"), english_key("cars"), english_key("glass")
        ('fox', 'berry', 'car', 'glass')
    """
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "xes", "sses", "zes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def stem(word: str) -> str:
    """The part of a word that stays when it is bent, more or less.

    Example:
        >>> stem("rajčica"), stem("slon"), stem("pas")
        ('rajči', 'slo', 'pas')
    """
    return word[: min(_MAX_STEM, max(_MIN_STEM, len(word) - _BENT))]


def units(words: Sequence[str], is_spaced: bool) -> set[str]:
    """All that may be the stem of a word of a translation.

    Where blanks separate words: the beginnings of each. Else: each letter, and each two in a row.
    """
    if not is_spaced:
        return {*words, *map("".join, pairwise(words))}
    return {word[:size] for size in range(_MIN_STEM, _MAX_STEM + 1) for word in words}
