"""Mapping files: where in somebody's table a question, its image and its answer are.

A mapping is a TOML file (`sets/*.toml`, or a user's own), read into a frozen `SetMapping`. The
files that ship are the manual: every key that there is occurs in one of them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.sample import MAX_IMAGES, VIDEO_TOKEN
from llava.errors import DataError
from llava.eval.records import is_none, refuse_missing
from llava.files import convert, leaves_folder, load_toml
from lrm_ext.evaluate.cells import as_list, cell_text, is_absent, place_images, value_at
from lrm_ext.evaluate.items import (
    LETTERS,
    AnswerType,
    Item,
    bare_prompt,
    check_options,
    check_places,
    llava_prompt,
)
from lrm_ext.evaluate.official import (
    IMAGE_SUFFIXES,
    ImageStore,
    Questions,
    Source,
    image_folder,
    read_rows,
)
from lrm_ext.languages import any_language, language_name, list_languages

log = logging.getLogger(__name__)
SETS_DIR: Final = Path(__file__).parent / "sets"
_LABELS: Final = {"yes": "yes", "true": "yes", "1": "yes", "no": "no", "false": "no", "0": "no"}
_IMAGE_MARK: Final = re.compile(r"\s*<image>")
_NUMBERED_IMAGE_MARK: Final = re.compile(r"\s*<image(?: \d+)?>")


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of a mapping file, in which unknown keys are errors."""


class Columns(_Table, frozen=True):
    """The places of the parts of a question.

    A place is a column's name, keys of nested objects and numbers in lists joined by dots, or a
    pattern with columns in braces. Of several, divided by `|`, the first that is there counts.

    Attributes:
        id: Its id; "" to number the rows.
        image: Its image, or several: columns, one with a list, or one with `*` for a number at the
            end of its name, as in `image_*`.
        video: A list of the frames of its video, or the name of a folder that holds them, in place
            of `image`. Its place in a text is `<video>`.
        several: How several images are shown: `apart`, at the places of `<image>` or `<image 2>` in
            the texts, or before them; or `joined` to one image, side by side.
        question: Its text; "" if the mapping says what is asked.
        hint: What is said before it.
        options: A column with a list, or one column for each option; after `=` an option itself.
            In a column with text, `question` itself too, `option_pattern` finds them.
        answer: The expected answer; "" if there is none, for a judge of pairs.
        answers: A list of accepted answers.
        category: Its category.
        answer_is: How the right option is named, if not by its letter: `text` (its label, or its
            number from 1), or `index` from 0.
        answer_pattern: Finds the answer in its cell.
        answer_names: What a cell of `answer` stands for, such as "yes" for `entailment`.
        image_pattern: Finds names of images inside the texts, at the places where they are shown.
            If `image` names columns, the names stand for their images, in order.
        option_pattern: Splits an option into its label and its text, if it has a label.
        extra: What else a question carries, such as a rubric for a judge: its name, and its place.
    """

    id: str = ""
    image: tuple[str, ...] = ()
    video: str = ""
    several: Literal["apart", "joined"] = "apart"
    question: str = ""
    hint: str = ""
    options: tuple[str, ...] = ()
    answer: str = ""
    answers: str = ""
    category: str = ""
    answer_is: Literal["text", "index"] = "text"
    answer_pattern: str = ""
    answer_names: dict[str, str] = {}
    image_pattern: str = ""
    option_pattern: str = ""
    extra: dict[str, str] = {}


class SetFiles(_Table, frozen=True):
    """The places of the files of a set.

    Attributes:
        questions: Patterns of question files, tried in this order.
        rows: Where in a JSON file the questions are.
        each: A column with a list of questions, each an object of columns; `{number}` is its place.
        images: Patterns of image folders, which may be inside a ZIP file: `data.zip/images`.
    """

    questions: tuple[str, ...]
    rows: str = ""
    each: str = ""
    images: tuple[str, ...] = ()


