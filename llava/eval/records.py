"""The files that evaluation scripts read and write: questions, answers, annotations, images.

In: JSON, JSON Lines and TSV files and an image folder. Out: records with the place that they came
from (`file:line`), so that every later error can name it; paths that stay in the image folder; the
answers file. Nothing is fetched, nothing is skipped, torch is not loaded. What a benchmark's record
must hold is its script's matter.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import logging
import math
import os
import string
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from llava.errors import ConfigError, DataError
from llava.files import naming, write_atomically, writing

T = TypeVar("T")

NUM_SHOWN = 20
OPTION_LETTERS: Final = tuple(string.ascii_uppercase)


def read_text(path: str | Path) -> str:
    """Read a UTF-8 file.

    Raises:
        DataError: it is missing or not UTF-8.
    """
    path = Path(path).expanduser()
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}); convert it first") from error


def read_json(path: str | Path, kind: type[T]) -> T:
    """Read a JSON file whose top level is a list or an object.

    Args:
        path: the file.
        kind: `list` or `dict`.

    Raises:
        DataError: it is no such JSON.
    """
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    if not isinstance(content, kind):
        raise DataError(f"{path}: expected a JSON {kind.__name__}, found {type(content).__name__}")
    return content


def read_json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read JSON Lines: `(file:line, object)` of each line that is not blank.

    Raises:
        DataError: the file is missing, or a line is not UTF-8 or no JSON object.
    """
    try:
        file = Path(path).expanduser().open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    with file:
        # read as bytes: an unescaped U+2028 inside a text ends no line of JSON Lines
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                record = json.loads(text)
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not UTF-8 ({error}); convert it first") from error
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{where}: not JSON ({error.msg}); expected one object a line"
                ) from error
            if not isinstance(record, dict):
                raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}")
            yield where, record


def read_tsv(path: str | Path) -> list[tuple[str, dict[str, str]]]:
    """Read a TSV with a header; every cell stays text, so the word "None" stays a word.

    Returns:
        `(file:line, row)` of each row.

    Raises:
        DataError: there are no rows, or one has another number of cells than the header.
    """
    csv.field_size_limit(sys.maxsize)  # a cell may hold a whole picture as base64
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter="\t")
    header = next(reader, [])
    rows = []
    for cells in reader:
        where = f"{path}:{reader.line_num}"
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells, but the header names {len(header)}")
        rows.append((where, dict(zip(header, cells, strict=True))))
    if not rows:
        raise DataError(f"{path}: no rows; expected a header and a row for each question")
    return rows


def field(record: Mapping[str, Any], name: str, where: str, kind: type[T] | None = None) -> Any:
    """One value of a record.

    Args:
        record: the object.
        name: its key.
        where: the place to name in an error.
        kind: type that the value must have; None for any.

    Raises:
        DataError: the key is missing, or the value is of another type.
    """
    if name not in record:
        raise DataError(f"{where}: no key {name!r}; found: {', '.join(record) or 'none'}")
    value = record[name]
    if kind is not None and not isinstance(value, kind):
        raise DataError(
            f"{where}: {name!r} is {value!r} ({type(value).__name__}); expected {kind.__name__}"
        )
    return value


def answers_by_id(path: str | Path) -> dict[Any, str]:
    """Read an answers file as `{question_id: text}`.

    Raises:
        DataError: a key is missing, or a question is answered twice, differently.
    """
    texts: dict[Any, str] = {}
    for where, record in read_json_lines(path):
        question_id = field(record, "question_id", where)
        text = field(record, "text", where, str)
        if texts.setdefault(question_id, text) != text:
            raise DataError(
                f"{where}: question {question_id} has a second, different answer; "
                "keep one of the lines"
            )
    return texts


def without_thinking(text: str) -> str:
    """The answer of a model that thinks first: what stands behind the last `</think>`.

    Many templates write the opening tag themselves, so it need not be there. A text that opens it
    and never closes it was cut off before the answer, which is empty then.
    """
    _, end, answer = text.rpartition("</think>")
    if end:
        return answer.strip()
    return "" if text.lstrip().startswith("<think>") else text


def is_none(value: str) -> bool:
    """Whether a cell counts as absent: empty, `nan` or `none`, in any case."""
    return value.strip().lower() in ("", "nan", "none")


def get_options(row: Mapping[str, str], letters: Sequence[str] = OPTION_LETTERS) -> list[str]:
    """The option texts of a row; they end at the first absent cell."""
    options = []
    for letter in letters:
        if is_none(row.get(letter, "")):
            break
        options.append(row[letter])
    return options


def refuse_missing(what: str, missing: Sequence[Any], advice: str) -> None:
    """Raise if anything is missing, and list the first.

    Raises:
        DataError: `missing` is not empty.
    """
    if missing:
        shown = ", ".join(str(item) for item in missing[:NUM_SHOWN])
        more = f" and {len(missing) - NUM_SHOWN} more" if len(missing) > NUM_SHOWN else ""
        raise DataError(f"{len(missing)} {what}: {shown}{more}; {advice}")


