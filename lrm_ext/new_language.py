"""Drafts the file of a new language, and checks language files.

A draft comes from `languages/new_language.toml` and English. It has what Unicode CLDR and the lists
of the engines know; everything else is marked as pending, with the English text after the mark.

The checks find what is missing, untranslated or not read back as intended. The loader
(`languages/registry.py`) rejects files that cannot be used; these checks find what can be used but
misleads. Checks of wording ask whether the texts are in this language and in no other. Checks of
reading back run the project's own formatters and parsers on the texts, so this module is above
everything that uses a language; a new language needs no change here.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from fontTools.unicodedata import Scripts
from fontTools.unicodedata import script as script_of
from jinja2 import Environment, StrictUndefined

from llava.errors import ConfigError, DataError
from lrm_ext.evaluate.reading import answer_words, fold, normalise, parse_yes_no, words_of
from lrm_ext.instructions.registry import get_instruction, split_human_text
from lrm_ext.languages._toml import load_toml
from lrm_ext.languages.identification import candidates, probabilities
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
from lrm_ext.languages.tags import KnownNames, known_names, normalize_tag, preferred_tag
from lrm_ext.translate.engines.base import engine_names, get_spec
from lrm_ext.translate.quality.base import parse_thresholds
from lrm_ext.translate.quality.form_checks import is_other_chinese

_TEMPLATE = DATA_DIR.with_name("new_language.toml")
# Scripts of languages that are written without spaces between words.
_UNSPACED_SCRIPTS = ("Hans", "Hant", "Hani", "Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt")
# Scripts that end sentences with a danda.
_DANDA_SCRIPTS = ("Deva", "Beng", "Guru", "Orya")
# Engines that exist only where something is installed.
_OPTIONAL_ENGINES = ("apertium", "opus-mt")

_TABLE = re.compile(r"\[([\w.-]+)\]")
_KEY = re.compile(r'\s*"?([\w-]+)"?\s*=')
_WORD = re.compile(r"[^\W\d_]+")
# Scripts that are one code in ISO 15924 and several in Unicode.
_PARTS: Mapping[str, frozenset[str]] = {
    "Hans": frozenset({"Hani"}),
    "Hant": frozenset({"Hani"}),
    "Jpan": frozenset({"Hani", "Hira", "Kana"}),
    "Kore": frozenset({"Hang", "Hani"}),
}
_NEUTRAL = frozenset({"Zyyy", "Zinh", "Zzzz"})
# Probability of another language, for all sentences together, that leaves no doubt.
_SURE = 0.9
_COLONS = (":", "\uff1a")
_QUESTION = "What is it?"


def write_draft(code: str, folder: Path) -> Path:
    """Writes the draft of a language file, creating the folder if necessary.

    Args:
        code: The code of the language, in any spelling.
        folder: Folder of the user's language files.

    Raises:
        ConfigError: The code is not valid or not the preferred one, the file exists already, or the
            folder cannot be written.
    """
    tag = normalize_tag(code)
    if usual := preferred_tag(tag):
        raise ConfigError(f"{code!r}: the usual code of this language is {usual!r}; use that.")
    if tag in list_languages():
        raise ConfigError(f"{tag!r} is there already: {get_language(tag).path}.")
    path = folder / f"{tag}.toml"
    text = _draft(tag)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{path} is there already; edit it, or move it away first.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
    return path


def _draft(code: str) -> str:
    names, english = known_names(code), get_language(ENGLISH)
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(
        _TEMPLATE.read_text(encoding="utf-8")
    )
    is_spaced = names.script not in _UNSPACED_SCRIPTS
    full_stop = "\u0964" if names.script in _DANDA_SCRIPTS else "."
    named = f"in {names.name or '(the language)'}"
    return template.render(
        code=code,
        names=names,
        english=english,
        spaced=is_spaced,
        full_stop=full_stop if names.script and is_spaced else None,
        answer_in={**english.answer_in, code: f"Answer in {names.name or 'this language'}."},
        named_by="\n".join(_named_by(names.name)),
        engines="\n".join(_engines(code, names)),
        quote=_quote,
        todo=_todo,
        known=lambda value, text: _quote(value) if value else _todo(text),
        pending=lambda texts: "\n".join(f"{key} = {_todo(text)}" for key, text in texts.items()),
        in_language=lambda text: named.join(text.rsplit("in English", 1)),
    )


def _named_by(name: str | None) -> Iterator[str]:
    request = f"Answer in {name or 'it'}."
    for other in list_languages():
        if other == ENGLISH:
            yield f"{other} = {_quote(request) if name else _todo(request)}"
        else:
            yield f"# {other} = {_quote(request)}  # said in {get_language(other).name}"


def _engines(code: str, names: KnownNames) -> Iterator[str]:
    """Lists the code of the language in each engine: as in its own list, or else the likely one."""
    for engine, spec in ((name, get_spec(name)) for name in engine_names()):
        if spec.likely_code is None:
            continue
        value, known = spec.likely_code(code, names), spec.known_codes()
        if value in known:
            yield f"{engine} = {_quote(value)}"
        elif known:
            yield f"# {engine}: {_quote(value)} is not in its list of languages"
        else:
            yield f"{engine} = {_quote(value)}  # likely; delete the line if it does not have it"


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _todo(text: str) -> str:
    return _quote(f"{PENDING} {text}")


class Fault(NamedTuple):
    """A finding in a language file.

    Attributes:
        path: The file.
        text: What was found, where, and what was expected.
        is_note: Whether it may stay as it is.
    """

    path: Path
    text: str
    is_note: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


def check_languages(codes: tuple[str, ...] = ()) -> list[Fault]:
    """Checks the files of some languages, or of all, drafts included.

    Raises:
        ConfigError: There is no file for one of the codes.
    """
    reload_languages()
    files = language_files()
    if unknown := [code for code in codes if code not in files]:
        raise ConfigError(
            f"unknown language {', '.join(unknown)}; choose from: {', '.join(files)}. "
            "`lrm languages add CODE` drafts a new one."
        )
    found = [fault for code in codes or tuple(files) for fault in check_language(code)]
    # a file that cannot be loaded shows up in every language, because languages load each other
    return list(dict.fromkeys(found))


def check_language(code: str) -> list[Fault]:
    """Checks the file of a language."""
    path = language_files()[code]
    if is_draft(path):
        return [Fault(path, text) for text in _pending(path)]
    try:
        language = get_language(code)
        others = [get_language(other) for other in list_languages() if other != code]
    except ConfigError as error:
        at_fault = next(
            (p for p in language_files().values() if str(error).startswith(f"{p}: ")), path
        )
        return [Fault(at_fault, str(error).removeprefix(f"{at_fault}: "))]
    english = get_language(ENGLISH)
    if _ships(language):  # conflicts with a user's file are reported for that file
        others = [other for other in others if _ships(other)]
    found = (check(language, english, others) for check in _CHECKS)
    faults = [Fault(path, text) for text in chain.from_iterable(found)]
    return faults + [Fault(path, text, is_note=True) for text in _notes(language, english, others)]


def _pending(path: Path) -> Iterator[str]:
    """Lists the lines of a draft that are not translated, and errors of TOML."""
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
            yield f"line {number}: {table}{match[1] if match else ''} is not translated yet."


def _ships(language: Language) -> bool:
    return language.path.parent == DATA_DIR


def _sentences(language: Language) -> dict[str, str]:
    """Returns the sentences of a file by key, without labels and single words."""
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


def _entries(language: Language) -> dict[str, str]:
    """Returns the sentences, the words for yes and no, and the labels of the page."""
    labels = {f"ui.{key}": text for key, text in language.ui.items()}
    answers = {"answers.yes": language.yes, "answers.no": language.no}
    return {**_sentences(language), **answers, **labels}


def _bare(text: str) -> str:
    """Returns the letters of a text, casefolded."""
    return "".join(_WORD.findall(text)).casefold()


def _check_keys(language: Language, english: Language, others: Sequence[Language]) -> Iterator[str]:
    """Checks that tables have the keys of English; labels of the page may be missing."""
    for table, own, theirs in (
        ("format_prompts", language.fixed_prompts, english.fixed_prompts),
        ("short_answers", language.fixed_answers, english.fixed_answers),
        ("ui", language.ui, english.ui),
    ):
        for key, text in theirs.items():
            if key not in own and table != "ui":
                yield f"{table}.{key} is missing; in English: {text!r}."
        for key in own:
            if key not in theirs:
                yield f"{table}.{key} is unknown; known: {', '.join(theirs)}."


def _check_placeholders(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks that texts have the same `{placeholders}` as in English."""
    theirs = _entries(english)
    for key, text in _entries(language).items():
        wanted = _placeholders(theirs.get(key, ""))
        if (found := _placeholders(text)) != wanted:
            yield (
                f"{key} is {text!r}, with {found}; expected {wanted}: names in braces are not "
                "translated."
            )


