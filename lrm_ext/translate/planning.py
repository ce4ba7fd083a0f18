"""What a translation will take, before it is begun (`lrm translate --plan`).

Input: assumptions from a file (`plan.toml`), and perhaps a corpus whose text is counted. Output:
GPU hours and money of each engine with the arithmetic, as a Markdown table. Nothing is translated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from llava.errors import ConfigError
from lrm_ext.corpus.store import Corpus
from lrm_ext.languages._toml import load_toml
from lrm_ext.languages.registry import ENGLISH, get_language, shipped_languages
from lrm_ext.translate.segment import Unit, plan_row

ASSUMPTIONS_FILE = Path(__file__).with_name("plan.toml")
MAX_ROWS = 50_000  # of a corpus that are counted


@dataclass(frozen=True)
class Volume:
    """How much text there is.

    Attributes:
        rows: Rows to translate.
        characters_per_row: Characters of one that an engine gets, on average.
        unique_share: Share of those that is left when each text is translated once.
        source: Where the numbers are from.
    """

    rows: int
    characters_per_row: float
    unique_share: float
    source: str

    @property
    def characters(self) -> float:
        """Characters that are translated into each language."""
        return self.rows * self.characters_per_row * self.unique_share


@dataclass(frozen=True)
class Tokens:
    """From characters to tokens.

    Attributes:
        characters_per_token: Of English.
        relative: Tokens of a translation for one of English.
        source: Where the numbers are from.
    """

    characters_per_token: float
    relative: float
    source: str


@dataclass(frozen=True)
class GpuPrice:
    """The GPU that local engines run on.

    Attributes:
        name: Its name.
        flops_per_s: Peak, dense.
        usd_per_hour: What an hour costs.
        source: Where the numbers are from.
    """

    name: str
    flops_per_s: float
    usd_per_hour: float
    source: str


@dataclass(frozen=True)
class EngineCost:
    """What is known of an engine's speed or price; `plan.toml` explains the entries."""

    name: str
    licence: str
    source: str
    parameters: float | None = None
    utilization: float | None = None
    tokens_per_s: float | None = None
    characters_per_cpu_s: float | None = None
    usd_per_million_characters: float | None = None
    usd_per_million_input: float | None = None
    usd_per_million_output: float | None = None
    input_per_token: float | None = None
    languages: tuple[str, ...] | None = None


_WAYS = (
    {"parameters", "utilization"},
    {"tokens_per_s"},
    {"characters_per_cpu_s"},
    {"usd_per_million_characters"},
    {"usd_per_million_input", "usd_per_million_output", "input_per_token"},
)


@dataclass(frozen=True)
class Assumptions:
    """All that a plan reckons with."""

    volume: Volume
    tokens: Tokens
    gpu: GpuPrice
    engines: tuple[EngineCost, ...]

    @classmethod
    def load(cls, path: Path = ASSUMPTIONS_FILE) -> Assumptions:
        """Read a file of assumptions.

        Raises:
            ConfigError: The file is missing, not TOML, or an entry is missing, unknown or not a
                number.
        """
        data = load_toml(path)
        engines = []
        for raw in data.get("engines", ()):
            engine = _read(EngineCost, raw, f"{path}: engine {raw.get('name')!r}")
            given = {name for way in _WAYS for name in way if getattr(engine, name) is not None}
            if given not in _WAYS:
                raise ConfigError(
                    f"{path}: engine {engine.name!r} has {', '.join(sorted(given)) or 'no numbers'}"
                    f", expected one of: {'; '.join(', '.join(sorted(way)) for way in _WAYS)}."
                )
            engines.append(engine)
        return cls(
            _read(Volume, data.get("volume", {}), f"{path}: [volume]"),
            _read(Tokens, data.get("tokens", {}), f"{path}: [tokens]"),
            _read(GpuPrice, data.get("gpu", {}), f"{path}: [gpu]"),
            tuple(engines),
        )


@dataclass(frozen=True)
class Estimate:
    """What an engine will take.

    Attributes:
        engine: The engine.
        hours: Of GPUs, or of CPU cores; None for a service.
        is_gpu: Which of them.
        languages: Those that the engine has of those asked for.
        usd: Money; None where only the machine is one's own to price.
        arithmetic: How the numbers came about.
    """

    engine: EngineCost
    hours: float | None
    is_gpu: bool
    languages: tuple[str, ...]
    usd: float | None
    arithmetic: str


