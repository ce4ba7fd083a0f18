"""How large a part each language has, and in which epoch.

    [[curriculum]]               # the first entry begins with epoch 0
    from_epoch = 0
    sampling = "temperature"     # as rows ** alpha: 0 is evenly, 1 is by size
    alpha = 0.3
    [[curriculum]]               # and holds until the next one
    from_epoch = 2
    sampling = "unimax"          # evenly, but no language more than so often through its rows
    max_epochs = 4

Input: TOML values; rows of each language. Output: shares, from which `counts.apportion` makes exact
counts. Nothing is drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from llava.errors import ConfigError
from lrm_ext.mixture.values import check_keys, listed, number, whole_number

SHARES, TEMPERATURE, UNIMAX = "shares", "temperature", "unimax"
# what each choice is told, and the largest value that makes sense
_SETTINGS = {SHARES: None, TEMPERATURE: ("alpha", 1), UNIMAX: ("max_epochs", 1000)}


@dataclass(frozen=True)
class Phase:
    """What holds from one epoch on.

    Attributes:
        from_epoch: The first epoch, from 0.
        sampling: "shares", "temperature" or "unimax".
        setting: `alpha` or `max_epochs`; 0 for shares.
    """

    from_epoch: int = 0
    sampling: str = SHARES
    setting: Fraction = Fraction(0)


def read_curriculum(entries: Any, where: str) -> tuple[Phase, ...]:
    """Check the entries of a curriculum.

    Raises:
        ConfigError: An unknown key or sampling, a setting that is missing or out of range, or
            entries that do not begin with epoch 0 and ascend.
    """
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise ConfigError(f"{where} is {entries!r}, expected entries [[curriculum]].")
    phases = tuple(_phase(entry, f"{where}[{i}]") for i, entry in enumerate(entries))
    starts = [phase.from_epoch for phase in phases]
    if starts[0] != 0 or any(a >= b for a, b in zip(starts, starts[1:], strict=False)):
        raise ConfigError(
            f"{where}: from_epoch is {', '.join(map(str, starts))}; expected 0 first, then "
            "ascending."
        )
    return phases


def _phase(entry: Any, where: str) -> Phase:
    sampling = entry.get("sampling") if isinstance(entry, Mapping) else None
    if sampling not in _SETTINGS:
        raise ConfigError(
            f"{where}: sampling is {sampling!r}; choose from: {', '.join(_SETTINGS)}."
        )
    setting = _SETTINGS[sampling]
    check_keys(entry, ("from_epoch", "sampling", *(setting[:1] if setting else ())), where)
    from_epoch = whole_number(entry.get("from_epoch", 0), f"{where}: from_epoch")
    if setting is None:
        return Phase(from_epoch, sampling)
    name, largest = setting
    if name not in entry:
        raise ConfigError(f"{where}: {sampling} needs {name}.")
    value = number(entry[name], f"{where}: {name}")
    if not 0 <= value <= largest or (sampling == UNIMAX and not value):
        raise ConfigError(f"{where}: {name} is {float(value):g}, expected 0 to {largest}.")
    return Phase(from_epoch, sampling, value)


def phase_at(phases: Sequence[Phase], epoch: int) -> int:
    """Number of the phase that an epoch is in."""
    return sum(phase.from_epoch <= epoch for phase in phases) - 1


def shares_of(
    phase: Phase,
    total: int,
    shares: Mapping[str, Fraction],
    sizes: Mapping[str, Fraction],
) -> dict[str, Fraction]:
    """Shares of the languages in the non-English part.

    Args:
        phase: How they are found.
        total: Non-English samples an epoch.
        shares: The shares that the mixture file gives, one for each language that takes part.
        sizes: Rows that each language has; rows of a corpus that comes k times an epoch count k
            times.

    Raises:
        ConfigError: No language may give as many samples as UniMax is asked for.
    """
    rules: dict[str, Callable[[], dict[str, Fraction]]] = {
        SHARES: lambda: dict(shares),
        TEMPERATURE: lambda: {lang: _power(sizes[lang], phase.setting) for lang in shares},
        UNIMAX: lambda: _unimax(total, {lang: sizes[lang] for lang in shares}, phase.setting),
    }
    return rules[phase.sampling]()


def _power(size: Fraction, alpha: Fraction) -> Fraction:
    # nine digits: the last bit of a power differs between machines, and counts must not
    return Fraction(f"{float(size) ** float(alpha):.9g}")


def _unimax(total: int, sizes: Mapping[str, Fraction], max_epochs: Fraction) -> dict[str, Fraction]:
    """An even share each; what a small language may not take goes to the others (UniMax)."""
    left = Fraction(total)
    found: dict[str, Fraction] = {}
    by_size = sorted(sizes, key=lambda lang: sizes[lang])
    for i, lang in enumerate(by_size):
        most = Fraction(math.floor(sizes[lang] * max_epochs))
        found[lang] = min(most, left / (len(by_size) - i))
        left -= found[lang]
    if left:
        raise ConfigError(
            f"{total} non-English samples an epoch are asked for, but unimax with max_epochs = "
            f"{float(max_epochs):g} allows {total - left} ({listed(found.items())}). Raise "
            "max_epochs, or lower non_english_ratio."
        )
    return {lang: found[lang] for lang in sizes}
