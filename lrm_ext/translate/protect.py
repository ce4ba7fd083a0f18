"""The parts of a text that translation must not touch: found, masked, restored, checked.

Input: one line of English. Output: the line with placeholders in place of those parts, and, of what
an engine sends back, the line with the parts restored to the character; None if one was lost,
doubled or changed. There are several styles of placeholder because no engine keeps all of them.
Line structure is not here (`segment.py`), nor is who tries what and when (`translator.py`).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

# Longer quotations are speech, not text that is seen in a picture.
_QUOTED = r"[^\n{0}]{{1,300}}"
_NUMBER = r"\d+(?:[.,:/×]\d+)*"
_SIGNED = r"[-+−]?(?:\d+(?:\.\d+)?|\.\d+)"

# Where several would match at one place, the first does.
_PATTERNS: dict[str, tuple[str, ...]] = {
    "code": (r"```.*?(?:```|\Z)", r"`[^`\n]+`"),
    "latex": (
        r"\$\$.{1,2000}?\$\$",
        r"\\\[.{1,2000}?\\\]",
        r"\\\(.{1,2000}?\\\)",
        r"\\begin\{(?P<_env>[a-z]+\*?)\}.{0,2000}?\\end\{(?P=_env)\}",
        # "$5 and $10" is money: a formula has no blank inside its dollars and no digit after them,
        # and it is one word or has what prose has not
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
        # any other letter by itself is a label too; "A" and "I" are words, "X-ray" is one
        r"(?<![\w'’-])[B-HJ-Z](?![\w'’.-])",
    ),
}
KINDS = tuple(_PATTERNS)
# "1st" is translated ("1.", "primero"): only its digits can be compared.
TRANSLATED_KINDS = frozenset({"ordinal"})
# Most engines carry these through by themselves, and translate better where they see them.
_VISIBLE_KINDS = frozenset({"number", "option", "token"}) | TRANSLATED_KINDS

# A kind can only match where one of these stands. Most lines have none of them, and the others few:
# looking for all kinds at each letter would take five times as long.
_TRIGGERS: dict[str, str] = {
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
# What tells that a quotation is text in the image: a word before it in its sentence, or after it.
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
_BEFORE, _AFTER = 70, 25  # characters in which a cue is looked for
_CLAUSE_END = re.compile(r"[.!?;](?=\s|\Z)|\n")
_JOINED = re.compile(r"[\s,;/&]*(?:and|or)?\s*")
_PLAIN_WORD = re.compile(r"[^\W\d_][^\W\d_A-Z]*(?:['’-][^\W\d_]+)*")

# Letters and digits of full width, and the digits of other scripts.
_VARIANT = re.compile(r"[Ａ-Ｚａ-ｚ]|[^\D0-9]")
# A conversation's own marks: in a translation they would end the turn.
_SEPARATORS = re.compile(r"<image>|</?s>|<\|[^|\n]*\|>|###|\b(?:USER|ASSISTANT):")
_DIGITS = re.compile(r"\d+(?:[.,:/×]\d+)*")

# Placeholders, by name. `{}` is a number; engines may put blanks inside and change case.
STYLES: dict[str, str] = {
    "brackets": "[[{}]]",
    "angle": "⟦{}⟧",
    "tag": "<x{}/>",
    "braces": "{{{}}}",
    "word": "XQ{}QX",
    "underscores": "__{}__",
}


class Span(NamedTuple):
    """A part of a text that has to come back as it is.

    Attributes:
        start: Index of its first character.
        end: Index after its last character.
        kind: One of `KINDS`.
    """

    start: int
    end: int
    kind: str


class Masked(NamedTuple):
    """A text with placeholders.

    Attributes:
        text: What the engine gets.
        parts: What stands behind each placeholder, by its number.
        style: Name of the style; "visible" masks only what engines are known to change.
    """

    text: str
    parts: tuple[str, ...]
    style: str


def find_spans(text: str, any_quotation: bool = False) -> tuple[Span, ...]:
    """Find the parts of a text that must survive translation unchanged.

    Args:
        text: English; what tells which quotations are text in the image are English words.
        any_quotation: Whether to take every quotation for one, as a translation needs it.

    Returns:
        Spans in order, none overlapping another.

    Example:
        >>> find_spans('The sign reads "STOP" in 2 languages.')
        (Span(start=15, end=21, kind='quote'), Span(start=25, end=26, kind='number'))
    """
    find = _find if len(text) <= _MAX_KNOWN_LENGTH else _find.__wrapped__
    return find(text, any_quotation)


_MAX_KNOWN_LENGTH = 1000


# a line is taken apart, masked, compared and checked; all lines of a record batch at each step
@lru_cache(maxsize=1 << 15)
def _find(text: str, any_quotation: bool) -> tuple[Span, ...]:
    if _TRIGGER.search(text) is None:
        return ()
    kinds = tuple([kind for kind, trigger in _TRIGGER_OF.items() if trigger.search(text)])
    return tuple(_matches(_pattern(kinds), text, 0, len(text), any_quotation)) if kinds else ()


def _matches(
    pattern: re.Pattern[str], text: str, start: int, end: int, any_quotation: bool
) -> Iterator[Span]:
    """The spans of `text[start:end]`; a quotation of ordinary words is searched like other text."""
    seen_end = -1  # of the last quotation that is text in the image
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
        yield Span(first, last, kind)


def _is_image_text(text: str, start: int, end: int) -> bool:
    """Whether a quotation in an English text is text that can be seen in the image.

    It is where the sentence says so ('the sign reads "Open"'), where it has a digit, capitals only
    or looks like code, and where it is all of the text. Other quotation marks stand around
    ordinary words and names ('one of the "gas giants"'), which people translate.

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
    """A text with ASCII letters and digits in place of those of full width and other scripts.

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


def mask(text: str, style: str = "visible") -> Masked | None:
    """Put placeholders where the protected parts are.

    Args:
        text: One line.
        style: A name of `STYLES`: everything is masked; or "visible": numbers, option letters and
            the like stay in sight, the rest is masked as in "brackets".

    Returns:
        The masked text; None if it already has something that looks like such a placeholder.

    Example:
        >>> mask('Does it say "2 km"?', "angle")
        Masked(text='Does it say ⟦0⟧?', parts=('"2 km"',), style='angle')
    """
    hidden = TRANSLATED_KINDS if style != "visible" else _VISIBLE_KINDS
    spans = [span for span in find_spans(text) if span.kind not in hidden]
    if not spans:
        return Masked(text, (), style)
    form = STYLES["brackets" if style == "visible" else style]
    pieces: list[str] = []
    end = 0
    for number, span in enumerate(spans):
        pieces += text[end : span.start], form.format(number)
        end = span.end
    pieces.append(text[end:])
    if any(_placeholder(style).search(piece) for piece in pieces[::2]):
        return None
    return Masked("".join(pieces), tuple(text[s.start : s.end] for s in spans), style)


def restore(masked: Masked, answer: str) -> str | None:
    """Put the protected parts back into what an engine made of a masked text.

    Returns:
        The text; None unless every placeholder is there exactly once.
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