def image_path(folder: str | Path, name: Any, where: str) -> Path:
    """Where a question's picture is.

    Args:
        folder: the image folder; empty for the current one.
        name: path in it, as in the question file.
        where: the place to name in an error.

    Raises:
        DataError: it is no path, a URL, or leads out of the folder.
    """
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: image is {name!r}; expected a path in the image folder")
    if "://" in name:
        raise DataError(f"{where}: image {name!r} is a URL, and none is fetched; download it first")
    root = os.path.abspath(os.path.expanduser(folder or "."))
    path = os.path.normpath(os.path.join(root, name))
    if os.path.commonpath([root, path]) != root:
        raise DataError(
            f"{where}: image {name!r} leads out of the image folder {root}; "
            "name the folder that holds all pictures with --image-folder"
        )
    return Path(path)


def split_list(lst: Sequence[T], n: int) -> list[Sequence[T]]:
    """Cut a list into at most `n` runs of `ceil(len / n)` items; the last may be shorter."""
    size = max(math.ceil(len(lst) / n), 1)
    return [lst[start : start + size] for start in range(0, len(lst), size)]


def get_chunk(lst: Sequence[T], n: int, k: int) -> Sequence[T]:
    """Run `k` of `n`; empty where the list is too short for so many.

    Raises:
        ConfigError: there is no such run.
    """
    if n < 1 or not 0 <= k < n:
        raise ConfigError(f"chunk {k} of {n}; expected --num-chunks >= 1 and 0 <= --chunk-idx < it")
    chunks = split_list(lst, n)
    return chunks[k] if k < len(chunks) else lst[:0]


log = logging.getLogger(__name__)


class AnswersFile:
    """Answers of one run, open for appending; use it in a `with` statement.

    Args:
        path: the file; its folder is made.
        identity: what must be equal for answers to belong together, as JSON can hold it.
        fresh: throw away what is there.

    Raises:
        ConfigError: the answers there are of another run, or another process is writing them.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any], fresh: bool = False) -> None:
        self.path = Path(path).expanduser()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        try:
            self._lock()
            if fresh:
                self._file.truncate(0)
            self._claim(json.loads(json.dumps(identity)), fresh)
            self._cut_unfinished_line()
        except BaseException:
            self._file.close()
            raise

    @property
    def run_path(self) -> Path:
        """The file that says which run it is."""
        return self.path.with_name(self.path.name + ".run.json")

    def count_answered(self, question_ids: Sequence[Any]) -> int:
        """How many of the questions, from the first, have an answer.

        Raises:
            DataError: an answer is not that of the question in its place.
        """
        num_answered = 0
        for where, record in read_json_lines(self.path):
            if num_answered == len(question_ids):
                raise DataError(
                    f"{where}: more answers than the {len(question_ids)} questions; "
                    "answer anew with --fresh"
                )
            expected = question_ids[num_answered]
            if record.get("question_id") != expected:
                raise DataError(
                    f"{where}: answer to question {record.get('question_id')!r}, expected question "
                    f"{expected!r}: the file was edited or mixed; answer anew with --fresh"
                )
            num_answered += 1
        return num_answered

    def write(self, record: Mapping[str, Any]) -> None:
        """Append an answer; it is with the operating system when this returns."""
        with naming(self.path):
            self._file.write(json.dumps(record).encode("ascii") + b"\n")
            self._file.flush()

    def sort(self, key: str) -> None:
        """Bring all answers into the order of one of their fields; nothing can be written after."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        ordered = sorted(lines, key=lambda line: json.loads(line)[key])
        self._file.close()
        if ordered != lines:
            with writing(self.path) as partial:
                partial.write_bytes(b"".join(ordered))

    def __enter__(self) -> AnswersFile:
        return self

    def __exit__(self, *_: object) -> None:
        with naming(self.path):
            self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{self.path}: another process is writing answers to it; wait for it, or give "
                "each process its own --answers-file (and --chunk-idx)"
            ) from None
        except OSError as error:  # some network file systems have no locks
            log.warning("%s: cannot be locked (%s); start no second writer", self.path, error)

    def _claim(self, identity: Mapping[str, Any], fresh: bool) -> None:
        """Check that the answers are of this run, and note which run it is."""
        way_out = "answer anew with --fresh, or name another --answers-file"
        if self.path.stat().st_size and not fresh:
            if not self.run_path.is_file():
                raise ConfigError(
                    f"{self.path} holds answers, but no {self.run_path.name} says what made them; "
                    f"{way_out}"
                )
            try:
                before = read_json(self.run_path, dict)
            except DataError as error:
                raise ConfigError(f"{error}; {way_out}") from error
            names = {**before, **identity}
            differing = [
                f"{name} was {before.get(name)!r} and is {identity.get(name)!r}"
                for name in names
                if before.get(name) != identity.get(name)
            ]
            if differing:
                raise ConfigError(
                    f"{self.path}: the answers there are of another run "
                    f"({'; '.join(differing)}); {way_out}"
                )
            return
        write_atomically(self.run_path, json.dumps(identity, indent=2))

    def _cut_unfinished_line(self) -> None:
        """Remove a last line that a killed process wrote only half of."""
        content = self.path.read_bytes()
        last = content[content.rfind(b"\n", 0, -1) + 1 :]
        if last and not (last.endswith(b"\n") and _is_json(last)):
            log.warning(
                "%s: dropped an unfinished last line of %d bytes; its question is asked again",
                self.path,
                len(last),
            )
            self._file.truncate(len(content) - len(last))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:  # of the text, or of its bytes
        return False
    return True
