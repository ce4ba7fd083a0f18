"""A corpus back into plain LLaVA JSON, for any other tool.

Input: a corpus and a language. Output: a JSON array (`.json`) or JSON Lines (`.jsonl`), written
batch by batch; it appears when it is whole.
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
    """What was written of a language.

    Attributes:
        num_records: Records in the file.
        not_accepted: Rows without accepted text in the language, by status; "no text" where there
            is none. They are in English in the file or not there at all, as was asked for.
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
    exported = Exported()
    with writing(out) as partial, partial.open("wb") as file:
        file.write(begin)
        for number, (row, text) in enumerate(corpus.rows_with_texts(lang)):
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
