"""Reads a study: the settings, their mixtures, and their training lengths.

Input: TOML. Output: a checked `Study`, and for each setting and seed the mixture files and steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from llava.errors import ConfigError
from llava.files import load_toml
from lrm_ext.instructions.registry import list_instructions

STUDIES: Final = ("mini", "languages")
PRETRAIN: Final = "pretrain"
FINETUNE: Final = "finetune"
_STUDY_KEYS: Final = frozenset(
    ("seeds", "pretrain_steps", "finetune_steps", "limit", "benchmarks", "quick", "settings")
)
_SETTING_KEYS: Final = frozenset(
    ("name", "words", "paper", "pretrain_ratio", "ratio", "instructions", "steps_of_ratio")
    + ("groups",)
)


def study_file(name: str) -> Path:
    """Returns the file of a study."""
    return Path(__file__).parent / f"{name}.toml"


@dataclass(frozen=True)
class Setting:
    """A training setup.

    Attributes:
        name: Name on the command line and in file names.
        words: Description.
        paper: Place in the paper.
        pretrain_ratio: Non-English samples per English one in pre-training.
        ratio: Non-English samples per English one in fine-tuning.
        instructions: Instructions of the non-English part of fine-tuning, with equal shares.
        steps_of_ratio: Ratio that determines the steps of both stages; None for the setting's own.
        groups: Groups of languages that it trains on, in a study with groups.
    """

    name: str
    words: str
    paper: str
    pretrain_ratio: float = 1.0
    ratio: float = 1.0
    instructions: tuple[str, ...] = ()
    steps_of_ratio: float | None = None
    groups: tuple[str, ...] = ()

    @property
    def stage1(self) -> str:
        """Name of its pre-training, which settings with equal pre-training share."""
        name = "-".join((f"ratio-{100 * self.pretrain_ratio:.3g}", *self.groups))
        longer = self.steps_of_ratio is not None and self.steps_of_ratio != self.pretrain_ratio
        return f"{name}-as-long-as-{100 * (self.steps_of_ratio or 0):g}" if longer else name


@dataclass(frozen=True)
class Study:
    """All settings and their common parameters.

    Attributes:
        seeds: Seeds of projector, mixture and order.
        pretrain_steps: Steps of pre-training at ratio 1.
        finetune_steps: Steps of fine-tuning at ratio 1.
        limit: Approximate number of questions per benchmark and language.
        benchmarks: Names of the benchmarks.
        settings: Settings in running order.
        quick: Whether this is the quick form.
        name: `mini` or `languages`.
        groups: Languages besides English by the name of their group; none for the paper's.
    """

    seeds: tuple[int, ...]
    pretrain_steps: int
    finetune_steps: int
    limit: int
    benchmarks: tuple[str, ...]
    settings: tuple[Setting, ...]
    quick: bool = False
    name: str = STUDIES[0]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the groups, in their order; none for the paper's."""
        return tuple(lang for group in self.groups.values() for lang in group)

    def languages_of(self, setting: Setting) -> tuple[str, ...]:
        """Returns the languages besides English that a setting trains on; none for the paper's."""
        return tuple(lang for group in setting.groups for lang in self.groups[group])

    def steps(self, setting: Setting, stage: str) -> int:
        """Returns the optimizer steps of a setting, for the same English samples at any ratio."""
        base = self.pretrain_steps if stage == PRETRAIN else self.finetune_steps
        own = setting.pretrain_ratio if stage == PRETRAIN else setting.ratio
        ratio = own if setting.steps_of_ratio is None else setting.steps_of_ratio
        return round(base * (1 + ratio) / 2)

    def choose(self, names: Sequence[str] = (), seeds: Sequence[int] = ()) -> Study:
        """Returns the study with only these settings and seeds; an empty list keeps all.

        Raises:
            ConfigError: A setting is unknown, or a seed is negative.
        """
        known = [setting.name for setting in self.settings]
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(
                f"unknown setting {', '.join(unknown)}; choose from: {', '.join(known)}"
            )
        if any(seed < 0 for seed in seeds):
            raise ConfigError(f"seeds are {', '.join(map(str, seeds))}; expected 0 or more")
        chosen = tuple(one for one in self.settings if not names or one.name in names)
        return replace(self, settings=chosen, seeds=tuple(seeds) or self.seeds)


