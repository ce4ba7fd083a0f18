"""Finds the corpus that a command is about.

Input: a folder, or nothing. Output: an open corpus; without a folder it is the built-in one, which
is unpacked on first use.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lrm_ext.corpus.store import Corpus


def open_corpus(path: Path | None, stage: str = "finetune") -> Corpus:
    """Open a corpus folder, or the built-in corpus of a stage.

    Args:
        path: A corpus folder; None for the built-in corpus.
        stage: Which of the built-in corpora: "pretrain" or "finetune".

    Raises:
        DataError: The folder is not a corpus, or the built-in data is damaged.
    """
    from lrm_ext.corpus.store import Corpus

    if path is not None:
        return Corpus.open(path)
    from lrm_ext.corpus.emoji.unpack import ensure_unpacked

    return Corpus.open(ensure_unpacked() / stage)
