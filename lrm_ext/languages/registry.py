"""The languages, one TOML file each.

`get_language` returns the `Language` of a code. Everything that differs between languages is in
those files; no code is specific to one language. Shipped files come first, in a fixed order, then
those in the user's folder, `user_dir()`. A file that still has values to translate is a draft and
not a language yet.

A file holds what only people can say. What it leaves out comes from the Unicode CLDR (names,
script), from the script (spaces, full stop), or from its own wording (`_complete`).

A code is a BCP-47 tag. It names files and folders, so it must be well-formed: letters, digits and
single hyphens.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import date
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from llava.errors import ConfigError, split_names
from llava.files import convert, load_toml
from lrm_ext.languages.tags import (
    direction_of_script,
    known_names,
    name_in,
    normalize_tag,
    preferred_tag,
)

# Keys of the fields of `Language` that are not at the top level of the file under their own name.
_KEYS: Mapping[str, str] = {
    "full_stop": "punctuation.full_stop",
    "yes": "answers.yes",
    "no": "answers.no",
    "short_answer": "prompts.short_answer",
    "option_letter": "prompts.option_letter",
    "fixed_prompts": "format_prompts",
    "fixed_answers": "short_answers",
    "epvqa_instruction": "instructions.epvqa",
    "translation_marker": "instructions.translation_marker",
    "answer_marker": "instructions.answer_marker",
    "answer_in": "instructions.answer_in",
    "answer_in_other": "instructions.answer_in_other",
    "named_by": "instructions.named_by",
    "system": "conversation.system",
    "engine_codes": "engines",
}
_TABLES = frozenset(key.partition(".")[0] for key in _KEYS.values() if "." in key)
# Keys whose value may be empty.
_MAY_BE_EMPTY = (
    "punctuation.full_stop",
    "local.stop",
    "local.word_letters",
    "local.letters",
    "engines",
)
# Begins a value that is not translated yet; `lrm languages add` writes such values.
PENDING = "TODO"
_MARKS = re.compile("(?<=[a-z])[\u0300-\u036f]+")
_NUMBER_WORD = re.compile(r"[^*]+\*?")
_ENGLISH_POLARITY = {"yes": "yes", "y": "yes", "no": "no", "not": "no", "n": "no"}


class _ReadOnly(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a file, read-only because all callers share it."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if isinstance(value := getattr(self, name), dict):
                msgspec.structs.force_setattr(self, name, MappingProxyType(value))


class LocalWords(_ReadOnly, frozen=True):
    """Word lists for reading answers in the language (mode `local`).

    Attributes:
        yes: Words or phrases that affirm.
        no: Words or phrases that deny or negate.
        letters: One-letter answers, each "yes" or "no".
        stop: Phrases that begin like an answer but decide nothing.
        word_letters: Option letters that are also words of the language.
        option_letters: Labels of options besides A, B, C, in order (А, Б, В in Russian); empty if
            there is no such habit.
        latin: The Latin letters of each letter, if the language is also written in Latin script.
    """

    yes: tuple[str, ...]
    no: tuple[str, ...]
    letters: Mapping[str, str]
    stop: tuple[str, ...]
    word_letters: tuple[str, ...]
    option_letters: tuple[str, ...] = ()
    latin: Mapping[str, str] = {}


class Review(_ReadOnly, frozen=True):
    """The signature of a native reader.

    Attributes:
        by: The reader's name.
        on: The day.
    """

    by: str
    on: date


class ReadingQuestions(_ReadOnly, frozen=True):
    """Questions about text that an image shows.

    Attributes:
        what: Asks what is written in the image.
        is_written: Asks whether `{text}` is written in it.
    """

    what: str
    is_written: str


class Language(_ReadOnly, frozen=True, kw_only=True, rename=_KEYS):
    """A language.

    Attributes:
        code: Code in data and on the command line.
        reviewed: The signature of a native reader; False if nobody has signed.
        name: English name.
        native_name: Name in the language itself.
        paper_label: Column label in the tables of the paper.
        script: ISO 15924 code.
        spaced: Whether spaces separate words.
        full_stop: What ends a sentence; "" if nothing does, as in Thai.
        yes: The answer "yes" as it is trained.
        no: The answer "no" as it is trained.
        answers_to: Where yes and no depend on the question (Welsh "Oes ...?", "Ydy ...?"): `(yes,
            no)` by the beginning of the question.
        short_answer: Response-format prompt for yes/no and short answers.
        option_letter: Response-format prompt for multiple choice.
        fixed_prompts: Other requests that LLaVA's data repeats, by name. One that ends with a colon
            is followed by what it asks about. Wordings of "Describe the image concisely." that the
            file lacks are its `image_concise`.
        fixed_answers: Short answers with a fixed wording, by name.
        epvqa_instruction: "First translate the question into English, then answer in <this>."
        translation_marker: What an EP-VQA reply begins with.
        answer_marker: What begins the second part of an EP-VQA reply, on its own line.
        answer_in: "Answer in <language>." in this language, by language, as far as a file says it;
            `answer_request` has the others, too.
        answer_in_other: The same for any language, with `{language}` in place of its name.
        named_by: "Answer in <this language>." in other languages, for their `answer_in`; only in
            a user's file.
        system: System sentence of a conversation that is answered in this language.
        local: Word lists for reading answers.
        numbers: Words for numbers, by number in digits: separated by spaces, with `*` where other
            letters may follow; empty if unknown.
        reading: Questions about text in images; None if the file has none.
        engine_codes: Code of the language in translation engines whose own table lacks it or has
            another; see `lrm_ext.translate.engines.base.find_code`.
        ui: Texts of the demo page by name; missing ones stay English.
        quality: What is normal for translations into the language; read and checked by
            `lrm_ext.translate.quality.base`.
        scenes: Words and sentence patterns of the built-in corpus; read and checked by
            `lrm_ext.emoji.scenes`.
        path: The file, for messages.
    """

    code: str
    reviewed: Review | bool = False
    name: str
    native_name: str
    paper_label: str
    script: str
    spaced: bool
    full_stop: str
    yes: str
    no: str
    answers_to: Mapping[str, tuple[str, str]] = {}
    short_answer: str
    option_letter: str
    fixed_prompts: Mapping[str, str]
    fixed_answers: Mapping[str, str]
    epvqa_instruction: str
    translation_marker: str
    answer_marker: str
    answer_in: Mapping[str, str] = {}
    answer_in_other: str | None = None
    named_by: Mapping[str, str] = {}
    system: str
    local: LocalWords
    numbers: Mapping[str, str] = {}
    reading: ReadingQuestions | None = None
    engine_codes: Mapping[str, str] = {}
    ui: Mapping[str, str] = {}
    quality: Mapping[str, Any] = {}
    scenes: Mapping[str, Any] = {}
    path: Path

    @property
    def ships(self) -> bool:
        """Whether the language comes with the project, not from a user's file."""
        return self.path.parent == DATA_DIR

    @property
    def direction(self) -> str:
        """The direction of its script: `ltr` or `rtl`, as in HTML."""
        return direction_of_script(self.script)

    @property
    def review_text(self) -> str:
        """The signature in words, such as `Ana Horvat, 2026-12-31`; "not reviewed" if none."""
        if isinstance(self.reviewed, Review):
            return f"{self.reviewed.by}, {self.reviewed.on}"
        return "not reviewed"

    @property
    def format_prompts(self) -> tuple[str, ...]:
        """Response-format prompts; a prompt is the last line of a question."""
        return (self.short_answer, self.option_letter)

    def answer_to(self, question: str, is_yes: bool) -> str:
        """Returns the word for yes or no; the longest matching key of `answers_to` decides."""
        text = question.casefold()
        fitting = [start for start in self.answers_to if text.startswith(start.casefold())]
        pair = self.answers_to[max(fitting, key=len)] if fitting else (self.yes, self.no)
        return pair[0 if is_yes else 1]