def count_volume(corpus: Corpus, target: str) -> Volume:
    """Count the text of a corpus that engines would get; of a large one, of a part of the rows.

    Args:
        corpus: The corpus.
        target: Code of a language; what its file translates is not counted.
    """
    step = max(1, -(-len(corpus) // MAX_ROWS))
    num_rows = num_counted = num_characters = num_unique = 0
    seen: set[Unit] = set()
    for index in range(0, len(corpus), step):
        row = corpus.row(index)
        num_counted += 1
        if not row.translatable:
            continue
        num_rows += 1
        for unit in plan_row(row, target).units:
            num_characters += len(unit.text)
            if unit not in seen:
                seen.add(unit)
                num_unique += len(unit.text)
    rows = round(len(corpus) * num_rows / max(1, num_counted))
    counted = "counted" if step == 1 else f"counted in every {step}th row"
    return Volume(
        rows,
        num_characters / max(1, num_rows),
        num_unique / max(1, num_characters),
        f"{counted}, {num_counted:,} rows; fixed texts are not among them, and of more rows more "
        "is repeated",
    )


def estimate(assumptions: Assumptions, languages: Sequence[str]) -> list[Estimate]:
    """Reckon every engine.

    Args:
        assumptions: Numbers to reckon with.
        languages: Codes of the languages to translate into.
    """
    return [_estimate(engine, assumptions, languages) for engine in assumptions.engines]


def _estimate(engine: EngineCost, given: Assumptions, languages: Sequence[str]) -> Estimate:
    has = tuple(c for c in languages if engine.languages is None or c in engine.languages)
    characters = given.volume.characters * len(has)
    english = characters / given.tokens.characters_per_token
    translated = english * given.tokens.relative
    hours, is_gpu, usd = None, False, None
    if engine.usd_per_million_characters is not None:
        usd = characters / 1e6 * engine.usd_per_million_characters
        price = f"{engine.usd_per_million_characters:g} USD a million"
        text = f"{_big(characters)} characters x {price}"
    elif engine.usd_per_million_input is not None:
        assert engine.usd_per_million_output is not None and engine.input_per_token is not None
        sent = english * engine.input_per_token
        usd = sent / 1e6 * engine.usd_per_million_input
        usd += translated / 1e6 * engine.usd_per_million_output
        text = (
            f"{_big(sent)} tokens in x {engine.usd_per_million_input:g} + {_big(translated)} out x "
            f"{engine.usd_per_million_output:g} USD a million"
        )
    elif engine.characters_per_cpu_s is not None:
        hours = characters / engine.characters_per_cpu_s / 3600
        text = f"{_big(characters)} characters / {engine.characters_per_cpu_s:,.0f} a second"
    else:
        is_gpu = True
        speed, how = _speed(engine, given)
        hours = translated / speed / 3600
        usd = hours * given.gpu.usd_per_hour
        text = f"{_big(translated)} tokens out / {_rounded(speed)} a second{how}"
    return Estimate(engine, hours, is_gpu, has, usd, text)


def _speed(engine: EngineCost, given: Assumptions) -> tuple[float, str]:
    """Tokens of translation a second, and how that is reckoned."""
    if engine.tokens_per_s is not None:
        return engine.tokens_per_s, ""
    assert engine.parameters is not None and engine.utilization is not None
    # half of the parameters reads a token of English, the other half writes its translation
    cost = engine.parameters * (1 + 1 / given.tokens.relative)
    share = f"{engine.utilization:.0%} of {given.gpu.flops_per_s:.3g}"
    speed = given.gpu.flops_per_s * engine.utilization / cost
    return speed, f" ({share} / {cost:.2g} operations a token)"


def to_markdown(assumptions: Assumptions, languages: Sequence[str]) -> str:
    """The plan as a table, with what it reckons with below."""
    volume, tokens, gpu = assumptions.volume, assumptions.tokens, assumptions.gpu
    lines = [
        f"| engine | licence | {gpu.name} hours | USD | arithmetic |",
        "|---|---|--:|--:|---|",
    ]
    for found in estimate(assumptions, languages):
        name = found.engine.name
        if len(found.languages) < len(languages):
            name += f" (only {' '.join(found.languages) or 'none of them'})"
        hours = "-" if found.hours is None else _rounded(found.hours)
        hours += "" if found.is_gpu or found.hours is None else " (CPU core)"
        usd = "-" if found.usd is None else _rounded(found.usd)
        cells = (name, found.engine.licence, hours, usd, found.arithmetic)
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"* {volume.rows:,} rows x {volume.characters_per_row:,.0f} characters x "
        f"{100 * volume.unique_share:.3g} % that are not repeated = {_big(volume.characters)}, "
        f"into {len(languages)} languages ({' '.join(languages)}). {_sentence(volume.source)}",
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
    """Make the table of a corpus, or of the rows that the assumptions state.

    Args:
        languages: Codes of the languages to translate into; empty for all that are shipped.
        corpus: A corpus whose text is counted.
        assumptions: Numbers of one's own.
        rows: So many rows like those, in place of how many there are.

    Raises:
        ConfigError: The assumptions are not as they must be, or a language is unknown.
        DataError: The corpus is damaged.
    """
    found = Assumptions.load(assumptions or ASSUMPTIONS_FILE)
    languages = tuple(get_language(code).code for code in languages) or tuple(
        code for code in shipped_languages() if code != ENGLISH
    )
    volume = found.volume
    if corpus is not None:
        volume = count_volume(Corpus.open(corpus), languages[0])
    if rows is not None:
        volume = replace(volume, rows=rows)
    return to_markdown(replace(found, volume=volume), languages)


def _read(kind: Any, raw: Any, where: str) -> Any:
    """Make a dataclass of a table."""
    known = {f.name: f for f in fields(kind)}
    texts = ("name", "licence", "source")
    raw = {key: tuple(value) if key == "languages" else value for key, value in raw.items()}
    for key, value in raw.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown entry {key!r}; known: {', '.join(known)}.")
        if key == "languages":
            continue
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        if not (isinstance(value, str) if key in texts else is_number):
            wanted = "a text" if key in texts else "a number above 0"
            raise ConfigError(f"{where}: {key} is {value!r}, expected {wanted}.")
    try:
        return kind(**raw)
    except TypeError as error:
        missing = [name for name in known if f"'{name}'" in str(error)]
        raise ConfigError(f"{where}: {', '.join(missing)} is missing.") from error


def _big(number: float) -> str:
    """A large number in words, to three places."""
    for size, word in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{word}"
    return f"{number:.3g}"


def _rounded(number: float) -> str:
    """A number to two or three places: none of this is exact."""
    if number >= 1000:
        return f"{float(f'{number:.3g}'):,.0f}"
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
