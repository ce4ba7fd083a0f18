"""Counts what a corpus holds, and compares two corpora."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, zip_longest

import numpy as np
import pyarrow.compute as pc

from llava.errors import DataError
from lrm_ext.corpus.store import (
    ENGLISH,
    Corpus,
    CorpusRow,
    CorpusText,
    batch_images,
    num_images,
)


@dataclass
class Summary:
    """Counts of a corpus.

    Attributes:
        num_rows: Number of rows.
        num_text_only: Number of rows without an image.
        num_images: Number of distinct images.
        num_several: Number of rows with several images.
        num_english_only: Number of rows that are not translated.
        sources: Number of rows by source.
        tasks: Number of rows by task.
        num_turns: Number of turns.
        num_characters: Number of characters of all English turns.
    """

    num_rows: int = 0
    num_text_only: int = 0
    num_images: int = 0
    num_several: int = 0
    num_english_only: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    num_turns: int = 0
    num_characters: int = 0


def summarize(corpus: Corpus) -> Summary:
    """Counts rows, images, turns and characters batch by batch.

    Raises:
        DataError: The corpus is damaged.
    """
    summary = Summary()
    hashes = [np.zeros(0, dtype=np.int64)]  # names would take more memory
    for batch in corpus.row_batches():
        numbers = num_images(batch)
        images = [*chain.from_iterable(batch_images(batch))]
        texts = pc.struct_field(batch.column("turns").flatten(), "text")
        hashes.append(np.fromiter(map(hash, images), np.int64, len(images)))
        summary.num_rows += len(batch)
        summary.num_text_only += int((numbers == 0).sum())
        summary.num_several += int((numbers > 1).sum())
        summary.num_english_only += batch.column("translatable").to_pylist().count(False)
        summary.sources.update(name or "-" for name in batch.column("source").to_pylist())
        summary.tasks.update(name or "-" for name in batch.column("task").to_pylist())
        summary.num_turns += len(texts)
        summary.num_characters += pc.sum(pc.utf8_length(texts)).as_py() or 0
    summary.num_images = len(np.unique(np.concatenate(hashes)))
    return summary


def count_engines(corpus: Corpus, lang: str) -> Counter[tuple[str, str]]:
    """Counts the texts in a language by (engine, status); "-" stands for human text."""
    counts: Counter[tuple[str, str]] = Counter()
    for batch in corpus.text_batches(lang):
        made = (batch.column(name).to_pylist() for name in ("engine", "status"))
        # a row without a text has no status
        counts.update((name or "-", status) for name, status in zip(*made, strict=True) if status)
    return counts


@dataclass(frozen=True)
class RowDifference:
    """A row in which two corpora or languages differ.

    Attributes:
        index: Row number.
        id: Id of the row.
        what: "only left", "only right" or "status"; in one language "row" or "text"; in two
            languages "same text", which may be a text that was not translated.
        left: Text of the left side; None if it has none.
        right: Text of the right side; None if it has none.
    """

    index: int
    id: str
    what: str
    left: str | None
    right: str | None


def differences(left: Corpus, right: Corpus, langs: tuple[str, str]) -> Iterator[RowDifference]:
    """Compares two corpora in one language, or two languages, row by row.

    Args:
        left: A corpus.
        right: The same corpus, or another with the same rows, such as one by another engine.
        langs: Left and right language; English on both sides compares the rows themselves.

    Yields:
        Rows that differ; for two languages, also rows that should differ and do not.

    Raises:
        DataError: The corpora do not have the same rows.
    """
    if langs == (ENGLISH, ENGLISH):
        yield from _row_differences(left, right)
        return
    if len(left) != len(right):
        raise DataError(
            f"{left.path} has {len(left)} rows, {right.path} {len(right)}; texts can only be "
            "compared row by row. Compare the rows with --lang en."
        )
    sides = zip(
        left.iter_rows_with_texts(langs[0]), right.iter_rows_with_texts(langs[1]), strict=True
    )
    for index, ((row, one), (other_row, other)) in enumerate(sides):
        if row.id != other_row.id:
            raise DataError(
                f"row {index} is {row.id!r} in {left.path}, {other_row.id!r} in {right.path}; "
                "texts can only be compared row by row."
            )
        if what := _what_differs(one, other, langs[0] == langs[1], row.translatable):
            show = _status if what == "status" else _said
            yield RowDifference(index, row.id, what, show(one), show(other))


def _what_differs(
    left: CorpusText | None, right: CorpusText | None, is_same_lang: bool, is_translatable: bool
) -> str | None:
    if left is None or right is None:
        return None if left is right else "only right" if left is None else "only left"
    if left.status != right.status:
        return "status"
    is_same = left.turns == right.turns
    if is_same_lang:
        return None if is_same else "text"
    return "same text" if is_same and is_translatable and left.status == "ok" else None


def _row_differences(left: Corpus, right: Corpus) -> Iterator[RowDifference]:
    for index, (one, other) in enumerate(zip_longest(left.iter_rows(), right.iter_rows())):
        if one != other:
            what = "only left" if other is None else "only right" if one is None else "row"
            row_id = one.id if other is None else other.id
            yield RowDifference(index, row_id, what, _shown(one), _shown(other))


def _shown(row: CorpusRow | None) -> str | None:
    if row is None:
        return None
    about = [", ".join(row.images) or "no image", row.source or "-", row.task or "-"]
    return f"[{', '.join(about)}{'' if row.translatable else ', English only'}] {_said(row)}"


def _said(text: CorpusText | CorpusRow | None) -> str | None:
    return None if text is None else " / ".join(turn.text for turn in text.turns)


def _status(text: CorpusText | None) -> str:
    assert text is not None, "a row without a text has no status"
    about = filter(None, (text.status, text.engine, text.reason))
    return f"[{', '.join(about)}] {_said(text)}"


def median_lengths(corpus: Corpus) -> dict[str, float]:
    """Returns the median number of characters of a turn by language, over a sample of the rows."""
    step = max(1, len(corpus) // 2000)
    found: dict[str, float] = {}
    for lang in corpus.languages:
        said = [corpus.turns(lang, index) or () for index in range(0, len(corpus), step)]
        lengths = [len(turn.text) for turns in said for turn in turns]
        found[lang] = float(np.median(lengths or [0]))
    return found
