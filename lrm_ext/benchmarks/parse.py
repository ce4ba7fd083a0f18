"""Read an answer in its own language: yes or no, or a short text (mode `local`, EVAL_SPEC 7).

In: the text that a model wrote, and the word lists of a language. Out: what it decides, and in
which language it says so. Pure functions, no I/O; the lists come from the language files.
Content decides whether an answer is right; its language is reported apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

Rule = Literal["mme", "pope"]
NEUTRAL: Final = "letter"  # an answer that belongs to no language: one letter, or only digits
OTHER: Final = "other"

_APOSTROPHES = "\u2018\u2019\u201a\u201b\u02bc"
_HYPHENS = "\u2010\u2011\u2012\u2013\u2212"
_QUOTES = '"\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a\u300c\u300d\u300e\u300f'
# zero width, soft hyphen, marks of direction
_INVISIBLE = "".join(
    map(chr, [*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A)])
) + "\u2060\ufeff\u00ad\u061c"  # fmt: skip
_TRANSLATION = (
    {ord(c): "'" for c in _APOSTROPHES}
    | {ord(c): "-" for c in _HYPHENS}
    | dict.fromkeys(map(ord, "*_`" + _QUOTES + _INVISIBLE))
)
_TAG = re.compile(r"</?[a-z]+[1-6]?\s*/?>", re.IGNORECASE)
_LINE_TAG = re.compile(r"<(?:br\s*/?|/p|/div|/li)>", re.IGNORECASE)
_LATEX = re.compile(r"\\(?:boxed|fbox|text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_LIST_MARK = re.compile(r"\A\s*(?:\d{1,2}[.)]\s*|[-\u2022]\s+)(?=\D)")
_SINGLE_QUOTED = re.compile(r"(?<!\w)'([^'\n]+)'(?!\w)")
_SENTENCE_END = re.compile("[.!?;\u3002\n]")
_WORD = re.compile(r"\w+")
_ASCII_WORD = re.compile(r"[a-z]+")
_SPACES = re.compile(r"\s+")


def normalise(text: str, keep_newlines: bool = False) -> str:
    """Unify the ways in which the same characters can be written.

    NFKC; typographic apostrophes and hyphens to ASCII; invisible characters, quotes and markup
    (Markdown, HTML, LaTeX's boxes) deleted; white space collapsed and stripped.

    Args:
        text: Any text.
        keep_newlines: Leave line ends standing, where they end a sentence.
    """
    text = _without_markup(unicodedata.normalize("NFKC", text)).translate(_TRANSLATION)
    text = _SINGLE_QUOTED.sub(r"\1", text)
    if keep_newlines:
        return "\n".join(_SPACES.sub(" ", line).strip() for line in text.splitlines()).strip()
    return _SPACES.sub(" ", text).strip()


def _without_markup(text: str) -> str:
    plain = _TAG.sub("", _LINE_TAG.sub("\n", text)) if "<" in text else text
    while "\\" in plain and (match := _LATEX.search(plain)):
        plain = plain[: match.start()].rstrip("$") + match[1] + plain[match.end() :].lstrip("$")
    # a text that is nothing but a tag is about it ("<b>" as an option)
    return plain if plain.strip() else text


def fold(text: str) -> str:
    """Casefold, then remove combining marks from Latin letters only.

    Marks on other scripts make other letters (Cyrillic short i), so they stay.
    """
    kept: list[str] = []
    after_latin = False
    for character in unicodedata.normalize("NFD", text.casefold()):
        if not unicodedata.combining(character):
            after_latin = unicodedata.name(character, "").startswith("LATIN")
        elif after_latin:
            continue
        kept.append(character)
    return unicodedata.normalize("NFC", "".join(kept))


def words_of(text: str) -> list[str]:
    """Runs of letters and digits."""
    return _WORD.findall(text)


def first_sentence(text: str) -> str:
    """Text up to the first sentence end that leaves at least one word."""
    for end in _SENTENCE_END.finditer(text):
        head = text[: end.start()]
        if _WORD.search(head):
            return head
    return text


@dataclass(frozen=True)
class AnswerWords:
    """How one language says yes and no. All entries are normalised and folded.

    Attributes:
        lang: Language code.
        yes: Words (phrases where `spaced` is false) that affirm, English ones included.
        no: Words that deny or negate, English ones included.
        native: The words and phrases of the language itself.
        letters: One-letter answers and what they mean.
        stop: Phrases that begin like an answer and decide nothing.
        spaced: Whether white space separates words.
    """

    lang: str
    yes: frozenset[str]
    no: frozenset[str]
    native: frozenset[str]
    letters: Mapping[str, str]
    stop: frozenset[str] = frozenset()
    spaced: bool = True

    @classmethod
    def build(
        cls,
        lang: str,
        *,
        yes: Iterable[str],
        no: Iterable[str],
        letters: Mapping[str, str],
        english_yes: Iterable[str] = ("yes",),
        english_no: Iterable[str] = ("no", "not"),
        english_letters: Mapping[str, str] = MappingProxyType({"y": "yes", "n": "no"}),
        stop: Iterable[str] = (),
        spaced: bool = True,
    ) -> AnswerWords:
        """Fold the lists of a language and add the English words and letters.

        That no word means both is the language file's to check, and is checked there.
        """
        own_yes, own_no = _folded(yes), _folded(no)
        return cls(
            lang=lang,
            yes=own_yes | _folded(english_yes),
            no=own_no | _folded(english_no),
            native=own_yes | own_no,
            letters={fold(k): v for k, v in {**english_letters, **letters}.items()},
            stop=_folded(stop),
            spaced=spaced,
        )

    @property
    def harmless(self) -> frozenset[str]:
        """Phrases to delete before looking for a negation inside a sentence without spaces.

        The stop phrases, and affirmations that are written with a negation ("not wrong").
        """
        return self.stop | {yes for yes in self.yes if any(no in yes for no in self.no)}


def _folded(words: Iterable[str]) -> frozenset[str]:
    return frozenset(fold(normalise(word)) for word in words)


@dataclass(frozen=True)
class YesNo:
    """What a yes/no answer says.

    Attributes:
        label: `yes` or `no`; where it says neither `other` (rule `mme`) or `unparsed` (`pope`).
        answer_lang: Language code of the deciding word, `letter`, or `other`.
        by_default: It is `yes` only because nothing negates (rule `pope`).
    """

    label: str
    answer_lang: str
    by_default: bool = False


def parse_yes_no(answer: str, words: AnswerWords, rule: Rule = "mme") -> YesNo:
    """Decide what an answer to a yes/no question says.

    The beginning of the answer decides. Where it does not, `mme` gives `other`, and `pope` takes
    any negation in the first sentence for a no and everything else for a yes.

    Args:
        answer: The text that the model wrote.
        words: The lists of the language that was asked in.
        rule: `mme` (strict) or `pope`.

    Example:
        >>> words = AnswerWords.build("hr", yes=["da"], no=["ne"], letters={"d": "yes"})
        >>> parse_yes_no("Ne, nema psa.", words)
        YesNo(label='no', answer_lang='hr', by_default=False)
    """
    text = _LIST_MARK.sub("", fold(normalise(answer, keep_newlines=True)))
    all_words = words_of(text)
    if not all_words:
        return YesNo("other" if rule == "mme" else "unparsed", OTHER)
    if len(all_words) == 1 and (letter := words.letters.get(all_words[0])):
        return YesNo(letter, NEUTRAL)
    sentence = first_sentence(text)
    if leading := _leading(sentence, words):
        return leading
    if rule == "mme":
        return YesNo("other", OTHER)
    if negation := _negation(sentence, words):
        return YesNo("no", _language_of(negation, words))
    return YesNo("yes", OTHER, by_default=True)


def _leading(sentence: str, words: AnswerWords) -> YesNo | None:
    """What the beginning of a sentence decides, if anything."""
    found = words_of(sentence)[0]
    if not words.spaced:
        start = sentence[sentence.index(found) :]
        if latin := _ASCII_WORD.match(start):
            found = latin.group()
        else:
            phrases = words.yes | words.no | words.stop
            found = max((p for p in phrases if start.startswith(p)), key=len, default="")
    if found in words.no:
        return YesNo("no", _language_of(found, words))
    if found in words.yes:
        return YesNo("yes", _language_of(found, words))
    return None


def _negation(sentence: str, words: AnswerWords) -> str | None:
    """A negation anywhere in a sentence."""
    if words.spaced:
        return next((word for word in words_of(sentence) if word in words.no), None)
    for phrase in sorted(words.harmless, key=len, reverse=True):
        sentence = sentence.replace(phrase, " ")
    latin = set(_ASCII_WORD.findall(sentence))
    found = [no for no in words.no if (no in latin if no.isascii() else no in sentence)]
    return max(found, key=len, default=None)


def _language_of(word: str, words: AnswerWords) -> str:
    return words.lang if word in words.native else "en"


def text_key(text: str) -> str:
    """What two short texts must share to count as the same answer.

    Normalised and folded, without a full stop (or exclamation mark) at the end.
    """
    return fold(normalise(text)).rstrip(".!\u3002 ")


def _answer_keys(answer: str) -> set[str]:
    """`text_key` of an answer as it stands, and without a list mark before it ("1. red")."""
    return {text_key(answer), text_key(_LIST_MARK.sub("", answer))}


def matches_text(answer: str, gold: str) -> bool:
    """Whether a short free answer equals the expected one; a longer answer does not."""
    return text_key(gold) in _answer_keys(answer) - {""}


def text_language(answer: str, lang: str, native: Collection[str], english: Collection[str]) -> str:
    """Tell the language of a short answer by the answers that the benchmark itself uses.

    Args:
        answer: The text that the model wrote.
        lang: The language that was asked in.
        native: `text_key` of every expected answer in that language.
        english: The same in English.

    Returns:
        `lang`, `en`, `letter` (no letters at all: figures) or `other`.
    """
    keys = _answer_keys(answer)
    key = text_key(answer)
    if key and not any(character.isalpha() for character in key):
        return NEUTRAL
    if not keys.isdisjoint(native):
        return lang
    return OTHER if keys.isdisjoint(english) else "en"
