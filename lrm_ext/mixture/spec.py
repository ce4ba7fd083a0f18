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
    [[curriculum]]              # shares that are computed, and change; see `curriculum.py`

Input: TOML. Output: a checked `MixtureSpec`. Shares in whole numbers are weights (1 : 1 : 2); as
soon as one is a fraction they must add up to 1. `languages` may be a list, for even shares. Whether
a corpus has the languages is checked in `mixture.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from llava.errors import ConfigError
from lrm_ext.instructions.instruction import ENGLISH
from lrm_ext.instructions.registry import get_instruction, list_instructions
from lrm_ext.languages._toml import load_toml
from lrm_ext.languages.registry import get_language
from lrm_ext.mixture.curriculum import SHARES, Phase, read_curriculum
from lrm_ext.mixture.permutation import SCHEME_VERSION
from lrm_ext.mixture.values import check_keys, listed, number, shares, whole_number

_KEYS = ("seed", "non_english_ratio", "languages", "instructions", "corpora", "curriculum")
_MAX_RATIO = 100
_MAX_EPOCHS = 1000


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
