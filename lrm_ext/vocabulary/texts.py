"""The texts of a corpus in one language that a tokenizer learns from, and those held out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import DataError
from lrm_ext.corpus.store import Corpus
from lrm_ext.languages.fertility import Pair, corpus_pairs, in_common

_HELD_OUT_EVERY = 20


def is_held_out(row: int) -> bool:
    """Whether a row is measured on, not learnt from; the same rows in all languages."""
    return row % _HELD_OUT_EVERY == 0


def texts_of(corpus: Corpus, lang: str, limit: int) -> Iterator[str]:
    """What is said in the first rows that have accepted text in a language and are not held out.

    Args:
        corpus: The corpus.
        lang: A language of it.
        limit: Most rows.

    Raises:
        DataError: The corpus does not have the language.
    """
    rows = [row for row in corpus.usable_rows(lang).tolist() if not is_held_out(row)]
    for row in rows[:limit]:
        for turn in corpus.turns(lang, row) or ():
            yield turn.text.replace(DEFAULT_IMAGE_TOKEN, "").strip()


def held_out_pairs(
    path: Path, lang: str, learnt: set[str], num_sentences: int
) -> dict[str, list[Pair]]:
    """Sentences of the held-out rows that all languages of a corpus have.

    Args:
        path: Folder of the corpus.
        lang: The language that was learnt.
        learnt: Lines that it was learnt from: those are left out, wherever they stand.
        num_sentences: At most so many.

    Returns:
        By language; nothing where no sentence is left.
    """
    try:
        pairs = corpus_pairs(path, None, num_sentences, is_held_out)
    except DataError:  # a language has no text in these few rows
        return {}
    pairs[lang] = [pair for pair in pairs[lang] if pair[1] not in learnt]
    shared = set.intersection(*({english for english, _ in found} for found in pairs.values()))
    return in_common(pairs) if shared else {}
