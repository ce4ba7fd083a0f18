"""Checks the file of a language: what is missing, untranslated, or not read back as it was meant.

Input: a code. Output: `Fault`s; a note is worth knowing, anything else must be mended. The loader
(`registry.py`) refuses what cannot be used at all; here is what can be used and misleads. Checks of
wording ask whether the texts are in this language and in no other; checks of reading back run the
project's own formatters and parsers on the file's words.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from fontTools.unicodedata import script as script_of

from llava.errors import ConfigError, DataError
from lrm_ext.languages.registry import (
    DATA_DIR,
    ENGLISH,
    PENDING,
    Language,
    get_language,
    is_draft,
    language_files,
    list_languages,
    reload_languages,
)

_TABLE = re.compile(r"\[([\w.-]+)\]")
_KEY = re.compile(r'\s*"?([\w-]+)"?\s*=')


class Fault(NamedTuple):
    """Something about a language's file.

    Attributes:
        path: The file.
        text: What was found, where, and what was expected.
        is_note: It may stay so.
    """

    path: Path
    text: str
    is_note: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


def check_languages(codes: tuple[str, ...] = ()) -> list[Fault]:
    """Check the files of some languages; of all, drafts included, if none is given.

    Raises:
        ConfigError: There is no file for one of them.
    """
    reload_languages()
    files = language_files()
    if unknown := [code for code in codes if code not in files]:
        raise ConfigError(
            f"unknown language {', '.join(unknown)}; choose from: {', '.join(files)}. "
            "`lrm languages add CODE` begins a new one."
        )
    found = [fault for code in codes or tuple(files) for fault in check_language(code)]
    # a file that cannot be loaded is a fault of every language, for they know each other
    return list(dict.fromkeys(found))


def check_language(code: str) -> list[Fault]:
    """Check the file of one language."""
    path = language_files()[code]
    if is_draft(path):
        return [Fault(path, text) for text in pending(path)]
    try:
        language = get_language(code)
        others = [get_language(other) for other in list_languages() if other != code]
    except ConfigError as error:
        at_fault = next(
            (p for p in language_files().values() if str(error).startswith(f"{p}: ")), path
        )
        return [Fault(at_fault, str(error).removeprefix(f"{at_fault}: "))]
    english = get_language(ENGLISH)
    if ships(language):  # what a user's language does to it is said of the user's file
        others = [other for other in others if ships(other)]
    faults = [Fault(path, text) for check in _CHECKS for text in check(language, english)]
    faults += [Fault(path, text) for text in check_distinct(language, others)]
    faults += [Fault(path, text) for text in check_neighbours(language, others)]
    return faults + [Fault(path, text, is_note=True) for text in notes(language, english, others)]


def pending(path: Path) -> Iterator[str]:
    """The lines of a draft that wait for translation, and whether it is TOML at all."""
    from lrm_ext.languages._toml import load_toml

    try:
        load_toml(path)
    except ConfigError as error:
        yield str(error).removeprefix(f"{path}: ")
    table = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if match := _TABLE.fullmatch(line.strip()):
            table = match[1] + "."
        elif f'"{PENDING}' in line and not line.lstrip().startswith("#"):
            match = _KEY.match(line)
            name = table + (match[1] if match else "")
            yield f"line {number}: {name} is not translated yet."


def check_keys(language: Language, english: Language) -> Iterator[str]:
    """Tables with free keys have the keys that English has."""
    for table, own, theirs in (
        ("format_prompts", language.fixed_prompts, english.fixed_prompts),
        ("short_answers", language.fixed_answers, english.fixed_answers),
    ):
        for key in theirs:
            if key not in own:
                yield f"{table}.{key} is missing; in English: {theirs[key]!r}."
        for key in own:
            if key not in theirs:
                yield f"{table}.{key} is unknown; known: {', '.join(theirs)}."
    for key in language.ui:
        if key not in english.ui:
            yield f"ui.{key} is unknown; known: {', '.join(english.ui)}."


def check_quality(language: Language, english: Language) -> Iterator[str]:
    """The thresholds can be read."""
    from lrm_ext.translate.quality.base import parse_thresholds

    try:
        parse_thresholds(language.quality, "quality")
    except ConfigError as error:
        yield str(error)


def check_engines(language: Language, english: Language) -> Iterator[str]:
    """Every engine that has a code is one that there is, and the code is in its list if any."""
    from lrm_ext.translate.engines.base import engine_names, get_spec

    known = {*engine_names(), *english.engine_codes, "apertium", "opus-mt"}
    for engine, code in language.engine_codes.items():
        if engine not in known:
            yield f"engines.{engine}: there is no such engine; known: {', '.join(sorted(known))}."
            continue
        codes = get_spec(engine).known_codes() if engine in engine_names() else ()
        if codes and code not in codes:
            near = get_close_matches(code, codes)
            yield (
                f"engines.{engine} is {code!r}, which is not in the engine's list of {len(codes)} "
                f"codes; {'similar: ' + ', '.join(near) if near else 'delete the line'}."
            )


def check_placeholders(language: Language, english: Language) -> Iterator[str]:
    """Texts that are filled in have the same `{names}` as in English."""
    theirs = {**texts(english), **{f"ui.{key}": text for key, text in english.ui.items()}}
    own = {**texts(language), **{f"ui.{key}": text for key, text in language.ui.items()}}
    for key, text in own.items():
        wanted = _placeholders(theirs.get(key, ""))
        if (found := _placeholders(text)) != wanted:
            yield (
                f"{key} is {text!r}, with {_listed(found)}; expected "
                f"{_listed(wanted)}: names in braces are not translated."
            )


def _placeholders(text: str) -> list[str] | None:
    """Names in braces, sorted; None if the braces do not match."""
    try:
        return sorted(name for _, name, _, _ in Formatter().parse(text) if name is not None)
    except ValueError:
        return None


def _listed(names: list[str] | None) -> str:
    if names is None:
        return "braces that do not match"
    return ", ".join(f"{{{name}}}" for name in names) or "no name in braces"


def ships(language: Language) -> bool:
    """Whether a language's file is the project's own."""
    return language.path.parent == DATA_DIR


def check_neighbours(language: Language, others: list[Language]) -> Iterator[str]:
    """What two files say of the same request is the same; the shipped files know each other."""
    for other in others:
        if ships(language) and other.code not in language.answer_in:
            yield f"instructions.answer_in.{other.code} is missing."
        mine = language.answer_in.get(other.code)
        theirs = other.named_by.get(language.code)
        if theirs and mine != theirs:
            yield (
                f"instructions.answer_in.{other.code} is {mine!r}, but {other.path} says {theirs!r}"
                f" (instructions.named_by.{language.code}); make them the same or delete one."
            )


def notes(language: Language, english: Language, others: list[Language]) -> Iterator[str]:
    """What may stay as it is, and what follows from it."""
    codes = [other.code for other in others]
    if missing := [code for code in codes if code not in language.answer_in]:
        yield (
            f"instructions.answer_in lacks {', '.join(missing)}: for an answer in that "
            "language the demo asks in English."
        )
    if missing := [other.code for other in others if language.code not in other.answer_in]:
        yield (
            f"instructions.named_by lacks {', '.join(missing)}: who asks in that language is "
            f"answered in {language.code} by a request in English."
        )
    named = {*language.answer_in, *language.named_by}
    if unknown := sorted(named - set(list_languages())):
        yield f"instructions name languages that there are no files for: {', '.join(unknown)}."
    if missing := [key for key in english.ui if key not in language.ui]:
        yield f"ui lacks {', '.join(missing)}: they stay English on the demo's page."
    if not language.engine_codes:
        yield "engines is empty: only engines that need no code can translate into it."


_WORD = re.compile(r"[^\W\d_]+")
# Scripts that ISO 15924 names as one and Unicode's characters as several.
_PARTS: Mapping[str, frozenset[str]] = {
    "Hans": frozenset({"Hani"}),
    "Hant": frozenset({"Hani"}),
    "Jpan": frozenset({"Hani", "Hira", "Kana"}),
    "Kore": frozenset({"Hang", "Hani"}),
}
_NEUTRAL = frozenset({"Zyyy", "Zinh", "Zzzz"})
# Old standards that hold the characters of one way of writing Chinese only.
_CHINESE = {"Hans": ("gb2312", "big5"), "Hant": ("big5", "gb2312")}
# A share of 0.9 for another language is no doubt where all sentences are looked at together.
_SURE = 0.9


def texts(language: Language) -> dict[str, str]:
    """The sentences of a file, by their keys; no labels and no single words."""
    return {
        "prompts.short_answer": language.short_answer,
        "prompts.option_letter": language.option_letter,
        **{f"format_prompts.{key}": text for key, text in language.fixed_prompts.items()},
        **{f"short_answers.{key}": text for key, text in language.fixed_answers.items()},
        "instructions.epvqa": language.epvqa_instruction,
        "instructions.answer_marker": language.answer_marker,
        **{f"instructions.answer_in.{key}": text for key, text in language.answer_in.items()},
        "conversation.system": language.system,
    }


def check_untranslated(language: Language, english: Language) -> Iterator[str]:
    """No text is still the English one.

    Short labels of the page (`ui`) and one of yes and no may be the same in both languages.
    """
    if language.code == english.code:
        return
    theirs = texts(english)
    for key, text in texts(language).items():
        if _bare(text) == _bare(theirs.get(key, "")):
            yield f"{key} is {text!r}, as in English; translate it."
    for key, text in language.ui.items():
        if text.count(" ") >= 2 and _bare(text) == _bare(english.ui.get(key, "")):
            yield f"ui.{key} is {text!r}, as in English; translate it."
    if (_bare(language.yes), _bare(language.no)) == (_bare(english.yes), _bare(english.no)):
        yield "answers.yes and answers.no are the English words."


def check_script(language: Language, english: Language) -> Iterator[str]:
    """Words are written in the language's script and in the usual form of its characters.

    What the English text has too ("OCR") may stay.
    """
    from fontTools.unicodedata import Scripts

    if language.script not in {*Scripts.NAMES, *_PARTS} - _NEUTRAL:
        yield f"script is {language.script!r}, expected an ISO 15924 code such as Latn or Cyrl."
        return
    allowed = _PARTS.get(language.script, frozenset({language.script}))
    theirs = texts(english)
    words = {"answers.yes": language.yes, "answers.no": language.no}
    named = {f"ui.{key}": text for key, text in language.ui.items()}
    for key, text in {**texts(language), **words, **named}.items():
        if text != unicodedata.normalize("NFC", text):
            yield f"{key} is not in Unicode's form NFC; type it anew."
        same = set(_WORD.findall(theirs.get(key, "") or english.ui.get(key[3:], "")))
        foreign = {
            word: found for word in _WORD.findall(text) if (found := _scripts(word) - allowed)
        }
        if wrong_words := [word for word in foreign if word not in same]:
            found = frozenset().union(*(foreign[word] for word in wrong_words))
            yield (
                f"{key} has {', '.join(wrong_words)} with letters of script "
                f"{', '.join(sorted(found))}; expected {language.script}."
            )
        if wrong := [letter for letter in text if _is_other_chinese(letter, language.script)]:
            yield f"{key} has {''.join(wrong)!r}, which is not written so in {language.script}."


def check_identity(language: Language, english: Language) -> Iterator[str]:
    """All sentences together look like the language, as far as an identifier knows it."""
    from lrm_ext.languages.identification import candidates, probabilities
    from lrm_ext.translate.quality.base import Thresholds, parse_thresholds

    try:
        thresholds = parse_thresholds(language.quality, "quality")
    except ValueError:  # reported by another check
        thresholds = Thresholds()
    among = candidates(language.code, thresholds)
    shares = probabilities(" ".join(texts(language).values()), among)
    near = {language.code, language.code.partition("-")[0], *thresholds.near}
    best = max(shares, key=shares.__getitem__, default=language.code)
    if language.code in shares and best not in near and shares[best] > _SURE:
        yield f"the texts look like language {best!r}, not {language.code!r}."


def check_distinct(language: Language, others: Sequence[Language]) -> Iterator[str]:
    """Requests differ from one another and from those of other languages.

    A request that is the same in two languages does not say in which one to answer.
    """
    seen: dict[str, str] = {}
    for code, text in language.answer_in.items():
        if _bare(text) in seen:
            yield (
                f"instructions.answer_in.{code} is {text!r}, the same as for {seen[_bare(text)]!r}."
            )
        seen.setdefault(_bare(text), code)
    if _bare(language.epvqa_instruction) in seen:
        yield "instructions.epvqa is the same as one of instructions.answer_in."
    for name, own, find in (
        ("instructions.epvqa", language.epvqa_instruction, lambda o: o.epvqa_instruction),
        ("conversation.system", language.system, lambda o: o.system),
        (
            f"instructions.answer_in.{language.code}",
            language.answer_in[language.code],
            lambda o: o.answer_in[o.code],
        ),
    ):
        same = [other.code for other in others if _bare(find(other)) == _bare(own)]
        if same:
            yield f"{name} is {own!r}, the same as in {', '.join(same)}; the two must differ."


def _scripts(word: str) -> frozenset[str]:
    return frozenset(map(script_of, word)) - _NEUTRAL


def _is_other_chinese(character: str, script: str) -> bool:
    if script not in _CHINESE or script_of(character) != "Hani":
        return False
    own, other = _CHINESE[script]
    return not _has(character, own) and _has(character, other)


def _has(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _bare(text: str) -> str:
    """Letters and digits alone, folded."""
    return "".join(_WORD.findall(text)).casefold()


_COLONS = (":", "\uff1a")
_QUESTION = "What is it?"


def check_short_answers(language: Language, english: Language) -> Iterator[str]:
    """Yes and no, and every word that counts as one, are read as what they are."""
    from lrm_ext.evaluate.reading import (
        AnswerWords,
        Rule,
        fold,
        normalise,
        parse_yes_no,
        words_of,
    )

    local = language.local
    words = AnswerWords.of(language, english)
    listed = [("local.yes", word, "yes") for word in local.yes]
    listed += [("local.no", word, "no") for word in local.no]
    rules: tuple[Rule, ...] = ("mme", "pope")
    for key, word, label in (
        ("answers.yes", language.yes, "yes"),
        ("answers.no", language.no, "no"),
        *(
            (f"answers_to.{start}", word, label)
            for start, pair in language.answers_to.items()
            for word, label in zip(pair, ("yes", "no"), strict=True)
        ),
        *listed,
    ):
        is_listed = key.startswith("local.")  # an answer may be several words
        if is_listed and language.spaced and len(words_of(fold(normalise(word)))) != 1:
            yield (
                f"{key} has {word!r}: the first word of an answer decides, so a phrase is never "
                "found; give its first word, if that decides."
            )
            continue
        reads = [parse_yes_no(word, words, rule) for rule in rules]
        if wrong := [read.label for read in reads if read.label != label or read.by_default]:
            found = "neither" if "other" in wrong else repr(wrong[0])
            yield f"{key} has {word!r}, which is read as {found}; is it in local.{label}?"
        elif key.startswith("answers.") and reads[0].answer_lang not in (language.code, "letter"):
            yield (
                f"{key} is {word!r}, which is read as {reads[0].answer_lang!r}; add it to local."
                f"{label}."
            )
    if collisions := sorted({*words.stop} & {*words.yes, *words.no}):
        yield f"local.stop has {', '.join(collisions)}, which also means yes or no."


def check_prompts(language: Language, english: Language) -> Iterator[str]:
    """Requests are one line, are found again at the end of a question, and end as in English."""
    from lrm_ext.instructions.registry import split_human_text

    prompts = language.format_prompts
    for name, prompt in zip(("short_answer", "option_letter"), prompts, strict=True):
        if split_human_text(f"{_QUESTION}\n{prompt}", prompts).format_prompt != prompt:
            yield f"prompts.{name} is not found again as the last line of a question."
    if prompts[0] == prompts[1]:
        yield "prompts.short_answer and prompts.option_letter are the same."
    for key, text in english.fixed_prompts.items():
        own = language.fixed_prompts.get(key, "")
        if own and own.endswith(_COLONS) != text.endswith(_COLONS):
            expected = "a colon" if text.endswith(_COLONS) else "no colon"
            yield f"format_prompts.{key} is {own!r}, expected {expected} at its end."
    for key, answer in language.fixed_answers.items():
        asked = language.fixed_prompts.get(key, answer)
        if answer not in asked:
            yield f"format_prompts.{key} does not quote short_answers.{key}, {answer!r}."
    seen: dict[str, str] = {}
    for key, text in language.fixed_prompts.items():
        if text in seen:
            yield f"format_prompts.{key} is the same as format_prompts.{seen[text]}."
        seen.setdefault(text, key)


def check_instructions(language: Language, english: Language) -> Iterator[str]:
    """Every kind of training sample is read back: translation and answer, or the answer."""
    from lrm_ext.instructions.registry import get_instruction

    lines = {
        "instructions.epvqa": language.epvqa_instruction,
        **{f"instructions.answer_in.{code}": text for code, text in language.answer_in.items()},
    }
    for key, text in lines.items():
        if "\n" in text:
            yield f"{key} has several lines, expected one."
    before, after = language.translation_marker, language.answer_marker
    for key, marker in (("translation_marker", before), ("answer_marker", after)):
        if not marker.endswith(_COLONS):
            yield f"instructions.{key} is {marker!r}, expected a colon at its end."
    if before != english.translation_marker:
        yield (
            f"instructions.translation_marker is {before!r}, expected "
            f"{english.translation_marker!r}: the translation is always English."
        )
    if before.startswith(after) or after.startswith(before):
        yield f"instructions: the markers {before!r} and {after!r} begin alike."
        return
    if language.code == english.code:
        return
    rule = get_instruction("epvqa")
    for answer in (language.yes, language.no, *language.fixed_answers.values(), "7", "A"):
        try:
            reply = rule.reply_rule(_QUESTION, answer, language)
        except DataError as error:
            yield f"instructions: {error}"
            return
        read = rule.parse_rule(reply, language)
        if not read.well_formed or (read.translation, read.answer) != (_QUESTION, answer):
            yield f"instructions: the reply {reply!r} is read as {read.answer!r} ({read.problem})."


def check_option_letters(language: Language, english: Language) -> Iterator[str]:
    """`word_letters` are capital letters of options that are words by themselves."""
    for letter in language.local.word_letters:
        if len(letter) != 1 or not letter.isupper():
            yield f"local.word_letters has {letter!r}, expected one capital letter."
    options = set(string.ascii_uppercase)
    for key, words in (
        ("answers", (language.yes, language.no)),
        ("local", (*language.local.yes, *language.local.no)),
    ):
        for text in words:
            if text.upper() in options and text.upper() not in language.local.word_letters:
                yield (
                    f"{key} has the word {text!r}, which is an option's letter too; add "
                    f"{text.upper()!r} to local.word_letters."
                )
    for letter in language.local.letters:
        if len(letter) != 1:
            yield f"local.letters has {letter!r}, expected one letter."


_CHECKS: tuple[Callable[[Language, Language], Iterator[str]], ...] = (
    check_keys,
    check_placeholders,
    check_engines,
    check_quality,
    check_untranslated,
    check_script,
    check_identity,
    check_short_answers,
    check_prompts,
    check_instructions,
    check_option_letters,
)
