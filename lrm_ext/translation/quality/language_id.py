"""Check `language`: is a translation in the language that was asked for?

py3langid (4.5 MB, offline) scores the candidates: our languages and the rivals that the target's
file names. Languages that it cannot tell apart in a sentence (Croatian, Serbian) count as one;
`near.py` looks closer at those. Under four words it is not asked, for it would guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np

from llava.errors import ConfigError
from lrm_ext.languages.registry import get_language, list_languages
from lrm_ext.translation.quality.pair import Pair
from lrm_ext.translation.quality.thresholds import Thresholds, get_thresholds
from lrm_ext.translation.quality.verdict import Measured

MIN_WORDS = 4
MIN_LETTERS_UNSPACED = 6
_MAX_KNOWN_LENGTH = 1000


def is_too_short(pair: Pair) -> bool:
    """Whether the language of a translation cannot be told from it alone."""
    return len(pair.target_words) < _minimum(pair.target_lang)


@cache
def _others_of_script(lang: str) -> bool:
    script = get_language(lang).script
    return any(get_language(code).script == script for code in list_languages() if code != lang)


def _is_told_by_script(lang: str, thresholds: Thresholds) -> bool:
    """Whether no other candidate is written like the language: the check of script is enough."""
    return not (thresholds.near or thresholds.rivals or _others_of_script(lang))


def _minimum(lang: str) -> int:
    return MIN_WORDS if get_language(lang).spaced else MIN_LETTERS_UNSPACED


def check_language(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """How much likelier another language is, as a power of e; None if too short.

    0 if the translation's own language is the likeliest, or one that cannot be told from it.
    """
    if is_too_short(pair) or _is_told_by_script(pair.target_lang, thresholds):
        return None
    scores = _total(pair.parts)
    if pair.target_lang not in scores:
        return None  # the identifier does not know the language
    own = max([scores[code] for code in (pair.target_lang, *thresholds.near) if code in scores])
    best, foreign = pair.target_lang, own
    for code in _foreign(pair.target_lang, thresholds.near, thresholds.rivals):
        if scores.get(code, own) > foreign:
            best, foreign = code, scores[code]
    if best == pair.target_lang:
        return Measured(0.0, "")
    return Measured(foreign - own, f"looks like {best!r}, expected {pair.target_lang!r}")


def identify(pairs: Iterable[Pair], thresholds: Thresholds) -> None:
    """Look at the languages of many translations, so that `check_language` finds them known."""
    for pair in pairs:
        if not _is_told_by_script(pair.target_lang, thresholds):
            _total(pair.parts)


@cache
def _foreign(lang: str, near: tuple[str, ...], rivals: tuple[str, ...]) -> tuple[str, ...]:
    others = dict.fromkeys((*list_languages(), *rivals))
    return tuple(code for code in others if code != lang and code not in near)


@cache
def _candidates(lang: str, others: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*list_languages(), lang, *others)))


def candidates(lang: str, thresholds: Thresholds) -> tuple[str, ...]:
    """Codes of the languages that a text is told apart from."""
    return _candidates(lang, (*thresholds.near, *thresholds.rivals))


def probabilities(text: str, among: Sequence[str]) -> dict[str, float]:
    """How probable each of some languages is, as the identifier sees it.

    Args:
        text: Some words.
        among: Codes of languages; those that the identifier does not know are left out.

    Raises:
        ConfigError: py3langid is not installed.
    """
    found = _total((text,))
    scores = {code: found[code] for code in among if code in found}
    if not scores:
        return {}
    top = max(scores.values())
    odds = {code: math.exp(score - top) for code, score in scores.items()}
    total = sum(odds.values())
    return {code: value / total for code, value in odds.items()}


def _total(parts: Sequence[str]) -> Mapping[str, float]:
    ranks = [_scores(part) if len(part) <= _MAX_KNOWN_LENGTH else _rank(part) for part in parts]
    ranks = [rank for rank in ranks if rank]
    if len(ranks) < 2:
        return ranks[0] if ranks else {}
    # the identifier adds up what each few letters say, so the parts' scores add up to the whole's
    return {code: sum([rank[code] for rank in ranks]) for code in ranks[0]}


# questions and answers repeat
@lru_cache(maxsize=1 << 14)
def _scores(text: str) -> Mapping[str, float]:
    return _rank(text)


def _rank(text: str) -> Mapping[str, float]:
    """Log probability of a text in each language that some language may be mistaken for."""
    if not any(map(str.isalpha, text)):
        return {}
    # it reads capitals as names of another language
    return dict(_identifier().rank(text.lower()))


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ConfigError(
            "the check of the language needs py3langid: pip install py3langid"
        ) from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=False)
    known = set(identifier.labels)
    # few candidates are scored ten times faster than all that it knows
    wanted = {code for lang in list_languages() for code in candidates(lang, get_thresholds(lang))}
    identifier.set_languages(sorted(wanted & known))
    # a row for each few letters; across rows every language would be a miss of the cache
    identifier.nb_ptc = np.ascontiguousarray(identifier.nb_ptc)
    return identifier


def forget() -> None:
    """Prepare again for the languages that there are, after one was added or taken away."""
    for cached in (_identifier, _scores, _candidates, _foreign, _others_of_script):
        cached.cache_clear()
