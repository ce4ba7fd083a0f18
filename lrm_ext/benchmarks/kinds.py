"""The four benchmarks of the paper, and the kinds of the others, by name."""

from __future__ import annotations

from typing import Final

from llava.errors import ConfigError
from lrm_ext.benchmarks.kind import Kind
from lrm_ext.benchmarks.mmbench import MMBENCH
from lrm_ext.benchmarks.mme import MME
from lrm_ext.benchmarks.plain import ANSWERS, CAPTIONS
from lrm_ext.benchmarks.pope import POPE
from lrm_ext.benchmarks.seed_bench import SEED_BENCH

PAPER: Final = ("mme", "pope", "seed_bench", "mmbench")
KINDS: Final = {kind.name: kind for kind in (MME, POPE, SEED_BENCH, MMBENCH, ANSWERS, CAPTIONS)}
ALIASES: Final = {"seed": "seed_bench", "seed-bench": "seed_bench", "seedbench": "seed_bench"}


def find_kind(name: str) -> Kind | None:
    """A kind by its name; None if there is none of this name."""
    return KINDS.get(ALIASES.get(name, name))


def get_kind(name: str) -> Kind:
    """A kind by its name.

    Raises:
        ConfigError: There is none of this name.
    """
    kind = find_kind(name)
    if kind is None:
        raise ConfigError(f"unknown benchmark {name!r}; choose from {', '.join(KINDS)}")
    return kind
