"""Checks of single values of a mixture file; every error names the place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from llava.errors import ConfigError

_SUM_TOLERANCE = Fraction(1, 10**6)


def check_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuse keys that mean nothing.

    Raises:
        ConfigError: naming them and those that are known.
    """
    if unknown := sorted(set(table) - set(known)):
        raise ConfigError(f"{where}: {', '.join(unknown)}: unknown. Known: {', '.join(known)}.")


def number(value: Any, where: str) -> Fraction:
    """A finite number, as it was written.

    Raises:
        ConfigError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{where} is {value!r}, expected a number.")
    try:
        return Fraction(str(value))  # of what was written: 0.1 is a tenth
    except ValueError as error:
        raise ConfigError(f"{where} is {value!r}, expected a finite number.") from error


def whole_number(value: Any, where: str) -> int:
    """A whole number from 0.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{where} is {value!r}, expected a whole number from 0.")
    return value


def shares(table: Any, where: str) -> dict[str, Fraction]:
    """A table of shares: whole numbers are weights, fractions add up to 1.

    Raises:
        ConfigError: A share is not positive, or fractions do not add up.
    """
    if not isinstance(table, Mapping) or not table:
        raise ConfigError(f"{where} is {table!r}, expected a table of shares; or leave it out.")
    found = {name: number(value, f"{where}.{name}") for name, value in table.items()}
    wrong = {name: share for name, share in found.items() if share <= 0}
    if wrong:
        raise ConfigError(
            f"{where}: shares must be positive, found {listed(wrong.items())}; leave a name out "
            "to give it nothing."
        )
    total = sum(found.values(), Fraction(0))
    if any(share.denominator != 1 for share in found.values()) and (
        abs(total - 1) > _SUM_TOLERANCE
    ):
        raise ConfigError(
            f"{where}: shares written as fractions must add up to 1, but "
            f"{listed(found.items())} add up to {float(total):g}. Mend them, or write whole "
            "numbers as weights."
        )
    return found


def listed(table: Iterable[tuple[str, Fraction]]) -> str:
    """Names with their numbers, for messages."""
    return ", ".join(f"{name} = {float(share):g}" for name, share in table)
