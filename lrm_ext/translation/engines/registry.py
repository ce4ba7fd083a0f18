"""The engines by name: ours, and those that other packages offer.

Input: a name and options as text. Output: an engine. A package adds its own by an entry point:

    [project.entry-points."lrm_llava.engines"]
    mine = "my_package.engine:SPEC"
"""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from importlib.metadata import entry_points
from typing import Any

from llava.errors import ConfigError
from lrm_ext.corpus.store import ENGLISH
from lrm_ext.languages.registry import get_language, list_languages
from lrm_ext.languages.tags import known_names
from lrm_ext.translation.engines.base import Engine, EngineSpec, Ledger

ENTRY_POINTS = "lrm_llava.engines"
# The file of each; imported when asked for.
_OURS = {
    "memory": "memory",
    "apertium": "apertium",
    "madlad": "madlad",
    "nllb": "nllb",
    "m2m100": "m2m100",
    "opus-mt": "opus_mt",
    "openai": "openai",
    "google": "google",
    "deepl": "deepl",
}


def engine_names() -> tuple[str, ...]:
    """Names of all engines, ours first."""
    return (*_OURS, *sorted(entry_points(group=ENTRY_POINTS).names - _OURS.keys()))


def get_spec(name: str) -> EngineSpec:
    """Look an engine up.

    Raises:
        ConfigError: There is none of this name, or another package's cannot be loaded.
    """
    if name in _OURS:
        module = importlib.import_module(f"lrm_ext.translation.engines.{_OURS[name]}")
        spec = module.SPEC
        assert isinstance(spec, EngineSpec)
        return spec
    found = entry_points(group=ENTRY_POINTS, name=name)
    if not found:
        raise ConfigError(f"unknown engine {name!r}; choose from: {', '.join(engine_names())}.")
    entry = next(iter(found))
    try:
        spec = entry.load()
    except Exception as error:  # another package's code
        raise ConfigError(f"engine {name!r} ({entry.value}) cannot be loaded: {error!r}") from error
    if not isinstance(spec, EngineSpec):
        raise ConfigError(
            f"engine {name!r}: entry point {entry.value} is {type(spec).__name__}, expected an "
            "EngineSpec (lrm_ext.translation.engines.base)."
        )
    return spec


def build_engine(name: str, options: Mapping[str, str], target: str, ledger: Ledger) -> Engine:
    """Make an engine that translates from English.

    Args:
        name: Its name.
        options: Settings as typed on the command line.
        target: Code of the language to translate into.
        ledger: What it may know of earlier runs.

    Raises:
        ConfigError: Unknown name or option, a value of the wrong type, or a language that the
            engine does not have.
        EngineError: What it needs is missing.
    """
    spec = get_spec(name)
    if target not in spec.languages():
        raise ConfigError(
            f"engine {name!r} does not translate into {target!r}; it has: "
            f"{', '.join(spec.languages()) or 'no language'}.{_code_to_add(spec, target)}"
        )
    return spec.build(parse_options(spec, options), ENGLISH, target, ledger)


def _code_to_add(spec: EngineSpec, target: str) -> str:
    """Where the code of a language belongs that has a file and no code for the engine."""
    if spec.likely_code is None or target == ENGLISH or target not in list_languages():
        return ""
    code = spec.likely_code(target, known_names(target))
    return (
        f" {get_language(target).path} has no code for it: if the engine has the language, add "
        f'its code under [engines], such as {spec.name} = "{code}".'
    )


def parse_options(spec: EngineSpec, texts: Mapping[str, str]) -> Any:
    """Turn settings given as text into the engine's options.

    Raises:
        ConfigError: An option is unknown or missing, or its value is of the wrong type.
    """
    types = typing.get_type_hints(spec.options)
    known = {f.name: f for f in fields(spec.options)}
    values: dict[str, Any] = {}
    for key, text in texts.items():
        if key not in known:
            raise ConfigError(
                f"engine {spec.name!r} has no option {key!r}; it has: {', '.join(known) or 'none'}."
            )
        values[key] = _parse(text, types[key], f"engine {spec.name!r}, option {key}")
    missing = [
        name
        for name, f in known.items()
        if name not in values and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise ConfigError(
            f"engine {spec.name!r} needs {', '.join(f'--option {name}=...' for name in missing)}."
        )
    return spec.options(**values)


def describe_options(spec: EngineSpec) -> list[tuple[str, str, str]]:
    """Name, default and meaning of an engine's options; docstrings say what they mean."""
    meanings: dict[str, str] = {}
    for kind in reversed(spec.options.__mro__[:-1]):
        _, _, attributes = (inspect.getdoc(kind) or "").partition("Attributes:\n")
        for entry in re.split(r"\n {4}(?! )", "\n" + attributes)[1:]:
            name, _, meaning = entry.partition(": ")
            meanings[name] = " ".join(meaning.split())
    found: list[tuple[str, str, str]] = []
    for option in fields(spec.options):
        default = "" if option.default in (MISSING, None, "") else str(option.default)
        needed = option.default is MISSING and option.default_factory is MISSING
        shown = "must be given" if needed else default
        found.append((option.name, shown, meanings.get(option.name, "")))
    return found


def split_options(texts: Iterable[str], engines: Iterable[str]) -> dict[str, dict[str, str]]:
    """Read `name=value` (for every engine that has it) and `engine.name=value`.

    Raises:
        ConfigError: There is no "=", or no engine of the chain has the option.
    """
    specs = {name: get_spec(name) for name in engines}
    result: dict[str, dict[str, str]] = {name: {} for name in specs}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--option {text!r}: expected name=value.")
        engine, dot, option = key.partition(".")
        chosen = [engine] if dot and engine in specs else list(specs)
        option = option if dot and engine in specs else key
        takers = [
            name for name in chosen if option in {f.name for f in fields(specs[name].options)}
        ]
        if not takers:
            known = {name: [f.name for f in fields(specs[name].options)] for name in chosen}
            listed = "; ".join(f"{name}: {', '.join(o) or 'none'}" for name, o in known.items())
            raise ConfigError(f"--option {text!r}: no engine has it. There are: {listed}.")
        for name in takers:
            result[name][option] = value
    return result


_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _parse(text: str, kind: Any, where: str) -> Any:
    kinds = [k for k in typing.get_args(kind) if k is not type(None)] or [kind]
    wanted = kinds[0]
    try:
        return _WORDS[text.lower()] if wanted is bool else wanted(text)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{where} is {text!r}, expected {wanted.__name__}.") from error