def load_language(path: Path) -> Language:
    """Reads a language file.

    Raises:
        ConfigError: A key is missing, unknown, of another type or empty; the code differs from the
            file name; a word means both yes and no; or a signature has no name.
    """
    values: dict[str, Any] = {"path": path}
    for key, value in load_toml(path).items():
        is_table = key in _TABLES and isinstance(value, dict)
        values |= {f"{key}.{name}": v for name, v in value.items()} if is_table else {key: value}
    for key, value in values.items():
        if key not in ("quality", "scenes"):  # their users check them
            _check_texts(value, path, key)
    if isinstance(values.get("answers_to"), dict):
        values["answers_to"] = {
            start: _yes_and_no(text, f"{path}: answers_to.{start}")
            for start, text in values["answers_to"].items()
        }
    local = values.get("local")
    if isinstance(local, dict) and isinstance(local.get("option_letters"), str):
        values["local"] = {**local, "option_letters": local["option_letters"].split()}
    language = convert(_complete(values), Language, path)
    if language.code != path.stem:
        raise ConfigError(f"{path}: code is {language.code!r}, expected the file's name.")
    if language.reviewed is True:
        raise ConfigError(
            f'{path}: reviewed is true, expected false or who and when: {{ by = "...", on = '
            "2026-12-31 }."
        )
    if "{language}" not in (language.answer_in_other or "{language}"):
        raise ConfigError(
            f"{path}: instructions.answer_in_other is {language.answer_in_other!r}, expected "
            "{language} in place of the name of the language."
        )
    _check_polarity(language.local, path)
    _check_numbers(language.numbers, path)
    if language.reading and "{text}" not in language.reading.is_written:
        raise ConfigError(
            f"{path}: reading.is_written is {language.reading.is_written!r}, expected a question "
            "with {text} in it."
        )
    return language


