"""Defines translation engines: they receive a batch of segments and yield replies as they arrive.

An engine is one file with a `SPEC`. It does not cache, protect or check text: it receives text that
may hold placeholders and reports an outcome for every segment. Its spec has its codes of
languages; the `[engines]` table of a language file overrides them. Another package adds an engine
by an entry point:

    [project.entry-points."lrm_llava.engines"]
    mine = "my_package.engine:SPEC"
"""

from __future__ import annotations

import inspect
import json
import operator
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, astuple, dataclass, field, fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import msgspec

from llava.errors import ConfigError, UserError
from lrm_ext.corpus.store import ENGLISH
from lrm_ext.languages.registry import get_language, list_languages
from lrm_ext.languages.tags import KnownNames, known_names

if TYPE_CHECKING:
    from lrm_ext.translate.cache import Cache

OptionValue = str | int | float | bool | None
# Types of options that are checked where options are read.
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class EngineError(UserError):
    """An engine cannot continue: the key is refused, the service is down, a program is missing.

    Earlier answers are in the cache; the next run continues from there.
    """


class BudgetError(EngineError):
    """The budget is spent."""


@dataclass(frozen=True, slots=True)
class TextSegment:
    """A text that an engine is asked to translate.

    Attributes:
        text: One line or part of one, perhaps with placeholders.
        context: The question that a short text answers; "" for none.
        terms: Glossary entries that occur in `text`, as English and translation.
    """

    text: str
    context: str = ""
    terms: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for one segment.

    Attributes:
        index: Its position in the batch.
        text: The translation; None if there is none.
        error: Why there is none.
        is_final: Whether asking again would give the same result. Final outcomes, failures
            included, are cached; the next run asks for the others (time-outs) again.
    """

    index: int
    text: str | None
    error: str | None = None
    is_final: bool = True


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of some requests.

    Attributes:
        requests: Calls to a service, or batches through a model.
        input_tokens: Tokens sent, or characters if the service bills those.
        output_tokens: Tokens received.
        usd: Price; 0 if unknown.
    """

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*map(operator.add, astuple(self), astuple(other)))

    def __sub__(self, other: Usage) -> Usage:
        return Usage(*map(operator.sub, astuple(self), astuple(other)))


@dataclass(frozen=True, slots=True)
class Reply:
    """Some outcomes, as soon as they are known, and their cost."""

    outcomes: tuple[Outcome, ...]
    usage: Usage = field(default_factory=Usage)


class TranslationEngine(Protocol):
    """Translates segments from one language into another.

    Constructing an engine is cheap: models are loaded with the first batch. A class may inherit
    from this one and its defaults, or define every attribute but `rows_ahead` itself.

    Attributes:
        name: The engine's name; part of the cache key.
        version: Version of the model or program, as exact as possible; part of the cache key.
        options: All settings that change translations, and no others; part of the cache key.
        context: How it receives the question of a short answer: "native" (reads
            `TextSegment.context` and `TextSegment.terms`), "question" (reads only the context),
            "joined" (receives question and answer as one text), or "none".
        mask_styles: Names of `protect.STYLES` in the order in which they are tried.
        is_table: Whether it is a table of human translations, which receives unmasked text, is
            trusted, and is not cached.
        is_sentence_level: Whether it loses sentences of longer texts, so that it receives one
            sentence at a time.
        rows_ahead: How many rows of the corpus to ask for before the first of them is written;
            for engines whose answers take hours.
    """

    name: str
    version: str
    options: Mapping[str, OptionValue]
    context: str = "joined"
    mask_styles: tuple[str, ...] = ("angle", "tag", "word")
    is_table: bool = False
    is_sentence_level: bool = False
    rows_ahead: int = 0

    def translate(self, segments: Sequence[TextSegment]) -> Iterator[Reply]:
        """Translates a batch.

        Args:
            segments: Any number; the engine forms its own batches.

        Yields:
            Replies in any order. A segment that no reply mentions has failed, but not finally.

        Raises:
            EngineError: The engine cannot continue.
        """

    def close(self) -> None:
        """Frees processes, connections and memory; may be called twice."""
        return


