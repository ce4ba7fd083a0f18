"""A mapping file: where in somebody's table a question, its picture and its answer are.

In: TOML (`sets/*.toml`, or a user's own). Out: a frozen `Mapping`. The files that ship are the
manual: every key that there is occurs in one of them.
"""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Mapping, Sequence
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any, Final

from llava.errors import ConfigError, DataError
from llava.eval.records import NUM_SHOWN, is_none
from lrm_ext.evaluate.items import ANSWER_TYPES, LETTERS, Item, check_options, option_prompt
from lrm_ext.evaluate.official import PictureStore, Questions, read_rows
from lrm_ext.files import leaves_folder
from lrm_ext.languages import get_language
from lrm_ext.languages._toml import load_toml
from lrm_ext.languages.registry import answer_request

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


log = logging.getLogger(__name__)
_YES: Final = ("yes", "true", "1")
_NO: Final = ("no", "false", "0")
# A text in quotes inside a printed list, and the comma behind it, which NumPy does not print.
_QUOTED: Final = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*,?""", re.DOTALL)
_ARRAY: Final = re.compile(r"array\((\[.*\])(?:,\s*dtype=[^)]*)?\)", re.DOTALL)
_IMAGE_MARK: Final = re.compile(r"\s*<image>")
_NUMBERED_IMAGE_MARK: Final = re.compile(r"\s*<image(?: \d+)?>")


def question_files(mapping: SetMapping, source: Path, lang: str) -> list[Path]:
    """The files of a language: those of the first pattern that finds any."""
    if source.is_file():
        return [source]
    for pattern in mapping.questions:
        for name in (mapping.languages[lang], lang):
            found = sorted(source.glob(pattern.format(lang=name)))
            if found:
                return found
    return []


def available_languages(mapping: SetMapping, source: Path) -> tuple[str, ...]:
    """The languages of a set that a folder has files of."""
    return tuple(lang for lang in mapping.languages if question_files(mapping, source, lang))


def read_set(
    mapping: SetMapping, source: Path, lang: str, store: PictureStore, images: Path | None = None
) -> Questions:
    """Read one language of a set.

    Args:
        mapping: Where things are in its files.
        source: Its folder, or one file.
        lang: The language.
        store: Where pictures go that are not taken from where they lie.
        images: Folder of the pictures, where it is not the mapping's.

    Raises:
        DataError: The set has not this language, or a row is not as the mapping says.
    """
    if lang not in mapping.languages:
        raise DataError(
            f"{mapping.title} is not in {lang}; it is in {', '.join(mapping.languages)}"
        )
    files = question_files(mapping, source, lang)
    if not files:
        patterns = ", ".join(p.format(lang=mapping.languages[lang]) for p in mapping.questions)
        raise DataError(f"{source}: no questions in {lang}; expected one of {patterns}")
    reader = _Reader(mapping, lang, store, images or _image_folder(mapping, source, lang))
    for file in files:
        for where, row in read_rows(file, mapping.rows):
            reader.add(row, where)
    return reader.finish(source)


def _image_folder(mapping: SetMapping, source: Path, lang: str) -> Path | None:
    base = source if source.is_dir() else source.parent
    for pattern in mapping.images:
        for name in (mapping.languages[lang], lang):
            if (base / pattern.format(lang=name)).is_dir():
                return base / pattern.format(lang=name)
    return None


class _Reader:
    """Collects the questions of one language."""

    def __init__(
        self, mapping: SetMapping, lang: str, store: PictureStore, images: Path | None
    ) -> None:
        self._mapping = mapping
        self._columns = mapping.columns_in(lang)
        self._lang = lang
        self._language = get_language(lang)
        self._store = PictureStore(store.folder, images)
        self._images = images
        self._items: list[Item] = []
        self._missing: list[str] = []
        self._num_left_out = 0
        self._num_rows = 0
        columns = self._columns
        # one picture each, by name: they stay where they are
        self._by_name = bool(images) and len(columns.image) == 1 and not columns.image_pattern

    def add(self, row: Mapping[str, Any], where: str) -> None:
        """Read a row."""
        self._num_rows += 1
        if not self._is_wanted(row):
            self._num_left_out += 1
            return
        columns, mapping = self._columns, self._mapping
        number = self._text(row, columns.id, where) if columns.id else str(self._num_rows - 1)
        name = f"{where}: question {number}"
        options, labels = self._options(row, name)
        hint = self._text(row, columns.hint, name, optional=True)
        asked = self._text(row, columns.question, name) if columns.question else ""
        answer, answers = self._answer(row, labels, name)
        cells = self._image_cells(row, [asked, hint, *options], name)
        image = self._image(cells, name)
        # a single picture stands before the question; of several, numbers say which is meant
        mark = _NUMBERED_IMAGE_MARK if len(cells) == 1 else _IMAGE_MARK
        asked, hint = (mark.sub("", text).strip() for text in (asked, hint))
        question = self._question(asked)
        item = Item(
            question_id=number,
            image=image,
            text=self._prompt(question, hint, options),
            category=self._text(row, columns.category, name, optional=True) or mapping.name,
            answer=answer,
            lang=self._lang,
            answer_type=self._answer_type(answer),
            options=tuple(options),
            answers=tuple(answers) if len(answers) > 1 else (),
            question=question,
            hint=hint,
            image_id=image,
            source_id=number,
            answer_lang=mapping.answers_in,
        )
        if item.answer_type == "letter":
            check_options(item, name)
        self._items.append(item)

    def finish(self, source: Path) -> Questions:
        """The questions.

        Raises:
            DataError: Pictures are missing, or there are no questions.
        """
        if self._missing:
            raise DataError(
                f"{len(self._missing)} pictures are missing in {self._images}: "
                f"{', '.join(self._missing[:NUM_SHOWN])}; name their folder with --images"
            )
        if not self._items:
            raise DataError(
                f"{source}: no questions in {self._lang} among {self._num_rows} rows that fit "
                f"{dict(self._mapping.where)}"
            )
        if self._num_left_out:
            log.info(
                "%s %s: %d of %d rows are not of this language or sort and are left out",
                self._mapping.name, self._lang, self._num_left_out, self._num_rows,
            )  # fmt: skip
        return Questions(tuple(self._items), self._images if self._by_name else None)

    def _is_wanted(self, row: Mapping[str, Any]) -> bool:
        for column, wanted in self._mapping.where.items():
            value = str(row.get(column, ""))
            wanted = wanted.replace("{lang}", self._mapping.languages[self._lang])
            fits = value.startswith(wanted[:-1]) if wanted.endswith("*") else value == wanted
            if not fits:
                return False
        return True

    def _text(self, row: Mapping[str, Any], path: str, where: str, optional: bool = False) -> str:
        """The text at a path; several lines of a list are joined."""
        value = self._value(row, path) if path else None
        if isinstance(value, list):
            value = "\n".join(str(part) for part in value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if optional and (value is None or (isinstance(value, str) and is_none(value))):
            return ""
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: {path} is {value!r}; expected text. Found: {', '.join(row)}")
        return value.strip()

    def _value(self, row: Mapping[str, Any], path: str) -> Any:
        """The value at a path, or a pattern with columns in braces filled in."""
        path = path.replace("{lang}", self._mapping.languages[self._lang])
        if "{" in path:
            names = [name for _, name, _, _ in Formatter().parse(path) if name]
            values = {name: row.get(name) for name in names}
            if None in values.values():
                return None
            for name, text in values.items():
                path = path.replace("{" + name + "}", str(text))
            return path
        value: Any = row
        for key in [path] if path in row else path.split("."):
            if not isinstance(value, Mapping) or key not in value:
                return None
            value = value[key]
        return value

    def _options(self, row: Mapping[str, Any], where: str) -> tuple[list[str], list[str]]:
        """Texts of the options, and what the answer calls each of them."""
        columns = self._columns.options
        if not columns:
            return [], []
        found = self._value(row, columns[0]) if len(columns) == 1 else None
        if isinstance(found, str):
            found = _as_list(found, where)
        if found is None:
            found = [row.get(column) for column in columns]
            texts = []
            for value in found:
                if value is None or is_none(str(value)):
                    break
                texts.append(str(value).strip())
            later = [str(value) for value in found[len(texts) :] if value is not None]
            if not all(map(is_none, later)):
                raise DataError(f"{where}: an option is empty, but not the ones after it: {found}")
        else:
            texts = [str(value).strip() for value in found]
        labels = list(LETTERS[: len(texts)])
        if self._columns.option_pattern:
            matches = [re.match(self._columns.option_pattern, text, re.DOTALL) for text in texts]
            if not all(matches):
                raise DataError(f"{where}: an option has no label: {texts}")
            labels = [match[1] for match in matches if match]
            texts = [match[2].strip() for match in matches if match]
        return texts, labels

    def _answer(
        self, row: Mapping[str, Any], labels: Sequence[str], where: str
    ) -> tuple[str, list[str]]:
        """The expected answer, and every accepted one."""
        columns = self._columns
        if columns.answers:
            found = self._value(row, columns.answers)
            found = [found] if isinstance(found, str) else found
            if not isinstance(found, list) or not found:
                raise DataError(f"{where}: {columns.answers} is {found!r}; expected answers")
            texts = list(dict.fromkeys(str(text).strip() for text in found if str(text).strip()))
            return texts[0], texts
        value = self._value(row, columns.answer)
        if self._mapping.answer_type == "letter":
            return self._letter(value, labels, where), []
        if self._mapping.answer_type == "yesno":
            return _yes_or_no(value, where), []
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: {columns.answer} is {value!r}; expected an answer")
        return value.strip(), []

    def _letter(self, value: Any, labels: Sequence[str], where: str) -> str:
        if self._columns.answer_is == "index":
            if not isinstance(value, int) or not 0 <= value < len(labels):
                raise DataError(
                    f"{where}: {self._columns.answer} is {value!r}; expected 0 to "
                    f"{len(labels) - 1} (are the answers kept back?)"
                )
            return LETTERS[value]
        text = str(value).strip()
        if text not in labels:
            raise DataError(f"{where}: the answer is {text!r}; expected one of {', '.join(labels)}")
        return LETTERS[list(labels).index(text)]

    def _answer_type(self, answer: str) -> str:
        """Yes/no questions among free ones are read as such."""
        if self._mapping.answer_type == "text" and answer.lower() in ("yes", "no"):
            return "yesno"
        return self._mapping.answer_type

    def _question(self, asked: str) -> str:
        patterns = self._mapping.asked
        if fixed := patterns.get("fixed"):
            return self._language.fixed_prompts[fixed]
        return patterns.get(self._lang, "{question}").replace("{question}", asked)

    def _prompt(self, question: str, hint: str, options: Sequence[str]) -> str:
        """What the model is asked: LLaVA's form, in the language of the question."""
        if self._mapping.answer_type == "caption":
            return question
        if options:
            return option_prompt(question, hint, options, self._language)
        lines = [hint, question]
        if self._mapping.answers_in and self._mapping.answers_in != self._lang:
            lines.append(answer_request(self._lang, self._mapping.answers_in))
        return "\n".join(line for line in [*lines, self._language.short_answer] if line)

    def _image_cells(self, row: Mapping[str, Any], texts: Sequence[str], where: str) -> list[Any]:
        columns = self._columns
        if columns.image_pattern:
            names = [n for text in texts for n in re.findall(columns.image_pattern, text)]
            cells: list[Any] = list(dict.fromkeys(names))
        else:
            found = [self._value(row, path) for path in columns.image]
            cells = [cell for cell in found if cell is not None]
        if not cells:
            raise DataError(f"{where}: no picture; expected one in {', '.join(columns.image)}")
        return cells

    def _image(self, cells: Sequence[Any], where: str) -> str:
        named = [cell for cell in cells if isinstance(cell, str)]
        if self._images is not None and named:
            absent = [n for n in named if leaves_folder(n) or not (self._images / n).is_file()]
            if absent:
                self._missing += absent
                return ""
            if self._by_name:
                return str(named[0])
        return self._store.put_joined(cells, where)


def _as_list(text: str, where: str) -> list[Any]:
    """A list that a table holds as text, as Python or NumPy print it.

    Their texts may have line ends in them, and NumPy's no commas between them.
    """
    text = text.strip()
    array = _ARRAY.fullmatch(text)
    quoted = _QUOTED.sub(
        lambda match: match[1].replace("\n", "\\n").replace("\r", "\\r") + ",",
        array[1] if array else text,
    )
    try:
        found = ast.literal_eval(quoted)
    except (ValueError, SyntaxError) as error:
        raise DataError(f"{where}: the options are no list: {text[:80]!r}") from error
    if not isinstance(found, list) or not all(isinstance(x, (str, int, float)) for x in found):
        raise DataError(f"{where}: the options are no list: {text[:80]!r}")
    return found


def _yes_or_no(value: Any, where: str) -> str:
    text = str(value).strip().lower()
    if text in _YES:
        return "yes"
    if text in _NO:
        return "no"
    raise DataError(f"{where}: the answer is {value!r}; expected yes or no, true or false")
