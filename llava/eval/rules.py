"""Rules of benchmarks that need no model: how answers and option cells are read.

In: texts. Out: labels, options, rates. Scripts that score or ask import them from here, and so does
whoever scores without loading torch.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

MME_PERCEPTION: Final = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
MME_COGNITION: Final = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
NUM_LEADING_CHARS: Final = 4
OPTION_LETTERS: Final = tuple(string.ascii_uppercase)
_NO_WORDS: Final = ("No", "not", "no")


def without_thinking(text: str) -> str:
    """The answer of a model that thinks first: what stands behind the last `</think>`.

    Many templates write the opening tag themselves, so it need not be there. A text that opens it
    and never closes it was cut off before the answer, which is empty then.
    """
    _, end, answer = text.rpartition("</think>")
    if end:
        return answer.strip()
    return "" if text.lstrip().startswith("<think>") else text


def parse_mme_answer(text: str) -> str:
    """Read `yes` or `no` from the beginning of an answer, else `other`, as MME's tool does."""
    text = text.lower()
    if text in ("yes", "no"):
        return text
    head = text[:NUM_LEADING_CHARS]
    return "yes" if "yes" in head else "no" if "no" in head else "other"


def parse_pope_answer(text: str) -> str:
    """Read yes or no as POPE's script: no where the first sentence has `No`, `no` or `not`."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in words for word in _NO_WORDS) else "yes"


@dataclass(frozen=True)
class PopeScore:
    """Counts of one category; "yes" is positive.

    Attributes:
        tp: yes where there is one.
        fp: yes where there is none.
        tn: no where there is none.
        fn: no where there is one.
    """

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return _ratio(self.tp + self.tn, self.tp + self.fp + self.tn + self.fn)

    @property
    def precision(self) -> float:
        """Share of right answers among those that say yes."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of objects that were seen."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> float:
        """Share of answers that say yes."""
        return _ratio(self.tp + self.fp, self.tp + self.fp + self.tn + self.fn)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def is_none(value: str) -> bool:
    """Whether a cell counts as absent: empty, `nan` or `none`, in any case."""
    return value.strip().lower() in ("", "nan", "none")


def get_options(row: Mapping[str, str], letters: Sequence[str] = OPTION_LETTERS) -> list[str]:
    """The option texts of a row; they end at the first absent cell."""
    options = []
    for letter in letters:
        if is_none(row.get(letter, "")):
            break
        options.append(row[letter])
    return options
