"""What is wrong with a language's file: missing, untranslated, or not to be read back.

Input: a code. Output: `Fault`s; a note is worth knowing, anything else must be mended. The loader
(`language.py`) has refused what cannot be used at all; here is what can be used and misleads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from llava.errors import ConfigError
from lrm_ext.languages import readback, wording
from lrm_ext.languages.language import PENDING, Language
from lrm_ext.languages.registry import (
    DATA_DIR,
    ENGLISH,
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
    faults += [Fault(path, text) for text in wording.check_distinct(language, others)]
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
    from lrm_ext.translation.quality.base import parse_thresholds

    try:
        parse_thresholds(language.quality, "quality")
    except ConfigError as error:
        yield str(error)


def check_engines(language: Language, english: Language) -> Iterator[str]:
    """Every engine that has a code is one that there is, and the code is in its list if any."""
    from lrm_ext.translation.engines.base import engine_names, get_spec

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
    theirs = {**wording.texts(english), **{f"ui.{key}": text for key, text in english.ui.items()}}
    own = {**wording.texts(language), **{f"ui.{key}": text for key, text in language.ui.items()}}
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


_CHECKS: tuple[Callable[[Language, Language], Iterator[str]], ...] = (
    check_keys,
    check_placeholders,
    check_engines,
    check_quality,
    wording.check_untranslated,
    wording.check_script,
    wording.check_identity,
    readback.check_short_answers,
    readback.check_prompts,
    readback.check_instructions,
    readback.check_option_letters,
)
