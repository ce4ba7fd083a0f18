"""Review lists and corrections: what people wrote instead of an engine's words.

A review list is a table (tab, comma or semicolon) with a column `correction` to fill in; a file of
corrections has the filled rows of such lists, and is kept with the translated benchmark. A
correction holds for the English text that it was written for: where that is another by now, it is
reported and not applied.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import DataError
from llava.files import write_atomically
from lrm_ext.benchmarks.items import Item
from lrm_ext.benchmarks.translated import Field, fields_of

CORRECTIONS_FILE: Final = "corrections.tsv"
COLUMNS: Final = ("lang", "question_id", "field", "english", "correction")
_DELIMITERS: Final = ("\t", ";", ",")


class Correction(NamedTuple):
    """What somebody wrote.

    Attributes:
        lang: Language that it is in.
        question_id: The question.
        field: Which of its texts.
        english: That text when it was corrected.
        correction: What it must be in the language.
    """

    lang: str
    question_id: str
    field: str
    english: str
    correction: str


def read_corrections(path: Path) -> list[Correction]:
    """Read the filled rows of a review list, or a file of corrections.

    Raises:
        DataError: It cannot be read, lacks a column, or corrects one text in two ways.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: corrections cannot be read: {error}") from error
    head = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=head.count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; expected {', '.join(COLUMNS)} in the first "
            "line, with tabs, commas or semicolons between them"
        )
    found: dict[tuple[str, ...], Correction] = {}
    for row in rows:
        one = Correction(*((row[name] or "").strip() for name in COLUMNS))
        if not one.correction:
            continue
        where = f"{path}:{rows.line_num}: question {one.question_id}, {one.field}"
        if DEFAULT_IMAGE_TOKEN in one.correction:
            raise DataError(f"{where}: the correction holds {DEFAULT_IMAGE_TOKEN}; take it out")
        if found.setdefault(one[:3], one) != one:
            raise DataError(f"{where}: it is corrected twice, differently; keep one of the rows")
    return list(found.values())


def merge(old: Iterable[Correction], new: Iterable[Correction]) -> list[Correction]:
    """All corrections, sorted; a new one replaces the old one of the same text."""
    merged = {one[:3]: one for one in (*old, *new)}
    return [merged[key] for key in sorted(merged)]


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a table with tabs, as a spreadsheet reads it."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, file.getvalue())


def write_corrections(path: Path, corrections: Iterable[Correction]) -> None:
    """Write a file of corrections."""
    write_table(path, COLUMNS, (one._asdict() for one in corrections))


class Matched(NamedTuple):
    """Corrections of one language beside the questions.

    Attributes:
        texts: Those that hold, by `Field.key`.
        stale: Those whose English is another by now, or whose question is gone, and why.
    """

    texts: Mapping[tuple[str, str], str]
    stale: tuple[str, ...]


def match(corrections: Iterable[Correction], items: Iterable[Item], lang: str) -> Matched:
    """Find the texts that corrections are for.

    Rotations of a question have the same texts: what is corrected in one of them is so in all.

    Args:
        corrections: Of any languages.
        items: The questions in English.
        lang: The language to translate into.

    Raises:
        DataError: The same text, asked in the same question, is corrected in two ways.
    """
    ours = [one for one in corrections if one.lang == lang]
    wanted = {one.question_id for one in ours}
    fields: dict[tuple[str, str], Field] = {
        (item.question_id, field.name): field
        for item in items
        if item.question_id in wanted
        for field in fields_of(item)
    }
    texts: dict[tuple[str, str], str] = {}
    stale: list[str] = []
    for one in ours:
        field = fields.get((one.question_id, one.field))
        if field is None:
            stale.append(f"{one.question_id}, {one.field}: there is no such text any more")
        elif " ".join(field.text.split()) != " ".join(one.english.split()):
            stale.append(
                f"{one.question_id}, {one.field}: corrected when it was {one.english!r}, now it "
                f"is {field.text!r}"
            )
        elif texts.setdefault(field.key, one.correction) != one.correction:
            raise DataError(
                f"question {one.question_id}, {one.field}: {field.text!r} is corrected in "
                f"{lang} both as {texts[field.key]!r} and as {one.correction!r}; rotations of a "
                "question share their texts, so keep one"
            )
    return Matched(texts, tuple(stale))
