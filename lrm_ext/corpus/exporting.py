"""Exports a corpus to plain LLaVA JSON.

Input: a corpus and a language. Output: a JSON array (`.json`) or JSON Lines (`.jsonl`), written row
by row; it appears when it is complete.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from llava.data.sample import Sample
from llava.errors import ConfigError
from llava.files import writing
from lrm_ext.corpus.store import ENGLISH, Corpus, CorpusText

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
    with writing(out) as partial, partial.open("wb") as file:
        file.write(begin)
        for number, (row, text) in enumerate(corpus.iter_rows_with_texts(lang)):
            if number % _PROGRESS_ROWS == 0:
                progress(number, len(corpus))
            code = None if lang == ENGLISH else lang
            if text is None or text.status != "ok":
                exported.not_accepted["no text" if text is None else text.status] += 1
                if not with_english:
                    continue
                text, code = CorpusText(row.turns), None
            sample = Sample(row.id, row.image, text.turns, code, row.task, row.source)
            file.write(between if exported.num_records else b"")
            file.write(msgspec.json.encode(sample.to_record()))
            exported.num_records += 1
        progress(len(corpus), len(corpus))
        file.write(end if exported.num_records or is_array else b"")
        file.flush()
        os.fsync(file.fileno())
    return exported
