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

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.sample import MAX_IMAGES
from llava.errors import DataError
from llava.eval.records import is_none, refuse_missing
from llava.files import convert, leaves_folder, load_toml
from lrm_ext.evaluate.items import (
    LETTERS,
    AnswerType,
    Item,
    bare_prompt,
    check_options,
    check_places,
    llava_prompt,
)
from lrm_ext.evaluate.official import ImageStore, Questions, Source, read_rows
from lrm_ext.languages import get_language

log = logging.getLogger(__name__)
SETS_DIR: Final = Path(__file__).parent / "sets"
_LABELS: Final = {"yes": "yes", "true": "yes", "1": "yes", "no": "no", "false": "no", "0": "no"}
# A text in quotes inside a printed list, and the comma behind it, which NumPy does not print.
_QUOTED: Final = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*,?""", re.DOTALL)
_ARRAY: Final = re.compile(r"array\((\[.*\])(?:,\s*dtype=[^)]*)?\)", re.DOTALL)
_IN_BRACES: Final = re.compile(r"\{([^{}]+)\}")
_IMAGE_MARK: Final = re.compile(r"\s*<image>")
_NUMBERED_IMAGE_MARK: Final = re.compile(r"\s*<image(?: \d+)?>")
_IMAGE_NUMBER: Final = re.compile(r"<image (\d+)>")


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of a mapping file, in which unknown keys are errors."""


