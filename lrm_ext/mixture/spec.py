"""What a mixture file says.

    seed = 0
    non_english_ratio = 1.0     # non-English samples per English sample
    [languages]                 # shares of the non-English part; left out: all of the corpus
    cs = 1
    [instructions]              # shares of the non-English part; left out: all three, evenly
    mvqa = 1

Input: TOML. Output: a checked `MixtureSpec`. Shares in whole numbers are weights (1 : 1 : 2); as
soon as one is a fraction they must add up to 1. Whether a corpus has the languages is checked in
`mixture.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from llava.errors import ConfigError
from lrm_ext.instructions.instruction import ENGLISH
from lrm_ext.instructions.registry import get_instruction, list_instructions
from lrm_ext.languages._toml import load_toml
from lrm_ext.languages.registry import get_language
from lrm_ext.mixture.permutation import SCHEME_VERSION

_KEYS = ("seed", "non_english_ratio", "languages", "instructions")
_MAX_RATIO = 100
_SUM_TOLERANCE = Fraction(1, 10**6)


@dataclass(frozen=True)
class MixtureSpec:
    """A mixture, independent of any corpus.

    Attributes:
        seed: Key of all orders.
        non_english_ratio: Non-English samples per English sample; 0 is English only.
        languages: Share of each non-English language; empty: all that the corpus has, evenly.
        instructions: Share of each instruction in the non-English part.
    """

    seed: int = 0
    non_english_ratio: Fraction = Fraction(1)
    languages: Mapping[str, Fraction] = field(default_factory=dict)
    instructions: Mapping[str, Fraction] = field(
        default_factory=lambda: dict.fromkeys(list_instructions(), Fraction(1))
    )

    @classmethod
    def from_toml(cls, path: str | Path) -> MixtureSpec:
        """Read a mixture file.

        Raises:
            ConfigError: The file is missing or not TOML, or as in `from_dict`.
        """
        return cls.from_dict(load_toml(path), str(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "mixture") -> MixtureSpec:
        """Check a mixture given as plain values.

        Args:
            data: The content of the file.
            where: Its name, for errors.

        Raises:
            ConfigError: An unknown key, language or instruction; a share that is not a positive
                number; fractions that do not add up to 1; a ratio out of range.
        """
        if unknown := sorted(set(data) - set(_KEYS)):
            raise ConfigError(f"{where}: {', '.join(unknown)}: unknown. Known: {', '.join(_KEYS)}.")
        seed = data.get("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ConfigError(f"{where}: seed is {seed!r}, expected a whole number from 0.")
        ratio = _number(data.get("non_english_ratio", 1), f"{where}: non_english_ratio")
        if not 0 <= ratio <= _MAX_RATIO:
            raise ConfigError(
                f"{where}: non_english_ratio is {float(ratio)}, expected 0 to {_MAX_RATIO} "
                "(non-English samples per English sample)."
            )
        languages: Mapping[str, Fraction] = {}
        if "languages" in data:
            languages = _shares(data["languages"], f"{where}: languages")
            for lang in languages:
                _check_language(lang, where)
        instructions = dict.fromkeys(list_instructions(), Fraction(1))
        if "instructions" in data:
            instructions = _shares(data["instructions"], f"{where}: instructions")
            for name in instructions:
                get_instruction(name)
        return cls(seed, ratio, languages, instructions)

    def fingerprint(self) -> str:
        """A short text that differs for mixtures with other orders or shares."""
        shares = [
            [(name, str(share)) for name, share in table.items()]
            for table in (self.languages, self.instructions)
        ]
        content = [SCHEME_VERSION, self.seed, str(self.non_english_ratio), *shares]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

    def num_non_english(self, num_english: int) -> int:
        """Non-English samples beside so many English ones, rounded half up."""
        return math.floor(self.non_english_ratio * num_english + Fraction(1, 2))

    def languages_in(self, available: Iterable[str]) -> dict[str, Fraction]:
        """Shares of the languages: those of the spec, or all that are available, evenly."""
        if self.languages:
            return dict(self.languages)
        return {get_language(lang).code: Fraction(1) for lang in available if lang != ENGLISH}


def _check_language(lang: str, where: str) -> None:
    get_language(lang)
    if lang == ENGLISH:
        raise ConfigError(
            f"{where}: languages.en: English is not part of the non-English shares; every English "
            "row is drawn once. Set non_english_ratio instead."
        )


def _number(value: Any, where: str) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{where} is {value!r}, expected a number.")
    try:
        return Fraction(str(value))  # of what was written: 0.1 is a tenth
    except ValueError as error:
        raise ConfigError(f"{where} is {value!r}, expected a finite number.") from error


def _shares(table: Any, where: str) -> dict[str, Fraction]:
    """Check a table of shares; see the module's header for what they mean."""
    if not isinstance(table, Mapping) or not table:
        raise ConfigError(f"{where} is {table!r}, expected a table of shares; or leave it out.")
    shares = {name: _number(value, f"{where}.{name}") for name, value in table.items()}
    wrong = {name: share for name, share in shares.items() if share <= 0}
    if wrong:
        raise ConfigError(
            f"{where}: shares must be positive, found {_listed(wrong.items())}; leave a name out "
            "to give it nothing."
        )
    total = sum(shares.values(), Fraction(0))
    if any(share.denominator != 1 for share in shares.values()) and (
        abs(total - 1) > _SUM_TOLERANCE
    ):
        raise ConfigError(
            f"{where}: shares written as fractions must add up to 1, but "
            f"{_listed(shares.items())} add up to {float(total):g}. Mend them, or write whole "
            "numbers as weights."
        )
    return shares


def _listed(shares: Iterable[tuple[str, Fraction]]) -> str:
    return ", ".join(f"{name} = {float(share):g}" for name, share in shares)
