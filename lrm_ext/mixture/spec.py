"""The specification of a mixture, read from a TOML file.

    seed = 0
    non_english_ratio = 1.0     # non-English samples per English sample
    [languages]                 # shares of the non-English part; default: all of the corpus
    cs = 1
    [instructions]              # shares of the non-English part; default: all three, evenly
    mvqa = 1
    [[corpora]]                 # default: the corpus that the command names
    path = "captions"           # relative to this file
    epochs = 0.5                # how often its rows come in an epoch of the mixture
    [[curriculum]]              # computed shares; the first entry begins with epoch 0
    from_epoch = 0
    sampling = "temperature"    # rows ** alpha: 0 is even, 1 is by size
    alpha = 0.3
    [[curriculum]]              # an entry holds until the next one
    from_epoch = 2
    sampling = "unimax"         # even, but at most max_epochs passes through a language's rows
    max_epochs = 4

Input: TOML. Output: a checked `MixtureSpec`. Whole numbers are weights (1 : 1 : 2); fractions must
add up to 1. `languages` may be a list, for even shares. `order.py` checks whether a corpus has the
languages. Nothing is random.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from llava.errors import ConfigError
from llava.files import convert, load_toml
from lrm_ext.instructions.registry import get_instruction, list_instructions
from lrm_ext.languages.registry import ENGLISH, canonical_code, canonical_codes, get_language

# Increase it when the order changes; then older checkpoints are not resumed within an epoch.
SCHEME_VERSION = 1
_SUM_TOLERANCE = Fraction(1, 10**6)
SHARES: Final = "shares"
TEMPERATURE: Final = "temperature"
UNIMAX: Final = "unimax"
# the setting of a sampling method, and its largest sensible value
_SETTINGS = {TEMPERATURE: ("alpha", 1), UNIMAX: ("max_epochs", 1000)}
_MAX_RATIO = 100
_MAX_EPOCHS = 1000
MIXTURES_DIR = Path(__file__).parents[2] / "scripts" / "v1_5" / "mixtures"


class Phase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of the curriculum.

    Attributes:
        sampling: "shares", "temperature" or "unimax".
        from_epoch: The first epoch, from 0.
        alpha: For temperature: exponent of the number of rows, 0 to 1.
        max_epochs: For UniMax: maximum passes of a language through its rows.
    """

    sampling: Literal["shares", "temperature", "unimax"]
    from_epoch: Annotated[int, msgspec.Meta(ge=0)] = 0
    alpha: Fraction | None = None
    max_epochs: Fraction | None = None

    def __post_init__(self) -> None:
        """Checks that only the setting of the sampling method is given.

        Raises:
            ValueError: Another one is given, it is missing, or it is out of range.
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
        epochs: How often its rows come in an epoch of the mixture, 1 by default.
        weight: Its share of the English part, in place of `epochs`; every corpus has one or none.
    """

    path: Path
    epochs: Fraction | None = None
    weight: Fraction | None = None

    def __post_init__(self) -> None:
        """Sets the default of `epochs`.

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


def _decode(folder: Path, kind: type, value: Any) -> Any:
    """Decodes paths, relative to a folder, and exact fractions."""
    if kind is Path:
        if not isinstance(value, str) or not value:
            raise ValueError(f"{value!r}, expected a folder")
        return folder / value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r}, expected a finite number")
    return Fraction(str(value))  # 0.1 is exactly a tenth


def shares_of(
    phase: Phase,
    total: int,
    shares: Mapping[str, Fraction],
    sizes: Mapping[str, Fraction],
) -> dict[str, Fraction]:
    """Computes the languages' shares of the non-English part.

    Args:
        phase: The method.
        total: Non-English samples per epoch.
        shares: Shares in the mixture file, one per language.
        sizes: Rows of each language; rows of a corpus that comes k times per epoch count k times.

    Raises:
        ConfigError: UniMax allows fewer samples than `total`.
    """
    if phase.sampling == TEMPERATURE:
        alpha = float(phase.setting)
        # nine digits, because the last bit of a power differs between machines
        return {lang: Fraction(f"{float(sizes[lang]) ** alpha:.9g}") for lang in shares}
    if phase.sampling == UNIMAX:
        return _unimax(total, {lang: sizes[lang] for lang in shares}, phase.setting)
    return dict(shares)


def _unimax(total: int, sizes: Mapping[str, Fraction], max_epochs: Fraction) -> dict[str, Fraction]:
    """Gives even shares; larger languages take what exceeds the limit of smaller ones."""
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
        seed: Seed of all orders.
        non_english_ratio: Non-English samples per English sample; 0 is English only.
        languages: Share of each non-English language; empty for all of the corpus, evenly.
        instructions: Share of each instruction in the non-English part.
        corpora: Corpora to draw from; empty for one corpus that is given elsewhere.
        curriculum: How shares of languages are computed, by epoch.
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
        """Checks what msgspec does not.

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
        """Reads a mixture file.

        Raises:
            ConfigError: The file is missing or not TOML; see also `from_dict`.
        """
        return cls.from_dict(load_toml(path), str(path), Path(path).parent)

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], where: str = "mixture", folder: Path = Path()
    ) -> MixtureSpec:
        """Makes a mixture from plain values.

        Args:
            data: The content of the file.
            where: Its name, for errors.
            folder: Folder that paths of corpora are relative to; the working directory by default.

        Raises:
            ConfigError: A key or value is invalid; the message names it.
        """
        given = data.get("languages")
        if given is not None and not given:
            raise ConfigError(f"{where}: languages is empty, expected some; or leave it out.")
        if isinstance(given, list | dict):
            shares = given.items() if isinstance(given, dict) else [(str(x), 1) for x in given]
            data = {**data, "languages": {canonical_code(lang): share for lang, share in shares}}
            if len(data["languages"]) < len(given):
                raise ConfigError(f"{where}: languages: one comes twice in {', '.join(given)}.")
        spec = convert(data, cls, where, partial(_decode, folder))
        if isinstance(given, dict) and all(phase.sampling != SHARES for phase in spec.curriculum):
            raise ConfigError(
                f"{where}: languages gives shares ({_listed(spec.languages)}), but no entry of the "
                'curriculum has sampling = "shares". Write a list, languages = ["cs", "hr"], to '
                "say which take part."
            )
        return spec

    def in_languages(self, given: str | None) -> MixtureSpec:
        """Returns the mixture with other languages, evenly.

        Args:
            given: Codes, with commas; "all" for all of the corpus, None for those of the mixture.

        Raises:
            ConfigError: A language is unknown, or English is the only one.
        """
        if given is None:
            return self
        codes = [code for code in canonical_codes([given]) if code != ENGLISH]
        if not codes:
            raise ConfigError(
                f"languages are {given!r}: name those besides English, or use non_english_ratio = 0"
            )
        shares = (
            {} if codes == ["all"] else {get_language(code).code: Fraction(1) for code in codes}
        )
        return msgspec.structs.replace(self, languages=shares)

    def fingerprint(self) -> str:
        """Returns a short text that depends on everything that changes orders or shares.

        The paths of corpora do not count; their content has its own fingerprint.
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
        """Returns the number of non-English samples, rounded half up."""
        return math.floor(self.non_english_ratio * num_english + Fraction(1, 2))

    def languages_in(self, available: Iterable[str]) -> dict[str, Fraction]:
        """Returns the shares of the spec, or even ones of all available languages."""
        if self.languages:
            return dict(self.languages)
        return {get_language(lang).code: Fraction(1) for lang in available if lang != ENGLISH}


def _check_shares(shares: Mapping[str, Fraction], where: str) -> None:
    """Checks that shares are positive whole numbers, or fractions that add up to 1.

    Raises:
        ValueError: They are not, or there are none.
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
            f"to {float(total):g}. Fix them, or write whole numbers as weights"
        )


def _listed(shares: Mapping[str, Fraction]) -> str:
    return ", ".join(f"{name} = {float(share):g}" for name, share in shares.items())


def mixture_path(name: str) -> Path:
    """Returns the path of a mixture file.

    Args:
        name: A path, or the name of an included mixture ("finetune").

    Raises:
        ConfigError: There is no such file; the included ones are listed.
    """
    for path in (Path(name), MIXTURES_DIR / f"{name}.toml"):
        if path.is_file():
            return path
    shipped = ", ".join(sorted(path.stem for path in MIXTURES_DIR.glob("*.toml"))) or "none"
    raise ConfigError(f"no mixture file {name!r}; give a path, or choose from: {shipped}.")
