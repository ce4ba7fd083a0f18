"""A corpus back into plain LLaVA JSON, for any other tool.

Input: a corpus and a language. Output: a JSON array (`.json`) or JSON Lines (`.jsonl`), written row
by row; it appears when it is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llava.data.sample import Sample
from llava.errors import ConfigError
from lrm_ext.corpus.layout import ENGLISH
from lrm_ext.corpus.store import Corpus


def export_llava(
    corpus: Corpus,
    lang: str,
    out: Path,
    *,
    with_english: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, int]:
    """Write one language.

    Args:
        corpus: What to write.
        lang: Its language; records in another one than English carry `lang`.
        out: File to write, `.json` or `.jsonl`.
        with_english: Write the English text of rows that have none, or none that was accepted, in
            the language; else such rows are left out.
        progress: Called with rows done and in all.

    Returns:
        Numbers of records written and of rows left out.

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
    num_written = 0
    partial = out.with_name(out.name + ".partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", encoding="utf-8") as file:
        file.write("[\n" if is_array else "")
        for number, record in enumerate(_records(corpus, lang, with_english), start=1):
            if record is not None:
                file.write(",\n" if is_array and num_written else "")
                file.write(json.dumps(record, ensure_ascii=False))
                file.write("" if is_array else "\n")
                num_written += 1
            if number % 1000 == 0 or number == len(corpus):
                progress(number, len(corpus))
        file.write("\n]\n" if is_array else "")
        file.flush()
        os.fsync(file.fileno())
    partial.rename(out)
    return num_written, len(corpus) - num_written


def _records(corpus: Corpus, lang: str, with_english: bool) -> Iterator[dict[str, Any] | None]:
    for index in range(len(corpus)):
        row = corpus.row(index)
        turns, used = row.turns, ENGLISH
        if lang != ENGLISH:
            text = corpus.text(lang, index)
            if text is not None and text.status == "ok":
                turns, used = text.turns, lang
            elif not with_english:
                yield None
                continue
        marked = used if used != ENGLISH else None
        yield Sample(row.id, row.image, turns, marked, row.task, row.source).to_record()
