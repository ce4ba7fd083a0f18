"""A corpus back into plain LLaVA JSON, for any other tool.

Input: a corpus and a language. Output: a JSON array (`.json`) or JSON Lines (`.jsonl`), written
batch by batch; it appears when it is whole.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from llava.data.sample import Sample
from llava.errors import ConfigError
from llava.files import writing
from lrm_ext.corpus.store import ENGLISH, Corpus, turns_from_arrow


@dataclass
class Exported:
    """What was written of a language.

    Attributes:
        num_records: Records in the file.
        num_english: Those of them that are in English for want of an accepted text.
        not_accepted: Rows without accepted text in the language, by status; "no text" where there
            is none. They are in English in the file or not there at all, as was asked for.
    """

    num_records: int = 0
    num_english: int = 0
    not_accepted: Counter[str] = field(default_factory=Counter)


def export_llava(
    corpus: Corpus,
    lang: str,
    out: Path,
    *,
    with_english: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Write one language.

    Args:
        corpus: What to write.
        lang: Its language; records in another one than English carry `lang`.
        out: File to write, `.json` or `.jsonl`.
        with_english: Write the English text of rows that have none, or none that was accepted
            (status "suspect" or "rejected"), in the language; else such rows are left out.
        progress: Called with rows done and in all.

    Returns:
        What was written and what was not accepted.

    Raises:
        ConfigError: The ending is neither, or the corpus does not have the language.
    """
    if out.suffix not in (".json", ".jsonl"):
        raise ConfigError(f"{out}: the ending is {out.suffix!r}, expected .json or .jsonl.")
    if lang not in corpus.languages:
        raise ConfigError(
            f"{corpus.path}: there is no text in {lang!r}; it has: {', '.join(corpus.languages)}."
        )
    is_array = out.suffix == ".json"
    begin, between, end = (b"[\n", b",\n", b"\n]\n") if is_array else (b"", b"\n", b"\n")
    exported, num_done = Exported(), 0
    with writing(out) as partial, partial.open("wb") as file:
        file.write(begin)
        for rows, texts in _batches(corpus, lang):
            records = _records(rows, texts, lang, with_english, exported)
            if records:
                file.write(between if exported.num_records else b"")
                file.write(between.join(map(msgspec.json.encode, records)))
            exported.num_records += len(records)
            num_done += len(rows)
            progress(num_done, len(corpus))
        file.write(end if exported.num_records or begin else b"")
        file.flush()
        os.fsync(file.fileno())
    return exported


def _batches(corpus: Corpus, lang: str) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch | None]]:
    """Rows, and their texts; None for English, which is in the rows."""
    if lang == ENGLISH:
        yield from ((rows, None) for rows in corpus.row_batches())
    else:
        yield from zip(corpus.row_batches(), corpus.text_batches(lang), strict=True)


def _records(
    rows: pa.RecordBatch,
    texts: pa.RecordBatch | None,
    lang: str,
    with_english: bool,
    exported: Exported,
) -> list[dict[str, Any]]:
    """LLaVA records of a batch, without the rows that are left out."""
    if texts is None:
        return [_record(row, row["turns"], None) for row in rows.to_pylist()]
    records = []
    columns = (texts.column(name).to_pylist() for name in ("status", "turns"))
    for row, status, turns in zip(rows.to_pylist(), *columns, strict=True):
        if status == "ok":
            records.append(_record(row, turns, lang))
            continue
        exported.not_accepted[status or "no text"] += 1
        if with_english:
            exported.num_english += 1
            records.append(_record(row, row["turns"], None))
    return records


def _record(row: dict[str, Any], turns: list[dict[str, Any]], lang: str | None) -> dict[str, Any]:
    """A LLaVA record, as `Sample.to_record` makes it."""
    said = turns_from_arrow(turns)
    return Sample(row["id"], row["image"], said, lang, row["task"], row["source"]).to_record()
