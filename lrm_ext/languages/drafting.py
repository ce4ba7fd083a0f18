"""Begins the file of a new language: every entry explained, and filled in where it is certain.

Input: a code. Output: TOML text, from `new_language.toml` and English. What Unicode CLDR and the
engines' own lists say is written; all else is marked, with the English text after the mark, so
that `lrm languages check` finds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from llava.errors import ConfigError
from lrm_ext.languages.registry import (
    ENGLISH,
    PENDING,
    KnownNames,
    get_language,
    known_names,
    list_languages,
    normalize_tag,
    preferred_tag,
)

_TEMPLATE = Path(__file__).parent / "new_language.toml"
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# Scripts of languages that are written without blanks between words.
_UNSPACED_SCRIPTS = ("Hans", "Hant", "Hani", "Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt")


def draft_language(code: str) -> str:
    """Text of a new language's file.

    Args:
        code: A normalised BCP-47 tag (`normalize_tag`).
    """
    names = known_names(code)
    english = get_language(ENGLISH)
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(
        _TEMPLATE.read_text(encoding="utf-8")
    )
    name = names.name or "(the language)"
    return template.render(
        code=code,
        names=names,
        english=english,
        spaced=names.script not in _UNSPACED_SCRIPTS,
        full_stop=_full_stop(names.script),
        answer_in={**english.answer_in, code: f"Answer in {names.name or 'this language'}."},
        named_by="\n".join(_named_by(names.name)),
        engines="\n".join(_engines(code, names)),
        quote=_quote,
        todo=_todo,
        known=lambda value, text: _quote(value) if value else _todo(text),
        pending=lambda texts: "\n".join(f"{_key(k)} = {_todo(text)}" for k, text in texts.items()),
        in_language=lambda text: f"in {name}".join(text.rsplit("in English", 1)),
    )


def write_draft(code: str, folder: Path) -> Path:
    """Write the draft of a language's file, in a folder that is made if it is not there.

    Args:
        code: Its code, in any way of writing.
        folder: Where a user's language files lie.

    Raises:
        ConfigError: The code is none, there is a better one, there is a file for it already, or
            the folder cannot be written.
    """
    tag = normalize_tag(code)
    if usual := preferred_tag(tag):
        raise ConfigError(f"{code!r}: the usual code of this language is {usual!r}; use that.")
    if tag in list_languages():
        raise ConfigError(f"{tag!r} is there already: {get_language(tag).path}.")
    path = folder / f"{tag}.toml"
    text = draft_language(tag)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{path} is there already; edit it, or move it away first.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
    return path


def _named_by(name: str | None) -> Iterator[str]:
    for other in list_languages():
        if other == ENGLISH and name:
            yield f"{ENGLISH} = {_quote(f'Answer in {name}.')}"
        else:
            request = f"Answer in {name or 'it'}."
            if other == ENGLISH:
                yield f"{other} = {_todo(request)}"
            else:
                yield f"# {_key(other)} = {_quote(request)}  # said in {get_language(other).name}"


def _engines(code: str, names: KnownNames) -> Iterator[str]:
    """What each engine calls it: as in the engine's own list, else as it probably does."""
    from lrm_ext.translate.engines.base import engine_names, get_spec

    for engine in engine_names():
        spec = get_spec(engine)
        if spec.likely_code is None:
            continue
        value, known = spec.likely_code(code, names), spec.known_codes()
        if value in known:
            yield f"{engine} = {_quote(value)}"
        elif known:
            yield f"# {engine}: {_quote(value)} is not in its list of languages"
        else:
            yield f"{engine} = {_quote(value)}  # likely; delete the line if it does not have it"


def _full_stop(script: str | None) -> str | None:
    """Devanagari and its neighbours end sentences with a danda; None where it is not certain."""
    if script is None or script in _UNSPACED_SCRIPTS:
        return None
    return "\u0964" if script in ("Deva", "Beng", "Guru", "Orya") else "."


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _quote(key)


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _todo(text: str) -> str:
    return _quote(f"{PENDING} {text}")
