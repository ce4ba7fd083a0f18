"""What a translation engine is: a batch of segments goes in, replies come out as they arrive.

An engine is one file with a `SPEC`. It does not cache, protect or judge: it receives text that may
hold placeholders and says, for every segment, what became of it. Engines of other packages are
found by the entry-point group `lrm_llava.engines`, whose entries name such a `SPEC`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from llava.errors import UserError
from lrm_ext.languages.tags import KnownNames

if TYPE_CHECKING:
    from lrm_ext.translation.cache import Answer

OptionValue = str | int | float | bool | None


class EngineError(UserError):
    """An engine cannot go on: the key is refused, the service is down, a program is missing.

    Whatever was answered before is in the cache; running again goes on from there.
    """


class BudgetError(EngineError):
    """The budget is spent."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What an engine is asked to translate.

    Attributes:
        text: One line or less, perhaps with placeholders.
        context: The question that a short text answers; "" if it stands by itself.
        terms: Entries of the glossary that occur in `text`, English and translation.
    """

    text: str
    context: str = ""
    terms: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one segment.

    Attributes:
        index: Its position in the batch.
        text: The translation; None if there is none.
        error: Why there is none.
        is_final: Asking again would give the same. Final outcomes are cached, failures too;
            others (time-outs) are asked again by the next run.
    """

    index: int
    text: str | None
    error: str | None = None
    is_final: bool = True


@dataclass(frozen=True, slots=True)
class Usage:
    """What something cost.

    Attributes:
        requests: Calls of a service, or batches through a model.
        input_tokens: Tokens (or characters, if the service bills those) sent.
        output_tokens: Tokens received.
        usd: Price, 0 where none is known.
    """

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))


def _values(usage: Usage) -> tuple[Any, ...]:
    return usage.requests, usage.input_tokens, usage.output_tokens, usage.usd


@dataclass(frozen=True, slots=True)
class Reply:
    """Some outcomes, as soon as they are there, and what they cost."""

    outcomes: tuple[Outcome, ...]
    usage: Usage = field(default_factory=Usage)


class Ledger(Protocol):
    """What an engine may know of earlier runs; the cache keeps it."""

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        """Look answers up; keys without one are left out."""
        ...

    def put(
        self, answers: Mapping[bytes, Answer], engine: Engine, target: str, usage: Usage
    ) -> int:
        """Keep answers that were not asked for in this call, and what they cost."""
        ...

    def spent(self, engine: str, target: str | None = None) -> Usage:
        """What the engine has cost in all runs."""
        ...

    def note(self, engine: str, name: str, value: str | None) -> None:
        """Keep something for a later run, such as a job a service works on; None forgets it."""
        ...

    def notes(self, engine: str) -> dict[str, str]:
        """What was kept, by name."""
        ...


class Engine(Protocol):
    """Translates segments between two languages.

    Making one is cheap: models are loaded with the first batch.

    Attributes:
        name: The engine's name; part of the cache key.
        version: Of the model or program, as exact as can be had; part of the cache key.
        options: All settings that change a translation, and no others; part of the cache key.
        context: How it takes the question of a short answer: "native" (reads `Segment.context` and
            `Segment.terms`), "question" (reads `Segment.context` only), "joined" (is sent question
            and answer as one text), or "none".
        mask_styles: Names of `protect.STYLES` in the order in which they are tried.
        is_table: A table of human translations: gets text as it is, is trusted, is not cached.
        is_sentence_level: It loses sentences of longer texts and is sent one at a time.
    """

    name: str
    version: str
    options: Mapping[str, OptionValue]
    context: str
    mask_styles: tuple[str, ...]
    is_table: bool
    is_sentence_level: bool

    def translate(self, segments: Sequence[Segment]) -> Iterator[Reply]:
        """Translate a batch.

        Args:
            segments: Any number; the engine makes batches of the size it likes.

        Yields:
            Replies in any order. A segment that no reply mentions counts as failed, not final.

        Raises:
            EngineError: It cannot go on at all.
        """
        ...

    def close(self) -> None:
        """Free processes, connections and memory; it may be called twice."""
        ...


@runtime_checkable
class AheadEngine(Protocol):
    """An engine that wants much at once, because its answers take hours.

    Attributes:
        rows_ahead: Rows of the corpus that it is asked about before the first of them is written;
            0 if, with these options, it is an engine like any other.
    """

    rows_ahead: int


@dataclass(frozen=True)
class EngineSpec:
    """An engine as the command line knows it; importing its file loads nothing heavy.

    Attributes:
        name: Name on the command line.
        summary: One line.
        licence: Of the model or service; it decides what the data may be used for.
        cost: What it costs, in words.
        options: A frozen dataclass; its fields are what `--option name=value` may set.
        build: Makes the engine of options, the codes of the languages from and into which it
            translates, and a ledger.
        languages: Gives codes of the languages that it translates into from English.
        install: How to get what it needs.
        likely_code: What it probably calls a language, by its tag and what CLDR knows of it; None
            if it needs no code.
        known_codes: Gives all codes of its own list; none where it has no list offline.
        uses_service: It asks a service and keeps to a budget, so `--executor ray` leaves it in the
            driver's process.
    """

    name: str
    summary: str
    licence: str
    cost: str
    options: type
    build: Callable[[Any, str, str, Ledger], Engine]
    languages: Callable[[], tuple[str, ...]]
    install: str = ""
    likely_code: Callable[[str, KnownNames], str] | None = None
    known_codes: Callable[[], tuple[str, ...]] = tuple
    uses_service: bool = False


@dataclass(frozen=True)
class NoOptions:
    """Options of an engine that has none."""


def identity(engine: Engine) -> str:
    """What of an engine decides its translations, as one line of JSON."""
    return json.dumps([engine.name, engine.version, dict(engine.options)], sort_keys=True)


def options_of(dataclass_options: Any, *leave_out: str) -> dict[str, OptionValue]:
    """The options of a dataclass as a mapping, without those that change no translation."""
    return {key: v for key, v in asdict(dataclass_options).items() if key not in leave_out}
