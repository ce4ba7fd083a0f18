"""Mapping files: where in somebody's table a question, its image and its answer are.

A mapping is a TOML file (`sets/*.toml`, or a user's own), read into a frozen `SetMapping`. The
files that ship are the manual: every key that there is occurs in one of them.
"""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from llava.errors import DataError
from llava.eval.records import is_none, refuse_missing
from llava.files import leaves_folder
from lrm_ext.evaluate.items import (
    LETTERS,
    AnswerType,
    Item,
    bare_prompt,
    check_options,
    llava_prompt,
)
from lrm_ext.evaluate.official import ImageStore, Questions, Source, read_rows
from lrm_ext.languages import get_language
from lrm_ext.languages._toml import convert, load_toml

log = logging.getLogger(__name__)
SETS_DIR: Final = Path(__file__).parent / "sets"
_LABELS: Final = {"yes": "yes", "true": "yes", "1": "yes", "no": "no", "false": "no", "0": "no"}
# A text in quotes inside a printed list, and the comma behind it, which NumPy does not print.
_QUOTED: Final = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*,?""", re.DOTALL)
_ARRAY: Final = re.compile(r"array\((\[.*\])(?:,\s*dtype=[^)]*)?\)", re.DOTALL)
_IN_BRACES: Final = re.compile(r"\{([^{}]+)\}")
_IMAGE_MARK: Final = re.compile(r"\s*<image>")
_NUMBERED_IMAGE_MARK: Final = re.compile(r"\s*<image(?: \d+)?>")


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of a mapping file, in which unknown keys are errors."""


class Columns(_Table, frozen=True):
    """The places of the parts of a question.

    A place is a column's name, keys of nested objects joined by dots, or a pattern with columns in
    braces.

    Attributes:
        id: Its id; "" to number the rows.
        image: Its image; several are shown as one, side by side.
        question: Its text; "" if the mapping says what is asked.
        hint: What is said before it.
        options: A column with a list, or one column for each option.
        answer: The expected answer.
        answers: A list of accepted answers.
        category: Its category.
        answer_is: How the right option is named: `text` (its letter or label), or `index` from 0.
        image_pattern: Finds names of images inside the texts, if no column has them.
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
    answer_is: Literal["text", "index"] = "text"
    image_pattern: str = ""
    option_pattern: str = ""


class SetFiles(_Table, frozen=True):
    """The places of the files of a set.

    Attributes:
        questions: Patterns of question files, tried in this order.
        rows: Where in a JSON file the questions are.
        images: Patterns of image folders.
    """

    questions: tuple[str, ...]
    rows: str = ""
    images: tuple[str, ...] = ()


class SetMapping(_Table, frozen=True, kw_only=True):
    """The content of a mapping file.

    Attributes:
        path: The file.
        title: The set's name.
        about: What it is, in a sentence.
        licence: As far as it is known.
        kind: Whose rules score it.
        answer_type: See `Item`.
        answers_in: The language of the answers, if it is not the question's.
        languages: What the set calls each of our languages.
        files: Where its files are.
        columns: Keys of `Columns`, and by language a table of those that are other there.
        filter: Columns and what they must be; `*` at the end for anything after it.
        question: By language, how a text becomes a question; `fixed` names a request of its file.
    """

    path: str = ""
    title: str
    about: str = ""
    licence: str = ""
    kind: Literal["answers", "captions"]
    answer_type: AnswerType
    answers_in: str = ""
    languages: dict[str, str]
    files: SetFiles
    columns: dict[str, Any]
    filter: dict[str, str] = {}
    question: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.path).stem

    def columns_in(self, lang: str) -> Columns:
        """Returns the columns of a language.

        Raises:
            ConfigError: A key is unknown or of another type.
        """
        own = {key: value for key, value in self.columns.items() if not isinstance(value, dict)}
        changed = self.columns.get(lang, {})
        table = {**own, **changed}
        for key in ("image", "options"):
            if isinstance(table.get(key), str):
                table[key] = [table[key]]
        return convert(table, Columns, f"{self.path}: columns" + (f".{lang}" if changed else ""))


def set_names() -> tuple[str, ...]:
    """Returns the names of the mappings that ship."""
    return tuple(sorted(path.stem for path in SETS_DIR.glob("*.toml")))


def find_mapping(name: str) -> SetMapping | None:
    """Returns a mapping that ships, or a file of the user's; None if it is neither."""
    if name in set_names():
        return load_mapping(SETS_DIR / f"{name}.toml")
    path = Path(name)
    return load_mapping(path) if path.suffix == ".toml" and path.is_file() else None


@cache
def load_mapping(path: Path) -> SetMapping:
    """Reads a mapping.

    Raises:
        ConfigError: A key is missing, unknown or of another type.
    """
    mapping = msgspec.structs.replace(load_toml(path, SetMapping), path=str(path))
    for lang in mapping.languages:
        mapping.columns_in(lang)
    return mapping


