"""Begins the file of a new language: every entry explained, and filled in where it is certain.

Input: a code. Output: TOML text, from `new_language.toml` and English. What Unicode CLDR and the
engines' own lists say is written; all else is marked, with the English text after the mark, so
that `lrm languages check` finds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from llava.errors import ConfigError
from lrm_ext.languages.registry import (
    ENGLISH,
    PENDING,
    KnownNames,
    Language,
    get_language,
    known_names,
    list_languages,
    normalize_tag,
    preferred_tag,
)

_TEMPLATE = Path(__file__).parent / "new_language.toml"
_BLOCK = re.compile(r"@([a-z_]+)")
_TABLE = re.compile(r"\[([\w.]+)\]")
_ENTRY = re.compile(r'(\w+) = (.*)"@(TODO|keep)"(.*)')
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
    values = _values(english, names.name or "(the language)")
    known = {
        "name": names.name,
        "native_name": names.native_name,
        "paper_label": code[:1].upper() + code[1:],
        "script": names.script,
    }
    if names.script and names.script not in _UNSPACED_SCRIPTS:
        known["punctuation.full_stop"] = _full_stop(names.script)
    blocks = {
        "format_prompts": _pending(english.fixed_prompts),
        "short_answers": _pending(english.fixed_answers),
        "answer_in": _pending(
            {**english.answer_in, code: f"Answer in {names.name or 'this language'}."}
        ),
        "named_by": _named_by(names.name),
        "ui": _pending(english.ui),
        "engines": _engines(code, names),
    }
    words = {
        "code": code,
        "name": names.name or "A new language",
        "spaced": str(names.script not in _UNSPACED_SCRIPTS).lower(),
    }
    return "".join(f"{line}\n" for line in _fill(known, values, blocks, words))


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


def _fill(
    known: Mapping[str, str | None],
    values: Mapping[str, str],
    blocks: Mapping[str, Iterator[str]],
    words: Mapping[str, str],
) -> Iterator[str]:
    table = ""
    for line in _TEMPLATE.read_text(encoding="utf-8").splitlines():
        if match := _TABLE.fullmatch(line):
            table = match[1] + "."
        if match := _ENTRY.fullmatch(line):
            key = table + match[1]
            value = known.get(key) or (
                values[key] if match[3] == "keep" else f"{PENDING} {values[key]}"
            )
            yield f"{match[1]} = {match[2]}{_quote(value)}{match[4]}"
        elif (match := _BLOCK.fullmatch(line)) and match[1] in blocks:
            yield from blocks[match[1]]
        else:
            yield _BLOCK.sub(lambda m: words[m[1]], line)


def _values(english: Language, name: str) -> dict[str, str]:
    """What English has for the entries of the template, with the new language's name."""
    return {
        "name": "its name in English",
        "native_name": "its own name",
        "paper_label": english.paper_label,
        "script": english.script,
        "punctuation.full_stop": english.full_stop,
        "answers.yes": english.yes,
        "answers.no": english.no,
        "prompts.short_answer": english.short_answer,
        "prompts.option_letter": english.option_letter,
        "instructions.epvqa": f"in {name}".join(english.epvqa_instruction.rsplit("in English", 1)),
        "instructions.translation_marker": english.translation_marker,
        "instructions.answer_marker": english.answer_marker,
        "conversation.system": f"in {name}".join(english.system.rsplit("in English", 1)),
        "local.yes": "yes",
        "local.no": "no",
    }


def _pending(texts: Mapping[str, str]) -> Iterator[str]:
    for key, text in texts.items():
        yield f"{_key(key)} = {_quote(f'{PENDING} {text}')}"


def _named_by(name: str | None) -> Iterator[str]:
    for other in list_languages():
        if other == ENGLISH and name:
            yield f"{ENGLISH} = {_quote(f'Answer in {name}.')}"
        else:
            request = f"Answer in {name or 'it'}."
            if other == ENGLISH:
                yield f"{other} = {_quote(f'{PENDING} {request}')}"
            else:
                yield f"# {_key(other)} = {_quote(request)}  # said in {get_language(other).name}"


def _engines(code: str, names: KnownNames) -> Iterator[str]:
    """What each engine calls it: as in the engine's own list, else as it probably does."""
    from lrm_ext.translation.engines.base import engine_names, get_spec

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


def _full_stop(script: str) -> str:
    """Devanagari and its neighbours end sentences with a danda, Urdu's script with its own stop."""
    return "\u0964" if script in ("Deva", "Beng", "Guru", "Orya") else "."


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _quote(key)


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
