"""The languages, one TOML file each.

`get_language` returns the `Language` of a code. Everything that differs between languages is in
those files; no code is specific to one language. Shipped files come first, in a fixed order, then
those in the user's folder, `user_dir()`. A file that still has values to translate is a draft and
not a language yet.

A code is a BCP-47 tag. It names files and folders, so it must be well-formed: letters, digits and
single hyphens.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from llava.errors import ConfigError
from lrm_ext.languages._toml import convert, load_toml
from lrm_ext.languages.tags import normalize_tag

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
    """

    yes: tuple[str, ...]
    no: tuple[str, ...]
    letters: Mapping[str, str]
    stop: tuple[str, ...]
    word_letters: tuple[str, ...]


class Language(_ReadOnly, frozen=True, kw_only=True, rename=_KEYS):
    """A language.

    Attributes:
        code: Code in data and on the command line.
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
            is followed by what it asks about.
        fixed_answers: Short answers with a fixed wording, by name.
        epvqa_instruction: "First translate the question into English, then answer in <this>."
        translation_marker: What an EP-VQA reply begins with.
        answer_marker: What begins the second part of an EP-VQA reply, on its own line.
        answer_in: "Answer in <language>." in this language, by language. It always has this
            language and English (see `get_language`).
        named_by: "Answer in <this language>." in other languages, for their `answer_in`.
        system: System sentence of a conversation that is answered in this language.
        local: Word lists for reading answers.
        numbers: Words for numbers, by number in digits: separated by spaces, with `*` where other
            letters may follow; empty if unknown.
        engine_codes: Code of the language in each translation engine; other engines do not have it.
        ui: Texts of the demo page by name; missing ones stay English.
        quality: What is normal for translations into the language; read and checked by
            `lrm_ext.translate.quality.base`.
        path: The file, for messages.
    """

    code: str
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
    answer_in: Mapping[str, str]
    named_by: Mapping[str, str] = {}
    system: str
    local: LocalWords
    numbers: Mapping[str, str] = {}
    engine_codes: Mapping[str, str]
    ui: Mapping[str, str] = {}
    quality: Mapping[str, Any] = {}
    path: Path

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
            file name; or a word means both yes and no.
    """
    values: dict[str, Any] = {"path": path}
    for key, value in load_toml(path).items():
        is_table = key in _TABLES and isinstance(value, dict)
        values |= {f"{key}.{name}": v for name, v in value.items()} if is_table else {key: value}
    for key, value in values.items():
        if key != "quality":  # its users check it
            _check_texts(value, path, key)
    if isinstance(values.get("answers_to"), dict):
        values["answers_to"] = {
            start: _yes_and_no(text, f"{path}: answers_to.{start}")
            for start, text in values["answers_to"].items()
        }
    language = convert(values, Language, path)
    if language.code != path.stem:
        raise ConfigError(f"{path}: code is {language.code!r}, expected the file's name.")
    _check_polarity(language.local, path)
    _check_numbers(language.numbers, path)
    return language


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
# The order of the paper, English first; other languages follow by code.
_ORDER = ("en", "cs", "de", "fr", "hr", "it", "ro", "ru", "es", "zh")


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
    return (*(code for code in _ORDER if code in there), *sorted(there - set(_ORDER)))


def list_languages() -> tuple[str, ...]:
    """Returns the codes of all languages without drafts: those of the paper, then all others.

    Raises:
        ConfigError: A file name in `user_dir()` is not a code, or the folder that
            `$LRM_LANGUAGES_DIR` names does not exist.
    """
    return tuple(code for code in language_files() if code not in _drafts())


def in_language_order(codes: Iterable[str]) -> tuple[str, ...]:
    """Returns codes in the order of `list_languages`; unknown ones follow by code."""
    known = {code: number for number, code in enumerate(list_languages())}
    return tuple(sorted(codes, key=lambda code: (known.get(code, len(known)), code)))


def language_name(code: str) -> str:
    """Returns the English name of a language; its code if it is unknown."""
    return get_language(code).name if code in list_languages() else code


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

    Its `answer_in` combines its own file with `named_by` of the other files.

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
        raise ConfigError(f"unknown language {code!r}; choose from: {', '.join(codes)}.")
    language = _load(code)
    named = {other: _load(other).named_by.get(code) for other in codes}
    answer_in = {other: text for other, text in named.items() if text} | dict(language.answer_in)
    if missing := [needed for needed in (ENGLISH, code) if needed not in answer_in]:
        raise ConfigError(
            f"{language.path}: instructions.answer_in.{missing[0]} is missing: how it says "
            f'"Answer in ..." for {missing[0]!r}.'
        )
    if code not in _load(ENGLISH).answer_in and ENGLISH not in language.named_by:
        raise ConfigError(
            f"{language.path}: instructions.named_by.{ENGLISH} is missing: how English says "
            f'"Answer in {language.name}."'
        )
    return msgspec.structs.replace(language, answer_in=MappingProxyType(answer_in))


def answer_request(question_lang: str, answer_lang: str) -> str:
    """Returns the request for an answer in `answer_lang`, in the language of the question.

    If two added languages do not know each other, the request is in English, which every model
    knows best.

    Raises:
        ConfigError: A language is unknown.
    """
    get_language(answer_lang)
    own = get_language(question_lang).answer_in.get(answer_lang)
    return own or get_language(ENGLISH).answer_in[answer_lang]


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
    return load_language(language_files()[code])
