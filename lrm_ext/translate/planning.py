"""Estimates the cost of a translation (`lrm translate --plan`).

Reads assumptions from a file (`plan.toml`) and optionally counts the text of a corpus. Prints the
GPU hours and money of each engine, with the arithmetic, as a Markdown table. Nothing is translated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from llava.errors import ConfigError
from llava.files import load_toml
from lrm_ext.corpus.store import Corpus
from lrm_ext.languages.registry import ENGLISH, PAPER_LANGUAGES, get_language
from lrm_ext.translate.engines.base import AtLeastOne, Positive
from lrm_ext.translate.segment import Unit, plan_row

ASSUMPTIONS_FILE = Path(__file__).with_name("plan.toml")
MAX_ROWS = 50_000  # of a corpus to count


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of `plan.toml`."""


class Volume(_Table, frozen=True):
    """The amount of text.

    Attributes:
        rows: Rows to translate.
        characters_per_row: Average number of characters of a row that an engine receives.
        unique_share: Share of these that remains when each text is translated once.
        source: Source of the numbers.
    """

    rows: AtLeastOne
    characters_per_row: Positive
    unique_share: Positive
    source: str

    @property
    def characters(self) -> float:
        """The number of characters to translate into each language."""
        return self.rows * self.characters_per_row * self.unique_share


class Tokens(_Table, frozen=True):
    """Converts characters to tokens.

    Attributes:
        characters_per_token: Characters of English in a token.
        relative: Tokens of a translation for one token of English.
        source: Source of the numbers.
    """

    characters_per_token: Positive
    relative: Positive
    source: str


class GpuPrice(_Table, frozen=True):
    """The GPU that local engines run on.

    Attributes:
        name: Its name.
        flops_per_s: Dense peak performance.
        usd_per_hour: Price of an hour.
        source: Source of the numbers.
    """

    name: str
    flops_per_s: Positive
    usd_per_hour: Positive
    source: str


_WAYS = (
    {"parameters", "utilization"},
    {"tokens_per_s"},
    {"characters_per_cpu_s"},
    {"usd_per_million_characters"},
    {"usd_per_million_input", "usd_per_million_output", "input_per_token"},
)


class EngineCost(_Table, frozen=True):
    """An engine's speed or price; `plan.toml` explains the entries."""

    name: str
    licence: str
    source: str
    parameters: Positive | None = None
    utilization: Positive | None = None
    tokens_per_s: Positive | None = None
    characters_per_cpu_s: Positive | None = None
    usd_per_million_characters: Positive | None = None
    usd_per_million_input: Positive | None = None
    usd_per_million_output: Positive | None = None
    input_per_token: Positive | None = None
    languages: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        given = {name for way in _WAYS for name in way if getattr(self, name) is not None}
        if given not in _WAYS:
            raise ConfigError(
                f"engine {self.name!r} has {', '.join(sorted(given)) or 'no numbers'}, expected "
                f"one of: {'; '.join(', '.join(sorted(way)) for way in _WAYS)}"
            )


