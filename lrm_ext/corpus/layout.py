"""What a corpus folder looks like on disk, and the records that go in and come out.

    corpus.toml              sizes, languages and counts; written last
    rows/00000.arrow …       id, image, source, task, translatable, English turns
    text/cs/00000.arrow …    the same rows in Czech: turns, status, engine, reason, quality
    text/cs/usable.u32       numbers of the rows that may be drawn in Czech

Row `i` lies in shard `i // rows_per_shard`, batch `i % rows_per_shard // rows_per_batch`, so that
finding it takes the same time in a thousand rows and in a hundred million. Shards are Arrow IPC
files because those can be memory-mapped; Parquet cannot.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from llava.data.sample import Turn
from llava.errors import DataError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FORMAT_VERSION = 1
META_FILE = "corpus.toml"
ENGLISH = "en"
STATUSES = ("ok", "suspect", "rejected")
MAX_ROWS = 2**32  # row numbers are stored as 32 bits

_TURNS = pa.list_(
    pa.struct([("role", pa.string()), ("text", pa.string()), ("supervised", pa.bool_())])
)
ROW_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("source", pa.string()),
        ("task", pa.string()),
        ("translatable", pa.bool_()),
        ("turns", _TURNS),
    ]
)
# A map, since checks come and go, and people bring scores of their own.
TEXT_SCHEMA = pa.schema(
    [
        ("turns", _TURNS),
        ("status", pa.string()),
        ("engine", pa.string()),
        ("reason", pa.string()),
        ("quality", pa.map_(pa.string(), pa.float32())),
    ]
)
# Texts that were written before figures of quality were kept; they are read as having none.
OLD_TEXT_SCHEMA = TEXT_SCHEMA.remove(TEXT_SCHEMA.get_field_index("quality"))


@dataclass(frozen=True)
class CorpusRow:
    """One English sample and what is known of it.

    Attributes:
        id: The sample's name, as in the LLaVA JSON it came from.
        image: Picture path relative to the corpus' image root; None for a text-only row.
        source: The data set it came from; carried through every export, as licences hang on it.
        task: Kind of question, for statistics.
        translatable: False for rows whose meaning does not survive translation (arithmetic,
            geometry); those stay English.
        turns: The English conversation, human first, roles alternating.
    """

    id: str
    image: str | None
    source: str | None
    task: str | None
    translatable: bool
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Text:
    """A row's conversation in another language, and how far it is trusted.

    Attributes:
        turns: As many turns as in English, with the same roles.
        status: "ok", "suspect" or "rejected"; only "ok" is ever trained on.
        engine: What translated it, with its version; None for human text.
        reason: Why it is not "ok".
        quality: What each check and score measured, by name; None if nothing was measured.
    """

    turns: tuple[Turn, ...]
    status: str = "ok"
    engine: str | None = None
    reason: str | None = None
    quality: Mapping[str, float] | None = None

    def to_arrow(self) -> dict[str, Any]:
        """The plain values of the Arrow columns."""
        return {
            "turns": turns_to_arrow(self.turns),
            "status": self.status,
            "engine": self.engine,
            "reason": self.reason,
            "quality": None if self.quality is None else list(self.quality.items()),
        }


@dataclass(frozen=True)
class Meta:
    """The content of `corpus.toml`.

    Attributes:
        num_rows: Rows in the corpus.
        rows_per_shard: Rows in every shard but the last.
        rows_per_batch: Rows in every record batch of a shard but the last.
        image_root: Folder of the pictures, relative to the corpus folder (or absolute).
        counts: For each language but English, how many texts have each status, and how many are
            "usable": status "ok" in a translatable row.
    """

    num_rows: int
    rows_per_shard: int
    rows_per_batch: int
    image_root: str
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def dump(self, path: Path) -> None:
        """Write the file (TOML)."""
        lines = [
            f"format_version = {FORMAT_VERSION}",
            f"num_rows = {self.num_rows}",
            f"rows_per_shard = {self.rows_per_shard}",
            f"rows_per_batch = {self.rows_per_batch}",
            f"image_root = {json.dumps(self.image_root)}",
        ]
        for lang, counts in self.counts.items():
            lines += ["", f"[languages.{lang}]", *(f"{k} = {v}" for k, v in counts.items())]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Meta:
        """Read and check a corpus folder's `corpus.toml`.

        Raises:
            DataError: There is none, it does not parse, or it is of another version.
        """
        path = folder / META_FILE
        if not path.is_file():
            hint = "it is missing" if folder.is_dir() else "the folder does not exist"
            raise DataError(
                f"{folder} is not a corpus: expected {META_FILE} in it, but {hint}. A corpus "
                "whose writing was cut short has none; build or unpack it again."
            )
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
            version = data["format_version"]
            if version != FORMAT_VERSION:
                raise DataError(
                    f"{path}: format_version is {version}, this code reads {FORMAT_VERSION}; "
                    "build or unpack the corpus again."
                )
            return cls(
                num_rows=int(data["num_rows"]),
                rows_per_shard=int(data["rows_per_shard"]),
                rows_per_batch=int(data["rows_per_batch"]),
                image_root=str(data["image_root"]),
                counts=_checked_counts(data.get("languages", {})),
            )
        except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{path}: cannot be read as a corpus description: {error!r}") from error


def _checked_counts(languages: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    names = (*STATUSES, "usable")
    return {lang: {name: int(counts[name]) for name in names} for lang, counts in languages.items()}


def shard_name(number: int) -> str:
    """File name of a shard, the same for rows and texts."""
    return f"{number:05d}.arrow"


def turns_to_arrow(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Turns as the plain values of the Arrow column."""
    return [{"role": t.role, "text": t.text, "supervised": t.supervised} for t in turns]


def turns_from_arrow(values: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Inverse of `turns_to_arrow`."""
    return tuple(Turn(v["role"], v["text"], v["supervised"]) for v in values)


def quality_from_arrow(values: Sequence[tuple[str, float]] | None) -> dict[str, float] | None:
    """Figures of quality as they were, as far as 32 bits hold them."""
    return None if values is None else {name: round(value, _DECIMALS) for name, value in values}


_DECIMALS = 4
