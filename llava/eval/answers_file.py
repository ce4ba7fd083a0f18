"""The file of answers: append, go on after a cut, refuse what does not belong.

One JSON object a line, in the order of the questions, so the answers that are there are always the
first ones; question ids may repeat (MME gives two questions one id). `<answers file>.run.json`
beside it says which model, questions and settings made the answers: only the same run goes on.
"""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.errors import ConfigError, DataError
from llava.eval.records import read_json, read_json_lines
from llava.files import naming, write_atomically, writing

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
        end = len(content)
        if not content.endswith(b"\n"):
            end = content.rfind(b"\n") + 1
        elif not _is_json(content[content.rfind(b"\n", 0, -1) + 1 :]):
            end = content.rfind(b"\n", 0, -1) + 1
        if end < len(content):
            log.warning(
                "%s: dropped an unfinished last line of %d bytes; its question is asked again",
                self.path,
                len(content) - end,
            )
            self._file.truncate(end)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:  # of the text, or of its bytes
        return False
    return True