def is_brief_request(key: str) -> bool:
    """Tells whether a key of `format_prompts` may be left out, as one of many equal requests."""
    return key.startswith("image_") and key not in ("image_concise", "image_what")


def _complete(values: dict[str, Any]) -> dict[str, Any]:
    """Adds what a file may leave out."""
    code = str(values.get("code"))
    try:
        names = known_names(normalize_tag(code))
    except ConfigError:
        return values  # the caller reports the code
    names = replace(names, script=values.get("script", names.script))
    derived: dict[str, Any] = {
        "name": names.name,
        "native_name": names.native_name,
        "paper_label": code[:1].upper() + code[1:],
        "script": names.script,
        "spaced": names.spaced,
        "punctuation.full_stop": names.full_stop,
    }
    if code != ENGLISH:
        english = _load(ENGLISH)
        derived["instructions.translation_marker"] = english.translation_marker
        own = values.get("format_prompts")
        if isinstance(own, dict) and (brief := own.get("image_concise")):
            missing = {key: brief for key in filter(is_brief_request, english.fixed_prompts)}
            values = {**values, "format_prompts": own | {**missing, **own}}
    return {key: value for key, value in derived.items() if value is not None} | values


def _check_texts(value: Any, path: Path, name: str) -> None:
    """Checks that texts, also in tables and lists, are translated and not empty."""
    if isinstance(value, str) and value.startswith(PENDING):
        raise ConfigError(f"{path}: {name} is not translated yet: {value!r}.")
    if isinstance(value, str) and value != value.strip():
        raise ConfigError(f"{path}: {name} is {value!r}: remove the white space around it.")
    if value in ("", [], {}) and name not in _MAY_BE_EMPTY:
        raise ConfigError(f"{path}: {name} is empty.")
    if isinstance(value, dict | list):
        for key, text in value.items() if isinstance(value, dict) else enumerate(value):
            _check_texts(text, path, f"{name}.{key}")


def _yes_and_no(text: str, where: str) -> tuple[str, str]:
    yes, _, no = map(str.strip, str(text).partition("/"))
    if not (yes and no):
        raise ConfigError(f'{where} is {text!r}, expected its yes and its no: "Oes / Nac oes".')
    return yes, no


def _check_polarity(local: LocalWords, path: Path) -> None:
    """Checks that no word or letter, English ones included, means both yes and no."""
    meanings: dict[str, str] = {}
    words = [(word, "yes") for word in local.yes] + [(word, "no") for word in local.no]
    for word, meaning in (*_ENGLISH_POLARITY.items(), *words, *local.letters.items()):
        if meaning not in ("yes", "no"):
            raise ConfigError(f"{path}: local.letters.{word} is {meaning!r}, expected yes or no.")
        # without the marks on Latin letters, which users often omit
        bare = _MARKS.sub("", unicodedata.normalize("NFD", word.casefold()))
        if meanings.setdefault(bare, meaning) != meaning:
            raise ConfigError(
                f"{path}: local: {word!r} would mean both yes and no (English words count in "
                "every language); remove it from one list."
            )


def _check_numbers(numbers: Mapping[str, str], path: Path) -> None:
    for number, words in numbers.items():
        if not (number.isascii() and number.isdigit()):
            raise ConfigError(f"{path}: numbers.{number}: expected a number in digits as the key.")
        if wrong := [word for word in words.split() if not _NUMBER_WORD.fullmatch(word)]:
            raise ConfigError(
                f"{path}: numbers.{number} has {wrong[0]!r}, expected a word, or the beginning of "
                "one followed by *."
            )


DATA_DIR = Path(__file__).parent / "data"
ENGLISH = "en"
FOLDER_VARIABLE = "LRM_LANGUAGES_DIR"
# The languages of the paper in its order, English first; other languages follow by code.
PAPER_LANGUAGES = ("en", "cs", "de", "fr", "hr", "it", "ro", "ru", "es", "zh")