class Columns(_Table, frozen=True):
    """The places of the parts of a question.

    A place is a column's name, keys of nested objects joined by dots, or a pattern with columns in
    braces.

    Attributes:
        id: Its id; "" to number the rows.
        image: Its image, or several: columns, one with a list, or one with `*` for a number at the
            end of its name, as in `image_*`.
        several: How several images are shown: `apart`, at the places of `<image>` or `<image 2>` in
            the texts, or before them; or `joined` to one image, side by side.
        question: Its text; "" if the mapping says what is asked.
        hint: What is said before it.
        options: A column with a list, or one column for each option.
        answer: The expected answer.
        answers: A list of accepted answers.
        category: Its category.
        answer_is: How the right option is named: `text` (its letter or label), or `index` from 0.
        image_pattern: Finds names of images inside the texts, if no column has them, at the places
            where they are shown.
        option_pattern: Splits an option into its label and its text.
        extra: What else a question carries, such as a rubric for a judge: its name, and its place.
    """

    id: str = ""
    image: tuple[str, ...] = ()
    several: Literal["apart", "joined"] = "apart"
    question: str = ""
    hint: str = ""
    options: tuple[str, ...] = ()
    answer: str = ""
    answers: str = ""
    category: str = ""
    answer_is: Literal["text", "index"] = "text"
    image_pattern: str = ""
    option_pattern: str = ""
    extra: dict[str, str] = {}


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
        official: The owner's scoring rule, beside our own; "" for none.
        judge: The rubric that a model judges the answers by; "" for none.
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
    official: str = ""
    judge: Literal["", "xchat", "llava-bench", "alm-bench", "ayavisionbench", "wildvision"] = ""
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

    def notes(self) -> dict[str, str]:
        """Returns what a benchmark folder says of where its questions are from."""
        said = {"set": self.name, "official": self.official, "judge": self.judge}
        return {key: value for key, value in said.items() if value}

    def columns_in(self, lang: str) -> Columns:
        """Returns the columns of a language.

        Raises:
            ConfigError: A key is unknown or of another type.
        """
        others = self.languages.keys() - {"extra"}
        own = {key: value for key, value in self.columns.items() if key not in others}
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
        f"images of {mapping.name} are missing in {images}",
        reader.missing,
        "name their folder with --images",
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
        by_name: Images are given by their names, and stay where they are.
        missing: Images that are named and not there.
    """

    def __init__(self, mapping: SetMapping, lang: str, store: ImageStore) -> None:
        self.missing: list[str] = []
        self._mapping, self._lang, self._store = mapping, lang, store
        self._columns, self._language = mapping.columns_in(lang), get_language(lang)
        columns = self._columns
        has_one = len(columns.image) == 1 and not columns.image_pattern
        self.by_name = store.source is not None and (has_one or columns.several == "apart")

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
        # in the order of the prompt
        cells, (hint, asked, *options) = self._images(row, [hint, asked, *options], name)
        images = tuple(self._store_image(cell, name) for cell in cells)
        image = images if len(images) > 1 else images[0]
        question = self._question(asked)
        make_prompt = bare_prompt if mapping.answer_type == "caption" else llava_prompt
        # yes/no questions among free ones are read as such
        is_yes_no = mapping.answer_type == "text" and answers[0].lower() in ("yes", "no")
        text = make_prompt(question, hint, options, self._language, mapping.answers_in)
        check_places(text, len(images), f"{mapping.name}: {name}")
        item = Item(
            question_id=number,
            image=image,
            text=text,
            category=self._text(row, columns.category, name, optional=True) or mapping.name,
            answer=answers[0],
            lang=self._lang,
            answer_type="yesno" if is_yes_no else mapping.answer_type,
            options=tuple(options),
            answers=tuple(answers) if len(answers) > 1 else (),
            question=question,
            hint=hint,
            image_id=" + ".join(images),
            source_id=number,
            answer_lang=mapping.answers_in,
            extra={key: self._value(row, path) for key, path in columns.extra.items()},
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

    def _images(
        self, row: Mapping[str, Any], texts: list[str], where: str
    ) -> tuple[list[Any], list[str]]:
        """Returns the cells of the images to show, and the texts with `<image>` at their places.

        A single image is shown before the question, and several that are joined are one.

        Raises:
            DataError: There is no image, or none for a number.
        """
        columns, is_apart = self._columns, self._columns.several == "apart"
        if columns.image_pattern:
            pattern, (hint, asked, *options) = re.compile(columns.image_pattern), texts
            in_order = texts if is_apart else [asked, hint, *options]
            cells: list[Any] = [name for text in in_order for name in pattern.findall(text)]
            numbered = dict(enumerate(dict.fromkeys(cells), start=1))
            if is_apart and len(numbered) > 1:
                return cells, [pattern.sub(DEFAULT_IMAGE_TOKEN, text) for text in texts]
        else:
            numbered = self._numbered_cells(row, where)
        if not numbered:
            wanted = ", ".join(columns.image) or columns.image_pattern
            raise DataError(f"{where}: no image; expected one in {wanted}")
        if len(numbered) > 1 and is_apart:
            return _placed(numbered, texts, f"{self._mapping.name}: {where}")
        # of joined ones, numbers say which is meant
        mark = _NUMBERED_IMAGE_MARK if len(numbered) == 1 else _IMAGE_MARK
        texts = [*(mark.sub("", text).strip() for text in texts[:2]), *texts[2:]]
        return [list(numbered.values())], texts

    def _numbered_cells(self, row: Mapping[str, Any], where: str) -> dict[int, Any]:
        """Returns the cells with images by number from 1; empty ones keep theirs."""
        cells: list[Any] = []
        for path in self._columns.image:
            if path.endswith("*"):
                stem = self._in_language(path[:-1])
                tails = ((name.removeprefix(stem), name) for name in row if name.startswith(stem))
                names = {int(tail): name for tail, name in tails if tail.isdecimal()}
                if max(names, default=0) > MAX_IMAGES:
                    raise DataError(f"{where}: column {names[max(names)]}; at most {MAX_IMAGES}")
                first, last = min([1, *names]), max(names, default=0)
                cells += [row.get(names.get(number, "")) for number in range(first, last + 1)]
                continue
            value = self._value(row, path)
            if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
                value = _as_list(value, where)
            cells += value if isinstance(value, list) else [value]
        return {n: cell for n, cell in enumerate(cells, start=1) if cell not in (None, "")}

    def _store_image(self, cell: Any, where: str) -> str:
        """Returns the path of an image; of a list of cells, that of the images joined."""
        cells = cell if isinstance(cell, list) else [cell]
        folder, named = self._store.source, [one for one in cells if isinstance(one, str)]
        if folder is not None and named:
            absent = [n for n in named if leaves_folder(n) or not (folder / n).is_file()]
            self.missing += [f"{name} ({where})" for name in absent]
            if absent or self.by_name:
                return named[0]
        stored = self._store.put_joined(cells, where)
        if self.by_name and self._store.folder is not None:
            return str((self._store.folder / stored).absolute())
        return stored


def _placed(
    numbered: Mapping[int, Any], texts: Sequence[str], where: str
) -> tuple[list[Any], list[str]]:
    """Puts several images where the texts name them by number, else where `<image>` stands.

    An image that is named twice is shown twice. One that is not named is shown first, before the
    texts.

    Raises:
        DataError: A number has no image.
    """
    cells: list[Any] = []

    def place(mark: re.Match[str]) -> str:
        number = int(mark[1])
        if number not in numbered:
            there = ", ".join(map(str, numbered))
            raise DataError(f"{where}: the text names {mark[0]}, but there are images {there}")
        cells.append(numbered[number])
        return DEFAULT_IMAGE_TOKEN

    named = {int(n) for text in texts for n in _IMAGE_NUMBER.findall(text)}
    if not named:
        return list(numbered.values()), list(texts)
    first, *rest = (_IMAGE_NUMBER.sub(place, text) for text in texts)
    unnamed = [cell for number, cell in numbered.items() if number not in named]
    lines = [*[DEFAULT_IMAGE_TOKEN] * len(unnamed), *filter(None, [first])]
    return unnamed + cells, ["\n".join(lines), *rest]


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
