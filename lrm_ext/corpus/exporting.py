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

from llava.errors import ConfigError
from llava.files import writing
from lrm_ext.corpus.store import ENGLISH, Corpus

_encode = msgspec.json.encode


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
    exported, num_done = Exported(), 0
    with writing(out) as partial, partial.open("wb") as file:
        file.write(b"[\n" if is_array else b"")
        for rows in _batches(corpus, lang, with_english, exported):
            encoded = [_encode(record) for record in rows if record is not None]
            if encoded:
                file.write(b",\n" if is_array and exported.num_records else b"")
                file.write((b",\n" if is_array else b"\n").join(encoded))
                file.write(b"" if is_array else b"\n")
            num_done, exported.num_records = (
                num_done + len(rows),
                exported.num_records + len(encoded),
            )
            progress(num_done, len(corpus))
        file.write(b"\n]\n" if is_array else b"")
        file.flush()
        os.fsync(file.fileno())
    return exported


def _batches(
    corpus: Corpus, lang: str, with_english: bool, exported: Exported
) -> Iterator[list[dict[str, Any] | None]]:
    """Records of one batch of rows after the other; None for a row that is left out."""
    if lang == ENGLISH:
        for rows in corpus.row_batches():
            yield [_record(row, row["turns"], None) for row in rows.to_pylist()]
        return
    for rows, texts in zip(corpus.row_batches(), corpus.text_batches(lang), strict=True):
        columns = (texts.column(name).to_pylist() for name in ("status", "turns"))
        records: list[dict[str, Any] | None] = []
        for row, status, turns in zip(rows.to_pylist(), *columns, strict=True):
            if status == "ok":
                records.append(_record(row, turns, lang))
                continue
            exported.not_accepted[status or "no text"] += 1
            exported.num_english += with_english
            records.append(_record(row, row["turns"], None) if with_english else None)
        yield records


def _record(row: dict[str, Any], turns: list[dict[str, Any]], lang: str | None) -> dict[str, Any]:
    """A LLaVA record, as `Sample.to_record` makes it."""
    record = {"id": row["id"]}
    if row["image"] is not None:
        record["image"] = row["image"]
    record["conversations"] = [
        {"from": turn["role"], "value": turn["text"]}
        if turn["supervised"]
        else {"from": turn["role"], "value": turn["text"], "supervised": False}
        for turn in turns
    ]
    for key, value in (("lang", lang), ("task", row["task"]), ("source", row["source"])):
        if value is not None:
            record[key] = value
    return record
