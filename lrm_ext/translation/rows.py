"""Rows of the corpus: taken apart into units, put together again, judged.

Input: an English row. Output: units to translate, and then the row's text in the other language
with a status. Whatever cannot be translated stays English in a row that is "rejected" with its
reason; nothing is left out in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from llava.data.sample import Turn
from lrm_ext.corpus.layout import CorpusRow, Text
from lrm_ext.translation.frame import FIXED, UNIT, fixed_text, frame, is_short, question_of
from lrm_ext.translation.translator import Translated, Unit

# Answers of these sets are text that stands in the picture: it stays as it is seen.
SEEN_TEXT = frozenset(
    "ocrvqa ocr_vqa textvqa docvqa chartqa dvqa infovqa infographicvqa stvqa st_vqa ocr".split()
)


class RowPlan(NamedTuple):
    """A row taken apart.

    Attributes:
        row: The row.
        turns: For each turn its parts, units to translate or text as it will stand.
        options: The answer options of each turn.
    """

    row: CorpusRow
    turns: tuple[tuple[str | Unit, ...], ...]
    options: tuple[tuple[Unit, ...], ...]

    @property
    def units(self) -> Iterator[Unit]:
        """All units in order; one may occur several times."""
        return (part for turn in self.turns for part in turn if isinstance(part, Unit))


class CheckTurns(Protocol):
    """Judges a row: what is wrong with it, and figures to keep."""

    def __call__(
        self, source: Sequence[Turn], target: Sequence[Turn]
    ) -> tuple[list[str], Mapping[str, float]]:
        """Return one line per fault ("check: details"), and the figures of the row."""
        ...


def plan_row(row: CorpusRow, target: str, seen_text: frozenset[str] = SEEN_TEXT) -> RowPlan:
    """Take a row apart.

    Args:
        row: An English row.
        target: Code of the language to translate into.
        seen_text: Sources, tasks or first folders of pictures whose short answers are text in the
            picture, which is copied.
    """
    turns: list[tuple[str | Unit, ...]] = []
    options: list[tuple[Unit, ...]] = []
    keeps_answers = not seen_text.isdisjoint(_names(row))
    question = ""
    for turn in row.turns:
        is_answer = turn.role != "human"
        if not is_answer:
            question = question_of(turn.text)
        parts: list[str | Unit] = []
        chosen: list[Unit] = []
        for piece in frame(turn.text):
            fixed = fixed_text(piece.text, target) if piece.kind == FIXED else None
            if fixed is not None:
                parts.append(fixed)
            elif piece.kind == UNIT or piece.kind == FIXED:
                needs_context = (is_answer or piece.is_option) and is_short(piece.text)
                if is_answer and keeps_answers and needs_context:
                    parts.append(piece.text)
                    continue
                unit = Unit(piece.text, question if needs_context else "")
                parts.append(unit)
                if piece.is_option:
                    chosen.append(unit)
            else:
                parts.append(piece.text)
        turns.append(tuple(parts))
        options.append(tuple(chosen))
    return RowPlan(row, tuple(turns), tuple(options))


def build_text(
    plan: RowPlan, translations: Mapping[Unit, Translated], check: CheckTurns | None = None
) -> Text:
    """Put a row together in the other language.

    Args:
        plan: The row taken apart.
        translations: What became of its units.
        check: Judges the row if it is complete.

    Returns:
        The text. Status "rejected" if a unit has no translation, two options became the same, or a
        check failed.
    """
    faults: dict[str, None] = {}
    engines: dict[str, None] = {}
    turns: list[Turn] = []
    for turn, parts in zip(plan.row.turns, plan.turns, strict=True):
        texts: list[str] = []
        for part in parts:
            if isinstance(part, str):
                texts.append(part)
                continue
            result = translations[part]
            if result.text is None:
                faults[result.reason or "engine: no answer"] = None
            else:
                engines[result.engine] = None
            texts.append(part.text if result.text is None else result.text)
        turns.append(replace(turn, text="".join(texts)))
    for units in plan.options:
        if same := _same_options(units, translations):
            faults[f"options: {same}"] = None
    if check is not None and not faults:
        found, _ = check(plan.row.turns, turns)
        faults.update(dict.fromkeys(found))
    return Text(
        turns=tuple(turns),
        status="rejected" if faults else "ok",
        engine=" + ".join(sorted(engines)) or "fixed texts",
        reason="; ".join(faults) or None,
    )


def _same_options(units: Sequence[Unit], translations: Mapping[Unit, Translated]) -> str | None:
    """Two options that differ in English and no longer do."""
    seen: dict[str, Unit] = {}
    for unit in dict.fromkeys(units):
        text = translations[unit].text
        if text is None:
            continue
        other = seen.setdefault(text.casefold(), unit)
        if other.text.casefold() != unit.text.casefold():
            return f"{other.text!r} and {unit.text!r} are both {text!r}"
    return None


def _names(row: CorpusRow) -> set[str]:
    folder = row.image.split("/", 1)[0] if row.image and "/" in row.image else None
    return {name.lower() for name in (row.source, row.task, folder) if name}
