"""Splits a corpus row into units to translate, and assembles the row in another language.

A turn is split into pieces whose concatenation is the turn. Line ends, list markers, headings,
table bars, code blocks, `<image>`, numbers and single option letters are copied, so that no engine
can lose them. LLaVA's repeated requests and fixed answers are looked up; the rest are units to
translate. A row with translated units becomes a `CorpusText` with its status and measured values.
What cannot be translated stays English in a row that is "rejected" with a reason; nothing is
dropped silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.sample import Turn
from lrm_ext.corpus.store import ENGLISH, CorpusRow, CorpusText
from lrm_ext.languages.registry import Language, get_language
from lrm_ext.translate.protect import find_spans
from lrm_ext.translate.quality.base import RowVerdict

COPY, FIXED, SEEN, UNIT = "copy", "fixed", "seen", "unit"

# Code, formulas and tables that span several lines.
_BLOCK = re.compile(
    r"```.*?(?:```|\Z)|\$\$.{1,2000}?\$\$|\\\[.{1,2000}?\\\]"
    r"|\\begin\{([a-z]+\*?)\}.{0,2000}?\\end\{\1\}",
    re.DOTALL,
)
_LINE_END = re.compile(r"(\r\n|[\n\r\v\f\x85\u2028\u2029])")
# What precedes the words of a line: bullets, headings, quotation bars, "1.", "(a)", "A.".
_LEAD = re.compile(
    r"\s*(?:<image>\s*)*(?:[#>]+\s+)*(?:(?:[-*•+–]|\d{1,3}[.)]|\(?[A-Ha-h][.):]|\(\d{1,3}\))\s+)?"
)
_OPTION = re.compile(r"\s*\(?[A-H][.):]\s+\S")
_TABLE_RULE = re.compile(r"(\s*\|\s*)")
_MAX_SHORT_WORDS = 3  # of a text that needs its question to be translated


class TurnPiece(NamedTuple):
    """A piece of a turn.

    Attributes:
        text: Its English text.
        kind: "copy" stays, "fixed" is looked up (`fixed_text`), "seen" is text in the image and
            stays, "unit" is translated.
        is_option: Whether it is an answer option of a multiple-choice question.
    """

    text: str
    kind: str
    is_option: bool = False


def frame(text: str) -> list[TurnPiece]:
    r"""Splits a turn into pieces to copy, look up or translate.

    Example:
        >>> [(p.text, p.kind) for p in frame("<image>\n1. A red car")]
        [('<image>', 'copy'), ('\n', 'copy'), ('1. ', 'copy'), ('A red car', 'unit')]
    """
    pieces: list[TurnPiece] = []
    end = 0
    for block in _BLOCK.finditer(text) if "```" in text or "$$" in text or "\\" in text else ():
        if "\n" in block[0]:  # within a line it is an ordinary span
            pieces += (*_lines(text[end : block.start()]), TurnPiece(block[0], COPY))
            end = block.end()
    pieces += _lines(text[end:])
    return pieces


def fixed_text(text: str, target: str) -> str | None:
    """Looks up a fixed request or answer.

    Args:
        text: A piece in English.
        target: Code of a language.

    Returns:
        Its fixed translation; None if it is not fixed. Keeps a final full stop and a lower-case
        first letter.
    """
    table = _fixed(target)
    capital = text if text[:1].isupper() else text[:1].upper() + text[1:]
    found = table.get(capital)
    if found is None and text.endswith("."):
        found = table.get(capital[:-1])
        found = found and found + get_language(target).full_stop
    if found is not None and text[:1].islower():
        found = found[:1].lower() + found[1:]
    return found


def question_among(pieces: Iterable[TurnPiece]) -> str:
    """Returns the line of a human turn that the answer refers to: the last question or line."""
    units = [p.text for p in pieces if p.kind == UNIT and not p.is_option]
    questions = [unit for unit in units if unit.rstrip().endswith("?")]
    return (questions or units or [""])[-1]


_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9<])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|vs|etc|No|Fig|Prof|Jr|Sr|approx|e\.g|i\.e|U\.S)|\b[A-Z])\.\s+\Z"
)


def sentences(text: str) -> list[str]:
    """Splits a line into sentences, each with the blanks after it.

    Does not split inside a protected part or a quotation, or after an abbreviation.
    """
    cuts = [0]
    spans = find_spans(text, any_quotation=True) if _SENTENCE_END.search(text) else []
    for match in _SENTENCE_END.finditer(text):
        at = match.end()
        if any(s.start < at < s.end for s in spans) or _ABBREVIATION.search(text[cuts[-1] : at]):
            continue
        cuts.append(at)
    return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True) if a < b]


def _lines(text: str) -> list[TurnPiece]:
    pieces: list[TurnPiece] = []
    for i, line in enumerate(_LINE_END.split(text)):
        if i % 2:
            pieces.append(TurnPiece(line, COPY))
        elif line.lstrip().startswith("|") and line.count("|") > 1:
            for k, cell in enumerate(_TABLE_RULE.split(line)):
                pieces += [TurnPiece(cell, COPY)] if k % 2 else _words(cell, is_option=False)
        else:
            lead = _LEAD.match(line)
            start = lead.end() if lead else 0
            pieces.append(TurnPiece(line[:start], COPY))
            pieces += _words(line[start:], is_option=_OPTION.match(line) is not None)
    return [piece for piece in pieces if piece.text]


def _words(text: str, is_option: bool) -> Iterator[TurnPiece]:
    """Yields the pieces of a line without its lead; some may be empty."""
    body = text.strip()
    start = text.index(body)
    yield TurnPiece(text[:start], COPY)
    yield from _body(body, is_option)
    yield TurnPiece(text[start + len(body) :], COPY)


def _body(body: str, is_option: bool) -> Iterator[TurnPiece]:
    """Yields the pieces of a line without surrounding blanks."""
    kind = COPY if _is_wordless(body) else FIXED if fixed_text(body, ENGLISH) else UNIT
    if kind != UNIT:
        yield TurnPiece(body, kind)
        return
    openings, closings = _prompts()
    for prompt in openings if ": " in body else ():
        if body.startswith(prompt + " "):  # the text after "Reference OCR token:" is seen
            yield TurnPiece(prompt, FIXED)
            rest = body[len(prompt) :]
            is_seen = prompt == get_language(ENGLISH).fixed_prompts.get("ocr_tokens")
            yield from [TurnPiece(rest, SEEN)] if is_seen else _words(rest, is_option)
            return
    for prompt in closings if body.endswith(closings) else ():
        if body.endswith(" " + prompt):
            yield from _words(body[: -len(prompt)], is_option)
            yield TurnPiece(prompt, FIXED)
            return
    yield TurnPiece(body, UNIT, is_option)


def _is_wordless(text: str) -> bool:
    """Returns whether a text has nothing to translate but protected parts and punctuation."""
    if not any(map(str.isalpha, text)):
        return True
    if len(text) == 1 and text.isascii():
        return True  # an option letter, including "A" and "I"
    end = 0
    for span in find_spans(text):
        if span.kind == "ordinal" or any(map(str.isalpha, text[end : span.start])):
            return False
        end = span.end
    return end > 0 and not any(map(str.isalpha, text[end:]))


@cache
def _fixed(target: str) -> dict[str, str]:
    """Returns the fixed texts of a language by their English."""
    english, other = _texts(get_language(ENGLISH)), _texts(get_language(target))
    return {text: other[key] for key, text in english.items() if key in other}


def _texts(language: Language) -> dict[str, str]:
    return {
        "yes": language.yes,
        "no": language.no,
        "short_answer": language.short_answer,
        "option_letter": language.option_letter,
        **{f"prompt {key}": text for key, text in language.fixed_prompts.items()},
        **{f"answer {key}": text for key, text in language.fixed_answers.items()},
    }


@cache
def _prompts() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the fixed prompts that open a line, and those that close one."""
    english = get_language(ENGLISH)
    every = (english.short_answer, english.option_letter, *english.fixed_prompts.values())
    openings = tuple(prompt for prompt in english.fixed_prompts.values() if prompt.endswith(":"))
    return openings, tuple(prompt for prompt in every if prompt not in openings)