def damaged_parts(source: str, target: str, spans: Sequence[Span] | None = None) -> list[str]:
    """Compare the protected parts of a text with those of its translation.

    Args:
        source: The English text.
        target: Its translation, restored.
        spans: What `find_spans` says of the source, if that is known already.

    Returns:
        What is missing or too much, for people to read: `missing "STOP"`, `too much 3`; empty if
        all is well. Only digits and marks that separate turns can be too much: a language may add
        quotation marks, and a letter by itself may be a word in it.
    """
    wanted: dict[str, int] = {}
    for span in find_spans(source) if spans is None else spans:
        if span.kind not in TRANSLATED_KINDS:
            part = source[span.start : span.end]
            wanted[part] = wanted.get(part, 0) + 1
    if source != target:
        target = plain_characters(target)
    short = {part: n for part, n in wanted.items() if _count(part, target) < n}
    if short:  # a number may stand in the middle of something odd, in both
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
    """Cut a text at its protected parts, for engines that keep no placeholder.

    Returns:
        Pieces in order, and whether each is protected. Blanks around words are pieces of their
        own, protected, since engines strip them.
    """
    pieces: list[tuple[str, bool]] = []
    end = 0
    spans = [s for s in find_spans(text) if s.kind not in TRANSLATED_KINDS]
    for span in (*spans, Span(len(text), len(text), "")):
        between = text[end : span.start]
        words = between.strip(_EDGE)
        if words and any(map(str.isalpha, words)):
            start = between.index(words)
            pieces += (between[:start], True), (words, False)
            pieces.append((between[start + len(words) :], True))
        else:
            pieces.append((between, True))
        pieces.append((text[span.start : span.end], True))
        end = span.end
    return [piece for piece in pieces if piece[0]]


# Blanks and marks at the edge of a piece say nothing by themselves.
_EDGE = " \t ,;:.!?()[]-–—/"


def _count(part: str, text: str) -> int:
    """How often a part stands in a text; "5" does not stand in "15" nor "B2" in "B27"."""
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
    # Chinese has no blank between a number and a word
    return character.isascii() and character.isalnum()


@cache
def _placeholder(style: str) -> re.Pattern[str]:
    """What an engine may have made of a placeholder."""
    form = STYLES["brackets" if style == "visible" else style].format("\0")
    before, after = (r"\s?".join(map(re.escape, half)) for half in form.split("\0"))
    return re.compile(rf"{before}\s?(\d+)\s?{after}", re.IGNORECASE)
