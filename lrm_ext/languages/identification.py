"""Identifies the language of a text among the project's languages and those like them.

`identify` tells a language by the script, by the words of the language files and by py3langid. It
knows every language that has a file, also those that py3langid does not know; short texts are told
by words and script. `log_scores` and `probabilities` are those of py3langid alone.

py3langid (4.5 MB, offline) scores the candidates: the languages that have a file, and those that
the [quality] sections of these files name as near or as rivals.

py3langid walks through a text byte by byte: each few letters that its automaton knows count for
some languages and against others. `LetterScores` has all texts of a batch take each step together,
in numpy; a single text is walked in Python. Both find the same letters and add them up in the same
order, in float64, so that a score does not depend on the batch. It reads the arrays of py3langid's
model, because the public interface takes one text at a time, which costs several times as much, and
computes in float32, which would change scores.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import regex
from fontTools.unicodedata import script as script_of

from llava.files import convert
from lrm_ext.languages.registry import default_languages, get_language, list_languages
from lrm_ext.languages.tags import NEUTRAL_SCRIPTS, SCRIPT_PARTS, preferred_tag

# results are cached, because questions and answers repeat
_MAX_KNOWN = 1 << 14
_MAX_KNOWN_LENGTH = 1000
_known: dict[str, Mapping[str, float]] = {}


class Confusable(msgspec.Struct, frozen=True):
    """Languages that an identifier may confuse a language with.

    Attributes:
        near: Codes of languages that it cannot tell apart in a sentence.
        rivals: Codes of other languages that the project does not have.
    """

    near: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()


LATIN = "Latn"
_WORD = regex.compile(r"[^\W\d_]+")
# What a word that only the file of one language has adds to its log score. Chosen by
# tools/identify_languages.py on the built-in sentences and tests/lrm_ext/languages/answers.
_KNOWN_WORD = 12.0
_NUM_LETTERS = 40  # that may follow a letter, for the smoothing


def identify(text: str, among: Iterable[str] = ()) -> str:
    """Tells the language of a text.

    Args:
        text: Some words.
        among: Codes of languages to choose from; default: all that have a file.

    Returns:
        The code, or "" if the text has no letters, or no word and no letter group that decides.

    Example:
        >>> identify("Kāore he ngeru"), identify("ไม่มี"), identify("42")
        ('mi', 'th', '')
    """
    codes = _with_script(text, tuple(among) or list_languages())
    if len(codes) < 2:
        return codes[0] if codes else ""
    words = _WORD.findall(text.casefold())
    found = log_scores((text,))
    scores = {code: found[code] for code in codes if code in found}
    if unknown := [code for code in codes if code not in scores]:
        # py3langid does not know them: compare their letters with those of the others
        best = max(scores.values(), default=0.0)
        known = max((_letter_fit(words, code) for code in scores), default=0.0)
        scores |= {code: best + _letter_fit(words, code) - known for code in unknown}
    for code in scores:
        if {LATIN} < _scripts(code):  # the less usual script of the language
            scores[code] -= _KNOWN_WORD * _is_in(text, LATIN)
    for word in words:
        having = [code for code in codes if word in _words_of_file(code)]
        for code in having:
            scores[code] += _KNOWN_WORD / len(having)
    first, second = sorted(scores, key=lambda code: -scores[code])[:2]
    return first if scores[first] > scores[second] else ""


def _with_script(text: str, codes: Sequence[str]) -> tuple[str, ...]:
    """Returns the languages that are written in the script of most letters of a text."""
    letters = Counter(script_of(character) for character in text if character.isalpha())
    for neutral in NEUTRAL_SCRIPTS:
        del letters[neutral]
    shares = {code: sum(letters[part] for part in _scripts(code)) for code in codes}
    most = max(shares.values(), default=0)
    return tuple(code for code in codes if most and shares[code] == most)


@cache
def _scripts(lang: str) -> frozenset[str]:
    language = get_language(lang)
    second = {LATIN} if language.local.latin else set()
    return SCRIPT_PARTS.get(language.script, frozenset({language.script})) | second


def _is_in(text: str, script: str) -> bool:
    """Returns whether the first letter of a text is of a script."""
    return next((script_of(letter) == script for letter in text if letter.isalpha()), False)


@cache
def _words_of_file(lang: str) -> frozenset[str]:
    """Returns the words of all sentences and lists of a language file, casefolded."""
    language = get_language(lang)
    local = language.local
    texts = (
        *(language.yes, language.no, language.short_answer, language.option_letter),
        *(*language.fixed_prompts.values(), *language.fixed_answers.values()),
        *(language.epvqa_instruction, language.answer_marker, language.system),
        *(language.answer_in.get(lang, ""), *local.yes, *local.no, *language.numbers.values()),
    )
    return frozenset(word for text in texts for word in _WORD.findall(text.casefold()))


@cache
def confusable(lang: str) -> Confusable:
    """Returns what the [quality] section of a language says about languages like it.

    Raises:
        ConfigError: The language is unknown, or the section is invalid.
    """
    language = get_language(lang)
    return convert(language.quality, Confusable, f"{language.path}: quality")


@cache
def _letter_pairs(lang: str) -> tuple[Counter[str], Counter[str]]:
    """Counts pairs of adjacent letters in the words of a language file, and their first letters."""
    words = [f" {word} " for word in _words_of_file(lang)]
    pairs = Counter(a + b for word in words for a, b in pairwise(word))
    return pairs, Counter(letter for word in words for letter in word[:-1])


def _letter_fit(words: Iterable[str], lang: str) -> float:
    """Returns the log probability of words by the pairs of letters in a language file."""
    pairs, firsts = _letter_pairs(lang)
    return sum(
        math.log((pairs[a + b] + 0.5) / (firsts[a] + 0.5 * _NUM_LETTERS))
        for word in words
        for a, b in pairwise(f" {word} ")
    )


def candidates(lang: str, like: Confusable) -> tuple[str, ...]:
    """Returns the codes of the languages that a text is told apart from."""
    others = (*default_languages(), lang, *like.near, *like.rivals)
    return tuple(dict.fromkeys(others))


def probabilities(text: str, among: Sequence[str]) -> dict[str, float]:
    """Returns how probable each of some languages is.

    Args:
        text: Some words.
        among: Codes of languages; those that the identifier does not know are left out.
    """
    found = log_scores((text,))
    scores = {code: found[code] for code in among if code in found}
    if not scores:
        return {}
    top = max(scores.values())
    odds = {code: math.exp(score - top) for code, score in scores.items()}
    total = sum(odds.values())
    return {code: value / total for code, value in odds.items()}


def log_scores(parts: Sequence[str]) -> Mapping[str, float]:
    """Returns the log probability of a text, given in parts, in each language; {} if unknown."""
    scores = [score for score in map(_score, parts) if score]
    if len(scores) < 2:
        return scores[0] if scores else {}
    # the score of a text is the sum over its letter groups, so the scores of parts add up
    return {code: sum([score[code] for score in scores]) for code in scores[0]}


def score_ahead(texts: Iterable[str]) -> None:
    """Scores many texts at once, so that `log_scores` knows them."""
    fresh = [
        text
        for text in dict.fromkeys(texts)
        if text not in _known and len(text) <= _MAX_KNOWN_LENGTH
    ]
    if len(_known) + len(fresh) > _MAX_KNOWN:
        _known.clear()
    _known.update(zip(fresh, _score_all(fresh), strict=True))


def _score(text: str) -> Mapping[str, float]:
    if text not in _known:
        score_ahead((text,))
    return _known[text] if text in _known else _score_all([text])[0]


def _score_all(texts: Sequence[str]) -> list[Mapping[str, float]]:
    """Returns the log probability of texts in each candidate of any language."""
    # capitals would be read as names of another language
    judged = [text.lower() for text in texts if any(map(str.isalpha, text))]
    found = iter(_letter_scores().score(judged) if judged else ())
    return [next(found) if any(map(str.isalpha, text)) else {} for text in texts]


@cache
def _letter_scores() -> LetterScores:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=False)
    wanted: set[str] = set()
    for code in list_languages():
        wanted.update(candidates(code, confusable(code)))
    # py3langid has older codes of some: tl is fil
    names = {label: preferred_tag(label) or label for label in identifier.labels}
    names = {label: code for label, code in names.items() if code in wanted and label not in wanted}
    # scoring few candidates is ten times faster than scoring all languages that it knows
    identifier.set_languages(sorted((wanted | set(names)) & set(identifier.labels)))
    scores = LetterScores(identifier)
    scores.labels = [names.get(label, label) for label in scores.labels]
    return scores


def forget() -> None:
    """Clears what was prepared for the known languages, after these have changed."""
    for function in (_letter_scores, _words_of_file, _letter_pairs, _scripts, confusable):
        function.cache_clear()
    _known.clear()


Ints = npt.NDArray[np.int64]


class LetterScores:
    """Scores texts with the model of an identifier, in the languages that it is restricted to.

    Args:
        identifier: py3langid's `LanguageIdentifier`, its probabilities not normalised.
    """

    def __init__(self, identifier: Any) -> None:
        self.labels: list[str] = list(identifier.labels)
        # a language may occur twice, in two scripts
        classes = list(identifier.nb_classes)
        self._columns = [
            [i for i, name in enumerate(classes) if name == label] for label in self.labels
        ]
        self._weights = np.ascontiguousarray(identifier.nb_ptc)
        self._prior = np.asarray(identifier.nb_pc, np.float64)
        self._rows = np.asarray(identifier.tk_row, np.int64) << 8
        self._next = np.asarray(identifier.tk_nextmove)
        self._letters = np.asarray(identifier.tk_output, np.int64)
        # for single texts, which are faster without numpy
        self._plain = self._rows.tolist(), identifier.tk_nextmove, self._letters.tolist()

    def score(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Scores texts.

        Args:
            texts: Texts in lower case.

        Returns:
            For each text the log probability of every language; all equal if the model knows none
            of its letter groups.
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
        order = np.argsort(-lengths, kind="stable")  # texts that end first are last
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
        """Returns naive Bayes scores with damped counts, as py3langid's, `[texts, classes]`."""
        scores = np.zeros((num_texts, len(self._prior)))
        keys, counts = np.unique(owners * len(self._weights) + letters, return_counts=True)
        if len(keys):
            owner, letter = np.divmod(keys, len(self._weights))
            terms = self._weights[letter] * np.log1p(counts)[:, None]
            starts = np.flatnonzero(np.diff(owner, prepend=-1))
            scores[owner[starts]] = np.add.reduceat(terms, starts) + self._prior
        return scores
