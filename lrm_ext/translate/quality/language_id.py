"""Checks `language` and `near`: is a translation in the language that was asked for?

py3langid (4.5 MB, offline) scores the candidates: our languages and the rivals that the target's
file names. Languages that it cannot tell apart in a sentence (Croatian, Serbian) count as one;
`near` looks closer at those: "šta" and "gde" are Serbian, "ľ" is Slovak and not Czech; the
language's file lists them. Under four words the identifier is not asked, for it would guess.

py3langid walks through a text byte by byte: each few letters that its automaton knows count for
some languages and against others. `LetterScores` has all texts of a batch take each step together,
in numpy; a text by itself is walked in Python. Both find the same letters and add them up in the
same order, in float64, so that a score does not depend on the batch.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from llava.errors import ConfigError
from lrm_ext.languages.registry import get_language, list_languages
from lrm_ext.translate.quality.base import Measured, TextPair, Thresholds, get_thresholds

MIN_WORDS = 4
MIN_LETTERS_UNSPACED = 6
# questions and answers repeat
_MAX_KNOWN = 1 << 14
_MAX_KNOWN_LENGTH = 1000
_known: dict[str, Mapping[str, float]] = {}


def is_too_short(pair: TextPair) -> bool:
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


def check_language(pair: TextPair, thresholds: Thresholds) -> Measured | None:
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


def identify(pairs: Iterable[TextPair], thresholds: Thresholds) -> None:
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


Ints = npt.NDArray[np.int64]


class LetterScores:
    """The model of an identifier, and the languages that it is restricted to.

    Args:
        identifier: py3langid's `LanguageIdentifier`, its probabilities not normalised.
    """

    def __init__(self, identifier: Any) -> None:
        self.labels: list[str] = list(identifier.labels)
        # a language may be there twice, in two scripts
        classes = list(identifier.nb_classes)
        self._columns = [
            [i for i, name in enumerate(classes) if name == label] for label in self.labels
        ]
        self._weights = np.ascontiguousarray(identifier.nb_ptc)
        self._prior = np.asarray(identifier.nb_pc, np.float64)
        self._rows = np.asarray(identifier.tk_row, np.int64) << 8
        self._next = np.asarray(identifier.tk_nextmove)
        self._letters = np.asarray(identifier.tk_output, np.int64)
        # one step at a time is faster without numpy
        self._plain = self._rows.tolist(), identifier.tk_nextmove, self._letters.tolist()

    def score(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Score texts.

        Args:
            texts: In small letters.

        Returns:
            For each text the log probability of every language; all the same if none of its
            letters says anything.
        """
        raw = [
            unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass") for text in texts
        ]
        owners, letters = self._walk(raw[0]) if len(raw) == 1 else self._walk_together(raw)
        scores = self._add_up(owners, letters, len(raw))
        best = [scores[:, columns].max(axis=1) for columns in self._columns]
        return [dict(zip(self.labels, row, strict=True)) for row in np.stack(best, axis=1).tolist()]

    def _walk(self, raw: bytes) -> tuple[Ints, Ints]:
        rows, following, letters = self._plain
        state, found = 0, []
        for byte in raw:
            state = following[rows[state] + byte]
            letter = letters[state]
            if letter >= 0:
                found.append(letter)
        return np.zeros(len(found), np.int64), np.array(found, np.int64)

    def _walk_together(self, raw: Sequence[bytes]) -> tuple[Ints, Ints]:
        lengths = np.array([len(one) for one in raw], np.int64)
        order = np.argsort(-lengths, kind="stable")  # who is done is at the end
        num_left = len(raw) - np.searchsorted(np.sort(lengths), np.arange(lengths.max()), "right")
        bytes_of = np.zeros((len(raw), lengths.max()), np.uint8)
        for place, i in enumerate(order):
            bytes_of[place, : lengths[i]] = np.frombuffer(raw[i], np.uint8)
        steps = np.ascontiguousarray(bytes_of.T)
        states = np.zeros(len(raw), np.int64)
        owners, found = [], []
        for step, num in zip(steps, num_left.tolist(), strict=True):
            states = self._next[self._rows[states[:num]] + step[:num]]
            letters = self._letters[states]
            (known,) = np.nonzero(letters >= 0)
            owners.append(order[known])
            found.append(letters[known])
        empty = np.zeros(0, np.int64)
        return np.concatenate([empty, *owners]), np.concatenate([empty, *found])

    def _add_up(self, owners: Ints, letters: Ints, num_texts: int) -> npt.NDArray[np.float64]:
        """Naive Bayes with damped counts, as py3langid's; shape (texts, classes)."""
        scores = np.zeros((num_texts, len(self._prior)))
        keys, counts = np.unique(owners * len(self._weights) + letters, return_counts=True)
        if len(keys):
            owner, letter = np.divmod(keys, len(self._weights))
            terms = self._weights[letter] * np.log1p(counts)[:, None]
            starts = np.flatnonzero(np.diff(owner, prepend=-1))
            scores[owner[starts]] = np.add.reduceat(terms, starts) + self._prior
        return scores


def check_near(pair: TextPair, thresholds: Thresholds) -> Measured | None:
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
