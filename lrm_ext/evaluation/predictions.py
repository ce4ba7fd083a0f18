"""The files of answers: append, resume after a cut, and refuse what does not belong (EVAL_SPEC 8).

`<benchmark>.<lang>[.blind].jsonl` holds one object per question, LLaVA's keys first, so that
LLaVA's own scripts read it. `run.json` beside it says which model and settings made the answers.
Nothing is parsed or scored here: a change of rules must not need a model.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from llava.errors import ConfigError, DataError
from llava.eval.records import read_json_lines
from llava.files import naming, write_atomically
from lrm_ext.benchmarks.items import text_of
from lrm_ext.benchmarks.registry import BENCHMARKS, Benchmark, get_benchmark, open_folder

log = logging.getLogger(__name__)

RUN_FILE: Final = "run.json"


@dataclass(frozen=True)
class Prediction:
    """The answer to one question; field names are the keys in the file.

    Attributes:
        question_id: As in the benchmark.
        prompt: The question without template and image token.
        text: The answer, stripped.
        answer_id: Made from model, question and mode, so that a run's bytes can be repeated.
        model_id: The model's name.
        metadata: Empty; LLaVA's scripts expect the key.
        key: Unique in the file; here the question id.
        benchmark: Name of the benchmark.
        lang: Language of the question.
        category: Its task.
        image: Picture path as in the benchmark.
        gold: The expected answer.
        blind: Whether the picture was withheld.
        num_new_tokens: Length of the answer, the end token not counted.
        finish_reason: `stop`, `length` if it was cut off, `refused` if the service refused the
            question: then the text is empty.
        extra: Further keys, so that the answers can be scored without the benchmark's files.
    """

    question_id: str
    prompt: str
    text: str
    answer_id: str
    model_id: str
    key: str
    benchmark: str
    lang: str
    category: str
    image: str
    gold: str
    blind: bool
    num_new_tokens: int
    finish_reason: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_line(self) -> str:
        """One line of JSON, LLaVA's keys first."""
        first = ("question_id", "prompt", "text", "answer_id", "model_id", "metadata")
        values = asdict(self)
        extra = values.pop("extra")
        ordered = {name: values.pop(name) for name in first} | values | extra
        return json.dumps(ordered, ensure_ascii=False) + "\n"


def prediction_path(folder: Path, benchmark: str, lang: str, blind: bool) -> Path:
    """Where the answers of one benchmark in one language are."""
    return folder / f"{benchmark}.{lang}{'.blind' if blind else ''}.jsonl"


def cut_unfinished_line(path: Path) -> None:
    """Remove a last line that was only half written.

    It is one that has no line end, or that is not JSON; earlier lines are left to the reader.
    """
    if not path.is_file():
        return
    with path.open("rb+") as file:
        content = file.read()
        body = content[:-1] if content.endswith(b"\n") else content
        start = body.rfind(b"\n") + 1
        if not content or (content.endswith(b"\n") and _is_json(content[start:])):
            return
        log.warning("%s: cut off an unfinished last line of %d bytes", path, len(content) - start)
        file.truncate(start)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        return False
    return True


def read_predictions(path: Path) -> dict[str, str]:
    """Read answers by question key; empty when there is no file.

    A question that was refused has a `RefusedAnswer`, so that it is not asked again. The same
    answer written twice is kept once, and counted in the log.

    Raises:
        DataError: A line is not JSON or lacks `key` or a text, or one key has two answers.
    """
    if not path.is_file():
        return {}
    texts: dict[str, str] = {}
    num_twice = 0
    for where, record in read_json_lines(path):
        key, text = record.get("key"), record.get("text")
        if not isinstance(key, str) or not isinstance(text, str):
            raise DataError(f"{where}: expected a `key` and a `text` that are strings: {record}")
        num_twice += key in texts
        if texts.setdefault(key, text_of(record, text)) != text:
            raise DataError(
                f"{where}: question {key} is answered twice, differently; "
                "delete one of the lines, or all answers with --fresh"
            )
    if num_twice:
        log.warning("%s: %d answers are in it twice, equal; each counts once", path, num_twice)
    return texts


def read_lines(path: Path) -> dict[str, str]:
    """The lines of a file of answers by question key, as they stand; empty without a file."""
    if not path.is_file():
        return {}
    # not splitlines(): an unescaped U+2028 inside an answer ends no line of JSON Lines
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return {str(json.loads(line)["key"]): f"{line}\n" for line in lines if line}


def add_lines(path: Path, lines: Mapping[str, str]) -> None:
    """Append those lines whose question has no answer in a file yet; all of them or none."""
    cut_unfinished_line(path)
    there = read_lines(path)
    if new := [line for key, line in lines.items() if key not in there]:
        write_atomically(path, "".join([*there.values(), *new]))


def sort_lines(path: Path, keys: Sequence[str]) -> None:
    """Bring the answers of a file into an order that does not depend on who wrote them when.

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
    """Refuse answers to questions that the benchmark does not have.

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

    def write(self, predictions: Sequence[Prediction]) -> None:
        """Append a batch."""
        with naming(self._path):
            self._file.write("".join(prediction.to_line() for prediction in predictions))
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
    """Write `run.json`, or check that the answers in a folder are of this very run.

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
            run = json.loads(path.read_text(encoding="utf-8"))
            places = {**run.pop("folders", {}), **places}
            old_data, old = run.pop("data"), run
        except (ValueError, KeyError, AttributeError) as error:
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


def asked_benchmark(folder: Path, name: str) -> Benchmark | None:
    """The benchmark that a run was asked: the folder that `run.json` names, or a built-in one.

    Args:
        folder: The folder of predictions.
        name: The benchmark's name.

    Returns:
        None if neither is there. Its questions may have changed since.
    """
    try:
        run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        place = Path(run["folders"][name])
    except (OSError, ValueError, KeyError, TypeError):
        return get_benchmark(name) if name in BENCHMARKS else None
    return open_folder(name, place) if place.is_dir() else None


def clear_run(folder: Path) -> None:
    """Delete all answers in a folder and its `run.json`, and nothing else."""
    if not folder.is_dir():
        return
    for path in [*folder.glob("**/*.jsonl"), folder / RUN_FILE]:
        path.unlink(missing_ok=True)