def _named(mapping: SetMapping, patterns: Sequence[str], lang: str) -> list[str]:
    """Returns patterns with the set's name of a language, and with our own."""
    return [p.format(lang=name) for p in patterns for name in (mapping.languages[lang], lang)]


def question_files(mapping: SetMapping, source: Path, lang: str) -> list[Path]:
    """Returns the files of a language: those of the first pattern that finds any."""
    if source.is_file():
        return [source]
    patterns = _named(mapping, mapping.files.questions, lang)
    return next(filter(None, (sorted(source.glob(pattern)) for pattern in patterns)), [])


def available_languages(mapping: SetMapping, source: Path) -> tuple[str, ...]:
    """Returns the languages of a set that a folder has files of."""
    return tuple(lang for lang in mapping.languages if question_files(mapping, source, lang))


def read_set(mapping: SetMapping, source: Source) -> Questions:
    """Reads one language of a set.

    Raises:
        DataError: The set has not this language, or a row is not as the mapping says.
    """
    lang = source.lang
    if lang not in mapping.languages:
        raise DataError(
            f"{mapping.title} is not in {lang}; it is in {', '.join(mapping.languages)}"
        )
    files = question_files(mapping, source.path, lang)
    if not files:
        patterns = ", ".join(
            p.format(lang=mapping.languages[lang]) for p in mapping.files.questions
        )
        raise DataError(f"{source.path}: no questions in {lang}; expected one of {patterns}")
    usual = (source.folder / name for name in _named(mapping, mapping.files.images, lang))
    images = source.images or next(filter(Path.is_dir, usual), None)
    reader = _Reader(mapping, lang, ImageStore(source.store.folder, images))
    items: list[Item] = []
    number = -1
    rows = (pair for file in files for pair in read_rows(file, mapping.files.rows))
    for number, (where, row) in enumerate(rows):
        if reader.wants(row):
            items.append(reader.read(row, where, number))
    refuse_missing(
        f"images are missing in {images}", reader.missing, "name their folder with --images"
    )
    if not items:
        raise DataError(
            f"{source.path}: no questions in {lang} among {number + 1} rows that fit "
            f"{mapping.filter}"
        )
    if len(items) <= number:
        log.info(
            "%s %s: %d of %d rows are not of this language or sort and are left out",
            mapping.name, lang, number + 1 - len(items), number + 1,
        )  # fmt: skip
    return Questions(tuple(items), images if reader.by_name else None)


