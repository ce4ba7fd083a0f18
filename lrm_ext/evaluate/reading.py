"""Reads what an answer says: yes or no, an option's letter, a short text, and its language.

Pure functions. Rules of lmms-eval and VLMEvalKit are for English; the local rules are for any
language and know its words, scripts and punctuation.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from typing import Final, Literal

import regex

from llava.eval.records import OPTION_LETTERS as LETTERS
from lrm_ext.languages.registry import (
    ENGLISH,
    Language,
    any_language,
    canonical_code,
    get_language,
    list_languages,
)

Rule = Literal["mme", "pope"]
NEUTRAL: Final = "letter"  # an answer that belongs to no language: one letter, or only digits
OTHER: Final = "other"
_APOSTROPHES = "\u2018\u2019\u201a\u201b\u02bc"
_HYPHENS = "\u2010\u2011\u2012\u2013\u2212"
_QUOTES = '"\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a\u300c\u300d\u300e\u300f\u05f4'
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
# Marks belong to words: vowel signs in the scripts of India, points in Arabic and Hebrew.
_IN_WORD: Final = r"[\w\p{M}]"
_SINGLE_QUOTED = regex.compile(rf"(?<!{_IN_WORD})'([^'\n]+)'(?!{_IN_WORD})")
# ASCII and Chinese; Arabic (with Urdu), Indic, Ethiopic, Armenian, Burmese and Khmer ones
_ENDS: Final = ".!?;\u3002\u061f\u061b\u06d4\u0964\u0965\u1362\u1367\u0589\u104b\u17d4"
_STOPS: Final = " .!\u3002\u06d4\u0964\u0965\u1362\u0589\u104b\u17d4"
_SENTENCE_END = re.compile(f"[{_ENDS}\n]")
_WORD = regex.compile(f"{_IN_WORD}+")
_NOT_ASCII_DIGIT = re.compile(r"[^\D0-9]")
_ASCII_WORD = re.compile(r"[a-z]+")
_SPACES = re.compile(r"\s+")
# with what separates groups of digits, or a fraction; a minus is no hyphen between two words
_NUMBER = re.compile(r"(?:(?<!\w)-)?\d+(?:(?:[.,']\d+)|(?: \d{3}(?!\d)))*")
_ARABIC_SEPARATORS = str.maketrans("\u066b\u066c", ".,")
# Scripts whose marks do not make other letters: accents in Latin and Greek, vowel points in Arabic
# and Hebrew. In Cyrillic they do (short i), and in the scripts of India they are vowels.
_OPTIONAL_MARKS: Final = ("LATIN", "GREEK", "ARABIC", "HEBREW")
# Dotless i, as in HAYIR; letters that Arabic, Persian and Urdu write alike, as Lucene's Arabic and
# Persian normalizers have them: forms of ya, kaf and ha, alef wasla, ta marbuta, and no tatweel.
_SAME_LETTER: Final = str.maketrans(
    "\u0131\u0649\u06cc\u06a9\u06c1\u06d5\u0629\u0671",
    "i\u064a\u064a\u0643\u0647\u0647\u0647\u0627",
    "\u0640",
)


def normalise(text: str, keep_newlines: bool = False) -> str:
    """Unifies the ways in which the same characters can be written.

    NFKC; digits of all scripts, typographic apostrophes and hyphens to ASCII; invisible characters,
    quotes and markup (Markdown, HTML, LaTeX's boxes) deleted; white space collapsed and stripped.

    Args:
        text: Any text.
        keep_newlines: Leave line ends standing, as they may end a sentence.
    """
    text = _without_markup(unicodedata.normalize("NFKC", text)).translate(_TRANSLATION)
    text = _NOT_ASCII_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text)
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
    """Casefolds, and unifies letters that writers of a language interchange.

    Combining marks are removed from Latin, Greek, Arabic and Hebrew letters only: on other scripts
    they make other letters (Cyrillic short i). Dotless i is an i; the forms of an Arabic letter
    are one.
    """
    kept: list[str] = []
    is_optional = False
    for character in unicodedata.normalize("NFD", text.casefold()):
        if not unicodedata.combining(character):
            is_optional = unicodedata.name(character, "").startswith(_OPTIONAL_MARKS)
        elif is_optional:
            continue
        kept.append(character)
    return unicodedata.normalize("NFC", "".join(kept)).translate(_SAME_LETTER)


def romanise(text: str, lang: str) -> str:
    """Writes a folded text of a language that has two scripts in Latin letters, folded.

    Example:
        >>> romanise("није", "sr"), romanise("није", "ru")
        ('nije', 'није')
    """
    table = _latin_letters(lang)
    return fold(text.translate(table)) if table else text


@cache
def _latin_letters(lang: str) -> Mapping[int, str]:
    code = canonical_code(lang)
    return str.maketrans(dict(get_language(code).local.latin)) if code in list_languages() else {}


def words_of(text: str) -> list[str]:
    """Returns the runs of letters with their marks, and digits."""
    return list(_WORD.findall(text))


def first_sentence(text: str) -> str:
    """Returns the text up to the first sentence end that leaves at least one word."""
    heads = (text[: end.start()] for end in _SENTENCE_END.finditer(text))
    return next(filter(_WORD.search, heads), text)


@dataclass(frozen=True)
class AnswerWords:
    """The words by which one language says yes and no, normalised and folded.

    Attributes:
        lang: Language code.
        yes: Words (phrases if `spaced` is false) that affirm, English ones included.
        no: Words that deny or negate, English ones included.
        native: The words and phrases of the language itself.
        letters: One-letter answers and what they mean.
        stop: Phrases that begin like an answer and decide nothing. If `spaced`, words that an
            answer may begin with before its yes or no ("जी"), and that negate nothing inside of a
            sentence although they look like an English no (Portuguese "no": in the).
        spaced: Whether white space separates words.
        labels: Letters of options (A, B, ...) by the labels that the language has for them.
    """

    lang: str
    yes: frozenset[str]
    no: frozenset[str]
    native: frozenset[str]
    letters: Mapping[str, str]
    stop: frozenset[str] = frozenset()
    spaced: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, language: Language, english: Language) -> AnswerWords:
        """Folds the word lists of a language and adds the English words and letters.

        That no word means both is checked with the language's file.
        """
        own, other = language.local, english.local
        own_yes, own_no = _folded(own.yes, language.code), _folded(own.no, language.code)
        return cls(
            lang=language.code,
            yes=own_yes | _folded(other.yes),
            no=own_no | _folded(other.no),
            native=own_yes | own_no,
            letters={fold(k): v for k, v in {**other.letters, **own.letters}.items()},
            stop=_folded(own.stop, language.code),
            spaced=language.spaced,
            labels=option_labels(own.option_letters),
        )

    @property
    def harmless(self) -> frozenset[str]:
        """Phrases to delete before looking for a negation inside a sentence without spaces.

        They are the stop phrases, and affirmations written with a negation ("not wrong").
        """
        return self.stop | {yes for yes in self.yes if any(no in yes for no in self.no)}


def _folded(words: Iterable[str], lang: str = ENGLISH) -> frozenset[str]:
    folded = [fold(normalise(word)) for word in words]
    return frozenset((*folded, *(romanise(word, lang) for word in folded)))


def option_labels(labels: Iterable[str]) -> Mapping[str, str]:
    """Returns the letter A, B, ... of each label of a language, folded.

    Labels in Latin and Cyrillic are not in it: they are letters in every language, by their shape
    or place (`infer_local`).
    """
    folded = [fold(normalise(label)) for label in labels]
    return {
        label: letter
        for label, letter in zip(folded, LETTERS, strict=False)
        if not unicodedata.name(label[0]).startswith(("LATIN", "CYRILLIC"))
    }


@dataclass(frozen=True)
class YesNo:
    """The meaning of a yes/no answer.

    Attributes:
        label: `yes` or `no`; if it says neither, `other` (rule `mme`) or `unparsed` (`pope`).
        answer_lang: Language code of the deciding word, `letter`, or `other`.
        by_default: It is `yes` only because nothing negates (rule `pope`).
    """

    label: str
    answer_lang: str
    by_default: bool = False


def parse_yes_no(answer: str, words: AnswerWords, rule: Rule = "mme") -> YesNo:
    """Decides what an answer to a yes/no question says.

    The beginning of the answer decides. If it does not, `mme` gives `other`, and `pope` takes
    any negation in the first sentence for a no and everything else for a yes.

    Args:
        answer: The text that the model wrote.
        words: The lists of the language that was asked in.
        rule: `mme` (strict) or `pope`.

    Example:
        >>> parse_yes_no("Ne, nema psa.", answer_words("hr"))
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
    """Returns what the beginning of a sentence decides, if anything."""
    said = words_of(sentence)
    found = said[0]
    if words.spaced:
        skipped = words.stop - words.no
        found = next((word for word in said if word not in skipped), found)
    else:
        start = sentence[sentence.index(found) :]
        if latin := _ASCII_WORD.match(start):
            found = latin.group()
        else:
            phrases = words.yes | words.no | words.stop
            found = max((p for p in phrases if _begins(start, p)), key=len, default="")
    label = "no" if found in words.no else "yes" if found in words.yes else ""
    return YesNo(label, _language_of(found, words)) if label else None


def _begins(text: str, phrase: str) -> bool:
    """Returns whether a text begins with a phrase and not with one of more letters."""
    following = text[len(phrase) : len(phrase) + 1]
    return text.startswith(phrase) and not unicodedata.category(following or " ").startswith("M")


def _negation(sentence: str, words: AnswerWords) -> str | None:
    """Returns a negation anywhere in a sentence."""
    if words.spaced:
        negations = words.no - words.stop
        return next((word for word in words_of(sentence) if word in negations), None)
    for phrase in sorted(words.harmless, key=lambda phrase: (-len(phrase), phrase)):
        sentence = sentence.replace(phrase, " ")
    latin = set(_ASCII_WORD.findall(sentence))
    found = [no for no in words.no if (no in latin if no.isascii() else no in sentence)]
    # of equally long ones the language's own: the order of a set differs from run to run
    return max(found, key=lambda no: (len(no), no in words.native, no), default=None)


def _language_of(word: str, words: AnswerWords) -> str:
    return words.lang if word in words.native else "en"


def text_key(text: str) -> str:
    """Returns what two short texts must share to count as the same answer.

    It is the text normalised and folded, without a full stop or exclamation mark at the end.
    """
    return fold(normalise(text)).rstrip(_STOPS)


def _answer_keys(answer: str) -> set[str]:
    """Returns `text_key` of an answer with and without a list mark before it ("1. red")."""
    return {text_key(answer), text_key(_LIST_MARK.sub("", answer))}


def matches_text(answer: str, gold: str, lang: str = ENGLISH) -> bool:
    """Tells whether a short free answer equals the expected one; a longer one does not.

    Args:
        answer: The text that the model wrote.
        gold: The expected answer.
        lang: Its language; if that has two scripts, an answer may be in either.
    """
    wanted = romanise(text_key(gold), lang)
    return wanted in {romanise(key, lang) for key in _answer_keys(answer)} - {""}


def last_numbers(text: str, lang: str = ENGLISH) -> frozenset[Decimal]:
    """Returns what the last number of a text may be, in the digits of any script.

    It has two values where English and the language separate groups of digits otherwise.

    Args:
        text: What the model wrote.
        lang: Its language.

    Example:
        >>> sorted(map(str, last_numbers("18 eggs, so 1.080 in all", "hr")))
        ['1.080', '1080']
    """
    from babel import UnknownLocaleError
    from babel.numbers import NumberFormatError, parse_decimal

    found = _NUMBER.findall(normalise(text.translate(_ARABIC_SEPARATORS)))
    last = re.sub("[' ]", "", found[-1]) if found else ""
    values: set[Decimal] = set()
    for locale in (lang, ENGLISH):
        try:
            values.add(parse_decimal(last, locale.replace("-", "_"), strict=True))
        except (NumberFormatError, UnknownLocaleError, ValueError):
            continue
    return frozenset(values)


def text_language(answer: str, lang: str, native: Collection[str], english: Collection[str]) -> str:
    """Tells the language of a short answer by the answers that the benchmark itself uses.

    Args:
        answer: The text that the model wrote.
        lang: The language that was asked in.
        native: `text_key` of every expected answer in that language.
        english: The same in English.

    Returns:
        `lang`, `en`, `letter` (no letters at all: figures) or `other`.
    """
    keys, key = _answer_keys(answer), text_key(answer)
    if key and not any(character.isalpha() for character in key):
        return NEUTRAL
    if not keys.isdisjoint(native):
        return lang
    return OTHER if keys.isdisjoint(english) else "en"


# Affixes in the order in which lmms-eval tries them; each form must stand as a whole word.
_LMMS_FORMS: Final = tuple(
    "{}. {}, {}: {}) {}). ({}) ({}). :{} :{}, :{}. :{}) :{}).".split()
)  # fmt: skip
_LMMS_MAX_WORDS_WITH_ARTICLE: Final = 3
_LMMS_LETTERS: Final = LETTERS[:5]
_KIT_BLANKED: Final = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_KIT_LAST_WORDS: Final = 4
# No word boundary: "the answer is Dog" names D.
_KIT_ANSWER_IS: Final = re.compile(r"answer\s+is(?:\s|\*\*)+([A-Z])", re.IGNORECASE)

# Cyrillic capitals as options: by their shape, else by their place in the Russian alphabet.
_BY_PLACE: Final = dict(
    zip("\u0410\u0411\u0412\u0413\u0414\u0415\u0416\u0417\u0418", LETTERS, strict=False)
)
_BY_SHAPE: Final = dict(
    zip(
        "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425",
        "ABEKMHOPCTX",
        strict=True,
    )
)
_CYRILLIC: Final = _BY_PLACE | _BY_SHAPE
_AMBIGUOUS_CYRILLIC: Final = {c for c, letter in _BY_PLACE.items() if letter != _CYRILLIC[c]}
# If the options are not known: further letters are read only if they are the whole answer.
_NUM_UNKNOWN_OPTIONS: Final = 5
_NEIGHBOUR: Final = "A-Za-z\u00c0-\u024f\u0370-\u03ff\u0400-\u052f0-9'"
_ALONE: Final = re.compile(
    f"(?<![{_NEIGHBOUR}])([A-Z{''.join(_CYRILLIC)}])(?![{_NEIGHBOUR}\u0300-\u036f])"
)


def infer_lmms_eval(text: str) -> str | None:
    """Returns the letter as lmms-eval infers it, without the options' texts (`infer_by_text`).

    Candidates are A to E, whatever the options are.
    """
    words = text.split()
    bare = [letter for letter in _LMMS_LETTERS if letter in words]
    article = "A" in words and len(words) > _LMMS_MAX_WORDS_WITH_ARTICLE
    if len(bare) == 1 and not article:
        return bare[0]
    for form in _LMMS_FORMS:
        found = [letter for letter in _LMMS_LETTERS if form.format(letter) in words]
        if len(found) == 1:
            return found[0]
    return None


def infer_by_text(text: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter of the only option whose text occurs anywhere in an answer."""
    found = [letter for letter, option in options.items() if option.lower() in text.lower()]
    return found[0] if len(found) == 1 else None


def infer_vlmevalkit(text: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter as VLMEvalKit's exact matching infers it, without a judge.

    It is the only letter among the words, if its first place is among the last four; else what
    "answer is" names; else the only option whose text occurs in an answer that is not too long.
    Options that are not known are A to D.
    """
    options = options or dict.fromkeys(LETTERS[:4], "\0")
    words = text.translate(_KIT_BLANKED).split()
    found = [letter for letter in options if letter in words]
    if len(found) == 1 and words.index(found[0]) >= len(words) - _KIT_LAST_WORDS:
        return found[0]
    named = _KIT_ANSWER_IS.search(text)
    if named and named[1].upper() in options:
        return named[1].upper()
    if len(text) > 2 * sum(map(len, options.values())):
        return None
    return infer_by_text(text, options)


# What VLMEvalKit deletes or blanks in an answer by yes or no; the asterisk and the colon are not
# among them.
_KIT_PUNCTUATION: Final = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER: Final = re.compile(r"\d,\d")
_STOP_OUTSIDE_NUMBER: Final = re.compile(r"(?<!\d)\.|\.(?!\d)")


def yes_no_vlmevalkit(text: str) -> str | None:
    """Returns yes or no as VLMEvalKit reads them: a whole word, and not the other one.

    A mark that stands beside a blank anywhere in the text is deleted wherever it stands, and so is
    every mark if a number has a comma; other marks separate words.
    """
    text = text.lower()
    joins_all = _COMMA_IN_NUMBER.search(text) is not None
    table = {
        ord(mark): "" if joins_all or f"{mark} " in text or f" {mark}" in text else " "
        for mark in _KIT_PUNCTUATION
    }
    words = _STOP_OUTSIDE_NUMBER.sub("", text.translate(table)).split()
    found = [label for label in ("yes", "no") if label in words]
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class Choice:
    """The option that an answer chooses.

    Attributes:
        letter: The option, or None if it cannot be told.
        by: What told it: `letter`, `text` (an option in the language asked in), `english` (the
            English text of an option) or "" if nothing did.
        ambiguous: It was a Cyrillic letter that is one option by its shape, and another by its
            place in the alphabet.
    """

    letter: str | None
    by: str = ""
    ambiguous: bool = False


def infer_local(
    text: str,
    options: Sequence[str],
    word_letters: Sequence[str],
    spaced: bool = True,
    english: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
) -> Choice:
    """Reads an option from an answer in any language.

    Args:
        text: What the model wrote.
        options: Texts of A, B, ... in the language of the question.
        word_letters: Letters that are words of the language, too ("A" in Czech: and, but).
        spaced: Whether white space separates words in the language.
        english: The same options in English, read if the language's own do not decide.
        labels: Letters by the labels that the language has for options, folded (`option_labels`).

    Example:
        >>> infer_local("Respuesta: B", ["un perro", "un gato"], ["A"]).letter
        'B'
        >>> infer_local("\u062c\u0648\u0627\u0628: \u0628", [], [], labels={"\u0628": "B"}).letter
        'B'
    """
    text = normalise(text)
    present = LETTERS[: len(options) or _NUM_UNKNOWN_OPTIONS]
    only = [character for character in text if character.isalnum()]
    if len(only) == 1:
        letter = _CYRILLIC.get(only[0].upper(), only[0].upper())
        if letter in (present if options else LETTERS):
            return Choice(letter, "letter", only[0].upper() in _AMBIGUOUS_CYRILLIC)
        # a figure, or an option of one character
    firm, weak = _standing_alone(text, present, word_letters)
    own_firm, own_weak = _labels_in(text, present, labels or {})
    firm, weak = firm | dict.fromkeys(own_firm, False), weak | own_weak
    if firm:
        if len(firm.keys() | weak) > 1:
            return Choice(None)
        [(letter, ambiguous)] = firm.items()
        return Choice(letter, "letter", ambiguous)
    for by, texts in (("text", options), ("english", english)):
        if named := _only_contained(text, texts, spaced or by == "english"):
            return Choice(named, by)
    return Choice(None)


def _labels_in(
    text: str, present: Sequence[str], labels: Mapping[str, str]
) -> tuple[set[str], set[str]]:
    """Finds labels of a language's own: those that are the last word or have an affix, and others.

    The others may be words: "나" is an I in Korean.
    """
    firm: set[str] = set()
    weak: set[str] = set()
    matches = list(_WORD.finditer(text)) if labels else []
    for match in matches:
        letter = labels.get(fold(match[0]))
        if letter is not None and letter in present:
            is_firm = match is matches[-1] or _is_affixed(text, *match.span())
            (firm if is_firm else weak).add(letter)
    return firm, weak


def _is_affixed(text: str, start: int, end: int) -> bool:
    """Returns whether there is a full stop, colon or bracket at a label: "B.", "(B"."""
    before, after = text[:start].rstrip(), text[end:].lstrip()
    return after[:1] in (".", ":", ")", "]") or before[-1:] in ("(", "[")


def _standing_alone(
    text: str, present: Sequence[str], word_letters: Sequence[str]
) -> tuple[dict[str, bool], set[str]]:
    """Finds letters with nothing of a word on either side.

    Returns:
        Those that count, and whether each is ambiguous; those that may be words. A letter that is a
        word counts if it is the last word, or has an affix.
    """
    firm: dict[str, bool] = {}
    weak: set[str] = set()
    for match in _ALONE.finditer(text):
        letter = _CYRILLIC.get(match[1], match[1])
        after = text[match.end() :].lstrip()
        affixed = _is_affixed(text, *match.span())
        is_last = not any(map(str.isalnum, after))
        if letter not in present:
            continue
        if match[1] not in word_letters or is_last or (after and affixed):
            firm[letter] = firm.get(letter, False) or match[1] in _AMBIGUOUS_CYRILLIC
        else:
            weak.add(letter)
    return firm, weak


def _only_contained(text: str, options: Sequence[str], spaced: bool) -> str | None:
    """Returns the letter of the only option in a text; one that is part of another is left out."""
    haystack = fold(text)
    keys = {letter: text_key(option) for letter, option in zip(LETTERS, options, strict=False)}
    found = {a: key for a, key in keys.items() if key and _contains(haystack, key, spaced)}
    widest = [a for a, key in found.items() if not any(key in o != key for o in found.values())]
    return widest[0] if len(widest) == 1 else None


def _contains(haystack: str, key: str, spaced: bool) -> bool:
    if not spaced:
        return key in haystack
    pattern = rf"(?<!{_IN_WORD}){regex.escape(key)}(?!{_IN_WORD})"
    return regex.search(pattern, haystack) is not None


@cache
def answer_words(lang: str) -> AnswerWords:
    """Returns how a language says yes and no, with the English words that count everywhere.

    Without a file those are all.

    Raises:
        ConfigError: The code is not well-formed, or the language's file is at fault.
    """
    return AnswerWords.of(any_language(lang), get_language("en"))
