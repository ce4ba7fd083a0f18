"""Scores texts with py3langid's model, many at once.

py3langid walks through a text byte by byte: each few letters that its automaton knows count for
some languages and against others. Here all texts of a batch take each step together, in numpy; a
text by itself is walked in Python. Both find the same letters and add them up in the same order, in
float64, so that a score does not depend on the batch.

Input: texts. Output: for each, the log probability of every language.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

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
