"""What a reader of official files is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.errors import DataError
from lrm_ext.benchmarks.items import Item
from lrm_ext.benchmarks.kind import Kind
from lrm_ext.benchmarks.pictures import PictureStore
from lrm_ext.benchmarks.prompts import LLAVA, QUESTION
from lrm_ext.languages import get_language
from lrm_ext.languages.registry import Language


@dataclass(frozen=True)
class Source:
    """Official files, and how they are to be read.

    Attributes:
        kind: The benchmark.
        path: File or folder.
        lang: Language that they are in.
        store: Where pictures inside tables go.
        labels: Files with the expected answers, where the questions come without.
        images: Folder of the pictures, where it is not the usual one.
        style: Of the prompt: one of `PROMPT_STYLES`.
    """

    kind: Kind
    path: Path
    lang: str
    store: PictureStore
    labels: Path | None = None
    images: Path | None = None
    style: str = LLAVA

    @property
    def language(self) -> Language:
        """The language's file."""
        return get_language(self.lang)

    def prompt(self, question: str, hint: str = "", options: Sequence[str] = ()) -> str:
        """What the model is asked."""
        if self.style == QUESTION:
            return f"{hint}\n{question}" if hint else question
        return self.kind.prompt(question, hint, options, self.language)


@dataclass(frozen=True)
class Questions:
    """Questions as they were read.

    Attributes:
        items: The questions.
        image_root: Folder that their picture paths are relative to; None for the store's.
    """

    items: tuple[Item, ...]
    image_root: Path | None = None


def cell(row: Mapping[str, Any], name: str, where: str) -> str:
    """A cell that must hold text.

    Raises:
        DataError: It is missing or empty.
    """
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name} is {value!r}; expected text. Found: {', '.join(row)}")
    return value


def is_table(path: Path) -> bool:
    """Whether a path is a table with everything in it: a TSV or Parquet, or a folder of those."""
    if path.is_dir():
        return any(path.glob("*.parquet"))
    return path.suffix.lower() in (".tsv", ".parquet")
