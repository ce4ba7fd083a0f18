"""Reads and writes the files of evaluation scripts: questions, answers, annotations, images.

In: JSON, JSON Lines and TSV files and an image folder. Out: records with the place that they came
from (`file:line`), so that every later error can name it; paths that stay in the image folder; the
answers file. Nothing is fetched, nothing is skipped, torch is not loaded. Each script checks what
its benchmark's records must hold.
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
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, TypeVar

from llava.errors import ConfigError, DataError
from llava.files import naming, write_atomically, writing

T = TypeVar("T")
log = logging.getLogger(__name__)

NUM_SHOWN = 20
OPTION_LETTERS: Final = tuple(string.ascii_uppercase)


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error


def _parse(content: bytes, path: str | Path, line: int, kind: type[T]) -> T:
    """Parses the JSON that begins in a line of a file, and checks its type."""
    where = f"{path}:{line}"
    try:
        # json.loads would guess the encoding of bytes
        value = json.loads(content.rstrip().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error}); convert it first") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{line + error.lineno - 1}: not JSON ({error.msg})") from error
    if not isinstance(value, kind):
        expected = "a JSON object" if kind is dict else "a JSON list"
        raise DataError(f"{where}: expected {expected}, found {type(value).__name__}")
    return value


def read_text(path: str | Path) -> str:
    """Reads a UTF-8 file, any line ends as LF; raises `DataError` if missing or not UTF-8."""
    try:
        return io.TextIOWrapper(io.BytesIO(_read_bytes(path)), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}); convert it first") from error


def read_json(path: str | Path, kind: type[T]) -> T:
    """Reads a JSON file whose top level is a `kind`: `list` or `dict`.

    Raises:
        DataError: It is no such JSON.
    """
    return _parse(_read_bytes(path), path, 1, kind)


def read_json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads JSON Lines: `(file:line, object)` of each line that is not blank.

    Raises:
        DataError: The file is missing, or a line is not UTF-8 or no JSON object.
    """
    try:
        file = Path(path).expanduser().open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    with file:
        # read as bytes: an unescaped U+2028 inside a text is no line end in JSON Lines
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", _parse(line, path, number, dict)


def cut_unfinished_line(path: Path) -> None:
    """Removes a last line that a killed process wrote only half of.

    It is one that has no line end, or that is not JSON; earlier lines are left to the reader.
    """
    content = path.read_bytes() if path.is_file() else b""
    last = content[content.rfind(b"\n", 0, -1) + 1 :]
    if last and not (last.endswith(b"\n") and _is_json(last)):
        log.warning(
            "%s: dropped an unfinished last line of %d bytes; its question is asked again",
            path, len(last),
        )  # fmt: skip
        os.truncate(path, len(content) - len(last))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode("utf-8-sig"))
    except ValueError:  # of JSON or UTF-8
        return False
    return True


def read_tsv(path: str | Path) -> list[tuple[str, dict[str, str]]]:
    """Reads a TSV with a header; every cell stays text, so the word "None" stays a word.

    Returns:
        `(file:line, row)` of each row.

    Raises:
        DataError: There are no rows, or one has another number of cells than the header.
    """
    csv.field_size_limit(sys.maxsize)  # a cell may hold a whole image as base64
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
    """Returns one value of a record.

    Args:
        record: The object.
        name: Its key.
        where: The place to name in an error.
        kind: Type that the value must have; None for any.

    Raises:
        DataError: The key is missing, or the value is of another type.
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
    """Reads an answers file as `{question_id: text}`.

    Raises:
        DataError: A key is missing, or a question is answered twice, differently.
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
    """Returns the answer of a model that thinks first: the text behind the last `</think>`.

    Many templates write the opening tag themselves, so it need not be there. A text that opens it
    and never closes it was cut off before the answer, which is empty then.
    """
    _, end, answer = text.rpartition("</think>")
    if end:
        return answer.strip()
    return "" if text.lstrip().startswith("<think>") else text


