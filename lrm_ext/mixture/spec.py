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
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from llava.errors import ConfigError
from lrm_ext.instructions.registry import ENGLISH, get_instruction, list_instructions
from lrm_ext.languages._toml import convert, load_toml
from lrm_ext.languages.registry import get_language

# Part of what decides the order: raise it when the scheme changes, and checkpoints that were
# written under another number are not resumed in the middle of an epoch.
SCHEME_VERSION = 1
_SUM_TOLERANCE = Fraction(1, 10**6)
SHARES: Final = "shares"
TEMPERATURE: Final = "temperature"
UNIMAX: Final = "unimax"
# what a choice must be told, and the largest value that makes sense
_SETTINGS = {TEMPERATURE: ("alpha", 1), UNIMAX: ("max_epochs", 1000)}
_MAX_RATIO = 100
_MAX_EPOCHS = 1000
MIXTURES_DIR = Path(__file__).parents[2] / "scripts" / "v1_5" / "mixtures"


class Phase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What holds from one epoch on.

    Attributes:
        sampling: "shares", "temperature" or "unimax".
        from_epoch: The first epoch, from 0.
        alpha: Of temperature: the power of the number of rows, 0 to 1.
        max_epochs: Of UniMax: how often a language may go through its rows.
    """

    sampling: Literal["shares", "temperature", "unimax"]
    from_epoch: Annotated[int, msgspec.Meta(ge=0)] = 0
    alpha: Fraction | None = None
    max_epochs: Fraction | None = None

    def __post_init__(self) -> None:
        """Check that just the setting of the sampling is given.

        Raises:
            ValueError: It is not, or is out of range.
        """
        needed, most = _SETTINGS.get(self.sampling, ("", 0))
        for name in ("alpha", "max_epochs"):
            if (getattr(self, name) is not None) != (name == needed):
                raise ValueError(
                    f"{self.sampling} {'needs' if name == needed else 'does not take'} {name}"
                )
        if not 0 <= self.setting <= most or (self.sampling == UNIMAX and not self.setting):
            raise ValueError(f"{needed} is {float(self.setting):g}, expected 0 to {most}")

    @property
    def setting(self) -> Fraction:
        """`alpha` or `max_epochs`; 0 for shares."""
        return self.alpha or self.max_epochs or Fraction(0)


class CorpusShare(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A corpus of a mixture.

    Attributes:
        path: Its folder.
        epochs: How often its rows come in an epoch of the mixture (1 if left out), or
        weight: its share in the English part; then every corpus of the mixture has one.
    """

    path: Path
    epochs: Fraction | None = None
    weight: Fraction | None = None

    def __post_init__(self) -> None:
        """Fill in `epochs`.

        Raises:
            ValueError: Both are given, or one is out of range.
        """
        if self.epochs is not None and self.weight is not None:
            raise ValueError("has both epochs and weight, which contradict; keep one")
        if self.epochs is None and self.weight is None:
            msgspec.structs.force_setattr(self, "epochs", Fraction(1))
        name = "epochs" if self.weight is None else "weight"
        value = getattr(self, name)
        if not 0 < value <= _MAX_EPOCHS:
            raise ValueError(
                f"{name} is {float(value):g}, expected more than 0, up to {_MAX_EPOCHS}; leave the "
                "corpus out to draw nothing from it"
            )


def _decode(kind: type, value: Any) -> Any:
    """Make what msgspec does not know: paths, and numbers as they were written."""
    if kind is Path:
        if not isinstance(value, str) or not value:
            raise ValueError(f"{value!r}, expected a folder")
        return Path(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r}, expected a finite number")
    return Fraction(str(value))  # of what was written: 0.1 is a tenth


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
    if phase.sampling == TEMPERATURE:
        alpha = float(phase.setting)
        # nine digits: the last bit of a power differs between machines, and counts must not
        return {lang: Fraction(f"{float(sizes[lang]) ** alpha:.9g}") for lang in shares}
    if phase.sampling == UNIMAX:
        return _unimax(total, {lang: sizes[lang] for lang in shares}, phase.setting)
    return dict(shares)


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
            f"{float(max_epochs):g} allows {total - left} ({_listed(found)}). Raise "
            "max_epochs, or lower non_english_ratio."
        )
    return {lang: found[lang] for lang in sizes}


class MixtureSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mixture, independent of any corpus.

    Attributes:
        seed: Key of all orders.
        non_english_ratio: Non-English samples per English sample; 0 is English only.
        languages: Share of each non-English language; empty: all that the corpus has, evenly.
        instructions: Share of each instruction in the non-English part.
        corpora: What it is drawn from; empty: from one corpus that is named elsewhere.
        curriculum: How shares of languages are found, by epoch.
    """

    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    non_english_ratio: Fraction = Fraction(1)
    languages: dict[str, Fraction] = {}
    instructions: dict[str, Fraction] = msgspec.field(
        default_factory=lambda: dict.fromkeys(list_instructions(), Fraction(1))
    )
    corpora: Annotated[tuple[CorpusShare, ...], msgspec.Meta(min_length=1)] = ()
    curriculum: Annotated[tuple[Phase, ...], msgspec.Meta(min_length=1)] = (Phase(SHARES),)

    def __post_init__(self) -> None:
        """Check what msgspec does not.

        Raises:
            ValueError: An unknown language or instruction; a value out of range; fractions that do
                not add up to 1; corpora or a curriculum that contradict themselves.
        """
        if not 0 <= self.non_english_ratio <= _MAX_RATIO:
            raise ValueError(
                f"non_english_ratio is {float(self.non_english_ratio)}, expected 0 to {_MAX_RATIO} "
                "(non-English samples per English sample)"
            )
        starts = [phase.from_epoch for phase in self.curriculum]
        if starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
            raise ValueError(
                f"curriculum: from_epoch is {', '.join(map(str, starts))}; expected 0 first, then "
                "ascending"
            )
        for name in self.instructions:
            get_instruction(name)
        for lang in self.languages:
            get_language(lang)
        if ENGLISH in self.languages:
            raise ValueError(
                "languages.en: English is not part of the non-English shares; every English row is "
                "drawn once. Set non_english_ratio instead"
            )
        _check_shares(self.instructions, "instructions")
        if self.languages:
            _check_shares(self.languages, "languages")
        paths = Counter(str(share.path) for share in self.corpora)
        if twice := [path for path, times in paths.items() if times > 1]:
            raise ValueError(
                f"corpora: {', '.join(twice)} comes twice; give it more epochs instead"
            )
        if len({share.weight is None for share in self.corpora}) > 1:
            raise ValueError(
                "corpora: some have a weight and some have not; give all of them a weight (shares "
                "of the English part), or none"
            )

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
            ConfigError: An unknown key, language or instruction; a value of another type or out of
                range; fractions that do not add up to 1; corpora or a curriculum that contradict
                themselves.
        """
        given = data.get("languages")
        if given is not None and not given:
            raise ConfigError(f"{where}: languages is empty, expected some; or leave it out.")
        if isinstance(given, list):
            data = {**data, "languages": dict.fromkeys(map(str, given), 1)}
            if len(data["languages"]) < len(given):
                raise ConfigError(f"{where}: languages: one comes twice in {', '.join(given)}.")
        spec = convert(data, cls, where, _decode)
        if isinstance(given, dict) and all(phase.sampling != SHARES for phase in spec.curriculum):
            raise ConfigError(
                f"{where}: languages gives shares ({_listed(spec.languages)}), but no entry of the "
                'curriculum has sampling = "shares". Write a list, languages = ["cs", "hr"], to '
                "say which take part."
            )
        corpora = [
            msgspec.structs.replace(share, path=(folder or Path()) / share.path)
            for share in spec.corpora
        ]
        return msgspec.structs.replace(spec, corpora=tuple(corpora))

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
        if self.curriculum != (Phase(SHARES),):
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


def _check_shares(shares: Mapping[str, Fraction], where: str) -> None:
    """Check that whole numbers are weights, and fractions add up to 1.

    Raises:
        ValueError: There is none, one is not positive, or fractions do not add up.
    """
    if not shares:
        raise ValueError(f"{where} is empty, expected a table of shares; or leave it out")
    wrong = {name: share for name, share in shares.items() if share <= 0}
    if wrong:
        raise ValueError(
            f"{where}: shares must be positive, found {_listed(wrong)}; leave a name out to give "
            "it nothing"
        )
    total = sum(shares.values(), Fraction(0))
    is_whole = all(share.denominator == 1 for share in shares.values())
    if not is_whole and abs(total - 1) > _SUM_TOLERANCE:
        raise ValueError(
            f"{where}: shares written as fractions must add up to 1, but {_listed(shares)} add up "
            f"to {float(total):g}. Mend them, or write whole numbers as weights"
        )


def _listed(shares: Mapping[str, Fraction]) -> str:
    return ", ".join(f"{name} = {float(share):g}" for name, share in shares.items())


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