class Assumptions(_Table, frozen=True):
    """The content of `plan.toml`."""

    volume: Volume
    tokens: Tokens
    gpu: GpuPrice
    engines: tuple[EngineCost, ...]


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of an engine.

    Attributes:
        languages: The requested languages that the engine has.
        hours: Hours of GPUs, or of CPU cores, which have no price; None for a service.
        usd: Money; None for CPU cores.
        arithmetic: How the numbers were computed.
    """

    languages: tuple[str, ...]
    hours: float | None
    usd: float | None
    arithmetic: str


def count_volume(corpus: Corpus, target: str) -> Volume:
    """Counts the text of a corpus that engines would receive; samples the rows of a large corpus.

    Args:
        corpus: The corpus.
        target: Code of a language; texts that its file translates are not counted.
    """
    step = max(1, -(-len(corpus) // MAX_ROWS))
    counted = range(0, len(corpus), step)
    num_rows = num_characters = 0
    seen: set[Unit] = set()
    for row in map(corpus.row, counted):
        units = list(plan_row(row, target).units) if row.translatable else []
        num_rows += row.translatable
        num_characters += sum(len(unit.text) for unit in units)
        seen.update(units)
    how = "counted" if step == 1 else f"counted in every {step}th row"
    return Volume(
        round(len(corpus) * num_rows / max(1, len(counted))),
        num_characters / max(1, num_rows),
        sum(len(unit.text) for unit in seen) / max(1, num_characters),
        f"{how}, {len(counted):,} rows; fixed texts are not among them, and of more rows more is "
        "repeated",
    )


def estimate(engine: EngineCost, given: Assumptions, languages: Sequence[str]) -> Estimate:
    """Estimates the cost of an engine.

    Args:
        engine: The engine.
        given: The assumptions.
        languages: Codes of the languages to translate into.
    """
    has = tuple(c for c in languages if engine.languages is None or c in engine.languages)
    characters = given.volume.characters * len(has)
    english = characters / given.tokens.characters_per_token
    translated = english * given.tokens.relative
    hours = usd = None
    if price := engine.usd_per_million_characters:
        usd = characters / 1e6 * price
        text = f"{_big(characters)} characters x {price:g} USD a million"
    elif engine.usd_per_million_input:
        assert engine.usd_per_million_output and engine.input_per_token
        price_in, price_out = engine.usd_per_million_input, engine.usd_per_million_output
        sent = english * engine.input_per_token
        usd = sent / 1e6 * price_in + translated / 1e6 * price_out
        text = (
            f"{_big(sent)} tokens in x {price_in:g} + {_big(translated)} out x {price_out:g} USD a "
            "million"
        )
    elif speed := engine.characters_per_cpu_s:
        hours = characters / speed / 3600
        text = f"{_big(characters)} characters / {speed:,.0f} a second"
    else:
        speed, how = engine.tokens_per_s, ""
        if speed is None:
            assert engine.parameters and engine.utilization
            # half of the parameters reads the English token, the other half writes its translation
            cost = engine.parameters * (1 + 1 / given.tokens.relative)
            speed = given.gpu.flops_per_s * engine.utilization / cost
            share = f"{engine.utilization:.0%} of {given.gpu.flops_per_s:.3g}"
            how = f" ({share} / {cost:.2g} operations a token)"
        hours = translated / speed / 3600
        usd = hours * given.gpu.usd_per_hour
        text = f"{_big(translated)} tokens out / {_rounded(speed)} a second{how}"
    return Estimate(has, hours, usd, text)


def to_markdown(assumptions: Assumptions, languages: Sequence[str]) -> str:
    """Returns the plan as a table, with its assumptions below."""
    volume, tokens, gpu = assumptions.volume, assumptions.tokens, assumptions.gpu
    lines = [
        f"| engine | licence | {gpu.name} hours | USD | arithmetic |",
        "|---|---|--:|--:|---|",
    ]
    for engine in assumptions.engines:
        found, name = estimate(engine, assumptions, languages), engine.name
        if len(found.languages) < len(languages):
            name += f" (only {' '.join(found.languages) or 'none of them'})"
        hours = "-" if found.hours is None else _rounded(found.hours)
        hours += " (CPU core)" if engine.characters_per_cpu_s else ""
        usd = "-" if found.usd is None else _rounded(found.usd)
        lines.append(f"| {name} | {engine.licence} | {hours} | {usd} | {found.arithmetic} |")
    lines += [
        "",
        f"* {volume.rows:,} rows x {volume.characters_per_row:,.0f} characters x "
        f"{100 * volume.unique_share:.3g} % that are not repeated = {_big(volume.characters)}, "
        f"into {len(languages)} languages ({' '.join(languages)}). {volume.source[:1].upper()}"
        f"{volume.source[1:]}.",
        f"* {tokens.characters_per_token:g} characters a token of English, {tokens.relative:g} "
        f"tokens of the translation for each: {tokens.source}.",
        f"* {gpu.name}: {gpu.flops_per_s:.3g} operations a second, {gpu.usd_per_hour:.2f} USD an "
        f"hour: {gpu.source}.",
        *(f"* {engine.name}: {engine.source}." for engine in assumptions.engines),
    ]
    return "\n".join(lines)


def plan(
    languages: Sequence[str],
    *,
    corpus: Path | None = None,
    assumptions: Path | None = None,
    rows: int | None = None,
) -> str:
    """Returns the plan for a corpus, or for the rows that the assumptions state.

    Args:
        languages: Codes of the languages to translate into; empty for those of the paper.
        corpus: A corpus whose text is counted.
        assumptions: A file of assumptions in place of `plan.toml`.
        rows: Number of rows to plan for, in place of the actual number.

    Raises:
        ConfigError: The assumptions are invalid, or a language is unknown.
        DataError: The corpus is damaged.
    """
    found = load_toml(assumptions or ASSUMPTIONS_FILE, Assumptions)
    languages = tuple(get_language(code).code for code in languages) or tuple(
        code for code in PAPER_LANGUAGES if code != ENGLISH
    )
    volume = found.volume
    if corpus is not None:
        volume = count_volume(Corpus.open(corpus), languages[0])
    if rows is not None:
        volume = msgspec.structs.replace(volume, rows=rows)
    return to_markdown(msgspec.structs.replace(found, volume=volume), languages)


def _big(number: float) -> str:
    """Formats a large number with a unit, to three significant digits."""
    for size, word in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{word}"
    return f"{number:.3g}"


def _rounded(number: float) -> str:
    """Rounds a number to two or three significant digits, since these are estimates."""
    if number >= 1000:
        return f"{float(f'{number:.3g}'):,.0f}"
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"