@dataclass(frozen=True)
class EngineSpec:
    """Describes an engine for the command line; importing its file loads nothing heavy.

    Attributes:
        name: Name on the command line.
        summary: One line.
        licence: Licence of the model or service, which decides what the data may be used for.
        cost: Its cost, in words.
        options: A frozen dataclass; its fields are what `--option name=value` may set.
        build: Makes the engine from its options, the codes of the source and target languages, and
            the cache, which knows the cost of earlier runs.
        languages: Returns the codes of the languages that it translates into from English.
        install: How to install what it needs.
        likely_code: Guesses the engine's code of a language from its tag and its CLDR names; None
            if the engine needs no code.
        known_codes: Codes that the engine is known to have.
        lists_all: Whether `known_codes` has all of its codes.
        uses_service: Whether it asks a service within a budget; `--executor ray` leaves such an
            engine in the driver's process.
    """

    name: str
    summary: str
    licence: str
    cost: str
    options: type
    build: Callable[[Any, str, str, Cache], TranslationEngine]
    languages: Callable[[], tuple[str, ...]]
    install: str = ""
    likely_code: Callable[[str, KnownNames], str] | None = None
    known_codes: tuple[str, ...] = ()
    lists_all: bool = False
    uses_service: bool = False


def identity(engine: TranslationEngine) -> str:
    """Returns what decides an engine's translations, as one line of JSON."""
    return json.dumps([engine.name, engine.version, dict(engine.options)], sort_keys=True)


def languages_of(engine: str) -> tuple[str, ...]:
    """Returns the codes of the languages that an engine translates into from English."""
    return tuple(
        lang for lang in list_languages() if lang != ENGLISH and find_code(engine, lang) is not None
    )


def find_code(engine: str, lang: str) -> str | None:
    """Returns an engine's code of a language: that of the language file, or else the engine's own.

    None if neither has one.
    """
    if own := get_language(lang).engine_codes.get(engine):
        return own
    spec = get_spec(engine)
    likely = spec.likely_code(lang, known_names(lang)) if spec.likely_code else None
    return likely if likely in spec.known_codes else None


def code_of(engine: str, lang: str) -> str:
    """Returns an engine's code of a language.

    Raises:
        ConfigError: Neither the engine nor the language file has one.
    """
    code = find_code(engine, lang)
    if code is None:
        raise ConfigError(
            f"engine {engine!r} does not have {lang!r}; add its code under [engines] in the "
            f"language file, or choose from: {', '.join(languages_of(engine))}."
        )
    return code


_WORDS = {"yes": True, "no": False}  # beside true, false, 1 and 0
ENTRY_POINTS = "lrm_llava.engines"
# Where each spec is; its file is imported on first use.
_OURS = {
    "memory": "memory:SPEC",
    "apertium": "apertium:SPEC",
    "madlad": "seq2seq:MADLAD",
    "nllb": "seq2seq:NLLB",
    "m2m100": "seq2seq:M2M100",
    "opus-mt": "seq2seq:OPUS_MT",
    "openai": "openai:SPEC",
    "google": "metered:GOOGLE_SPEC",
    "deepl": "metered:DEEPL_SPEC",
}


def engine_names() -> tuple[str, ...]:
    """Returns the names of all engines, the built-in ones first."""
    return (*_OURS, *sorted(engines_of_other_packages().keys() - _OURS.keys()))


@cache
def engines_of_other_packages() -> dict[str, EntryPoint]:
    """Returns the engines of other packages; each search looks at every installed package."""
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def get_spec(name: str) -> EngineSpec:
    """Returns the spec of an engine.

    Raises:
        ConfigError: No engine has this name, or the engine of another package cannot be loaded.
    """
    if name in _OURS:
        entry = EntryPoint(name, f"lrm_ext.translate.engines.{_OURS[name]}", ENTRY_POINTS)
    elif found := engines_of_other_packages().get(name):
        entry = found
    else:
        raise ConfigError(f"unknown engine {name!r}; choose from: {', '.join(engine_names())}.")
    try:
        spec = entry.load()
    except Exception as error:  # another package's code
        raise ConfigError(f"engine {name!r} ({entry.value}) cannot be loaded: {error!r}") from error
    if not isinstance(spec, EngineSpec):
        raise ConfigError(
            f"engine {name!r}: entry point {entry.value} is {type(spec).__name__}, expected an "
            "EngineSpec (lrm_ext.translate.engines.base)."
        )
    return spec