class _Reader:
    """Reads the rows of one language.

    Attributes:
        by_name: A question has one image each, by its name: it stays where it is.
        missing: Images that are named and not there.
    """

    def __init__(self, mapping: SetMapping, lang: str, store: ImageStore) -> None:
        self.missing: list[str] = []
        self._mapping, self._lang, self._store = mapping, lang, store
        self._columns, self._language = mapping.columns_in(lang), get_language(lang)
        has_one = len(self._columns.image) == 1 and not self._columns.image_pattern
        self.by_name = store.source is not None and has_one

    def wants(self, row: Mapping[str, Any]) -> bool:
        """Tells whether a row is of the language and of the sort that the mapping names."""
        for column, wanted in self._mapping.filter.items():
            value, wanted = str(row.get(column, "")), self._in_language(wanted)
            if not (value.startswith(wanted[:-1]) if wanted.endswith("*") else value == wanted):
                return False
        return True

    def read(self, row: Mapping[str, Any], where: str, place: int) -> Item:
        """Makes the question of a row; `place` is its id if the set has none."""
        columns, mapping = self._columns, self._mapping
        number = self._text(row, columns.id, where) if columns.id else str(place)
        name = f"{where}: question {number}"
        options, labels = self._options(row, name)
        hint = self._text(row, columns.hint, name, optional=True)
        asked = self._text(row, columns.question, name) if columns.question else ""
        answers = self._answers(row, labels, name)
        cells = self._image_cells(row, [asked, hint, *options], name)
        image = self._image(cells, name)
        # a single image stands before the question; of several, numbers say which is meant
        mark = _NUMBERED_IMAGE_MARK if len(cells) == 1 else _IMAGE_MARK
        asked, hint = (mark.sub("", text).strip() for text in (asked, hint))
        question = self._question(asked)
        make_prompt = bare_prompt if mapping.answer_type == "caption" else llava_prompt
        # yes/no questions among free ones are read as such
        is_yes_no = mapping.answer_type == "text" and answers[0].lower() in ("yes", "no")
        item = Item(
            question_id=number,
            image=image,
            text=make_prompt(question, hint, options, self._language, mapping.answers_in),
            category=self._text(row, columns.category, name, optional=True) or mapping.name,
            answer=answers[0],
            lang=self._lang,
            answer_type="yesno" if is_yes_no else mapping.answer_type,
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
        return item

    def _in_language(self, text: str) -> str:
        return text.replace("{lang}", self._mapping.languages[self._lang])

    def _text(self, row: Mapping[str, Any], path: str, where: str, optional: bool = False) -> str:
        """Returns the text at a path; several lines of a list are joined."""
        value = self._value(row, path) if path else None
        if isinstance(value, list):
            value = "\n".join(map(str, value))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if optional and (value is None or (isinstance(value, str) and is_none(value))):
            return ""
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: {path} is {value!r}; expected text. Found: {', '.join(row)}")
        return value.strip()

    def _value(self, row: Mapping[str, Any], path: str) -> Any:
        """Returns the value at a path, or a pattern with columns in braces filled in."""
        path = self._in_language(path)
        if "{" in path:
            if any(row.get(name) is None for name in _IN_BRACES.findall(path)):
                return None
            return _IN_BRACES.sub(lambda match: str(row[match[1]]), path)
        value: Any = row
        for key in [path] if path in row else path.split("."):
            if not isinstance(value, Mapping) or key not in value:
                return None
            value = value[key]
        return value

    def _options(self, row: Mapping[str, Any], where: str) -> tuple[list[str], list[str]]:
        """Returns texts of the options, and what the answer calls each of them."""
        columns, pattern = self._columns.options, self._columns.option_pattern
        found = self._value(row, columns[0]) if len(columns) == 1 else None
        if isinstance(found, str):
            found = _as_list(found, where)
        if found is None:
            cells = ["" if row.get(c) is None else str(row[c]).strip() for c in columns]
            texts = list(takewhile(lambda text: not is_none(text), cells))
            if not all(map(is_none, cells[len(texts) :])):
                raise DataError(f"{where}: an option is empty, but not the ones after it: {cells}")
        else:
            texts = [str(value).strip() for value in found]
        if not pattern:
            return texts, list(LETTERS[: len(texts)])
        matches = [match for text in texts if (match := re.match(pattern, text, re.DOTALL))]
        if len(matches) < len(texts):
            raise DataError(f"{where}: an option has no label: {texts}")
        return [match[2].strip() for match in matches], [match[1] for match in matches]

    def _answers(self, row: Mapping[str, Any], labels: Sequence[str], where: str) -> list[str]:
        """Returns the accepted answers, the expected one first."""
        columns, answer_type = self._columns, self._mapping.answer_type
        if columns.answers:
            found = self._value(row, columns.answers)
            texts = [found] if isinstance(found, str) else found
            if not isinstance(texts, list) or not texts:
                raise DataError(f"{where}: {columns.answers} is {found!r}; expected answers")
            return list(dict.fromkeys(str(text).strip() for text in texts if str(text).strip()))
        value = self._value(row, columns.answer)
        text = str(value).strip()
        if answer_type in ("text", "caption"):
            if not isinstance(value, str) or not text:
                raise DataError(f"{where}: {columns.answer} is {value!r}; expected an answer")
            return [text]
        names = map(str, range(len(labels))) if columns.answer_is == "index" else labels
        known = _LABELS if answer_type == "yesno" else dict(zip(names, LETTERS, strict=False))
        text = text.lower() if answer_type == "yesno" else text
        if text not in known:
            raise DataError(
                f"{where}: {columns.answer} is {value!r}; expected one of {', '.join(known)} "
                "(are the answers kept back?)"
            )
        return [known[text]]

    def _question(self, asked: str) -> str:
        patterns = self._mapping.question
        if fixed := patterns.get("fixed"):
            return self._language.fixed_prompts[fixed]
        return patterns.get(self._lang, "{question}").replace("{question}", asked)

    def _image_cells(self, row: Mapping[str, Any], texts: Sequence[str], where: str) -> list[Any]:
        columns = self._columns
        if columns.image_pattern:
            names = (n for text in texts for n in re.findall(columns.image_pattern, text))
            cells: list[Any] = list(dict.fromkeys(names))
        else:
            found = (self._value(row, path) for path in columns.image)
            cells = [cell for cell in found if cell is not None]
        if not cells:
            raise DataError(f"{where}: no image; expected one in {', '.join(columns.image)}")
        return cells

    def _image(self, cells: Sequence[Any], where: str) -> str:
        folder, named = self._store.source, [cell for cell in cells if isinstance(cell, str)]
        if folder is not None and named:
            absent = [n for n in named if leaves_folder(n) or not (folder / n).is_file()]
            self.missing += absent
            if absent or self.by_name:
                return named[0]
        return self._store.put_joined(cells, where)


def _as_list(text: str, where: str) -> list[Any]:
    """Returns a list that a table holds as text, as Python or NumPy print it.

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
