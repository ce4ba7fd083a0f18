"""What is in a corpus, and what differs between two.

Input: open corpora. Output: numbers and rows for a table or a comparison; nothing is printed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import pyarrow.compute as pc

from llava.errors import DataError
from lrm_ext.corpus.store import ENGLISH, Corpus, CorpusRow, CorpusText


@dataclass
class Summary:
    """Numbers of a corpus.

    Attributes:
        num_rows: Rows.
        num_text_only: Rows without a picture.
        num_pictures: Different pictures.
        num_english_only: Rows that are not to be translated.
        sources: Rows by source.
        tasks: Rows by task.
        num_turns: Turns of all rows.
        num_characters: Characters of all English turns.
    """

    num_rows: int = 0
    num_text_only: int = 0
    num_pictures: int = 0
    num_english_only: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    num_turns: int = 0
    num_characters: int = 0


def summarize(corpus: Corpus) -> Summary:
    """Count everything, batch by batch.

    Raises:
        DataError: The corpus is damaged.
    """
    summary = Summary()
    hashes = [np.zeros(0, dtype=np.int64)]  # names would take more memory
    for batch in corpus.row_batches():
        images = batch.column("image").drop_null().to_pylist()
        texts = pc.struct_field(batch.column("turns").flatten(), "text")
        hashes.append(np.fromiter(map(hash, images), np.int64, len(images)))
        summary.num_rows += len(batch)
        summary.num_text_only += len(batch) - len(images)
        summary.num_english_only += batch.column("translatable").to_pylist().count(False)
        summary.sources.update(name or "-" for name in batch.column("source").to_pylist())
        summary.tasks.update(name or "-" for name in batch.column("task").to_pylist())
        summary.num_turns += len(texts)
        summary.num_characters += pc.sum(pc.utf8_length(texts)).as_py() or 0
    summary.num_pictures = len(np.unique(np.concatenate(hashes)))
    return summary


def count_engines(corpus: Corpus, lang: str) -> Counter[tuple[str, str]]:
    """How many texts in a language each engine made, by (engine, status); "-" is human text."""
    counts: Counter[tuple[str, str]] = Counter()
    for batch in corpus.text_batches(lang):
        made = (batch.column(name).to_pylist() for name in ("engine", "status"))
        # a row without a text has no status
        counts.update((name or "-", status) for name, status in zip(*made, strict=True) if status)
    return counts


@dataclass(frozen=True)
class RowDifference:
    """A row that two sides do not agree on.

    Attributes:
        index: Row number.
        id: Its id.
        what: "only left", "only right", "status" or, of one language, "row" or "text"; of two
            languages "same text", which may be a text that was not translated.
        left: The one side; None if it has nothing there.
        right: The other.
    """

    index: int
    id: str
    what: str
    left: str | None
    right: str | None


def differences(left: Corpus, right: Corpus, langs: tuple[str, str]) -> Iterator[RowDifference]:
    """Compare row by row two corpora in one language, or two languages.

    Args:
        left: A corpus.
        right: Another, made from the same rows, such as by another engine; or the same one.
        langs: The languages of the two. English on both sides compares the rows themselves.

    Yields:
        Rows that differ, or of two languages those that should.

    Raises:
        DataError: They are not of the same rows.
    """
    if langs == (ENGLISH, ENGLISH):
        yield from _row_differences(left, right)
        return
    if len(left) != len(right):
        raise DataError(
            f"{left.path} has {len(left)} rows, {right.path} {len(right)}; texts can only be "
            "compared row by row. Compare the rows with --lang en."
        )
    sides = zip(left.rows_with_texts(langs[0]), right.rows_with_texts(langs[1]), strict=True)
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
    for index, (one, other) in enumerate(zip_longest(left.rows(), right.rows())):
        if one != other:
            what = "only left" if other is None else "only right" if one is None else "row"
            row: CorpusRow = one or other
            yield RowDifference(index, row.id, what, _shown(one), _shown(other))


def _shown(row: CorpusRow | None) -> str | None:
    if row is None:
        return None
    about = [row.image or "no picture", row.source or "-", row.task or "-"]
    return f"[{', '.join(about)}{'' if row.translatable else ', English only'}] {_said(row)}"


def _said(text: CorpusText | CorpusRow | None) -> str | None:
    return None if text is None else " / ".join(turn.text for turn in text.turns)


def _status(text: CorpusText | None) -> str:
    assert text is not None, "a row without a text has no status"
    about = filter(None, (text.status, text.engine, text.reason))
    return f"[{', '.join(about)}] {_said(text)}"


def median_lengths(corpus: Corpus) -> dict[str, float]:
    """Median number of characters of a turn, by language, over a sample of the rows."""
    step = max(1, len(corpus) // 2000)
    found: dict[str, float] = {}
    for lang in corpus.languages:
        said = [corpus.turns(lang, index) or () for index in range(0, len(corpus), step)]
        lengths = [len(turn.text) for turns in said for turn in turns]
        found[lang] = float(np.median(lengths or [0]))
    return found