# Sources, tasks or top-level image folders whose short answers are text in the image, which is
# copied.
SEEN_TEXT = frozenset(
    "ocrvqa ocr_vqa textvqa docvqa chartqa dvqa infovqa infographicvqa stvqa st_vqa ocr".split()
)


_IMAGE = f"{DEFAULT_IMAGE_TOKEN}\n"


class Unit(NamedTuple):
    """A text to translate.

    Attributes:
        text: One line of English, without surrounding blanks.
        context: The question that it answers, if it is too short to be understood alone.
    """

    text: str
    context: str = ""


class Translated(NamedTuple):
    """The result for a unit.

    Attributes:
        text: Its translation; None if there is none.
        engine: Name and version of the engine.
        reason: Why there is no translation: a keyword to count by, a colon, and details.
    """

    text: str | None
    engine: str = ""
    reason: str = ""


class Given(NamedTuple):
    """A part that needs no translation: looked up, or text in the image.

    Attributes:
        text: Its text in the translation.
    """

    text: str


# A unit is translated; a string is copied.
Part = str | Unit | Given


class RowPlan(NamedTuple):
    """A row, split into parts.

    Attributes:
        row: The row.
        turns: The parts of each turn.
        options: The answer options of each turn.
    """

    row: CorpusRow
    turns: tuple[tuple[Part, ...], ...]
    options: tuple[tuple[Unit, ...], ...]

    @property
    def units(self) -> Iterator[Unit]:
        """All units in order, with duplicates."""
        return (part for turn in self.turns for part in turn if isinstance(part, Unit))


