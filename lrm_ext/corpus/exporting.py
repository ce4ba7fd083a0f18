"""Exports a corpus to plain LLaVA JSON.

Input: a corpus and a language. Output: a JSON array (`.json`) or JSON Lines (`.jsonl`), written row
by row; it appears when it is complete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from llava.errors import ConfigError
from llava.files import writing
from lrm_ext.corpus.store import ENGLISH, ROW_SCHEMA, Corpus

_PROGRESS_ROWS = 2048


@dataclass
class Exported:
    """The result of exporting a language.

    Attributes:
        num_records: Number of records in the file.
        not_accepted: Number of rows without accepted text in the language, by status, or as "no
            text". They are in the file in English or left out, depending on `with_english`.
    """

    num_records: int = 0
    not_accepted: Counter[str] = field(default_factory=Counter)


def export_llava(
    corpus: Corpus,
    lang: str,
    out: Path,
    *,
    with_english: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Exports one language.

    Args:
        corpus: The corpus.
        lang: The language; records in languages other than English carry `lang`.
        out: File to write, `.json` or `.jsonl`.
        with_english: Write English text for rows without accepted text (none, or status "suspect"
            or "rejected") in the language, instead of leaving them out.
        progress: Called with the number of rows done and of all rows.

    Returns:
        How many records were written, and how many texts were not accepted.

    Raises:
        ConfigError: The extension is neither, or the corpus does not have the language.
    """
    if out.suffix not in (".json", ".jsonl"):
        raise ConfigError(f"{out}: the ending is {out.suffix!r}, expected .json or .jsonl.")
    if lang not in corpus.languages:
        raise ConfigError(
            f"{corpus.path}: there is no text in {lang!r}; it has: {', '.join(corpus.languages)}."
        )
    is_array = out.suffix == ".json"
    begin, between, end = (b"[\n", b",\n", b"\n]\n") if is_array else (b"", b"\n", b"\n")
    exported = Exported()
    with writing(out, flush=True) as partial, partial.open("wb") as file:
        file.write(begin)
        for number, (row, status, turns) in enumerate(_values(corpus, lang, with_english)):
            if number % _PROGRESS_ROWS == 0:
                progress(number, len(corpus))
            code = None if lang == ENGLISH else lang
            if status != "ok":
                exported.not_accepted[status or "no text"] += 1
                if not with_english:
                    continue
                turns, code = row["turns"], None
            file.write(between if exported.num_records else b"")
            file.write(msgspec.json.encode(_record(row, turns, code)))
            exported.num_records += 1
        progress(len(corpus), len(corpus))
        file.write(end if exported.num_records or is_array else b"")
    return exported


def _values(corpus: Corpus, lang: str, with_english: bool) -> Iterator[tuple[Any, Any, Any]]:
    """Yields each row, the status of its text in `lang` and the turns of that, as plain values.

    Only what is exported is decoded: quality scores would take as long as everything else.
    """
    if lang == ENGLISH:
        for rows in corpus.row_batches():
            yield from ((row, "ok", row["turns"]) for row in rows.to_pylist())
        return
    shown = [name for name in ROW_SCHEMA.names if with_english or name != "turns"]
    for rows, texts in zip(corpus.row_batches(), corpus.text_batches(lang), strict=True):
        columns = (texts.column(name).to_pylist() for name in ("status", "turns"))
        yield from zip(rows.select(shown).to_pylist(), *columns, strict=True)


def _record(row: Mapping[str, Any], turns: list[dict[str, Any]], lang: str | None) -> Any:
    """Returns a LLaVA record, equal to that of `Sample.to_record`."""
    record = {"id": row["id"]}
    if image := row["image"] or row["images"]:
        record["image"] = image
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