def _placeholders(text: str) -> str:
    try:
        names = sorted(name for _, name, _, _ in Formatter().parse(text) if name is not None)
    except ValueError:
        return "braces that do not match"
    return ", ".join(f"{{{name}}}" for name in names) or "no name in braces"


def _check_engines(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks that engines exist, and that codes are in their lists, if they have one."""
    known = {*engine_names(), *english.engine_codes, *_OPTIONAL_ENGINES}
    for engine, code in language.engine_codes.items():
        codes = get_spec(engine).known_codes() if engine in engine_names() else ()
        if engine not in known:
            yield f"engines.{engine}: there is no such engine; known: {', '.join(sorted(known))}."
        elif codes and code not in codes:
            near = ", ".join(get_close_matches(code, codes))
            yield (
                f"engines.{engine} is {code!r}, which is not in the engine's list of {len(codes)} "
                f"codes; {f'similar: {near}' if near else 'delete the line'}."
            )


def _check_untranslated(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks that no text is still English.

    Short labels of the page (`ui`), and one of yes and no, may be the same in both languages.
    """
    if language.code == english.code:
        return
    theirs = _entries(english)
    own = _entries(language)
    same = [key for key in own if key in theirs and _bare(own[key]) == _bare(theirs[key])]
    for key in same:
        is_short = key.startswith(("ui.", "answers.")) and own[key].count(" ") < 2
        if not is_short:
            yield f"{key} is {own[key]!r}, as in English; translate it."
    if {"answers.yes", "answers.no"} <= set(same):
        yield "answers.yes and answers.no are the English words."


def _check_script(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks the script of words and the form of characters.

    Words of the English text, such as "OCR", may stay.
    """
    if language.script not in {*Scripts.NAMES, *_PARTS} - _NEUTRAL:
        yield f"script is {language.script!r}, expected an ISO 15924 code such as Latn or Cyrl."
        return
    allowed = _PARTS.get(language.script, frozenset({language.script})) | _NEUTRAL
    theirs = {k: t for k, t in _entries(english).items() if not k.startswith("answers.")}
    for key, text in _entries(language).items():
        if text != unicodedata.normalize("NFC", text):
            yield f"{key} is not in Unicode's form NFC; type it anew."
        same = set(_WORD.findall(theirs.get(key, "")))
        words = [word for word in _WORD.findall(text) if word not in same]
        if wrong := [word for word in words if not allowed.issuperset(map(script_of, word))]:
            found = sorted({*map(script_of, "".join(wrong))} - allowed)
            yield (
                f"{key} has {', '.join(dict.fromkeys(wrong))} with letters of script "
                f"{', '.join(found)}; expected {language.script}."
            )
        letters = [letter for letter in text if script_of(letter) == "Hani"]
        if odd := [letter for letter in letters if is_other_chinese(letter, language.script)]:
            yield f"{key} has {''.join(odd)!r}, which is not written so in {language.script}."


def _check_identity(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks the thresholds, and that all sentences together look like the language."""
    try:
        thresholds = parse_thresholds(language.quality, "quality")
    except ConfigError as error:
        yield str(error)
        return
    among = candidates(language.code, thresholds)
    shares = probabilities(" ".join(_sentences(language).values()), among)
    near = {language.code, language.code.partition("-")[0], *thresholds.near}
    best = max(shares, key=shares.__getitem__, default=language.code)
    if language.code in shares and best not in near and shares[best] > _SURE:
        yield f"the texts look like language {best!r}, not {language.code!r}."


def _check_short_answers(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks that yes and no, and all words that count as one, are read as intended."""
    answer_words.cache_clear()  # the file may have changed
    words = answer_words(language.code)
    for key, word, label in (
        ("answers.yes", language.yes, "yes"),
        ("answers.no", language.no, "no"),
        *(
            (f"answers_to.{start}", word, label)
            for start, pair in language.answers_to.items()
            for word, label in zip(pair, ("yes", "no"), strict=True)
        ),
        *(("local.yes", word, "yes") for word in language.local.yes),
        *(("local.no", word, "no") for word in language.local.no),
    ):
        is_listed = key.startswith("local.")  # an answer may have several words
        if is_listed and language.spaced and len(words_of(fold(normalise(word)))) != 1:
            yield (
                f"{key} has {word!r}: the first word of an answer decides, so a phrase is never "
                "found; list its first word, if that decides."
            )
            continue
        reads = [parse_yes_no(word, words, "mme"), parse_yes_no(word, words, "pope")]
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


def _check_prompts(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks that requests are recognised at the end of a question, and end as in English."""
    prompts = language.format_prompts
    for name, prompt in zip(("short_answer", "option_letter"), prompts, strict=True):
        if split_human_text(f"{_QUESTION}\n{prompt}", prompts).format_prompt != prompt:
            yield f"prompts.{name} is not found again as the last line of a question."
    if prompts[0] == prompts[1]:
        yield "prompts.short_answer and prompts.option_letter are the same."
    seen: dict[str, str] = {}
    for key, own in language.fixed_prompts.items():
        wanted = english.fixed_prompts.get(key, own).endswith(_COLONS)
        if own.endswith(_COLONS) != wanted:
            expected = "a colon" if wanted else "no colon"
            yield f"format_prompts.{key} is {own!r}, expected {expected} at its end."
        if seen.setdefault(own, key) != key:
            yield f"format_prompts.{key} is the same as format_prompts.{seen[own]}."
    for key, answer in language.fixed_answers.items():
        if answer not in language.fixed_prompts.get(key, answer):
            yield f"format_prompts.{key} does not quote short_answers.{key}, {answer!r}."


def _check_instructions(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks that replies to every kind of training sample are read back."""
    for key, text in _sentences(language).items():
        if key.startswith(("instructions.epvqa", "instructions.answer_in")) and "\n" in text:
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
            reply = rule.write_reply(_QUESTION, answer, language)
        except DataError as error:
            yield f"instructions: {error}"
            return
        read = rule.read_reply(reply, language)
        if not read.well_formed or (read.translation, read.answer) != (_QUESTION, answer):
            yield f"instructions: the reply {reply!r} is read as {read.answer!r} ({read.problem})."


def _check_option_letters(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks that option letters that are also words are in `word_letters`."""
    local = language.local
    for letter in local.word_letters:
        if len(letter) != 1 or not letter.isupper():
            yield f"local.word_letters has {letter!r}, expected one capital letter."
    words = [("answers", language.yes), ("answers", language.no)]
    for key, text in (*words, *(("local", word) for word in (*local.yes, *local.no))):
        letter = text.upper()
        if letter in {*string.ascii_uppercase} - {*local.word_letters}:
            yield (
                f"{key} has the word {text!r}, which is an option's letter too; add {letter!r} to "
                "local.word_letters."
            )
    for letter in local.letters:
        if len(letter) != 1:
            yield f"local.letters has {letter!r}, expected one letter."


def _check_distinct(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks that requests differ from one another and from those of other languages.

    A request that is the same in two languages does not tell in which one to answer.
    """
    seen: dict[str, str] = {}
    for code, text in language.answer_in.items():
        if (first := seen.setdefault(_bare(text), code)) != code:
            yield f"instructions.answer_in.{code} is {text!r}, the same as for {first!r}."
    if _bare(language.epvqa_instruction) in seen:
        yield "instructions.epvqa is the same as one of instructions.answer_in."
    ours = _requests(language)
    theirs = {other.code: _requests(other) for other in others}
    for name, key in (
        ("instructions.epvqa", "epvqa"),
        ("conversation.system", "system"),
        (f"instructions.answer_in.{language.code}", "answer_in"),
    ):
        same = [code for code, texts in theirs.items() if _bare(texts[key]) == _bare(ours[key])]
        if same:
            yield f"{name} is {ours[key]!r}, the same as in {', '.join(same)}; the two must differ."


def _requests(language: Language) -> dict[str, str]:
    """Returns the texts that must differ between languages."""
    return {
        "epvqa": language.epvqa_instruction,
        "system": language.system,
        "answer_in": language.answer_in[language.code],
    }


def _check_neighbours(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks that two files agree on a request, and that shipped languages know each other."""
    for other in others:
        if _ships(language) and other.code not in language.answer_in:
            yield f"instructions.answer_in.{other.code} is missing."
        mine, theirs = language.answer_in.get(other.code), other.named_by.get(language.code)
        if theirs and mine != theirs:
            yield (
                f"instructions.answer_in.{other.code} is {mine!r}, but {other.path} says {theirs!r}"
                f" (instructions.named_by.{language.code}); make them the same or delete one."
            )


_CHECKS: tuple[Callable[[Language, Language, Sequence[Language]], Iterator[str]], ...] = (
    _check_keys,
    _check_placeholders,
    _check_engines,
    _check_untranslated,
    _check_script,
    _check_identity,
    _check_short_answers,
    _check_prompts,
    _check_instructions,
    _check_option_letters,
    _check_distinct,
    _check_neighbours,
)


def _notes(language: Language, english: Language, others: Sequence[Language]) -> Iterator[str]:
    """Lists what may stay as it is, and its consequences."""
    if missing := [other.code for other in others if other.code not in language.answer_in]:
        yield (
            f"instructions.answer_in lacks {', '.join(missing)}: for an answer in that "
            "language the demo asks in English."
        )
    if missing := [other.code for other in others if language.code not in other.answer_in]:
        yield (
            f"instructions.named_by lacks {', '.join(missing)}: who asks in that language is "
            f"answered in {language.code} by a request in English."
        )
    if unknown := sorted({*language.answer_in, *language.named_by} - set(list_languages())):
        yield f"instructions name languages that there are no files for: {', '.join(unknown)}."
    if missing := [key for key in english.ui if key not in language.ui]:
        yield f"ui lacks {', '.join(missing)}: they stay English on the demo's page."
    if not language.engine_codes:
        yield "engines is empty: only engines that need no code can translate into it."
