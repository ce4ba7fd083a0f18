"""Splits a corpus row into units to translate, and puts it together again in another language.

A turn is cut into pieces that give its text again when they are joined. Line ends, list marks,
headings, table bars, code blocks, `<image>`, numbers and option letters by themselves are copied,
so no engine can lose them. LLaVA's repeated requests and fixed answers are looked up; the rest are
units to translate. A row whose units are translated becomes a `CorpusText` with status and figures.
Whatever cannot be translated stays English in a row that is "rejected" with its reason; nothing is
left out in silence.
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
from lrm_ext.translate.quality.base import Verdict

COPY, FIXED, SEEN, UNIT = "copy", "fixed", "seen", "unit"

# Code, formulas and tables that go over several lines.
_BLOCK = re.compile(
    r"```.*?(?:```|\Z)|\$\$.{1,2000}?\$\$|\\\[.{1,2000}?\\\]"
    r"|\\begin\{([a-z]+\*?)\}.{0,2000}?\\end\{\1\}",
    re.DOTALL,
)
_LINE_END = re.compile(r"(\r\n|[\n\r\v\f\x85\u2028\u2029])")
# What stands before the words of a line: bullets, headings, quotation bars, "1.", "(a)", "A.".
_LEAD = re.compile(
    r"\s*(?:<image>\s*)*(?:[#>]+\s+)*(?:(?:[-*•+–]|\d{1,3}[.)]|\(?[A-Ha-h][.):]|\(\d{1,3}\))\s+)?"
)
_OPTION = re.compile(r"\s*\(?[A-H][.):]\s+\S")
_TABLE_RULE = re.compile(r"(\s*\|\s*)")
_MAX_SHORT_WORDS = 3


class TurnPiece(NamedTuple):
    """A part of a turn.

    Attributes:
        text: What it is in English.
        kind: "copy" stays, "fixed" is looked up (`fixed_text`), "seen" is text in the picture and
            stays, "unit" is translated.
        is_option: It is an answer option of a multiple-choice question.
    """

    text: str
    kind: str
    is_option: bool = False


def frame(text: str) -> list[TurnPiece]:
    r"""Take a turn apart.

    Example:
        >>> [(p.text, p.kind) for p in frame("<image>\n1. A red car")]
        [('<image>', 'copy'), ('\n', 'copy'), ('1. ', 'copy'), ('A red car', 'unit')]
    """
    pieces: list[TurnPiece] = []
    end = 0
    for block in _BLOCK.finditer(text) if "```" in text or "$$" in text or "\\" in text else ():
        if "\n" not in block[0]:  # within a line it is a span like any other
            continue
        pieces += _lines(text[end : block.start()])
        pieces.append(TurnPiece(block[0], COPY))
        end = block.end()
    pieces += _lines(text[end:])
    return pieces


def fixed_text(text: str, target: str) -> str | None:
    """Look a fixed request or answer up.

    Args:
        text: A piece in English.
        target: Code of a language.

    Returns:
        How it is always said in that language; None if it is not one of them. A final full stop
        and a first small letter are kept.
    """
    table = _fixed(target)
    capital = text if text[:1].isupper() else text[:1].upper() + text[1:]
    found = table.get(capital)
    if found is None and text.endswith("."):
        found = table.get(capital[:-1])
        found = found and found + full_stop(target)
    if found is not None and text[:1].islower():
        found = found[:1].lower() + found[1:]
    return found


def full_stop(lang: str) -> str:
    """The mark that ends a sentence of the language; "" if it has none."""
    return get_language(lang).full_stop


def is_short(text: str) -> bool:
    """Whether a text is too short to be translated without its question."""
    return len(text.split()) <= _MAX_SHORT_WORDS


def question_of(text: str) -> str:
    """The line of a human turn that its answer answers: the last question, or the last line."""
    return question_among(frame(text))


def question_among(pieces: Iterable[TurnPiece]) -> str:
    """The same, of a turn that was taken apart."""
    units = [p.text for p in pieces if p.kind == UNIT and not p.is_option]
    questions = [unit for unit in units if unit.rstrip().endswith("?")]
    return (questions or units or [""])[-1]


_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9<])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|vs|etc|No|Fig|Prof|Jr|Sr|approx|e\.g|i\.e|U\.S)|\b[A-Z])\.\s+\Z"
)


def sentences(text: str) -> list[str]:
    """Cut a line into sentences, each with the blanks that follow it.

    No cut is made inside a protected part or a quotation, or after an abbreviation.
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
            if start:
                pieces.append(TurnPiece(line[:start], COPY))
            pieces += _words(line[start:], is_option=_OPTION.match(line) is not None)
    return [piece for piece in pieces if piece.text]