class SetMapping(_Table, frozen=True, kw_only=True):
    """The content of a mapping file.

    Attributes:
        path: The file.
        title: The set's name.
        hub: Its name on the Hugging Face Hub, if it is there.
        about: What it is, in a sentence.
        licence: As far as it is known.
        kind: Whose rules score it; `mmbench` reads its tables itself, without `columns`.
        official: The owner's scoring rule, beside our own; "" for none.
        judge: The rubric that a model judges the answers by; "" for none.
        answer_type: See `Item`.
        text_only: Its questions are about no image.
        answers_in: The language of the answers, if it is not the question's.
        languages: What the set calls each of our languages; several names are divided by `|`.
        files: Where its files are.
        columns: Keys of `Columns`, and by language a table of those that are other there.
        open: Columns and what they are in an open question, which is answered in words.
        filter: Columns and what they must be, in any case; `*` is for any text, `?` for a letter.
        question: By language, how a text becomes a question; `fixed` names a request of its file.
        prompt: By language, or `any` for all others, what is asked in place of our own prompt, with
            `{hint}`, `{question}`, `{options}` and `{language}`, the English name of the language.
    """

    path: str = ""
    title: str
    hub: str = ""
    about: str = ""
    licence: str = ""
    kind: Literal["answers", "captions", "mmbench"]
    official: str = ""
    judge: Literal["", "xchat", "llava-bench", "alm-bench", "ayavisionbench", "wildvision"] = ""
    answer_type: AnswerType
    text_only: bool = False
    answers_in: str = ""
    languages: dict[str, str]
    files: SetFiles
    columns: dict[str, Any] = {}
    open: dict[str, str] = {}
    filter: dict[str, str] = {}
    question: dict[str, str] = {}
    prompt: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.path).stem

    def fits(self, row: Mapping[str, Any], lang: str, columns: Iterable[str] = ()) -> bool:
        """Tells whether a row is of a language and of the sort that `filter` wants.

        Args:
            row: Cells by column.
            lang: The language.
            columns: Look at these alone; all of `filter` by default.
        """
        for column in columns or self.filter:
            value, pattern = value_at(row, column), self.filter[column].casefold()
            wanted = [pattern.replace("{lang}", name.casefold()) for name in self.names(lang)]
            text = cell_text(value).casefold()
            if text not in wanted and is_absent(value):  # `nan` is an empty cell, and Min Nan
                text = ""
            if not any(fnmatchcase(text, one) for one in wanted):
                return False
        return True

    def names(self, lang: str) -> list[str]:
        """Returns what the set calls a language."""
        return self.languages[lang].split("|")

    def notes(self) -> dict[str, str]:
        """Returns what a benchmark folder says of where its questions are from."""
        said = {"set": self.name, "official": self.official, "judge": self.judge}
        return {key: value for key, value in said.items() if value}

    def columns_in(self, lang: str) -> Columns:
        """Returns the columns of a language.

        Raises:
            ConfigError: A key is unknown or of another type.
        """
        # `id` is a column, and Indonesian
        tables = {k: v for k, v in self.columns.items() if k in self.languages and type(v) is dict}
        changed = tables.get(lang, {})
        own = {key: value for key, value in self.columns.items() if key not in tables}
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
    names = dict.fromkeys((*mapping.names(lang), lang))
    return list(dict.fromkeys(p.replace("{lang}", name) for p in patterns for name in names))


def question_files(mapping: SetMapping, source: Path, lang: str) -> list[Path]:
    """Returns the files of a language: those of the first pattern that finds any."""
    if source.is_file():
        return [source]
    patterns = _named(mapping, mapping.files.questions, lang)
    return next(filter(None, (sorted(source.glob(pattern)) for pattern in patterns)), [])


