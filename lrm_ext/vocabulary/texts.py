"""The texts of a corpus in one language, as a tokenizer is to learn them."""

from __future__ import annotations

from collections.abc import Iterator

from llava.constants import DEFAULT_IMAGE_TOKEN
from lrm_ext.corpus.store import Corpus


def texts_of(corpus: Corpus, lang: str, limit: int) -> Iterator[str]:
    """What is said in the first rows that have accepted text in a language.

    Args:
        corpus: The corpus.
        lang: A language of it.
        limit: Most rows.

    Raises:
        DataError: The corpus does not have the language.
    """
    for row in corpus.usable_rows(lang)[:limit].tolist():
        for turn in corpus.turns(lang, row) or ():
            yield turn.text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
