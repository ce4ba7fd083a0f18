"""What a mixture file says.

    seed = 0
    non_english_ratio = 1.0     # non-English samples per English sample
    [languages]                 # shares of the non-English part; left out: all of the corpus
    cs = 1
    [instructions]              # shares of the non-English part; left out: all three, evenly
    mvqa = 1
    [[corpora]]                 # left out: the corpus that the command names
    path = "captions"           # seen from this file
    epochs = 0.5                # how often its rows come in an epoch of the mixture
    [[curriculum]]              # shares that are computed; the first entry begins with epoch 0
    from_epoch = 0
    sampling = "temperature"    # as rows ** alpha: 0 is evenly, 1 is by size
    alpha = 0.3
    [[curriculum]]              # and holds until the next one
    from_epoch = 2
    sampling = "unimax"         # evenly, but no language more than so often through its rows
    max_epochs = 4

Input: TOML. Output: a checked `MixtureSpec`. Shares in whole numbers are weights (1 : 1 : 2); as
soon as one is a fraction they must add up to 1. `languages` may be a list, for even shares. Whether
a corpus has the languages is checked in `order.py`. Nothing is drawn at random.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from llava.errors import ConfigError
from lrm_ext.instructions.registry import ENGLISH, get_instruction, list_instructions
from lrm_ext.languages._toml import load_toml
from lrm_ext.languages.registry import get_language

# Part of what decides the order: raise it when the scheme changes, and checkpoints that were
# written under another number are not resumed in the middle of an epoch.
SCHEME_VERSION = 1
_SUM_TOLERANCE = Fraction(1, 10**6)
SHARES, TEMPERATURE, UNIMAX = "shares", "temperature", "unimax"
# what each choice is told, and the largest value that makes sense
_SETTINGS = {SHARES: None, TEMPERATURE: ("alpha", 1), UNIMAX: ("max_epochs", 1000)}
_KEYS = ("seed", "non_english_ratio", "languages", "instructions", "corpora", "curriculum")
_MAX_RATIO = 100
_MAX_EPOCHS = 1000
MIXTURES_DIR = Path(__file__).parents[2] / "scripts" / "v1_5" / "mixtures"


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


@dataclass(frozen=True)
class CorpusShare:
    """A corpus of a mixture.

    Attributes:
        path: Its folder.
        epochs: How often its rows come in an epoch of the mixture, or
        weight: its share in the English part; then every corpus of the mixture has one.
    """

    path: Path
    epochs: Fraction | None = Fraction(1)
    weight: Fraction | None = None


@dataclass(frozen=True)
class MixtureSpec:
    """A mixture, independent of any corpus.

    Attributes:
        seed: Key of all orders.
        non_english_ratio: Non-English samples per English sample; 0 is English only.
        languages: Share of each non-English language; empty: all that the corpus has, evenly.
        instructions: Share of each instruction in the non-English part.
        corpora: What it is drawn from; empty: from one corpus that is named elsewhere.
        curriculum: How shares of languages are found, by epoch.
    """

    seed: int = 0
    non_english_ratio: Fraction = Fraction(1)
    languages: Mapping[str, Fraction] = field(default_factory=dict)
    instructions: Mapping[str, Fraction] = field(
        default_factory=lambda: dict.fromkeys(list_instructions(), Fraction(1))
    )
    corpora: tuple[CorpusShare, ...] = ()
    curriculum: tuple[Phase, ...] = (Phase(),)

    @classmethod
    def from_toml(cls, path: str | Path) -> MixtureSpec:
        """Read a mixture file.

        Raises:
            ConfigError: The file is missing or not TOML, or as in `from_dict`.
        """
        return cls.from_dict(load_toml(path), str(path), Path(path).parent)

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], where: str = "mixture", folder: Path | None = None
    ) -> MixtureSpec:
        """Check a mixture given as plain values.

        Args:
            data: The content of the file.
            where: Its name, for errors.
            folder: What paths of corpora are seen from; the working directory if left out.

        Raises:
            ConfigError: An unknown key, language or instruction; a share that is not a positive
                number; fractions that do not add up to 1; a ratio out of range; corpora or a
                curriculum that contradict themselves.
        """
        check_keys(data, _KEYS, where)
        seed = whole_number(data.get("seed", 0), f"{where}: seed")
        ratio = number(data.get("non_english_ratio", 1), f"{where}: non_english_ratio")
        if not 0 <= ratio <= _MAX_RATIO:
            raise ConfigError(
                f"{where}: non_english_ratio is {float(ratio)}, expected 0 to {_MAX_RATIO} "
                "(non-English samples per English sample)."
            )
        instructions = dict.fromkeys(list_instructions(), Fraction(1))
        if "instructions" in data:
            instructions = shares(data["instructions"], f"{where}: instructions")
            for name in instructions:
                get_instruction(name)
        curriculum: tuple[Phase, ...] = (Phase(),)
        if "curriculum" in data:
            curriculum = read_curriculum(data["curriculum"], f"{where}: curriculum")
        return cls(
            seed,
            ratio,
            _languages(data, curriculum, where) if "languages" in data else {},
            instructions,
            _corpora(data["corpora"], where, folder or Path()) if "corpora" in data else (),
            curriculum,
        )

    def fingerprint(self) -> str:
        """A short text that differs for mixtures with other orders or shares.

        Where the corpora lie does not count; what is in them has a fingerprint of its own.
        """
        tables = [
            [(name, str(share)) for name, share in table.items()]
            for table in (self.languages, self.instructions)
        ]
        content: list[Any] = [SCHEME_VERSION, self.seed, str(self.non_english_ratio), *tables]
        if self.corpora:
            content.append([[str(each.epochs), str(each.weight)] for each in self.corpora])
        if self.curriculum != (Phase(),):
            content.append([[p.from_epoch, p.sampling, str(p.setting)] for p in self.curriculum])
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

    def num_non_english(self, num_english: int) -> int:
        """Non-English samples beside so many English ones, rounded half up."""
        return math.floor(self.non_english_ratio * num_english + Fraction(1, 2))

    def languages_in(self, available: Iterable[str]) -> dict[str, Fraction]:
        """Shares of the languages: those of the spec, or all that are available, evenly."""
        if self.languages:
            return dict(self.languages)
        return {get_language(lang).code: Fraction(1) for lang in available if lang != ENGLISH}


def _languages(
    data: Mapping[str, Any], curriculum: Sequence[Phase], where: str
) -> dict[str, Fraction]:
    """Read the table of shares, or the list of those that take part."""
    given = data["languages"]
    if isinstance(given, list) and given:
        found = dict.fromkeys(map(str, given), Fraction(1))
        if len(found) < len(given):
            raise ConfigError(
                f"{where}: languages: one comes twice in {', '.join(map(str, given))}."
            )
    else:
        found = shares(given, f"{where}: languages")
        if all(phase.sampling != SHARES for phase in curriculum):
            raise ConfigError(
                f"{where}: languages gives shares ({listed(found.items())}), but no entry of the "
                'curriculum has sampling = "shares". Write a list, languages = ["cs", "hr"], to '
                "say which take part."
            )
    for lang in found:
        _check_language(lang, where)
    return found


def _check_language(lang: str, where: str) -> None:
    get_language(lang)
    if lang == ENGLISH:
        raise ConfigError(
            f"{where}: languages.en: English is not part of the non-English shares; every English "
            "row is drawn once. Set non_english_ratio instead."
        )


def _corpora(entries: Any, where: str, folder: Path) -> tuple[CorpusShare, ...]:
    """Read the entries [[corpora]]."""
    is_list = isinstance(entries, list) and entries
    if not is_list or not all(isinstance(entry, Mapping) for entry in entries):
        raise ConfigError(f"{where}: corpora is {entries!r}, expected entries [[corpora]].")
    found = [_corpus(entry, f"{where}: corpora[{i}]", folder) for i, entry in enumerate(entries)]
    paths = [share.path for share in found]
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    if twice:
        raise ConfigError(
            f"{where}: corpora: {', '.join(twice)} comes twice; give it more epochs instead."
        )
    if len({share.weight is None for share in found}) > 1:
        raise ConfigError(
            f"{where}: corpora: some have a weight and some have not; give all of them a weight "
            "(shares of the English part), or none."
        )
    return tuple(found)


def _corpus(entry: Mapping[str, Any], where: str, folder: Path) -> CorpusShare:
    check_keys(entry, ("path", "epochs", "weight"), where)
    path = entry.get("path")
    if not isinstance(path, str) or not path:
        raise ConfigError(f"{where}: path is {path!r}, expected a corpus folder.")
    if "epochs" in entry and "weight" in entry:
        raise ConfigError(f"{where}: has both epochs and weight, which contradict; keep one.")
    name = "weight" if "weight" in entry else "epochs"
    value = number(entry.get(name, 1), f"{where}: {name}")
    if not 0 < value <= _MAX_EPOCHS:
        raise ConfigError(
            f"{where}: {name} is {float(value):g}, expected more than 0, up to {_MAX_EPOCHS}. "
            "Leave the corpus out to draw nothing from it."
        )
    if name == "weight":
        return CorpusShare(folder / path, None, value)
    return CorpusShare(folder / path, value)


def mixture_path(name: str) -> Path:
    """Path of a mixture file.

    Args:
        name: A path, or the name of one that ships ("finetune").

    Raises:
        ConfigError: There is no such file; those that ship are listed.
    """
    for path in (Path(name), MIXTURES_DIR / f"{name}.toml"):
        if path.is_file():
            return path
    shipped = ", ".join(sorted(path.stem for path in MIXTURES_DIR.glob("*.toml"))) or "none"
    raise ConfigError(f"no mixture file {name!r}; give a path, or choose from: {shipped}.")
