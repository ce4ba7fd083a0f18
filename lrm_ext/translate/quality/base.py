"""Defines what the checks share: pairs of texts, thresholds and verdicts.

`Thresholds` are the [quality] section of a language file, with defaults for what it leaves out.
`tools/calibrate_quality.py` measures limits and writes them into the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import msgspec
import regex

from llava.errors import ConfigError
from llava.files import convert
from lrm_ext.languages.identification import Confusable
from lrm_ext.languages.registry import ENGLISH, get_language
from lrm_ext.translate.protect import ProtectedSpan, find_spans, outside_of, plain_characters

# Findings of these checks are a matter of degree, since people translate freely, too: review them.
# Findings of the other checks are errors.
DOUBTS = frozenset({"near", "meaning", "length", "ending"})


@dataclass(frozen=True, slots=True)
class FailedCheck:
    """One failed check.

    Attributes:
        check: Name of the check.
        value: The measured value; larger is worse.
        limit: The largest value that passes.
        message: What is wrong, in words.
    """

    check: str
    value: float
    limit: float
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.message}"


@dataclass(frozen=True, slots=True)
class RowVerdict:
    """The result of all checks of a text or a row.

    Attributes:
        findings: The failed checks, in the order in which checks run.
        values: The value of each check, for a row that of its worst turn; larger is worse. A check
            that cannot judge, such as the language of one word, has no value.
    """

    findings: tuple[FailedCheck, ...]
    values: Mapping[str, float]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return not self.findings

    @property
    def status(self) -> str:
        """The row's status: "ok", "suspect" if all findings are doubts, or "rejected"."""
        if self.ok:
            return "ok"
        return "suspect" if all(f.check in DOUBTS for f in self.findings) else "rejected"

    @property
    def reasons(self) -> list[str]:
        """The findings in words, errors before doubts."""
        return [str(f) for f in sorted(self.findings, key=lambda f: f.check in DOUBTS)]


class Measured(NamedTuple):
    """The value of one check for one text.

    Attributes:
        value: Larger is worse; 0 is perfect.
        message: What is wrong if the value is above the limit.
    """

    value: float
    message: str


# A value above its limit is a finding. The limit is 0 where a translator has no choice.
DEFAULT_LIMITS: Mapping[str, float] = MappingProxyType(
    {
        "structure": 0.0,
        "protected": 0.0,
        "numbers": 0.0,
        "mojibake": 0.0,
        "answer": 0.0,
        "script": 0.2,
        "near": 0.1,
        "language": 8.0,
        "copy": 0.7,
        "repetition": 0.3,
        "length": 4.0,
        "ending": 0.0,
        "meaning": 0.7,
    }
)


class Thresholds(Confusable, frozen=True, forbid_unknown_fields=True):
    """The [quality] section of a language: what is normal for translations from English into it.

    Attributes:
        near: Codes of languages that an identifier cannot tell apart from it in a sentence; they
            pass.
        rivals: Codes of other languages, beside ours, that it may be mistaken for; they fail.
        foreign_letters: Letters of a near language that this one does not have.
        foreign_words: Frequent words of a near language that this one does not have, folded.
        length_ratio: Characters of a translation for each character of English; by default that of
            its script.
        length_spread: Standard deviation of the difference, in characters, for one character.
        limits: The largest value that passes, by check; by default from `DEFAULT_LIMITS`.
    """

    foreign_letters: str = ""
    foreign_words: frozenset[str] = frozenset()
    length_ratio: Annotated[float, msgspec.Meta(gt=0)] = 1.1
    length_spread: Annotated[float, msgspec.Meta(gt=0)] = 1.2
    limits: dict[str, float] = {}

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.limits) - set(DEFAULT_LIMITS)):
            raise ConfigError(
                f"limits: no check is called {', '.join(unknown)}; there are: "
                f"{', '.join(DEFAULT_LIMITS)}"
            )
        msgspec.structs.force_setattr(self, "limits", {**DEFAULT_LIMITS, **self.limits})

    def with_limits(self, limits: Mapping[str, float]) -> Thresholds:
        """Returns the same thresholds with other limits for some checks.

        Raises:
            ConfigError: A check is unknown.
        """
        return msgspec.structs.replace(self, limits={**self.limits, **limits})


# Their languages have articles or none, but no words for kinds of things, and end each sentence.
EUROPEAN_SCRIPTS = frozenset({"Latn", "Cyrl", "Grek"})
# Characters for each character of English where a file does not have the `length_ratio`, by script:
# means of the built-in sentences and of the captions of Debian's tuxpaint-stamps-default.
_SCRIPT_RATIOS: Mapping[str, float] = MappingProxyType(
    {
        **dict.fromkeys(("Hans", "Hant"), 0.3),
        **{"Kore": 0.4, "Jpan": 0.5, "Ethi": 0.65, "Hebr": 0.7},
        **dict.fromkeys(("Arab", "Beng", "Sinh", "Thai"), 0.8),
        **dict.fromkeys(("Cyrl", "Deva", "Taml", "Telu"), 0.9),
    }
)


