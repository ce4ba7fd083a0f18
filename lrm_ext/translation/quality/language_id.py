"""Check `language`: is a translation in the language that was asked for?

py3langid (4.5 MB, offline) scores the candidates: our languages and the rivals that the target's
file names. Languages that it cannot tell apart in a sentence (Croatian, Serbian) count as one;
`near.py` looks closer at those. Under four words it is not asked, for it would guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from llava.errors import ConfigError
from lrm_ext.languages.registry import get_language, list_languages
from lrm_ext.translation.quality.letter_scores import LetterScores
from lrm_ext.translation.quality.pair import Pair
from lrm_ext.translation.quality.thresholds import Thresholds, get_thresholds
from lrm_ext.translation.quality.verdict import Measured

MIN_WORDS = 4
MIN_LETTERS_UNSPACED = 6
# questions and answers repeat
_MAX_KNOWN = 1 << 14
_MAX_KNOWN_LENGTH = 1000
_known: dict[str, Mapping[str, float]] = {}


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
    """Look at the languages of many translations at once, so that `check_language` knows them."""
    parts = [
        part
        for pair in pairs
        if not _is_told_by_script(pair.target_lang, thresholds)
        for part in pair.parts
    ]
    fresh = [
        part
        for part in dict.fromkeys(parts)
        if part not in _known and len(part) <= _MAX_KNOWN_LENGTH
    ]
    if len(_known) + len(fresh) > _MAX_KNOWN:
        _known.clear()
    _known.update(zip(fresh, _score_all(fresh), strict=True))


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
    scores = [score for score in map(_score, parts) if score]
    if len(scores) < 2:
        return scores[0] if scores else {}
    # the identifier adds up what each few letters say, so the parts' scores add up to the whole's
    return {code: sum([score[code] for score in scores]) for code in scores[0]}


def _score(text: str) -> Mapping[str, float]:
    found = _known.get(text)
    if found is None:
        (found,) = _score_all([text])
        if len(text) <= _MAX_KNOWN_LENGTH:
            if len(_known) >= _MAX_KNOWN:
                _known.clear()
            _known[text] = found
    return found


def _score_all(texts: Sequence[str]) -> list[Mapping[str, float]]:
    """Log probability of texts in each language that some language may be mistaken for."""
    scores: list[Mapping[str, float]] = [{}] * len(texts)
    judged = [i for i, text in enumerate(texts) if any(map(str.isalpha, text))]
    if judged:
        # it reads capitals as names of another language
        found = _letter_scores().score([texts[i].lower() for i in judged])
        for i, score in zip(judged, found, strict=True):
            scores[i] = score
    return scores


@cache
def _letter_scores() -> LetterScores:
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
    return LetterScores(identifier)


def forget() -> None:
    """Prepare again for the languages that there are, after one was added or taken away."""
    for cached in (_letter_scores, _candidates, _foreign, _others_of_script):
        cached.cache_clear()
    _known.clear()
