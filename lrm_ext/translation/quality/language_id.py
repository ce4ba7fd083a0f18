"""Check `language`: is a translation in the language that was asked for?

py3langid (4.5 MB, offline) scores the candidates: our languages and the rivals that the target's
file names. Languages that it cannot tell apart in a sentence (Croatian, Serbian) count as one;
`near.py` looks closer at those. Under four words it is not asked, for it would guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

from llava.errors import ConfigError
from lrm_ext.languages.registry import get_language, list_languages
from lrm_ext.translation.quality.pair import Pair
from lrm_ext.translation.quality.thresholds import Thresholds, get_thresholds
from lrm_ext.translation.quality.verdict import Measured

MIN_WORDS = 4
MIN_LETTERS_UNSPACED = 6


def check_language(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """One minus the probability that a translation is in its language; None if too short."""
    minimum = MIN_WORDS if get_language(pair.target_lang).spaced else MIN_LETTERS_UNSPACED
    if len(pair.target_words) < minimum:
        return None
    shares = probabilities(pair.target_prose, candidates(pair.target_lang, thresholds))
    own = sum(shares.get(code, 0.0) for code in (pair.target_lang, *thresholds.near))
    best = max(shares, key=shares.__getitem__, default="")
    if pair.target_lang not in shares:
        return None  # the identifier does not know the language
    return Measured(1.0 - own, f"looks like {best!r}, expected {pair.target_lang!r}")


def candidates(lang: str, thresholds: Thresholds) -> tuple[str, ...]:
    """Codes of the languages that a text is told apart from."""
    return tuple(dict.fromkeys((*list_languages(), lang, *thresholds.near, *thresholds.rivals)))


def probabilities(text: str, among: Sequence[str]) -> dict[str, float]:
    """How probable each of some languages is, as the identifier sees it.

    Args:
        text: Some words.
        among: Codes of languages; those that the identifier does not know are left out.

    Raises:
        ConfigError: py3langid is not installed.
    """
    wanted = set(among)
    # it reads capitals as names of another language
    scores = {code: score for code, score in _identifier().rank(text.lower()) if code in wanted}
    if not scores:
        return {}
    top = max(scores.values())
    odds = {code: math.exp(score - top) for code, score in scores.items()}
    total = sum(odds.values())
    return {code: value / total for code, value in odds.items()}


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
