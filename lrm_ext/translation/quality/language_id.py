"""Check `language`: is a translation in the language that was asked for?

py3langid (4.5 MB, offline) scores the candidates: our languages and the rivals that the target's
file names. Languages that it cannot tell apart in a sentence (Croatian, Serbian) count as one;
`near.py` looks closer at those. Under four words it is not asked, for it would guess.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from llava.errors import ConfigError
from lrm_ext.languages.registry import get_language, list_languages
from lrm_ext.translation.quality.pair import Pair
from lrm_ext.translation.quality.thresholds import Thresholds, get_thresholds
from lrm_ext.translation.quality.verdict import Measured

MIN_WORDS = 4
MIN_LETTERS_UNSPACED = 6
_LEAST = 1e-30


def check_language(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """How much likelier another language is, as a power of e; None if too short.

    0 if the translation's own language is the likeliest; 3 if it has a share of 5 %.
    """
    minimum = MIN_WORDS if get_language(pair.target_lang).spaced else MIN_LETTERS_UNSPACED
    if len(pair.target_words) < minimum:
        return None
    shares = _shares(pair.parts, candidates(pair.target_lang, thresholds))
    own = sum(shares.get(code, 0.0) for code in (pair.target_lang, *thresholds.near))
    best = max(shares, key=shares.__getitem__, default="")
    if pair.target_lang not in shares:
        return None  # the identifier does not know the language
    odds = (1.0 - own) / max(own, _LEAST)
    return Measured(
        max(0.0, math.log(max(odds, 1.0))), f"looks like {best!r}, expected {pair.target_lang!r}"
    )


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
    return _shares((text,), tuple(among))


def _shares(parts: Sequence[str], among: tuple[str, ...]) -> dict[str, float]:
    # the identifier adds up what each few letters say, so the parts' scores add up to the whole's
    ranks = [_scores(part) for part in parts if any(map(str.isalpha, part))]
    if not ranks:
        return {}
    scores = {code: sum(rank[code] for rank in ranks) for code in among if code in ranks[0]}
    if not scores:
        return {}
    top = max(scores.values())
    odds = {code: math.exp(score - top) for code, score in scores.items()}
    total = sum(odds.values())
    return {code: value / total for code, value in odds.items()}


# questions and answers repeat
@lru_cache(maxsize=1 << 14)
def _scores(text: str) -> Mapping[str, float]:
    """Log probability of a text in each language that some language may be mistaken for."""
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
    return identifier


def forget() -> None:
    """Prepare again for the languages that there are, after one was added or taken away."""
    for cached in (_identifier, _scores, _candidates):
        cached.cache_clear()