# Returns the verdict of each row, which is given as one pair of text and translation per turn.
CheckRows = Callable[[Sequence[Sequence[tuple[str, str]]]], Sequence[RowVerdict]]


def plan_row(row: CorpusRow, target: str) -> RowPlan:
    """Splits a row into parts.

    Args:
        row: An English row.
        target: Code of the language to translate into.
    """
    turns: list[tuple[Part, ...]] = []
    options: list[tuple[Unit, ...]] = []
    folders = (image.split("/", 1)[0] for image in row.images if "/" in image)
    origins = {name.lower() for name in (row.source, row.task, *folders) if name}
    keeps_answers = not SEEN_TEXT.isdisjoint(origins)
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
            is_short = len(piece.text.split()) <= _MAX_SHORT_WORDS
            needs_context = is_short and (is_answer or piece.is_option)
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
) -> list[CorpusText]:
    """Assembles rows in the other language.

    Args:
        plans: The split rows.
        translations: The results for their units.
        check: Judges complete rows. It does not see turns without units, which would say much
            about a row's language and nothing about the engine.

    Returns:
        The texts. The status is "rejected" if a unit has no translation, a turn has not the places
        of images that it has in English, or two options became equal; else it is that of the check.
    """
    texts = [build_text(plan, translations) for plan in plans]
    if check is not None:
        complete = [i for i, text in enumerate(texts) if text.status == "ok"]
        verdicts = check([_judged(plans[i], translations) for i in complete])
        for i, verdict in zip(complete, verdicts, strict=True):
            turns, engine = texts[i].turns, texts[i].engine
            reason = "; ".join(dict.fromkeys(verdict.reasons)) or None
            texts[i] = CorpusText(turns, verdict.status, engine, reason, verdict.values)
    return texts


def build_text(plan: RowPlan, translations: Mapping[Unit, Translated]) -> CorpusText:
    """Assembles one row, without checking it (see `build_texts`)."""
    results = [translations[unit] for unit in plan.units]
    engines = {result.engine for result in results if result.text is not None}
    faults = [r.reason or "engine: no answer" for r in results if r.text is None]
    same = [_same_options(units, translations) for units in plan.options]
    faults += [f"options: {found}" for found in same if found]

    def said(part: Part) -> str:
        if isinstance(part, str):
            return part
        found = translations[part].text if isinstance(part, Unit) else None
        return part.text if found is None else found

    turns = [
        Turn(turn.role, "".join(map(said, parts)), turn.supervised)
        for turn, parts in zip(plan.row.turns, plan.turns, strict=True)
    ]
    # of a table's answer nobody has looked at the placeholders yet
    for number, pair in enumerate(zip(plan.row.turns, turns, strict=True), start=1):
        wanted, found = (turn.text.count(DEFAULT_IMAGE_TOKEN) for turn in pair)
        if found != wanted:
            at = f"turn {number}: {found} {DEFAULT_IMAGE_TOKEN}, expected {wanted}"
            faults.append(f"structure: {at}")
    faults = list(dict.fromkeys(faults))
    return CorpusText(
        turns=tuple(turns),
        status="rejected" if faults else "ok",
        engine=" + ".join(sorted(engines)) or "fixed texts",
        reason="; ".join(faults) or None,
    )


def _judged(plan: RowPlan, translations: Mapping[Unit, Translated]) -> list[tuple[str, str]]:
    """Returns the turns to judge, in both languages."""
    pairs: list[tuple[str, str]] = []
    for parts in plan.turns:
        if not any(isinstance(part, Unit) for part in parts):
            continue
        judged = [
            (p.text, str(translations[p].text)) if isinstance(p, Unit) else (p, p)
            for p in parts
            if not isinstance(p, Given)
        ]
        # without the image token, which was copied and would trigger a search for mark-up
        source, target = (
            "".join(texts).removeprefix(_IMAGE) for texts in zip(*judged, strict=True)
        )
        pairs.append((source, target))
    return pairs


def _same_options(units: Sequence[Unit], translations: Mapping[Unit, Translated]) -> str | None:
    """Describes two options that differ in English but not in translation."""
    seen: dict[str, Unit] = {}
    for unit in units:
        if (text := translations[unit].text) is not None:
            other = seen.setdefault(text.casefold(), unit)
            if other.text.casefold() != unit.text.casefold():
                return f"{other.text!r} and {unit.text!r} are both {text!r}"
    return None