@cache
def get_thresholds(lang: str) -> Thresholds:
    """Returns the thresholds for translations into a language.

    Raises:
        ConfigError: The language is unknown, or its [quality] section is invalid.
    """
    language = get_language(lang)
    thresholds = parse_thresholds(language.quality, f"{language.path}: quality")
    ratio = _SCRIPT_RATIOS.get(language.script)
    if ratio is None or "length_ratio" in language.quality:
        return thresholds
    return msgspec.structs.replace(thresholds, length_ratio=ratio)


def parse_thresholds(table: Mapping[str, Any], where: str) -> Thresholds:
    """Reads a [quality] section.

    Raises:
        ConfigError: A key is unknown, or a value is invalid.
    """
    # msgspec accepts unknown keys in a mapping that is not a dictionary
    return convert(dict(table), Thresholds, where)


# Up to 39, which is enough for centuries, kings and wars; with suffixes as in "XIXe" and "IIIrd".
ROMAN = re.compile(r"(?<![\w.])(?:([IVX]{2,7})[a-zè]{0,3}|([IVX]))(?!\w)")
# Of `regex`, because to `re` a mark (a vowel sign in Hindi) is no part of a word.
_WORD = regex.compile(r"[^\W\d_]+")
_LETTER = regex.compile(r"[^\W\d_\p{M}]\p{M}*")
# The quotation marks of all languages in CLDR, and blanks inside of them.
QUOTES = "\"'“”„‟«»‘’‚‛‹›「」『』《》〈〉״＂ \u00a0\u202f"


@dataclass(slots=True, eq=False)
class TextPair:
    """An English text and its translation.

    Attributes:
        source: The text.
        target: Its translation, with full-width letters and digits as ASCII.
        target_lang: Code of the translation's language.
        source_spans: The protected parts of the text.
        source_prose: The text with a blank in place of each protected part.
        target_prose: The same for the translation, without Roman numerals.
        source_words: Words of the text, folded, without protected parts.
        target_words: The same for the translation; letters if blanks do not separate words.
        parts: The prose of the translation; for a row, that of each turn.
        measured: The value of each check, by name, once they have run.
        known_words: For each word of the text in the lexicon, by key, whether the translation has
            it; None until `check_meaning` has run.
    """

    # plain attributes, because lazy properties cost more than they save
    source: str
    target: str
    target_lang: str
    source_spans: Sequence[ProtectedSpan]
    source_prose: str
    target_prose: str
    source_words: list[str]
    target_words: list[str]
    parts: tuple[str, ...]
    measured: dict[str, Measured] = field(default_factory=dict)
    known_words: dict[str, bool] | None = None

    @classmethod
    def of(cls, source: str, target: str, target_lang: str) -> TextPair:
        """Finds the protected parts and the words of a text and its translation."""
        target, spans = plain_characters(target), find_spans(source)
        source_prose = prose(source, spans)
        # so that "XIX" in "siglo XIX" is no word of another script or language
        target_prose = ROMAN.sub(" ", prose(target, _copied_spans(target, source)))
        return cls(
            source,
            target,
            target_lang,
            source_spans=spans,
            source_prose=source_prose,
            target_prose=target_prose,
            source_words=words(source_prose, ENGLISH),
            target_words=words(target_prose, target_lang),
            parts=(target_prose,),
        )

    @classmethod
    def of_all(cls, pairs: Sequence[TextPair]) -> TextPair:
        """Joins the turns of a row to one text, a line each, and reuses their results."""
        found: dict[str, bool] = {}
        for pair in pairs:
            for key, is_there in (pair.known_words or {}).items():
                found[key] = is_there or found.get(key, False)
        is_known = all([pair.known_words is not None for pair in pairs])
        return cls(
            "\n".join([pair.source for pair in pairs]),
            "\n".join([pair.target for pair in pairs]),
            pairs[0].target_lang,
            source_spans=(),
            source_prose="\n".join([pair.source_prose for pair in pairs]),
            target_prose="\n".join([pair.target_prose for pair in pairs]),
            source_words=list(chain.from_iterable([pair.source_words for pair in pairs])),
            target_words=list(chain.from_iterable([pair.target_words for pair in pairs])),
            parts=tuple([pair.target_prose for pair in pairs]),
            known_words=found if is_known else None,
        )


def _copied_spans(target: str, source: str) -> Sequence[ProtectedSpan]:
    """Returns the protected parts of a translation; quotations only if they occur in the text."""
    return [
        span
        for span in find_spans(target, any_quotation=True)
        if span.kind != "quote" or target[span.start : span.end].strip(QUOTES) in source
    ]


def prose(text: str, spans: Sequence[ProtectedSpan]) -> str:
    """Replaces each protected part of a text by a blank."""
    return " ".join(outside_of(spans, text)) if spans else text


def words(text: str, lang: str) -> list[str]:
    """Returns the folded words of a text; letters with their marks if no blanks separate words."""
    pattern = _WORD if get_language(lang).spaced else _LETTER
    return list(pattern.findall(text.casefold()))
