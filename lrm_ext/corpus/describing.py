"""What is in a corpus, and what differs between two.

Input: open corpora. Output: numbers and rows for a table or a comparison; nothing is printed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llava.errors import DataError
from lrm_ext.corpus.layout import ENGLISH, CorpusRow, Text
from lrm_ext.corpus.store import Corpus


@dataclass
class Summary:
    """Numbers of a corpus.

    Attributes:
        num_rows: Rows.
        num_text_only: Rows without a picture.
        num_english_only: Rows that are not to be translated.
        sources: Rows by source.
        tasks: Rows by task.
        num_turns: Turns of all rows.
        num_characters: Characters of all English turns.
    """

    num_rows: int = 0
    num_text_only: int = 0
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
    for batch in corpus.row_batches():
        summary.num_rows += len(batch)
        summary.num_text_only += batch.column("image").null_count
        summary.num_english_only += int(pc.sum(pc.invert(batch.column("translatable"))).as_py())
        _count(summary.sources, batch.column("source"))
        _count(summary.tasks, batch.column("task"))
        texts = pc.struct_field(batch.column("turns").flatten(), "text")
        summary.num_turns += len(texts)
        summary.num_characters += int(pc.sum(pc.utf8_length(texts)).as_py() or 0)
    return summary


def _count(counter: Counter[str], column: pa.Array) -> None:
    for entry in pc.value_counts(column).to_pylist():
        counter[entry["values"] or "-"] += entry["counts"]


@dataclass(frozen=True)
class Difference:
    """A row that two sides do not agree on.

    Attributes:
        index: Row number.
        id: Its id.
        what: "text", "status", "row", "only left" or "only right".
        left: The one side; None if it has nothing there.
        right: The other.
    """

    index: int
    id: str
    what: str
    left: str | None
    right: str | None


def differences(left: Corpus, right: Corpus, lang: str) -> Iterator[Difference]:
    """Compare two corpora row by row, in one language.

    Args:
        left: A corpus.
        right: One made from the same rows, such as by another engine.
        lang: Language to compare; "en" compares the rows themselves.

    Yields:
        Rows that differ.

    Raises:
        DataError: They are not of the same rows.
    """
    if len(left) != len(right) and lang != ENGLISH:
        raise DataError(
            f"{left.path} has {len(left)} rows, {right.path} {len(right)}; texts can only be "
            "compared row by row. Compare the rows with --lang en."
        )
    for index in range(max(len(left), len(right))):
        one = left.row(index) if index < len(left) else None
        other = right.row(index) if index < len(right) else None
        if one is None or other is None:
            row = one or other
            assert row is not None
            sides = (None, _shown(row)) if one is None else (_shown(row), None)
            yield Difference(index, row.id, "only right" if one is None else "only left", *sides)
        elif lang == ENGLISH:
            if one != other:
                yield Difference(index, one.id, "row", _shown(one), _shown(other))
        else:
            yield from _text_difference(index, one, left.text(lang, index), right.text(lang, index))


def _text_difference(
    index: int, row: CorpusRow, left: Text | None, right: Text | None
) -> Iterator[Difference]:
    if left is None or right is None:
        if left is not right:
            what = "only left" if right is None else "only right"
            yield Difference(index, row.id, what, _said(left), _said(right))
    elif left.turns != right.turns:
        yield Difference(index, row.id, "text", _said(left), _said(right))
    elif left.status != right.status:
        yield Difference(index, row.id, "status", left.status, right.status)


def _shown(row: CorpusRow) -> str:
    text = " / ".join(turn.text for turn in row.turns)
    about = [row.image or "no picture", row.source or "-", row.task or "-"]
    return f"[{', '.join(about)}{'' if row.translatable else ', English only'}] {text}"


def _said(text: Text | None) -> str | None:
    return None if text is None else " / ".join(turn.text for turn in text.turns)


def median_lengths(corpus: Corpus) -> dict[str, float]:
    """Median number of characters of a turn, by language, over a sample of the rows."""
    step = max(1, len(corpus) // 2000)
    found: dict[str, float] = {}
    for lang in corpus.languages:
        lengths = [
            len(turn.text)
            for index in range(0, len(corpus), step)
            for turn in corpus.turns(lang, index) or ()
        ]
        found[lang] = float(np.median(lengths)) if lengths else 0.0
    return found
