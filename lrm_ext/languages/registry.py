"""All languages that have a file, in a fixed order: those that ship, then a user's own.

Input: a code. Output: its `Language`. A user's files lie in one folder, `user_dir()`; each is all
that its language needs. A file that still has values to translate is a draft: it is no language
yet, and asking for it says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

from llava.errors import ConfigError
from lrm_ext.languages.language import PENDING, Language, load_language
from lrm_ext.languages.tags import normalize_tag

DATA_DIR = Path(__file__).parent / "data"
ENGLISH = "en"
FOLDER_VARIABLE = "LRM_LANGUAGES_DIR"
# The paper's order, English first; a language that is added later follows in code order.
_ORDER = ("en", "cs", "de", "fr", "hr", "it", "ro", "ru", "es", "zh")


def user_dir() -> Path:
    """Folder of a user's own language files; it need not exist.

    `$LRM_LANGUAGES_DIR`, else `lrm/languages` in the user's configuration folder, which is
    `$XDG_CONFIG_HOME` or `~/.config`.
    """
    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "lrm" / "languages"


def shipped_languages() -> tuple[str, ...]:
    """Codes of the languages whose files are part of the project, in `list_languages`' order."""
    there = {path.stem for path in DATA_DIR.glob("*.toml")}
    return (*(code for code in _ORDER if code in there), *sorted(there - set(_ORDER)))


def list_languages() -> tuple[str, ...]:
    """Codes of all languages: the paper's ten in its order, then any others, without drafts.

    Raises:
        ConfigError: A file in `user_dir()` cannot be a language's, or the folder that was asked
            for is not there.
    """
    return tuple(code for code in language_files() if code not in _drafts())


@cache
def language_files() -> Mapping[str, Path]:
    """The file of every language, drafts included.

    Raises:
        ConfigError: As `list_languages`.
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
    """Forget what was read, after a file or `$LRM_LANGUAGES_DIR` has changed."""
    for function in (language_files, _drafts, _load, get_language):
        function.cache_clear()


@cache
def get_language(code: str) -> Language:
    """Look a language up.

    Its `answer_in` has what its own file says, and what the files of the others say (`named_by`).

    Raises:
        ConfigError: There is no such language (the choices are listed), it is a draft, or its
            file is at fault.
    """
    codes = list_languages()
    if code not in codes:
        if code in _drafts():
            raise ConfigError(
                f"{language_files()[code]} is a draft: values in it still begin with {PENDING}. "
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
    return replace(language, answer_in=MappingProxyType(answer_in))


def answer_request(question_lang: str, answer_lang: str) -> str:
    """How to ask for an answer in another language, in the question's language.

    Two languages that were added later may not know each other; English, which every model has
    seen most of, then asks.

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
                f"{FOLDER_VARIABLE} is {str(folder)!r}, and there is no such folder. Make it, "
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
    """Codes whose files have values that wait for translation."""
    return frozenset(code for code, path in _user_files().items() if is_draft(path))


def is_draft(path: Path) -> bool:
    """Whether a value in a file still begins with the mark of the untranslated."""
    return f'"{PENDING}' in path.read_text(encoding="utf-8", errors="replace")


@cache
def _load(code: str) -> Language:
    return load_language(language_files()[code])