def user_dir() -> Path:
    """Returns the folder of the user's language files, which need not exist.

    It is `$LRM_LANGUAGES_DIR`, or else `lrm/languages` in the configuration folder of the user,
    `$XDG_CONFIG_HOME` or `~/.config`.
    """
    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "lrm" / "languages"


def shipped_languages() -> tuple[str, ...]:
    """Returns the codes of the shipped languages, in the order of `list_languages`."""
    there = {path.stem for path in DATA_DIR.glob("*.toml")}
    paper = (code for code in PAPER_LANGUAGES if code in there)
    return (*paper, *sorted(there - set(PAPER_LANGUAGES)))


def list_languages() -> tuple[str, ...]:
    """Returns the codes of all languages without drafts: those of the paper, then all others.

    Raises:
        ConfigError: A file name in `user_dir()` is not a code, or the folder that
            `$LRM_LANGUAGES_DIR` names does not exist.
    """
    return tuple(code for code in language_files() if code not in _drafts())


def default_languages() -> tuple[str, ...]:
    """Returns the codes that a command takes if none are named: the paper's and the user's own.

    A text is told apart from the same ones, so that its reading does not change with what ships.
    """
    return tuple(
        code
        for code in list_languages()
        if code in PAPER_LANGUAGES or language_files()[code].parent != DATA_DIR
    )


def in_language_order(codes: Iterable[str]) -> tuple[str, ...]:
    """Returns codes in the order of `list_languages`; unknown ones follow by code."""
    known = {code: number for number, code in enumerate(list_languages())}
    return tuple(sorted(codes, key=lambda code: (known.get(code, len(known)), code)))


def text_direction(code: str) -> str:
    """Returns the direction in which a language is written, with a file or without.

    Raises:
        ConfigError: The code is not well-formed.
    """
    if code in list_languages():
        return get_language(code).direction
    return direction_of_script(known_names(normalize_tag(code)).script or "Latn")


def language_name(code: str) -> str:
    """Returns the English name of a language; its code if it is unknown."""
    try:
        return any_language(code).name
    except ConfigError:
        return code


def canonical_code(code: str) -> str:
    """Returns the code of the language that a user means: `he` for `iw`, `sr` for `sr-Latn`.

    A code that has a file stays. Otherwise an alias becomes the usual code, and a script that no
    file is for is left out: one file reads all scripts of its language. What is no language is
    returned as it is; `get_language` says what to do.
    """
    try:
        tag = normalize_tag(code)
    except ConfigError:
        return code
    usual = preferred_tag(tag) or tag
    known = language_files()
    return next((found for found in (tag, usual, _without_script(usual)) if found in known), code)


def canonical_codes(texts: list[str]) -> tuple[str, ...]:
    """Splits codes at commas, as a user types them; returns each canonical code once."""
    return tuple(dict.fromkeys(map(canonical_code, split_names(texts))))


def _without_script(tag: str) -> str:
    return re.sub("-[A-Z][a-z]{3}(?=-|$)", "", tag)


def _suggestion(code: str) -> str:
    """Says which languages an unknown code may mean, and how to add one."""
    asked, files = code.casefold(), language_files()
    names = {
        name.casefold(): other
        for other in list_languages()
        for name in (other, _load(other).name, _load(other).native_name)
    }
    if asked.partition("-")[0] == "sh":  # Serbo-Croatian; CLDR takes it for Serbian
        near = [other for other in ("sr", "hr", "bs") if other in files]
    elif (meant := canonical_code(code)) in files:
        near = [meant]
    elif (base := canonical_code(asked.partition("-")[0])) in files:
        near = [base]
    elif asked in names:
        near = [names[asked]]
    else:
        near = [names[name] for name in get_close_matches(asked, names, cutoff=0.75)]
    told = [f"{other} ({language_name(other)})" for other in dict.fromkeys(near)]
    try:
        tag = normalize_tag(code)
        to_add = "CODE" if near else preferred_tag(tag) or tag
    except ConfigError:
        to_add = "CODE"
    question = f"; did you mean {' or '.join(told)}?" if told else "."
    return (
        f"{question} Choose from: {', '.join(list_languages())}. `lrm languages add {to_add}` "
        "drafts a file for another language."
    )