def _words(text: str, is_option: bool) -> list[TurnPiece]:
    """The pieces of a line without its lead."""
    body = text.rstrip()
    tail = [TurnPiece(text[len(body) :], COPY)] if len(body) < len(text) else []
    start = len(body) - len(body.lstrip())
    head, body = [TurnPiece(body[:start], COPY)] if start else [], body[start:]
    if _is_wordless(body):
        return [*head, TurnPiece(body, COPY), *tail]
    if fixed_text(body, ENGLISH) is not None:
        return [*head, TurnPiece(body, FIXED), *tail]
    for prompt in _openings() if ": " in body else ():
        if body.startswith(prompt + " "):  # "Reference OCR token: ...": what follows is seen
            rest = body[len(prompt) :]
            is_seen = prompt == get_language(ENGLISH).fixed_prompts.get("ocr_tokens")
            after = [TurnPiece(rest, SEEN)] if is_seen else _words(rest, is_option)
            return [*head, TurnPiece(prompt, FIXED), *after, *tail]
    prompts = _prompts()
    for prompt in prompts if body.endswith(prompts) else ():
        if body.endswith(" " + prompt):
            return [
                *head,
                *_words(body[: -len(prompt)], is_option),
                TurnPiece(prompt, FIXED),
                *tail,
            ]
    return [*head, TurnPiece(body, UNIT, is_option), *tail]


def _is_wordless(text: str) -> bool:
    """Whether nothing is left to translate beside protected parts and marks."""
    if not any(map(str.isalpha, text)):
        return True
    if len(text) == 1 and text.isascii():
        return True  # an option letter, "A" and "I" too
    end = 0
    for span in find_spans(text):
        if span.kind == "ordinal" or any(map(str.isalpha, text[end : span.start])):
            return False
        end = span.end
    return end > 0 and not any(map(str.isalpha, text[end:]))


@cache
def _fixed(target: str) -> dict[str, str]:
    """Fixed texts of the language, by the English ones."""
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
def _prompts() -> tuple[str, ...]:
    english = get_language(ENGLISH)
    closed = (p for p in english.fixed_prompts.values() if not p.endswith(":"))
    return (english.short_answer, english.option_letter, *closed)


@cache
def _openings() -> tuple[str, ...]:
    return tuple(p for p in get_language(ENGLISH).fixed_prompts.values() if p.endswith(":"))


# Answers of these sets are text that stands in the picture: it stays as it is seen.
SEEN_TEXT = frozenset(
    "ocrvqa ocr_vqa textvqa docvqa chartqa dvqa infovqa infographicvqa stvqa st_vqa ocr".split()
)


_IMAGE = f"{DEFAULT_IMAGE_TOKEN}\n"


class Unit(NamedTuple):
    """A text to translate.

    Attributes:
        text: One line of English, without blanks around it.
        context: The question that it answers, if it is too short to be understood alone.
    """

    text: str
    context: str = ""


class Translated(NamedTuple):
    """What became of a unit.

    Attributes:
        text: Its translation; None if there is none.
        engine: Name and version of who made it.
        reason: Why there is none: a countable word, a colon, and details.
    """

    text: str | None
    engine: str = ""
    reason: str = ""


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
) -> list[CorpusText]:
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
            texts[i] = CorpusText(turns, verdict.status, engine, reason, verdict.figures)
    return texts


def build_text(plan: RowPlan, translations: Mapping[Unit, Translated]) -> CorpusText:
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
    return CorpusText(
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