def download_patterns(mapping: SetMapping, langs: Sequence[str]) -> list[str]:
    """Returns patterns of the files that a repository of the set needs, of some languages or all.

    Raises:
        DataError: The set has not one of them.
    """
    if unknown := [lang for lang in langs if lang not in mapping.languages]:
        raise DataError(f"{mapping.title} is not in {', '.join(unknown)}")
    files, names = mapping.files, langs or tuple(mapping.languages)
    questions = [p for lang in names for p in _named(mapping, files.questions, lang)]
    images = [p for lang in names for p in _named(mapping, files.images, lang)]
    folders = [p if ".zip" not in p else p[: p.index(".zip") + 4] for p in images if p != "."]
    return list(dict.fromkeys([*questions, *folders, *(f"{one}/*" for one in folders)]))


def available_languages(mapping: SetMapping, source: Path) -> tuple[str, ...]:
    """Returns the languages of a set that there are questions in.

    They are told by the files, or by the column that names the language. Rows in languages that the
    mapping does not name are logged.
    """
    files = {lang: question_files(mapping, source, lang) for lang in mapping.languages}
    found = [lang for lang in files if files[lang]]
    if columns := [key for key, wanted in mapping.filter.items() if "{lang}" in wanted]:
        paths = dict.fromkeys(path for paths in files.values() for path in paths)
        rows = (row for path in paths for _, row in read_rows(path, mapping.files.rows, columns))
        cells = ({column: cell_text(value_at(row, column)) for column in columns} for row in rows)
        values = {" ".join(one.values()): one for one in cells}
        fitting = {
            lang: {name for name, one in values.items() if mapping.fits(one, lang, columns)}
            for lang in found
        }
        found = [lang for lang in found if fitting[lang]]
        if others := sorted(values.keys() - set().union(*fitting.values())):
            log.warning("%s: no language of %s is %s", source, mapping.name, ", ".join(others))
    return tuple(found)


def needed_files(mapping: SetMapping, source: Source) -> list[Path]:
    """Returns the files of a language.

    Raises:
        DataError: There are none, or the set has not this language.
    """
    lang, path = source.lang, source.path
    if lang not in mapping.languages:
        raise DataError(
            f"{mapping.title} is not in {lang}; it is in {', '.join(mapping.languages)}"
        )
    if files := question_files(mapping, path, lang):
        return files
    name = mapping.names(lang)[0]
    wanted = ", ".join(p.replace("{lang}", name) for p in mapping.files.questions)
    there = sorted(one.name for one in path.iterdir()) if path.is_dir() else []
    hub = f" (the set is {mapping.hub} on the Hugging Face Hub)" if mapping.hub else ""
    raise DataError(
        f"{path}: no questions in {lang}; expected one of {wanted}{hub}, found "
        f"{', '.join(there[:8]) or 'nothing'}"
    )


def read_set(mapping: SetMapping, source: Source) -> Questions:
    """Reads one language of a set.

    Raises:
        DataError: The set has not this language, or a row is not as the mapping says.
    """
    lang, files = source.lang, needed_files(mapping, source)
    usual = (source.folder / name for name in _named(mapping, mapping.files.images, lang))
    found = map(image_folder, (source.images,) if source.images else usual)
    images = next((one for one in found if one is not None), source.images)
    reader = _Reader(mapping, lang, ImageStore(source.store.folder, images))
    items: list[Item] = []
    places: dict[str, str] = {}
    number, row = -1, dict[str, Any]()
    rows = (pair for file in files for pair in read_rows(file, mapping.files.rows))
    if lang not in list_languages():
        rule, judge = mapping.official and "the owner's rule", mapping.judge and "a judge"
        readers = " or ".join(filter(None, (rule, judge)))
        log.warning(
            "%s: %s (%s) has no language file here: it is asked with the requests of English, and "
            "%s its answers",
            mapping.name, lang, language_name(lang),
            f"{readers} alone reads" if readers else "nothing here reads",
        )  # fmt: skip
    for number, (where, row) in enumerate(rows):
        for place, one in reader.questions(row, where, number):
            item = reader.read(one, where, place)
            if first := places.get(item.question_id):
                raise DataError(
                    f"{where}: {mapping.name}: question {item.question_id} is there twice; the "
                    f"first is in {first}"
                )
            places[item.question_id] = where
            items.append(item)
    refuse_missing(
        f"images of {mapping.name} are missing in {images}",
        reader.missing,
        "name their folder with --images",
    )
    if not items:
        raise DataError(
            f"{source.path}: no questions in {lang} among {number + 1} rows that fit "
            f"{mapping.filter}; the columns are {', '.join(row)}"
        )
    if reader.num_others:
        log.info(
            "%s %s: %d of %d rows are not of this language or sort and are left out",
            mapping.name, lang, reader.num_others, number + 1,
        )  # fmt: skip
    root = images if reader.by_name and isinstance(images, Path) else None
    return Questions(tuple(map(reader.settle, items)), root)


