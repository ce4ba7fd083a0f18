"""A mapping file: where in somebody's table a question, its picture and its answer are.

In: TOML (`sets/*.toml`, or a user's own). Out: a frozen `Mapping`. The files that ship are the
manual: every key that there is occurs in one of them.
"""

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Final

from llava.errors import ConfigError
from lrm_ext.benchmarks.items import ANSWER_TYPES
from lrm_ext.languages._toml import load_toml

SETS_DIR: Final = Path(__file__).parent / "sets"
KINDS: Final = ("answers", "captions")
ANSWER_FORMS: Final = ("text", "index")
_TOP: Final = (
    "title", "about", "licence", "kind", "answer_type", "answers_in", "languages",
    "files", "columns", "filter", "question",
)  # fmt: skip
_REQUIRED: Final = ("title", "kind", "answer_type", "languages", "files", "columns")


@dataclass(frozen=True)
class Columns:
    """Where the parts of a question are.

    A place is a column's name, keys of nested objects joined by dots, or a pattern with columns in
    braces.

    Attributes:
        id: Its id; "" to number the rows.
        image: Its picture; several are shown as one, side by side.
        question: Its text; "" where the mapping says what is asked.
        hint: What is said before it.
        options: A column with a list, or one column for each option.
        answer: The expected answer.
        answers: A list of accepted answers.
        category: Its category.
        answer_is: How the right option is named: `text` (its letter or label), or `index` from 0.
        image_pattern: Finds names of pictures inside the texts, where no column has them.
        option_pattern: Splits an option into its label and its text.
    """

    id: str = ""
    image: tuple[str, ...] = ()
    question: str = ""
    hint: str = ""
    options: tuple[str, ...] = ()
    answer: str = ""
    answers: str = ""
    category: str = ""
    answer_is: str = "text"
    image_pattern: str = ""
    option_pattern: str = ""


@dataclass(frozen=True)
class SetMapping:
    """How a set of questions is read.

    Attributes:
        name: The file's name.
        title: The set's name.
        about: What it is, in a sentence.
        licence: As far as it is known.
        kind: `answers` or `captions`.
        answer_type: See `Item`.
        answers_in: The language of the answers, where it is not the question's.
        languages: What the set calls each of our languages.
        questions: Patterns of question files, tried in this order.
        rows: Where in a JSON file the questions are.
        images: Patterns of picture folders.
        columns: By language; "" for those that are not named.
        where: Columns and what they must be; `*` at the end for anything after it.
        asked: By language, how a text becomes a question; `fixed` names a request of its file.
    """

    name: str
    title: str
    about: str
    licence: str
    kind: str
    answer_type: str
    answers_in: str
    languages: AnyMapping[str, str]
    questions: tuple[str, ...]
    rows: str
    images: tuple[str, ...]
    columns: AnyMapping[str, Columns]
    where: AnyMapping[str, str]
    asked: AnyMapping[str, str]

    def columns_in(self, lang: str) -> Columns:
        """The columns of a language."""
        return self.columns.get(lang, self.columns[""])


def set_names() -> tuple[str, ...]:
    """Names of the mappings that ship."""
    return tuple(sorted(path.stem for path in SETS_DIR.glob("*.toml")))


def find_mapping(name: str) -> SetMapping | None:
    """A mapping that ships, or a file of the user's; None if it is neither."""
    if name in set_names():
        return load_mapping(SETS_DIR / f"{name}.toml")
    path = Path(name)
    return load_mapping(path) if path.suffix == ".toml" and path.is_file() else None


@cache
def load_mapping(path: Path) -> SetMapping:
    """Read a mapping.

    Raises:
        ConfigError: A key is missing, unknown or of another type.
    """
    data = load_toml(path)
    _refuse_keys(path, "top level", data, _TOP, _REQUIRED)
    files = data["files"]
    _refuse_keys(path, "files", files, ("questions", "rows", "images"), ("questions",))
    if data["kind"] not in KINDS:
        raise ConfigError(f"{path}: kind is {data['kind']!r}; expected one of {', '.join(KINDS)}")
    if data["answer_type"] not in ANSWER_TYPES:
        raise ConfigError(
            f"{path}: answer_type is {data['answer_type']!r}; expected one of "
            f"{', '.join(ANSWER_TYPES)}"
        )
    return SetMapping(
        name=path.stem,
        title=data["title"],
        about=data.get("about", ""),
        licence=data.get("licence", ""),
        kind=data["kind"],
        answer_type=data["answer_type"],
        answers_in=data.get("answers_in", ""),
        languages=data["languages"],
        questions=tuple(files["questions"]),
        rows=files.get("rows", ""),
        images=tuple(files.get("images", ())),
        columns=_columns(path, data["columns"]),
        where=data.get("filter", {}),
        asked=data.get("question", {}),
    )


def _columns(path: Path, table: AnyMapping[str, Any]) -> dict[str, Columns]:
    own = {key: value for key, value in table.items() if not isinstance(value, dict)}
    columns = {"": _one(path, "columns", own)}
    for lang, changed in table.items():
        if isinstance(changed, dict):
            columns[lang] = _one(path, f"columns.{lang}", {**own, **changed})
    return columns


def _one(path: Path, where: str, table: AnyMapping[str, Any]) -> Columns:
    known = tuple(field.name for field in fields(Columns))
    _refuse_keys(path, where, table, known, ())
    values = dict(table)
    for key in ("image", "options"):
        found = values.get(key, ())
        values[key] = (found,) if isinstance(found, str) else tuple(found)
    columns = Columns(**values)
    if columns.answer_is not in ANSWER_FORMS:
        raise ConfigError(
            f"{path}: {where}.answer_is is {columns.answer_is!r}; expected one of "
            f"{', '.join(ANSWER_FORMS)}"
        )
    return columns


def _refuse_keys(
    path: Path,
    where: str,
    table: AnyMapping[str, Any],
    known: tuple[str, ...],
    required: tuple[str, ...],
) -> None:
    missing = [key for key in required if key not in table]
    unknown = [key for key in table if key not in known]
    if missing or unknown:
        faults = [f"{key} is missing" for key in missing] + [f"{key} is unknown" for key in unknown]
        raise ConfigError(f"{path}: {where}: {'; '.join(faults)}. Known: {', '.join(known)}.")
