"""Files of answers: appended to, resumed after a cut, and refused where they do not belong.

`<benchmark>.<lang>[.blind].jsonl` holds one object per question, LLaVA's keys first, so that
LLaVA's own scripts read it. `run.json` beside it says which model and settings made the answers.
Nothing is parsed or scored here: a change of rules must not need a model.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from llava.errors import ConfigError, DataError
from llava.eval.records import cut_unfinished_line, read_json, read_json_lines
from llava.files import naming, write_atomically
from lrm_ext.evaluate.items import text_of

log = logging.getLogger(__name__)
RUN_FILE: Final = "run.json"


def prediction_path(folder: Path, benchmark: str, lang: str, blind: bool) -> Path:
    """Returns the path of the answers to one benchmark in one language."""
    return folder / f"{benchmark}.{lang}{'.blind' if blind else ''}.jsonl"


def read_predictions(path: Path) -> dict[str, str]:
    """Reads answers by question key; empty when there is no file.

    A question that was refused has a `RefusedAnswer`, so that it is not asked again. The same
    answer written twice is kept once, and counted in the log.

    Raises:
        DataError: A line is not JSON or lacks `key` or a text, or one key has two answers.
    """
    if not path.is_file():
        return {}
    records = list(read_json_lines(path))
    for where, record in records:
        if not isinstance(record.get("key"), str):
            raise DataError(f"{where}: expected a `key` that is a string: {record}")
    keys = [record["key"] for _, record in records]
    return texts_by_key(path, keys, records, "answer all questions anew with --fresh")


def read_lines(path: Path) -> dict[str, str]:
    """Returns the lines of a file of answers by question key; empty without a file."""
    if not path.is_file():
        return {}
    # not splitlines(): an unescaped U+2028 inside an answer ends no line of JSON Lines
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return {str(json.loads(line)["key"]): f"{line}\n" for line in lines if line}


def add_lines(path: Path, lines: Mapping[str, str]) -> None:
    """Appends those lines whose question has no answer in a file yet; all of them or none."""
    cut_unfinished_line(path)
    there = read_lines(path)
    if new := [line for key, line in lines.items() if key not in there]:
        write_atomically(path, "".join([*there.values(), *new]))


def sort_lines(path: Path, keys: Sequence[str]) -> None:
    """Brings the answers of a file into an order that does not depend on who wrote them when.

    Args:
        path: The file; it is left alone if it is in order.
        keys: Question keys; answers to other questions come last, as they stand.
    """
    lines = read_lines(path)
    place = {key: number for number, key in enumerate(keys)}
    ordered = sorted(lines, key=lambda key: place.get(key, len(place)))
    if ordered != list(lines):
        write_atomically(path, "".join(lines[key] for key in ordered))


def check_keys(path: Path, texts: Mapping[str, str], known: Iterable[str]) -> None:
    """Refuses answers to questions that the benchmark does not have.

    Raises:
        DataError: Some answer has no question.
    """
    if strangers := sorted(texts.keys() - set(known)):
        shown = ", ".join(strangers[:5]) + (" ..." if len(strangers) > 5 else "")
        raise DataError(
            f"{path}: {len(strangers)} answers have no question in the benchmark ({shown}): "
            "they are of another version or language; start over with --fresh"
        )


class PredictionWriter:
    """Appends answers to a file; each batch is on disk when `write` returns.

    After an error of writing, such as a full disk, the file ends with its last whole line; one
    without any is removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_unfinished_line(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends a batch."""
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with naming(self._path):
            self._file.write("".join(lines))
            self._file.flush()

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with naming(self._path):
                self._file.close()  # writes once more what could not be written
        finally:
            if kind is not None:
                cut_unfinished_line(self._path)
                if not self._path.stat().st_size:
                    self._path.unlink()


def open_run(
    folder: Path,
    identity: Mapping[str, Any],
    data: Mapping[str, str],
    folders: Mapping[str, str] | None = None,
) -> None:
    """Writes `run.json`, or checks that the answers in a folder are of this very run.

    Args:
        folder: The folder of predictions.
        identity: What must be equal for the answers to be comparable: model, weights, template,
            generation settings, code version.
        data: SHA-256 by question file. Further files may join a run later.
        folders: Where benchmarks lie that are not built in, by name; not compared.

    Raises:
        ConfigError: `run.json` says otherwise, is unreadable, or is missing beside answers.
    """
    path = folder / RUN_FILE
    way_out = (
        "answer all questions anew with --fresh, or keep both runs by giving --out another folder"
    )
    merged, places = dict(data), dict(folders or {})
    if path.is_file():
        try:
            old = read_json(path, dict)
            places = {**old.pop("folders", {}), **places}
            old_data = old.pop("data")
        except (DataError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: unreadable ({error!r}); {way_out}") from error
        wanted = json.loads(json.dumps(identity))
        differing = [name for name in {**old, **wanted} if old.get(name) != wanted.get(name)]
        differing += [name for name in data if old_data.get(name, data[name]) != data[name]]
        if differing:
            raise ConfigError(
                f"{path}: the answers there are of another run (different: "
                f"{', '.join(differing)}); {way_out}"
            )
        merged = {**old_data, **data}
    elif any(folder.glob("*.jsonl")):
        raise ConfigError(f"{folder} holds answers but no {RUN_FILE}; {way_out}")
    content = {**identity, "data": merged, **({"folders": places} if places else {})}
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False))


def clear_run(folder: Path) -> None:
    """Deletes all answers in a folder and its `run.json`, and nothing else."""
    if not folder.is_dir():
        return
    for path in [*folder.glob("**/*.jsonl"), folder / RUN_FILE]:
        path.unlink(missing_ok=True)


def texts_by_key(
    path: Path,
    keys: Sequence[str],
    records: Sequence[tuple[str, Mapping[str, Any]]],
    way_out: str,
    last_wins: bool = False,
) -> dict[str, str]:
    """Returns the answers by question, in the order of their first line.

    Args:
        path: The file.
        keys: The question of each line.
        records: The lines.
        way_out: What to do about two different answers, beside deleting one.
        last_wins: Take the last of them.
    """
    texts: dict[str, str] = {}
    for key, (where, record) in zip(keys, records, strict=True):
        text = record.get("text", record.get("prediction"))
        if not isinstance(text, str):
            raise DataError(f"{where}: question {key}: text is {text!r}; expected a string")
        if texts.get(key, text) != text and not last_wins:
            raise DataError(
                f"{where}: question {key} is answered a second time, differently; delete one of "
                f"the lines, or {way_out}"
            )
        texts[key] = text_of(record, text)
    if num_twice := len(keys) - len(texts):
        log.warning("%s: %d questions are answered twice; each counts once", path, num_twice)
    return texts
