"""Protects the parts of a text that translation must not change: finds, masks, restores and checks.

`mask` replaces the protected parts of a line by placeholders; `restore` puts them back into an
engine's answer, character by character, and fails if a placeholder was lost, duplicated or changed.
There are several styles of placeholders because no engine preserves all of them. Line structure is
handled in `segment.py`; the order of attempts is in `translator.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

# Longer quotations are speech, not text in an image.
_QUOTED = r"[^\n{0}]{{1,300}}"
_NUMBER = r"\d+(?:[.,:/×]\d+)*"
_SIGNED = r"[-+−]?(?:\d+(?:\.\d+)?|\.\d+)"

# Where several kinds would match, the first one wins.
_PATTERNS: dict[str, tuple[str, ...]] = {
    "code": (r"```.*?(?:```|\Z)", r"`[^`\n]+`"),
    "latex": (
        r"\$\$.{1,2000}?\$\$",
        r"\\\[.{1,2000}?\\\]",
        r"\\\(.{1,2000}?\\\)",
        r"\\begin\{(?P<_env>[a-z]+\*?)\}.{0,2000}?\\end\{(?P=_env)\}",
        # "$5 and $10" is money: a formula has no blank next to its dollars and no digit after them,
        # and it is one word or has a character that prose does not have
        r"\$(?=[^\s$])(?:[^\s$]{1,80}|(?=[^$\n]*[\\^_={}])[^$\n]{1,300})(?<=[^\s$])\$(?![\w$])",
        r"\\[a-zA-Z]+(?:\{[^{}\n]*\})*",
    ),
    "image": (r"<image>", r"<im_(?:start|end|patch)>"),
    "url": (
        r"https?://[^\s<>\"]*[^\s<>\".,;:!?)\]'”]",
        r"www\.[^\s<>\"]*\w",
        r"[\w.+-]+@[\w-]+(?:\.\w+)+",
    ),
    "markup": (
        r"</?[a-zA-Z][^<>\n]*>",
        r"&#?\w+;",
        r"!?\[(?=[^\[\]\n]*\]\()",
        r"\]\([^)\s]+\)",
        r"\*\*|__|~~",
    ),
    "box": (rf"[\[({{<]\s*{_SIGNED}(?:\s*[,;]\s*{_SIGNED})+\s*[\])}}>]",),
    "quote": (
        '"' + _QUOTED.format('"') + '"',
        "“" + _QUOTED.format("”") + "”",
        "«" + _QUOTED.format("»") + "»",
        "„" + _QUOTED.format("“”") + "[“”]",
        "‘" + _QUOTED.format("’") + r"’(?!\w)",
        # an apostrophe has a letter before it, or after it inside the quotation
        r"(?<![\w'])'[^\s'](?:[^'\n]|'\w){0,300}'(?!\w)",
    ),
    "ordinal": (r"(?<![\w.])\d+(?:,\d{3})*(?:st|nd|rd|th|'?s)(?![A-Za-z0-9_])",),
    "token": (
        r"(?<![A-Za-z0-9_.])(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)*"
        r"(?![A-Za-z0-9_])",
    ),
    "number": (rf"(?<![A-Za-z0-9_.])[-+−]{_NUMBER}", rf"{_NUMBER}", r"(?<!\w)\.\d+"),
    "option": (
        r"\([A-Ha-h]\)",
        r"(?<!\w)[A-H](?=[.):](?:\s|\Z))",
        r"(?:(?<=[Oo]ption )|(?<=[Cc]hoice )|(?<=answer is ))[A-H](?!\w)",
        # any other single letter is a label, too; "A" and "I" are words, and so is "X-ray"
        r"(?<![\w'’-])[B-HJ-Z](?![\w'’.-])",
    ),
}
# "1st" is translated ("1.", "primero"), so only its digits can be compared.
TRANSLATED_KINDS = frozenset({"ordinal"})
# Most engines preserve these by themselves, and translate better if they see them.
_VISIBLE_KINDS = frozenset({"number", "option", "token"}) | TRANSLATED_KINDS

# A kind can match only where its trigger does. Most lines have no trigger, and the others few:
# trying all kinds at each letter would take five times as long.
_TRIGGERS = {
    "code": r"`",
    "latex": r"[\\$]",
    "image": r"<i",
    "url": r"://|www\.|@",
    "markup": r"[<&\[\]*_~]",
    "box": r"[\[({<]\s*[-+−.\d]",
    "quote": r"[\"“«„‘']",
    "ordinal": r"\d['snrt]",
    "token": r"\d",
    "number": r"\d",
    "option": r"\([A-Ha-h]\)|[A-HJ-Z](?![a-z])",
}
_TRIGGER = re.compile(r"[\d<\[\]{(`$\\\"“«„‘'&*_~@]|www\.|://|[A-HJ-Z](?![a-z])")
_TRIGGER_OF = {kind: re.compile(trigger) for kind, trigger in _TRIGGERS.items()}
# Words before or after a quotation which show that it is text in the image.
_CUE = re.compile(
    r"\b(?:say(?:s|ing)?|said|reads?|reading|spell(?:s|ed|ing)?|writ(?:es?|ing|ten)|wrote"
    r"|stating|print(?:s|ed)?|label(?:s|l?ed|l?ing)?|title[sd]?|subtitles?|caption(?:s|ed)?"
    r"|inscri(?:bed|ptions?)|engraved|embossed|stamped|painted|embroidered|tattoo(?:s|ed)?"
    r"|lettering|letters?|mark(?:ed|ings?)|displays?|displayed|displaying|advertis(?:es|ing)"
    r"|signs?|signage|signboards?|texts?|words?|phrases?|messages?|logos?|brands?|slogans?"
    r"|banners?|posters?|headlines?|headings?|stickers?|tags?|buttons?|tabs?|menus?|placards?"
    r"|billboards?|plaques?|(?:license|number|name) ?plates?|watermarks?|graffiti|hashtags?"
    r"|marquees?|scoreboards?|screens?|websites?|passwords?)\b",
    re.IGNORECASE,
)
_NAME_BEFORE = re.compile(r"\bnames?(?: (?:is|are|of))?[\s:,]*\Z", re.IGNORECASE)
_ON_IT = re.compile(
    r"\A[\s,]*on (?:it|its|them|his|her|their|both|the (?:front|back|sides?|top|bottom))\b",
    re.IGNORECASE,
)
_BEFORE, _AFTER = 70, 25  # characters that are searched for a cue
_CLAUSE_END = re.compile(r"[.!?;](?=\s|\Z)|\n")
_JOINED = re.compile(r"[\s,;/&]*(?:and|or)?\s*")
_PLAIN_WORD = re.compile(r"[^\W\d_][^\W\d_A-Z]*(?:['’-][^\W\d_]+)*")

# Full-width letters and digits, and the digits of other scripts.
_VARIANT = re.compile(r"[Ａ-Ｚａ-ｚ]|[^\D0-9]")
# Separators of a conversation, which would end the turn in a translation.
_SEPARATORS = re.compile(r"<image>|</?s>|<\|[^|\n]*\|>|###|\b(?:USER|ASSISTANT):")
_DIGITS = re.compile(r"\d+(?:[.,:/×]\d+)*")

# Placeholders, by name. `{}` is a number; engines may insert blanks and change the case.
STYLES: dict[str, str] = {
    "brackets": "[[{}]]",
    "angle": "⟦{}⟧",
    "tag": "<x{}/>",
    "braces": "{{{}}}",
    "word": "XQ{}QX",
    "underscores": "__{}__",
}


class ProtectedSpan(NamedTuple):
    """A part of a text that must be preserved.

    Attributes:
        start: Index of its first character.
        end: Index after its last character.
        kind: A key of `_PATTERNS`.
    """

    start: int
    end: int
    kind: str


class Masked(NamedTuple):
    """A text with placeholders.

    Attributes:
        text: The text that the engine receives.
        parts: What each placeholder stands for, by its number.
        style: Name of the style; "visible" masks only what engines are known to change.
    """

    text: str
    parts: tuple[str, ...]
    style: str


def find_spans(text: str, any_quotation: bool = False) -> tuple[ProtectedSpan, ...]:
    """Finds the parts of a text that translation must not change.

    Args:
        text: English text; English words show which quotations are text in the image.
        any_quotation: Whether to protect every quotation, as is needed in a translation.

    Returns:
        Spans in order, without overlaps.

    Example:
        >>> find_spans('The sign reads "STOP".')
        (ProtectedSpan(start=15, end=21, kind='quote'),)
    """
    find = _find if len(text) <= _MAX_KNOWN_LENGTH else _find.__wrapped__
    return find(text, any_quotation)


_MAX_KNOWN_LENGTH = 1000


# each step (splitting, masking, comparing, checking) goes over all lines of a record batch
@lru_cache(maxsize=1 << 15)
def _find(text: str, any_quotation: bool) -> tuple[ProtectedSpan, ...]:
    if _TRIGGER.search(text) is None:
        return ()
    kinds = tuple([kind for kind, trigger in _TRIGGER_OF.items() if trigger.search(text)])
    return tuple(_matches(_pattern(kinds), text, 0, len(text), any_quotation)) if kinds else ()


def _matches(
    pattern: re.Pattern[str], text: str, start: int, end: int, any_quotation: bool
) -> Iterator[ProtectedSpan]:
    """Yields the spans of `text[start:end]`; searches quotations of ordinary words for spans."""
    seen_end = -1  # end of the last quotation that is text in the image
    for match in pattern.finditer(text, start, end):
        # `lastgroup` is the environment's name inside a formula
        kind = "latex" if match.lastgroup == "_env" else str(match.lastgroup)
        first, last = match.span()
        if kind == "quote" and not any_quotation:
            is_listed = seen_end >= 0 and _JOINED.fullmatch(text, seen_end, first)
            if not is_listed and not _is_image_text(text, first, last):
                yield from _matches(pattern, text, first + 1, last - 1, any_quotation)
                continue
            seen_end = last
        yield ProtectedSpan(first, last, kind)


def _is_image_text(text: str, start: int, end: int) -> bool:
    """Returns whether a quotation in an English text is text in the image.

    It is if the sentence says so ('the sign reads "Open"'), if it has a digit, only capitals, or
    looks like code, or if it is the whole text. Other quotation marks enclose ordinary words and
    names ('one of the "gas giants"'), which people translate.

    Args:
        text: The English text.
        start: Index of the opening mark.
        end: Index after the closing mark.
    """
    quoted = text[start + 1 : end - 1].strip(" .,!?")
    before = _CLAUSE_END.split(text[max(0, start - _BEFORE) : start])[-1]
    after = _CLAUSE_END.split(text[end : end + _AFTER])[0]
    is_one_word = quoted != "" and not any(map(str.isspace, quoted))
    return bool(
        (not any(map(str.islower, quoted)) and any(map(str.isupper, quoted)))
        or any(map(str.isdigit, quoted))
        or (is_one_word and not _PLAIN_WORD.fullmatch(quoted))
        or _CUE.search(before)
        or _CUE.search(after)
        or _NAME_BEFORE.search(before)
        or _ON_IT.match(after)
        or not any(map(str.isalnum, text[:start] + text[end:]))
    )


def plain_characters(text: str) -> str:
    """Replaces full-width letters and the digits of other scripts by ASCII.

    Example:
        >>> plain_characters("选项Ｂ，９只")
        '选项B，9只'
    """
    return _VARIANT.sub(_plain_character, text)


def _plain_character(match: re.Match[str]) -> str:
    digit = unicodedata.decimal(match[0], None)
    return unicodedata.normalize("NFKC", match[0]) if digit is None else str(digit)


@cache
def _pattern(kinds: tuple[str, ...]) -> re.Pattern[str]:
    groups = (f"(?P<{kind}>{'|'.join(_PATTERNS[kind])})" for kind in kinds)
    return re.compile("|".join(groups), re.DOTALL)


def outside_of(spans: Sequence[ProtectedSpan], text: str) -> list[str]:
    """Returns the pieces of a text before, between and after spans."""
    starts, ends = [span.start for span in spans], [span.end for span in spans]
    return [text[a:b] for a, b in zip([0, *ends], [*starts, len(text)], strict=True)]


def mask(text: str, style: str = "visible") -> Masked | None:
    """Replaces the protected parts of a text by placeholders.

    Args:
        text: One line.
        style: A name of `STYLES` to mask everything; or "visible" to keep numbers, option letters
            and the like visible and mask the rest as in "brackets".

    Returns:
        The masked text; None if the text already contains something like such a placeholder.

    Example:
        >>> mask('Does it say "2 km"?', "angle")
        Masked(text='Does it say ⟦0⟧?', parts=('"2 km"',), style='angle')
    """
    hidden = TRANSLATED_KINDS if style != "visible" else _VISIBLE_KINDS
    spans = [span for span in find_spans(text) if span.kind not in hidden]
    if not spans:
        return Masked(text, (), style)
    outside = outside_of(spans, text)
    if any(map(_placeholder(style).search, outside)):
        return None
    form = STYLES["brackets" if style == "visible" else style]
    placeholders = [*map(form.format, range(len(spans))), ""]
    masked = "".join(piece + mark for piece, mark in zip(outside, placeholders, strict=True))
    return Masked(masked, tuple(text[s.start : s.end] for s in spans), style)


def restore(masked: Masked, answer: str) -> str | None:
    """Restores the protected parts in an engine's answer to a masked text.

    Returns:
        The text; None unless the answer has every placeholder exactly once.
    """
    if not masked.parts:
        return answer
    seen: list[int] = []

    def part(match: re.Match[str]) -> str:
        number = int(match[1])
        seen.append(number)
        return masked.parts[number] if number < len(masked.parts) else ""

    text = _placeholder(masked.style).sub(part, answer)
    return text if sorted(seen) == list(range(len(masked.parts))) else None


def damaged_parts(
    source: str, target: str, spans: Sequence[ProtectedSpan] | None = None
) -> list[str]:
    """Compares the protected parts of a text with those of its translation.

    Args:
        source: The English text.
        target: Its translation, restored.
        spans: The result of `find_spans` for the source, if it is known already.

    Returns:
        What is missing or too much: `missing "STOP"`, `too much 3`; empty if nothing is. Only
        digits and turn separators can be too much: a language may add quotation marks, and a
        single letter may be a word in it.
    """
    wanted: dict[str, int] = {}
    for span in find_spans(source) if spans is None else spans:
        if span.kind not in TRANSLATED_KINDS:
            part = source[span.start : span.end]
            wanted[part] = wanted.get(part, 0) + 1
    if source != target:
        target = plain_characters(target)
    short = {part: n for part, n in wanted.items() if _count(part, target) < n}
    if short:  # a number may be part of a larger span in both texts
        seen, others = (
            Counter(target[span.start : span.end] for span in find_spans(target, any_quotation))
            for any_quotation in (False, True)
        )
        seen |= others
        short = {part: n for part, n in short.items() if seen[part] < n}
    faults = [f"missing {part}" for part in short]
    for pattern in (_DIGITS, _SEPARATORS):
        if (found := pattern.findall(target)) and found != (allowed := pattern.findall(source)):
            faults += [f"too much {n}" for n in Counter(found) - Counter(allowed)]
    return faults


def split(text: str) -> list[tuple[str, bool]]:
    """Splits a text at its protected parts, for engines that preserve no placeholder.

    Returns:
        Pieces in order, and whether each is protected. Blanks around words are protected pieces of
        their own, because engines strip them.
    """
    pieces: list[tuple[str, bool]] = []
    spans = [s for s in find_spans(text) if s.kind not in TRANSLATED_KINDS]
    protected = [*(text[span.start : span.end] for span in spans), ""]
    for between, part in zip(outside_of(spans, text), protected, strict=True):
        words = between.strip(_EDGE)
        if words and any(map(str.isalpha, words)):
            before, _, after = between.partition(words)
            pieces += (before, True), (words, False), (after, True), (part, True)
        else:
            pieces += (between, True), (part, True)
    return [piece for piece in pieces if piece[0]]


# Blanks and punctuation at the edge of a piece, which need no translation.
_EDGE = " \t ,;:.!?()[]-–—/"


def _count(part: str, text: str) -> int:
    """Counts the occurrences of a part in a text; "5" does not occur in "15", nor "B2" in "B27"."""
    count = 0
    start = text.find(part)
    while start >= 0:
        end = start + len(part)
        inside = (_is_word(text[start - 1 : start]) and _is_word(part[0])) or (
            _is_word(part[-1]) and _is_word(text[end : end + 1])
        )
        count += not inside
        start = text.find(part, end if not inside else start + 1)
    return count


def _is_word(character: str) -> bool:
    # ASCII only: Chinese has no blank between a number and a word
    return character.isascii() and character.isalnum()


@cache
def _placeholder(style: str) -> re.Pattern[str]:
    """Returns a pattern of a placeholder as an engine may have changed it."""
    form = STYLES["brackets" if style == "visible" else style].format("\0")
    before, after = (r"\s?".join(map(re.escape, half)) for half in form.split("\0"))
    return re.compile(rf"{before}\s?(\d+)\s?{after}", re.IGNORECASE)