@cache
def language_files() -> Mapping[str, Path]:
    """Returns the file of every language, drafts included.

    Raises:
        ConfigError: See `list_languages`.
    """
    ours = {code: DATA_DIR / f"{code}.toml" for code in shipped_languages()}
    theirs = _user_files()
    if both := sorted(set(ours) & set(theirs)):
        raise ConfigError(
            f"{theirs[both[0]]}: {both[0]!r} ships with the project and cannot be replaced, so "
            "that it means the same everywhere. Give a variant a code of its own: "
            f"{both[0]}-x-ours."
        )
    return MappingProxyType(ours | {code: theirs[code] for code in sorted(theirs)})


def reload_languages() -> None:
    """Clears the caches, after a file or `$LRM_LANGUAGES_DIR` has changed."""
    for function in (language_files, _drafts, _load, get_language):
        function.cache_clear()


@cache
def get_language(code: str) -> Language:
    """Returns a language.

    Its `answer_in` combines its own file with `named_by` of the user's files.

    Raises:
        ConfigError: The language is unknown (the error lists the choices) or a draft, or its file
            is not valid.
    """
    codes = list_languages()
    if code not in codes:
        if code in _drafts():
            raise ConfigError(
                f"{language_files()[code]} is a draft: it has values that begin with {PENDING}. "
                f"`lrm languages check {code}` lists them."
            )
        raise ConfigError(f"unknown language {code!r}{_suggestion(code)}")
    language = _load(code)
    theirs = [other for other in codes if language_files()[other].parent != DATA_DIR]
    named = {other: _load(other).named_by.get(code) for other in theirs}
    answer_in = {other: text for other, text in named.items() if text} | dict(language.answer_in)
    missing = [needed for needed in (ENGLISH, code) if needed not in answer_in]
    if missing and language.answer_in_other is None:
        raise ConfigError(
            f"{language.path}: instructions.answer_in.{missing[0]} is missing: how it says "
            f'"Answer in ..." for {missing[0]!r}.'
        )
    return msgspec.structs.replace(language, answer_in=MappingProxyType(answer_in))


def any_language(code: str) -> Language:
    """Returns a language, or for one without a file CLDR's name and script beside English texts.

    Raises:
        ConfigError: The code is not well-formed, or the language's file is not valid.
    """
    if code in list_languages():
        return get_language(code)
    names = known_names(normalize_tag(code))
    name, variety = names.name or code, code.partition("-x-")[2]
    if variety and names.name:
        name += f" ({variety})"
    return msgspec.structs.replace(
        get_language(ENGLISH),
        code=code,
        name=name,
        native_name=names.native_name or name,
        paper_label=code,
        script=names.script or "Latn",
        spaced=names.spaced is not False,
    )


def answer_request(question_lang: str, answer_lang: str) -> str:
    """Returns the request for an answer in `answer_lang`, in the language of the question.

    It is the sentence of the file, or else the general one with CLDR's name of the language. If
    there is neither, the request is in English, which every model knows best.

    Raises:
        ConfigError: A language is unknown.
    """
    answering = get_language(answer_lang)
    for asking in (any_language(question_lang), get_language(ENGLISH)):
        if own := asking.answer_in.get(answer_lang):
            return own
        is_english = asking.code == ENGLISH  # which has the name that the file gives
        name = answering.name if is_english else name_in(answer_lang, asking.code)
        if asking.answer_in_other and name:
            return asking.answer_in_other.replace("{language}", name)
    raise ConfigError(f"{get_language(ENGLISH).path}: instructions.answer_in_other is missing.")


def _user_files() -> dict[str, Path]:
    folder = user_dir()
    if not folder.is_dir():
        if os.environ.get(FOLDER_VARIABLE):
            raise ConfigError(
                f"{FOLDER_VARIABLE} is {str(folder)!r}, but there is no such folder. Create it, "
                "correct the variable, or unset it."
            )
        return {}
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.toml")):
        try:
            code = normalize_tag(path.stem)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error} Rename the file or move it away.") from error
        if code != path.stem:
            raise ConfigError(f"{path}: rename it to {code}.toml, as BCP-47 writes this code.")
        files[code] = path
    return files


@cache
def _drafts() -> frozenset[str]:
    """Returns the codes whose files have values that are not translated yet."""
    return frozenset(code for code, path in _user_files().items() if is_draft(path))


def is_draft(path: Path) -> bool:
    """Tells whether a file has a value that begins with `PENDING`."""
    return f'"{PENDING}' in path.read_text(encoding="utf-8", errors="replace")


@cache
def _load(code: str) -> Language:
    path = language_files()[code]
    return _load_version(path, path.stat().st_mtime_ns)


@cache
def _load_version(path: Path, mtime_ns: int) -> Language:
    """Reads a file once as long as nobody changes it, also after `reload_languages`."""
    return load_language(path)