class _Reader:
    """Reads the rows of one language.

    Attributes:
        by_name: Images are given by their names, and stay where they are.
        missing: Images that are named and not there.
        num_others: Rows that are not of the language or sort.
    """

    def __init__(self, mapping: SetMapping, lang: str, store: ImageStore) -> None:
        self.missing: list[str] = []
        self.num_others = 0
        self._mapping, self._lang, self._store = mapping, lang, store
        self._columns, self._language = mapping.columns_in(lang), any_language(lang)
        columns = self._columns
        has_one = len(columns.image) == 1 and not columns.image_pattern
        in_folder = isinstance(store.source, Path)
        stays = has_one or columns.several == "apart" or bool(columns.video)
        self.by_name = in_folder and stays
        self._stored: dict[str, str] = {}
        self._references: dict[str, str] = {}

    def questions(
        self, row: dict[str, Any], where: str, number: int
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the questions of a row, each with its place, the id of one that has none.

        There are none if the row is not of the language or sort that the mapping names.
        """
        each = self._mapping.files.each
        if not self._mapping.fits(row, self._lang):
            self.num_others += 1
        elif not each:
            yield str(number), row
        else:
            members = as_list(row.get(each), f"{where}: the questions in {each}", dict)
            for place, member in enumerate(members):
                yield f"{number}-{place}", {**row, **member, "number": place}

    def read(self, row: Mapping[str, Any], where: str, place: str) -> Item:
        """Makes the question of a row; `place` is its id if the set has none."""
        columns, mapping = self._columns, self._mapping
        number = self._text(row, columns.id, where) if columns.id else place
        name = f"{where}: question {number}"
        is_open = any(cell_text(value_at(row, c)) == text for c, text in mapping.open.items())
        kind: AnswerType = "text" if is_open else mapping.answer_type
        options, labels = self._options(row, name)
        hint = self._text(row, columns.hint, name, optional=True)
        asked = self._text(row, columns.question, name) if columns.question else ""
        if columns.options == (columns.question,):
            asked = re.split(columns.option_pattern, asked, maxsplit=1, flags=re.M)[0].strip()
        answers = self._answers(row, kind, labels, name)
        # in the order of the prompt
        texts = [hint, asked, *options]
        if columns.video:
            images = self._frames(row, name)
            texts = [text.replace(VIDEO_TOKEN, DEFAULT_IMAGE_TOKEN) for text in texts]
        else:
            cells, texts = self._images(row, texts, name)
            images = tuple(self._store_image(cell, number, name) for cell in cells)
        hint, asked, *options = texts
        question = self._question(asked)
        # yes/no questions among free ones are read as such
        is_yes_no = kind == "text" and answers[0].lower() in ("yes", "no")
        text = self._prompt(question, hint, options)
        extra = {key: self._value(row, path) for key, path in columns.extra.items()}
        check_places(text, 1 if columns.video else len(images), f"{mapping.name}: {name}")
        item = Item(
            question_id=number,
            image=images[0] if len(images) == 1 else images,
            text=text,
            category=self._text(row, columns.category, name, optional=True) or mapping.name,
            answer=answers[0],
            lang=self._lang,
            answer_type="yesno" if is_yes_no else kind,
            options=tuple(options),
            answers=tuple(answers) if len(answers) > 1 else (),
            question=question,
            hint=hint,
            image_id=" + ".join(images),
            source_id=number,
            answer_lang=mapping.answers_in,
            extra={key: cell for key, cell in extra.items() if not is_absent(cell)},
            is_video=bool(columns.video),
        )
        if item.answer_type == "letter":
            check_options(item, name)
        return item

    def settle(self, item: Item) -> Item:
        """Gives a question the image of the row that it names, which may come after it.

        Raises:
            DataError: There is no such row, or it has no image of its own.
        """
        other = self._references.get(item.question_id)
        if other is None:
            return item
        if other not in self._stored:
            raise DataError(
                f"{self._mapping.name}: question {item.question_id} takes the image of {other}, "
                "which has none; expected a row with this id and an image"
            )
        return replace(item, image=self._stored[other], image_id=self._stored[other])

    def _text(self, row: Mapping[str, Any], path: str, where: str, optional: bool = False) -> str:
        """Returns the text at a path; several lines of a list are joined."""
        value = self._value(row, path) if path else None
        text = "" if isinstance(value, (bool, bytes, Mapping)) else cell_text(value)
        if optional and is_none(text):
            return ""
        if not text.strip():
            raise DataError(f"{where}: {path} is {value!r}; expected text. Found: {', '.join(row)}")
        return text.strip()

    def _value(self, row: Mapping[str, Any], path: str) -> Any:
        places = path.replace("{lang}", self._mapping.names(self._lang)[0]).split("|")
        values = (value_at(row, place) for place in places)
        return next((value for value in values if value is not None), None)

    def _options(self, row: Mapping[str, Any], where: str) -> tuple[list[str], list[str]]:
        """Returns texts of the options, and what the answer calls each of them."""
        columns, pattern = self._columns.options, self._columns.option_pattern
        found = self._value(row, columns[0]) if len(columns) == 1 else None
        if found is None:
            cells = [c[1:] if c[:1] == "=" else cell_text(self._value(row, c)) for c in columns]
            texts = list(takewhile(lambda text: not is_none(text), cells))
            if not all(map(is_none, cells[len(texts) :])):
                raise DataError(f"{where}: an option is empty, but not the ones after it: {cells}")
        elif isinstance(found, str) and pattern and not _looks_like_list(found):
            texts = [match[0] for match in re.finditer(pattern, found, re.M)]
        else:
            texts = [cell_text(member) for member in as_list(found, f"{where}: the options")]
        matches = [match for text in texts if pattern and (match := re.match(pattern, text, re.S))]
        if not matches:
            return texts, list(LETTERS[: len(texts)])
        if len(matches) < len(texts):
            raise DataError(f"{where}: an option has no label: {texts}")
        return [match[2].strip() for match in matches], [match[1] for match in matches]

    def _answers(
        self, row: Mapping[str, Any], answer_type: AnswerType, labels: Sequence[str], where: str
    ) -> list[str]:
        """Returns the accepted answers, the expected one first."""
        columns = self._columns
        path = columns.answers or columns.answer
        if not path:
            return [""]
        value = self._value(row, path)
        if columns.answers or (answer_type == "text" and _looks_like_list(value)):
            texts = [value] if isinstance(value, str) and not _looks_like_list(value) else value
            texts = as_list(texts, f"{where}: the answers in {path}")
            if found := list(dict.fromkeys(filter(None, map(cell_text, texts)))):
                return found
            raise DataError(f"{where}: {path} is {value!r}; expected answers")
        text = cell_text(value)
        if pattern := columns.answer_pattern:
            match = re.search(pattern, text)
            text = match[match.lastindex or 0] if match else ""
        known: Mapping[str, str] = columns.answer_names
        if answer_type in ("text", "caption", "number"):
            if not text or (known and text not in known):
                wanted = f"one of {', '.join(known)}" if known else "an answer"
                raise DataError(f"{where}: {path} is {value!r}; expected {wanted}")
            return [known.get(text, text)]
        text = known.get(text, text)
        known, more = _answer_names(answer_type, columns.answer_is, labels)
        text = text.lower() if answer_type == "yesno" else text
        if text not in known and text not in more:
            raise DataError(
                f"{where}: {path} is {value!r}; expected one of {', '.join(known)} "
                "(are the answers kept back?)"
            )
        return [known.get(text) or more[text]]

    def _question(self, asked: str) -> str:
        patterns = self._mapping.question
        if fixed := patterns.get("fixed"):
            return self._language.fixed_prompts[fixed]
        return patterns.get(self._lang, "{question}").replace("{question}", asked)

    def _prompt(self, question: str, hint: str, options: Sequence[str]) -> str:
        """Returns what is asked: the owner's prompt, in which empty lines are left out, or ours."""
        patterns, language = self._mapping.prompt, self._language
        pattern = patterns.get(self._lang, patterns.get("any"))
        if pattern is None:
            make_prompt = bare_prompt if self._mapping.answer_type == "caption" else llava_prompt
            return make_prompt(question, hint, options, language, self._mapping.answers_in)
        shown = "\n".join(f"{a}. {text}" for a, text in zip(LETTERS, options, strict=False))
        parts = {"hint": hint, "question": question, "options": shown, "language": language.name}
        lines = (
            re.sub(r"\{(\w+)\}", lambda m: parts.get(m[1], m[0]), line)
            for line in pattern.split("\n")
        )
        return "\n".join(filter(None, lines))

    def _images(
        self, row: Mapping[str, Any], texts: list[str], where: str
    ) -> tuple[list[Any], list[str]]:
        """Returns the cells of the images to show, and the texts with `<image>` at their places.

        A single image is shown before the question, and several that are joined are one.

        Raises:
            DataError: There is no image, or none for a number.
        """
        columns, is_apart = self._columns, self._columns.several == "apart"
        numbered = self._numbered_cells(row, where)
        if columns.image_pattern:
            pattern, (hint, asked, *options) = re.compile(columns.image_pattern), texts
            in_order = texts if is_apart else [asked, hint, *options]
            names: list[Any] = [name for text in in_order for name in pattern.findall(text)]
            places = {name: place for place, name in enumerate(dict.fromkeys(names), start=1)}
            if columns.image:
                # images that the texts do not name, or not all of, are shown before them
                numbered = dict(enumerate(numbered.values(), start=1))
                shown = "<image {}>" if len(places) == len(numbered) else ""
                texts = [
                    pattern.sub(lambda m: shown.format(places[m[1]]), text).strip()
                    for text in texts
                ]
            else:
                numbered = {place: name for name, place in places.items()}
                if is_apart and len(numbered) > 1:
                    return names, [pattern.sub(DEFAULT_IMAGE_TOKEN, text) for text in texts]
        if not numbered and self._mapping.text_only:
            return [], texts
        if not numbered:
            wanted = ", ".join(columns.image) or columns.image_pattern
            raise DataError(f"{where}: no image; expected one in {wanted}. Found: {', '.join(row)}")
        if len(numbered) > 1 and is_apart:
            return place_images(numbered, texts, f"{self._mapping.name}: {where}")
        # of joined ones, numbers say which is meant
        mark = _NUMBERED_IMAGE_MARK if len(numbered) == 1 else _IMAGE_MARK
        texts = [*(mark.sub("", text).strip() for text in texts[:2]), *texts[2:]]
        return [list(numbered.values())], texts

    def _frames(self, row: Mapping[str, Any], where: str) -> tuple[str, ...]:
        """Returns the paths of a video's frames: those of a list, or of a folder, by their names.

        Raises:
            DataError: There are none, or no folder that they are relative to.
        """
        column, root = self._columns.video, self._store.source
        if not isinstance(root, Path):
            raise DataError(f"{where}: frames of videos are files; name their folder with --images")
        value = self._value(row, column)
        if isinstance(value, str) and value.startswith("["):
            value = as_list(value, f"{where}: the frames in {column}")
        if isinstance(value, str) and not leaves_folder(value):
            files = (path for path in (root / value).glob("*") if path.suffix in IMAGE_SUFFIXES)
            value = sorted(path.relative_to(root).as_posix() for path in files)
        if not isinstance(value, list) or not value or not all(isinstance(x, str) for x in value):
            raise DataError(
                f"{where}: {column} is {str(self._value(row, column))[:80]!r}; expected a list of "
                f"frames, or a folder of them, in {root}. ffmpeg -i a.mp4 -vf fps=1 a/%04d.jpg "
                "makes frames of a video file"
            )
        absent = [name for name in value if leaves_folder(name) or not (root / name).is_file()]
        self.missing += [f"{name} ({where})" for name in absent]
        return tuple(value)

    def _numbered_cells(self, row: Mapping[str, Any], where: str) -> dict[int, Any]:
        """Returns the cells with images by number from 1; empty ones keep theirs."""
        cells: list[Any] = []
        for path in self._columns.image:
            if path.endswith("*"):
                stem = path[:-1].replace("{lang}", self._mapping.names(self._lang)[0])
                tails = ((name.removeprefix(stem), name) for name in row if name.startswith(stem))
                names = {int(tail): name for tail, name in tails if tail.isdecimal()}
                if max(names, default=0) > MAX_IMAGES:
                    raise DataError(f"{where}: column {names[max(names)]}; at most {MAX_IMAGES}")
                first, last = min([1, *names]), max(names, default=0)
                cells += [row.get(names.get(number, "")) for number in range(first, last + 1)]
                continue
            value = self._value(row, path)
            if _looks_like_list(value):
                value = as_list(value, f"{where}: the images in {path}")
            cells += value if isinstance(value, list) else [value]
        return {n: cell for n, cell in enumerate(cells, start=1) if not is_absent(cell)}

    def _store_image(self, cell: Any, question_id: str, where: str) -> str:
        """Returns the path of an image; of a list of cells, that of the images joined.

        A cell may name another row, as VLMEvalKit's tables do; `settle` finds its image.
        """
        cells = cell if isinstance(cell, list) else [cell]
        folder, named = self._store.source, [one for one in cells if isinstance(one, str)]
        if folder is not None and named:
            absent = [n for n in named if leaves_folder(n) or not (folder / n).is_file()]
            self.missing += [f"{name} ({where})" for name in absent]
            if absent or self.by_name:
                return named[0]
        elif len(cells) == 1 and named and cells[0].isdecimal():
            self._references[question_id] = cells[0]
            return str(cells[0])
        stored = self._store.put_joined(cells, where)
        if self.by_name and self._store.folder is not None:
            stored = str((self._store.folder / stored).absolute())
        self._stored[question_id] = stored
        return stored


def _looks_like_list(value: Any) -> bool:
    return isinstance(value, str) and value[:1] == "[" and value[-1:] == "]"


def _answer_names(
    answer_type: str, answer_is: str, labels: Sequence[str]
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Returns what an answer may be called, and what else is understood where that is unambiguous.

    Args:
        answer_type: `yesno` or `letter`.
        answer_is: See `Columns`.
        labels: Of the options.
    """
    if answer_type == "yesno":
        return _LABELS, {}
    letters = LETTERS[: len(labels)]
    by_letter = dict(zip(letters, letters, strict=True))
    if answer_is == "index":
        return {str(number): letter for number, letter in enumerate(letters)}, by_letter
    by_number = {str(number): letter for number, letter in enumerate(letters, start=1)}
    have_digits = any(label.isdigit() for label in labels)
    return dict(zip(labels, letters, strict=False)), by_letter if have_digits else by_number
