"""Rows of the corpus: taken apart into units, put together again, judged.

Input: an English row. Output: units to translate, and then the row's text in the other language
with status and figures. Whatever cannot be translated stays English in a row that is "rejected"
with its reason; nothing is left out in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.sample import Turn
from lrm_ext.corpus.store import CorpusRow, Text
from lrm_ext.translation.frame import (
    COPY,
    FIXED,
    SEEN,
    fixed_text,
    frame,
    is_short,
    question_among,
)
from lrm_ext.translation.quality.base import Verdict
from lrm_ext.translation.translator import Translated, Unit

# Answers of these sets are text that stands in the picture: it stays as it is seen.
SEEN_TEXT = frozenset(
    "ocrvqa ocr_vqa textvqa docvqa chartqa dvqa infovqa infographicvqa stvqa st_vqa ocr".split()
)


_IMAGE = f"{DEFAULT_IMAGE_TOKEN}\n"


class Given(NamedTuple):
    """A part whose text is right as it is: looked up, or seen in the picture.

    Attributes:
        text: What stands in the translation.
    """

    text: str


# A unit is translated, a string copied.
Part = str | Unit | Given


class RowPlan(NamedTuple):
    """A row taken apart.

    Attributes:
        row: The row.
        turns: For each turn its parts.
        options: The answer options of each turn.
    """

    row: CorpusRow
    turns: tuple[tuple[Part, ...], ...]
    options: tuple[tuple[Unit, ...], ...]

    @property
    def units(self) -> Iterator[Unit]:
        """All units in order; one may occur several times."""
        return (part for turn in self.turns for part in turn if isinstance(part, Unit))


# Judges rows, each by pairs of a text and its translation, one for each turn.
CheckRows = Callable[[Sequence[Sequence[tuple[str, str]]]], Sequence[Verdict]]


def plan_row(row: CorpusRow, target: str, seen_text: frozenset[str] = SEEN_TEXT) -> RowPlan:
    """Take a row apart.

    Args:
        row: An English row.
        target: Code of the language to translate into.
        seen_text: Sources, tasks or first folders of pictures whose short answers are text in the
            picture, which is copied.
    """
    turns: list[tuple[Part, ...]] = []
    options: list[tuple[Unit, ...]] = []
    keeps_answers = not seen_text.isdisjoint(_names(row))
    question = ""
    for turn in row.turns:
        is_answer = turn.role != "human"
        pieces = frame(turn.text)
        if not is_answer:
            question = question_among(pieces)
        parts: list[Part] = []
        chosen: list[Unit] = []
        for piece in pieces:
            fixed = fixed_text(piece.text, target) if piece.kind == FIXED else None
            needs_context = (is_answer or piece.is_option) and is_short(piece.text)
            if piece.kind == COPY:
                parts.append(piece.text)
            elif fixed is not None:
                parts.append(Given(fixed))
            elif piece.kind == SEEN or (is_answer and keeps_answers and needs_context):
                parts.append(Given(piece.text))
            else:
                unit = Unit(piece.text, question if needs_context else "")
                parts.append(unit)
                if piece.is_option:
                    chosen.append(unit)
        turns.append(tuple(parts))
        options.append(tuple(chosen))
    return RowPlan(row, tuple(turns), tuple(options))


def build_texts(
    plans: Sequence[RowPlan],
    translations: Mapping[Unit, Translated],
    check: CheckRows | None = None,
) -> list[Text]:
    """Put rows together in the other language.

    Args:
        plans: The rows taken apart.
        translations: What became of their units.
        check: Judges the rows that are complete. It does not see what is right as it is, which
            would say much of a row's language and nothing of the engine.

    Returns:
        The texts. Status "rejected" if a unit has no translation or two options became the same;
        else as the check says.
    """
    texts = [build_text(plan, translations) for plan in plans]
    if check is not None:
        complete = [i for i, text in enumerate(texts) if text.status == "ok"]
        verdicts = check([_judged(plans[i], translations) for i in complete])
        for i, verdict in zip(complete, verdicts, strict=True):
            turns, engine = texts[i].turns, texts[i].engine
            reason = "; ".join(dict.fromkeys(verdict.reasons)) or None
            texts[i] = Text(turns, verdict.status, engine, reason, verdict.figures)
    return texts


def build_text(plan: RowPlan, translations: Mapping[Unit, Translated]) -> Text:
    """Put one row together, not judged yet (`build_texts`)."""
    faults: dict[str, None] = {}
    engines: dict[str, None] = {}
    turns: list[Turn] = []
    for turn, parts in zip(plan.row.turns, plan.turns, strict=True):
        texts: list[str] = []
        for part in parts:
            if not isinstance(part, Unit):
                texts.append(part if isinstance(part, str) else part.text)
                continue
            result = translations[part]
            if result.text is None:
                faults[result.reason or "engine: no answer"] = None
            else:
                engines[result.engine] = None
            texts.append(part.text if result.text is None else result.text)
        turns.append(Turn(turn.role, "".join(texts), turn.supervised))
    for units in plan.options:
        if same := _same_options(units, translations):
            faults[f"options: {same}"] = None
    return Text(
        turns=tuple(turns),
        status="rejected" if faults else "ok",
        engine=" + ".join(sorted(engines)) or "fixed texts",
        reason="; ".join(faults) or None,
    )


def _judged(plan: RowPlan, translations: Mapping[Unit, Translated]) -> list[tuple[str, str]]:
    """The turns that have something to judge, in both languages."""
    pairs: list[tuple[str, str]] = []
    for parts in plan.turns:
        if any(isinstance(part, Unit) for part in parts):
            source, target = "", ""
            for part in parts:
                if isinstance(part, Unit):
                    source, target = source + part.text, target + str(translations[part].text)
                elif isinstance(part, str):
                    source, target = source + part, target + part
            # it was copied, and would have each text searched for mark-up
            pairs.append((source.removeprefix(_IMAGE), target.removeprefix(_IMAGE)))
    return pairs


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