def is_none(value: str) -> bool:
    """Tells whether a cell counts as absent: empty, `nan` or `none`, in any case."""
    return value.strip().lower() in ("", "nan", "none")


def refuse_missing(what: str, missing: Sequence[Any], advice: str) -> None:
    """Raises `DataError`, which lists the first ones, if anything is missing."""
    if missing:
        shown = ", ".join(str(item) for item in missing[:NUM_SHOWN])
        more = f" and {len(missing) - NUM_SHOWN} more" if len(missing) > NUM_SHOWN else ""
        raise DataError(f"{len(missing)} {what}: {shown}{more}; {advice}")


def image_path(folder: str | Path, name: Any, where: str) -> Path:
    """Returns the path of a question's image.

    Args:
        folder: The image folder; empty for the current one.
        name: Path in it, as in the question file.
        where: The place to name in an error.

    Raises:
        DataError: It is no path, a URL, or leads out of the folder.
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
            "name the folder that holds all images with --image-folder"
        )
    return Path(path)


def split_list(lst: Sequence[T], n: int) -> list[Sequence[T]]:
    """Cuts a list into at most `n` runs of `ceil(len / n)` items; the last may be shorter."""
    size = max(math.ceil(len(lst) / n), 1)
    return [lst[start : start + size] for start in range(0, len(lst), size)]


def get_chunk(lst: Sequence[T], n: int, k: int) -> Sequence[T]:
    """Returns run `k` of `n` (see `split_list`); empty where the list is too short for so many.

    Raises:
        ConfigError: There is no such run.
    """
    if n < 1 or not 0 <= k < n:
        raise ConfigError(f"chunk {k} of {n}; expected --num-chunks >= 1 and 0 <= --chunk-idx < it")
    chunks = split_list(lst, n)
    return chunks[k] if k < len(chunks) else lst[:0]


class AnswersFile(AbstractContextManager["AnswersFile"]):
    """The answers of one run, open for appending; use it in a `with` statement.

    Args:
        path: The file; its folder is created.
        identity: What must be equal for answers to belong together, as JSON can hold it.
        fresh: Discard earlier answers.

    Raises:
        ConfigError: The answers there are of another run, or another process is writing them.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any], fresh: bool = False) -> None:
        self.path = Path(path).expanduser()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        try:
            self._lock()
            if fresh:
                self._file.truncate(0)
            self._claim(json.loads(json.dumps(identity)))
            cut_unfinished_line(self.path)
        except BaseException:
            self._file.close()
            raise

    def count_answered(self, question_ids: Sequence[Any]) -> int:
        """Returns how many of the questions, from the first, have an answer.

        Raises:
            DataError: An answer is not that of the question in its place.
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
        """Appends an answer; it is with the operating system when this returns."""
        with naming(self.path):
            self._file.write(json.dumps(record).encode("ascii") + b"\n")
            self._file.flush()

    def sort(self, key: str) -> None:
        """Sorts all answers by one of their fields; nothing can be written after."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        lines.sort(key=lambda line: json.loads(line)[key])
        self._file.close()
        with writing(self.path) as partial:
            partial.write_bytes(b"".join(lines))

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

    def _claim(self, identity: Mapping[str, Any]) -> None:
        """Checks that the answers are of this run; an empty file becomes that of this run."""
        run_path = self.path.with_name(self.path.name + ".run.json")
        if not self.path.stat().st_size:
            write_atomically(run_path, json.dumps(identity, indent=2))
            return
        way_out = "answer anew with --fresh, or name another --answers-file"
        try:
            before = read_json(run_path, dict)
        except DataError as error:
            raise ConfigError(
                f"{self.path} holds answers, but no {run_path.name} says what made them "
                f"({error}); {way_out}"
            ) from error
        differing = [
            f"{name} was {before.get(name)!r} and is {identity.get(name)!r}"
            for name in {**before, **identity}
            if before.get(name) != identity.get(name)
        ]
        if differing:
            raise ConfigError(
                f"{self.path}: the answers there are of another run "
                f"({'; '.join(differing)}); {way_out}"
            )