def read_study(path: Path | None = None, *, quick: bool = False) -> Study:
    """Reads the settings.

    Args:
        path: Path of the file; that of the miniature of the paper by default.
        quick: Keep only the settings and values of the table [quick].

    Raises:
        ConfigError: A key is unknown or missing, a name occurs twice, an instruction is unknown, or
            a number is out of range.
    """
    path = path or study_file(STUDIES[0])
    data = load_toml(path)
    _check_keys(data, _STUDY_KEYS | {"groups"}, _STUDY_KEYS, str(path))
    groups = {name: tuple(languages) for name, languages in data.get("groups", {}).items()}
    settings = tuple(_setting(entry, groups, str(path)) for entry in data["settings"])
    names = [setting.name for setting in settings]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{path}: settings named twice: {', '.join(twice)}")
    for key in ("pretrain_steps", "finetune_steps", "limit"):
        if not isinstance(data[key], int) or data[key] < 2:
            raise ConfigError(f"{path}: {key} is {data[key]!r}; expected a whole number from 2 on")
    study = Study(
        seeds=tuple(data["seeds"]),
        pretrain_steps=data["pretrain_steps"],
        finetune_steps=data["finetune_steps"],
        limit=data["limit"],
        benchmarks=tuple(data["benchmarks"]),
        settings=settings,
        name=path.stem,
        groups=groups,
    )
    short = data["quick"]
    _check_keys(short, {"seeds", "settings"}, {"seeds", "settings"}, f"{path}: quick")
    shortened = study.choose(short["settings"], short["seeds"])
    return replace(shortened, quick=True) if quick else study


def _setting(
    entry: Mapping[str, Any], groups: Mapping[str, tuple[str, ...]], where: str
) -> Setting:
    where = f"{where}: setting {entry.get('name')!r}"
    _check_keys(entry, _SETTING_KEYS, {"name", "words", "paper"}, where)
    for key in ("pretrain_ratio", "ratio", "steps_of_ratio"):
        value = entry.get(key, 0)
        if not isinstance(value, int | float) or not 0 <= value <= 100:
            raise ConfigError(f"{where}: {key} is {value!r}; expected 0 to 100")
    instructions = tuple(entry.get("instructions", ()))
    if unknown := set(instructions) - set(list_instructions()):
        raise ConfigError(
            f"{where}: unknown instruction {', '.join(sorted(unknown))}; choose from: "
            f"{', '.join(list_instructions())}"
        )
    names = tuple(entry.get("groups", ()))
    if unknown := set(names) - set(groups):
        raise ConfigError(
            f"{where}: unknown group {', '.join(sorted(unknown))}; choose from: "
            f"{', '.join(groups) or 'none, there is no table [groups]'}"
        )
    return Setting(**{**entry, "instructions": instructions, "groups": names})


def _check_keys(
    data: Mapping[str, Any], known: frozenset[str] | set[str], needed: Any, where: str
) -> None:
    if unknown := sorted(set(data) - known):
        raise ConfigError(
            f"{where}: unknown key {', '.join(unknown)}; choose from: {', '.join(sorted(known))}"
        )
    if missing := sorted(set(needed) - set(data)):
        raise ConfigError(f"{where}: {', '.join(missing)} is missing")


def mixture_text(
    setting: Setting,
    stage: str,
    seed: int,
    base: Mapping[str, Any],
    languages: Sequence[str] = (),
) -> str:
    """Returns the mixture file of a setting: the paper's with the setting's changes.

    Args:
        setting: The setting.
        stage: `pretrain` or `finetune`.
        seed: Seed of all orders.
        base: The paper's mixture for that stage, as read from TOML.
        languages: Languages besides English, evenly; none for those of the paper.
    """
    ratio = setting.pretrain_ratio if stage == PRETRAIN else setting.ratio
    instructions = dict(base["instructions"])
    weights = dict.fromkeys(languages, 1) or base["languages"]
    if stage == FINETUNE and setting.instructions:
        instructions = dict.fromkeys(setting.instructions, 1)
    lines = [
        f"# {setting.name if stage == FINETUNE else setting.stage1}, seed {seed}",
        f"seed = {seed}",
        f"non_english_ratio = {ratio:g}",
    ]
    for title, shares in (("languages", weights), ("instructions", instructions)):
        lines += ["", f"[{title}]"]
        lines += [f"{name} = {json.dumps(share)}" for name, share in shares.items()]
    return "\n".join(lines) + "\n"