def build_engine(
    name: str, options: Mapping[str, str], target: str, ledger: Cache
) -> TranslationEngine:
    """Makes an engine that translates from English.

    Args:
        name: Its name.
        options: Settings as typed on the command line.
        target: Code of the language to translate into.
        ledger: The cache, which knows the cost of earlier runs.

    Raises:
        ConfigError: The name or an option is unknown, a value has the wrong type, or the engine
            does not have the language.
        EngineError: Something that the engine needs is missing.
    """
    spec = get_spec(name)
    if target not in spec.languages():
        raise ConfigError(
            f"engine {name!r} does not translate into {target!r}; it has: "
            f"{', '.join(spec.languages()) or 'no language'}.{_code_to_add(spec, target)}"
        )
    return spec.build(parse_options(spec, options), ENGLISH, target, ledger)


def _code_to_add(spec: EngineSpec, target: str) -> str:
    """Says where to add the engine's code of a language that has a file but no code."""
    if spec.likely_code is None or target == ENGLISH or target not in list_languages():
        return ""
    code = spec.likely_code(target, known_names(target))
    return (
        f" {get_language(target).path} has no code for it: if the engine has the language, add "
        f'its code under [engines], such as {spec.name} = "{code}".'
    )


def parse_options(spec: EngineSpec, texts: Mapping[str, str]) -> Any:
    """Converts settings given as text into the engine's options.

    Raises:
        ConfigError: An option is unknown or missing, or its value is invalid.
    """
    types, known = typing.get_type_hints(spec.options), fields(spec.options)
    if unknown := texts.keys() - {f.name for f in known}:
        raise ConfigError(
            f"engine {spec.name!r} has no option {', '.join(sorted(unknown))}; it has: "
            f"{', '.join(f.name for f in known) or 'none'}."
        )
    if missing := [f.name for f in known if _is_needed(f) and f.name not in texts]:
        needed = ", ".join(f"--option {name}=..." for name in missing)
        raise ConfigError(f"engine {spec.name!r} needs {needed}.")
    values = {
        key: _WORDS.get(text.lower(), text) if types[key] is bool else text
        for key, text in texts.items()
    }
    try:
        # an engine of another package may use types such as Path, which msgspec does not know
        return msgspec.convert(
            values, spec.options, strict=False, dec_hook=lambda kind, text: kind(text)
        )
    except msgspec.ValidationError as error:
        said, _, key = str(error).partition(" - at `$.")
        key = key.rstrip("`")
        if key in texts:
            wanted = said.removeprefix("Expected ").partition(", got")[0]
            wanted = wanted.replace("`", "").removesuffix(" | null")
            if typing.get_origin(types[key]) is typing.Literal:
                wanted = "one of " + ", ".join(typing.get_args(types[key]))
            said = f"option {key} is {texts[key]!r}, expected {wanted}"
        raise ConfigError(f"engine {spec.name!r}: {said.rstrip('.')}.") from error


def _is_needed(option: Field[Any]) -> bool:
    return option.default is MISSING and option.default_factory is MISSING


def describe_options(spec: EngineSpec) -> list[tuple[str, str, str]]:
    """Returns name, default and meaning of each option; meanings come from docstrings."""
    meanings: dict[str, str] = {}
    for kind in reversed(spec.options.__mro__[:-1]):
        _, _, attributes = (inspect.getdoc(kind) or "").partition("Attributes:\n")
        for entry in re.split(r"\n {4}(?! )", "\n" + attributes)[1:]:
            name, _, meaning = entry.partition(": ")
            meanings[name] = " ".join(meaning.split())
    found: list[tuple[str, str, str]] = []
    for option in fields(spec.options):
        default = "" if option.default in (MISSING, None, "") else str(option.default)
        shown = "must be given" if _is_needed(option) else default
        found.append((option.name, shown, meanings.get(option.name, "")))
    return found


def split_options(texts: Iterable[str], engines: Iterable[str]) -> dict[str, dict[str, str]]:
    """Parses `name=value` (for every engine with that option) and `engine.name=value`.

    Raises:
        ConfigError: A text has no "=", or no engine of the chain has the option.
    """
    known = {name: [f.name for f in fields(get_spec(name).options)] for name in engines}
    result: dict[str, dict[str, str]] = {name: {} for name in known}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--option {text!r}: expected name=value.")
        engine, _, option = key.partition(".")
        asked = {engine: option} if option and engine in known else dict.fromkeys(known, key)
        takers = [name for name, option in asked.items() if option in known[name]]
        if not takers:
            listed = "; ".join(f"{name}: {', '.join(known[name]) or 'none'}" for name in asked)
            raise ConfigError(f"--option {text!r}: no engine has it. There are: {listed}.")
        for name in takers:
            result[name][asked[name]] = value
    return result
