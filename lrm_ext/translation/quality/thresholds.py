"""What is normal for translations into a language: the [quality] section of its file, checked.

Input: a language code. Output: frozen `Thresholds`. Where the file says nothing the defaults hold;
`tools/calibrate_quality.py` measures limits and writes them into the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from types import MappingProxyType
from typing import Any

from llava.errors import ConfigError
from lrm_ext.languages.registry import get_language

# A value over its limit is a finding. Where a translator has no choice the limit is 0.
DEFAULT_LIMITS: Mapping[str, float] = MappingProxyType(
    {
        "structure": 0.0,
        "protected": 0.0,
        "numbers": 0.0,
        "mojibake": 0.0,
        "answer": 0.0,
        "script": 0.2,
        "near": 0.1,
        "language": 3.0,
        "copy": 0.7,
        "repetition": 0.3,
        "length": 4.0,
        "ending": 0.0,
        "meaning": 0.7,
    }
)


@dataclass(frozen=True)
class Thresholds:
    """What is normal for translations from English into a language.

    Attributes:
        near: Codes of languages that an identifier cannot tell from it in a sentence; they pass.
        rivals: Codes of other languages that it may be mistaken for, beside ours; they do not.
        foreign_letters: Letters that a near language has and this one has not.
        foreign_words: Frequent words that a near language has and this one has not, folded.
        length_ratio: Characters of a translation for each character of English.
        length_spread: Standard deviation of the difference, in characters, for one character.
        limits: The largest value that passes, by check.
    """

    near: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    foreign_letters: str = ""
    foreign_words: frozenset[str] = frozenset()
    length_ratio: float = 1.1
    length_spread: float = 1.2
    limits: Mapping[str, float] = field(default_factory=lambda: DEFAULT_LIMITS)

    def with_limits(self, limits: Mapping[str, float]) -> Thresholds:
        """The same with other limits for some checks.

        Raises:
            ConfigError: There is no such check.
        """
        _check_names(limits, "limits")
        return replace(self, limits=MappingProxyType({**self.limits, **limits}))


@cache
def get_thresholds(lang: str) -> Thresholds:
    """Thresholds for translations into a language.

    Raises:
        ConfigError: There is no such language, or its [quality] section is at fault.
    """
    language = get_language(lang)
    return parse_thresholds(language.quality, f"{language.path}: quality")


def parse_thresholds(table: Mapping[str, Any], where: str) -> Thresholds:
    """Read a [quality] section.

    Raises:
        ConfigError: A key is unknown, or a value of another type than expected.
    """
    known = [f.name for f in fields(Thresholds)]
    if unknown := sorted(set(table) - set(known)):
        raise ConfigError(f"{where}: {', '.join(unknown)} unknown; known: {', '.join(known)}.")
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key == "limits":
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}.limits is {value!r}, expected a table of numbers.")
            _check_names(value, f"{where}.limits")
            given = {
                name: _number(limit, f"{where}.limits.{name}") for name, limit in value.items()
            }
            values[key] = MappingProxyType({**DEFAULT_LIMITS, **given})
        elif key.startswith("length_"):
            values[key] = _number(value, f"{where}.{key}")
            if not values[key] > 0:
                raise ConfigError(f"{where}.{key} is {value!r}, expected a number above 0.")
        elif key == "foreign_letters":
            if not isinstance(value, str):
                raise ConfigError(f"{where}.{key} is {value!r}, expected letters in one string.")
            values[key] = value
        else:
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                raise ConfigError(f"{where}.{key} is {value!r}, expected a list of strings.")
            values[key] = frozenset(value) if key == "foreign_words" else tuple(value)
    return Thresholds(**values)


def _check_names(limits: Mapping[str, Any], where: str) -> None:
    if unknown := sorted(set(limits) - set(DEFAULT_LIMITS)):
        raise ConfigError(
            f"{where}: no check is called {', '.join(unknown)}; there are: "
            f"{', '.join(DEFAULT_LIMITS)}."
        )


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where} is {value!r}, expected a number.")
    return float(value)
