"""Several corpora as one: their rows are numbered on, one corpus after the other.

Input: open corpora. Output: what a mixture and its data set ask of a corpus. Nothing is copied.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Union

from llava.data.sample import Turn
from llava.errors import DataError
from lrm_ext.corpus.layout import MAX_ROWS, CorpusRow
from lrm_ext.corpus.store import Corpus


class ShiftedRows(Sequence[int]):
    """Row numbers of one of several corpora, numbered on from `start`.

    Args:
        rows: Its own numbers.
        start: Number of its first row among all.
    """

    def __init__(self, rows: Sequence[int], start: int) -> None:
        self._rows = rows
        self._start = start

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> int:  # type: ignore[override]  # no slices
        return self._start + self._rows[index]


class JoinedCorpus:
    """Corpora that are read as one.

    Args:
        parts: The corpora, in the order in which their rows are numbered.

    Raises:
        DataError: They have more rows than can be numbered.

    Example:
        >>> both = JoinedCorpus([Corpus.open("captions"), Corpus.open("chats")])
        >>> both.row(len(both.parts[0])) == both.parts[1].row(0)
        True
    """

    def __init__(self, parts: Sequence[Corpus]) -> None:
        assert parts
        self.parts = tuple(parts)
        self.starts = [0, *accumulate(len(part) for part in parts)]
        if len(self) >= MAX_ROWS:
            raise DataError(f"{len(self)} rows in {len(parts)} corpora; at most {MAX_ROWS - 1}.")

    def __len__(self) -> int:
        """Number of rows."""
        return self.starts[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        return (JoinedCorpus, (self.parts,))

    @property
    def path(self) -> Path:
        """Folder of the first, beside which files about all of them lie."""
        return self.parts[0].path

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that any of them has texts in; English is the first."""
        return tuple(dict.fromkeys(lang for part in self.parts for lang in part.languages))

    def fingerprint(self) -> str:
        """A short text that differs for other corpora, or another order of them."""
        content = " ".join(part.fingerprint() for part in self.parts)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def row(self, index: int) -> CorpusRow:
        """The English row `index`; see `Corpus.row`."""
        part, own = self._part(index)
        return part.row(own)

    def turns(self, lang: str, index: int) -> tuple[Turn, ...] | None:
        """The accepted turns of row `index` in `lang`; see `Corpus.turns`."""
        part, own = self._part(index)
        return part.turns(lang, own) if lang in part.languages else None

    def image_path(self, index: int) -> Path | None:
        """Path of the picture of row `index`; see `Corpus.image_path`."""
        part, own = self._part(index)
        return part.image_path(own)

    def _part(self, index: int) -> tuple[Corpus, int]:
        if not 0 <= index < len(self):
            raise DataError(f"row {index} asked for, but rows run from 0 to {len(self) - 1}.")
        number = bisect_right(self.starts, index) - 1
        return self.parts[number], index - self.starts[number]


AnyCorpus = Union[Corpus, JoinedCorpus]  # noqa: UP007  # evaluated, and 3.10 has no TypeAlias for it


def parts_of(corpus: AnyCorpus) -> tuple[Corpus, ...]:
    """The corpora that one is made of."""
    return corpus.parts if isinstance(corpus, JoinedCorpus) else (corpus,)
