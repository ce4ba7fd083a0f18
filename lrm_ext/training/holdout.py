"""Holds rows of a corpus out of training, picture by picture.

Input: a corpus and a share. Output: two corpora, one to train on and one to validate on. A hash of
the picture's path decides, so that all rows about a picture are on the same side, on every machine
and whatever else the corpus holds. A row without a picture goes by its id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llava.data.sample import Turn
from llava.errors import ConfigError
from lrm_ext.corpus.store import AnyCorpus, Corpus, CorpusRow, JoinedCorpus, Text, parts_of

_SCALE = 2**64


class CorpusPart(Corpus):
    """Some rows of a corpus, numbered anew.

    Args:
        whole: The corpus.
        share: Share of the pictures that are held out.
        is_held_out: Whether this is the part that is held out, or the rest.
    """

    def __init__(self, whole: Corpus, share: float, is_held_out: bool) -> None:
        self.whole, self.share, self.is_held_out = whole, share, is_held_out
        self.path, self.image_root = whole.path, whole.image_root

    def __reduce__(self) -> tuple[Any, ...]:
        return (CorpusPart, (self.whole, self.share, self.is_held_out))

    def __repr__(self) -> str:
        kind = "held out" if self.is_held_out else "trained on"
        return f"CorpusPart({self.whole!r}, {len(self)} rows {kind})"

    @cached_property
    def rows(self) -> npt.NDArray[np.uint32]:
        """The rows of the whole corpus that are in this part, ascending."""
        chosen = [
            is_held_out(image if image is not None else row_id, self.share) == self.is_held_out
            for batch in self.whole.row_batches()
            for image, row_id in zip(
                batch.column("image").to_pylist(), batch.column("id").to_pylist(), strict=True
            )
        ]
        return np.flatnonzero(chosen).astype(np.uint32)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def languages(self) -> tuple[str, ...]:
        """As of the whole corpus."""
        return self.whole.languages

    def fingerprint(self) -> str:
        """Differs from the whole's, and for another share."""
        name = f"{self.whole.fingerprint()} {self.share!r} {self.is_held_out}"
        return hashlib.sha256(name.encode()).hexdigest()[:12]

    def row(self, index: int) -> CorpusRow:
        """See `Corpus`."""
        return self.whole.row(int(self.rows[index]))

    def text(self, lang: str, index: int) -> Text | None:
        """See `Corpus`."""
        return self.whole.text(lang, int(self.rows[index]))

    def turns(self, lang: str, index: int) -> tuple[Turn, ...] | None:
        """See `Corpus`."""
        return self.whole.turns(lang, int(self.rows[index]))

    def usable_rows(self, lang: str) -> npt.NDArray[np.uint32]:
        """See `Corpus`; numbers of this part."""
        usable = np.isin(self.rows, self.whole.usable_rows(lang))
        return np.flatnonzero(usable).astype(np.uint32)

    def usable(self, lang: str) -> Sequence[int]:
        """See `Corpus`."""
        return list(map(int, self.usable_rows(lang)))

    def image_path(self, index: int) -> Path | None:
        """See `Corpus`."""
        return self.whole.image_path(int(self.rows[index]))


def is_held_out(name: str, share: float) -> bool:
    """Whether a picture is among the share that is held out."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * _SCALE


def split_corpus(corpus: AnyCorpus, share: float) -> tuple[AnyCorpus, AnyCorpus]:
    """Split a corpus, or each of several, into what is trained on and what is held out.

    Raises:
        ConfigError: One of the parts has no rows.
    """
    trained, held_out = [], []
    for part in parts_of(corpus):
        ours, others = (CorpusPart(part, share, is_held) for is_held in (False, True))
        if not len(ours) or not len(others):
            raise ConfigError(
                f"--eval_share {share:g} of the pictures of {part.path} ({len(part)} rows) leaves "
                f"{len(ours)} rows for training and {len(others)} for validation; choose another"
            )
        trained.append(ours)
        held_out.append(others)
    if len(trained) == 1:
        return trained[0], held_out[0]
    return JoinedCorpus(trained), JoinedCorpus(held_out)
