"""Files of answers: appended to, resumed after a cut, and refused where they do not belong.

`<benchmark>.<lang>[.blind].jsonl` holds one object per question, LLaVA's keys first, so that
LLaVA's own scripts read it. `run.json` beside it says which model and settings made the answers.
Answers that other tools wrote are read, too. Nothing is parsed or scored here: a change of rules
must not need a model.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from llava.errors import ConfigError, DataError
from llava.eval.records import cut_unfinished_line, read_json, read_json_lines
from llava.files import naming, write_atomically
from lrm_ext.evaluate.items import LETTERS, Item, text_of
from lrm_ext.evaluate.kind import Kind
from lrm_ext.evaluate.kinds import find_kind, get_kind
from lrm_ext.evaluate.mme import bare_question
from lrm_ext.evaluate.pope import CATEGORIES as POPE_CATEGORIES
from lrm_ext.evaluate.pope import UNNAMED
from lrm_ext.evaluate.reading import answer_words, parse_yes_no

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
    return _texts_by_key(path, keys, records, "answer all questions anew with --fresh")


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


NUM_SHOWN: Final = 5
# Names that other tools give to the same fields.
_TEXT: Final = ("text", "prediction")
_GOLD: Final = ("gold", "answer", "label")
_CATEGORY: Final = ("category", "data_type")


@dataclass(frozen=True)
class Answered:
    """Questions and their answers.

    Attributes:
        items: The questions.
        texts: Answers by question id.
        lang: Their language.
        version: Of the questions, where the file says it.
        prompt_id: Which prompt the questions were asked with, where the file says it.
        cut_keys: Questions whose answer reached the length limit.
        num_twice: Answers that are in the file twice and equal.
    """

    items: tuple[Item, ...]
    texts: Mapping[str, str]
    lang: str
    version: str = ""
    prompt_id: str = ""
    cut_keys: Collection[str] = ()
    num_twice: int = 0


def read_answered(
    path: Path,
    kind: Kind,
    *,
    lang: str | None = None,
    items: Sequence[Item] | None = None,
    last_wins: bool = False,
    version: str = "",
) -> Answered:
    """Reads answers and the questions that they answer.

    Args:
        path: The file.
        kind: The benchmark.
        lang: Language of the questions, where the file does not say it.
        items: The questions; None to take them from the file itself.
        last_wins: Of several answers to a question the last counts, as in LLaVA's scripts.
        version: Of `items`.

    Raises:
        DataError: A line is not as it must be, is of another benchmark, version or language, has
            no question, or answers one a second time differently.
    """
    records = list(read_json_lines(path))
    if not records:
        raise DataError(f"{path}: no answers in it")
    found_lang = _one_of(records, "lang", path) or lang or "en"
    if lang is not None and found_lang != lang:
        raise DataError(f"{path}: the answers are to questions in {found_lang}, not in {lang}")
    found_version = _one_of(records, "version", path)
    if version and found_version and version != found_version:
        raise DataError(
            f"{path}: the answers are to version {found_version} of {kind.name}, the questions are "
            f"of version {version}"
        )
    for where, record in records:
        stated = record.get("kind") or record.get("benchmark")
        other = find_kind(stated) if isinstance(stated, str) else None
        if other not in (None, kind):
            raise DataError(f"{where}: an answer to {stated}, expected {kind.name}")
    keys = _own_keys(records, kind) if items is None else _joined_keys(records, kind, items)
    texts = _texts_by_key(path, keys, records, "take the last (--on-duplicate last)", last_wins)
    if items is None:
        first: dict[str, tuple[str, Mapping[str, Any]]] = {}
        for key, found in zip(keys, records, strict=True):
            first.setdefault(key, found)
        items = [_item(key, where, r, kind, found_lang) for key, (where, r) in first.items()]
        items += kind.skipped(items)
    pairs = zip(keys, records, strict=True)
    return Answered(
        items=tuple(items),
        texts=texts,
        lang=found_lang,
        version=version or found_version,
        prompt_id=_one_of(records, "prompt_id", path),
        cut_keys=frozenset(k for k, (_, r) in pairs if r.get("finish_reason") == "length"),
        num_twice=len(keys) - len(texts),
    )


def _texts_by_key(
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
        text = _value(record, _TEXT)
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


def stated_kind(path: Path) -> Kind:
    """Returns the kind that the first line of a file of answers names, else short answers.

    Raises:
        DataError: The file is empty or its first line is damaged.
    """
    first = next(read_json_lines(path), None)
    if first is None:
        raise DataError(f"{path}: no answers in it")
    stated = first[1].get("kind") or first[1].get("benchmark")
    return (find_kind(stated) if isinstance(stated, str) else None) or get_kind("answers")


def _value(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((record[name] for name in names if name in record), None)


def _one_of(records: Sequence[tuple[str, Mapping[str, Any]]], field: str, path: Path) -> str:
    """Returns the value that all lines give a field; "" if none has it."""
    values = Counter(str(record[field]) for _, record in records if record.get(field))
    if len(values) > 1:
        shown = ", ".join(f"{value} ({number} lines)" for value, number in values.items())
        raise DataError(f"{path}: the lines are of several values of {field}: {shown}; split it")
    return next(iter(values), "")


def mme_image(path: str) -> str:
    """Returns `category/stem` of an image of MME, whose files lie in one of two places."""
    parts = PurePosixPath(path)
    return f"{parts.parts[0]}/{parts.stem}" if parts.parts else ""


def _own_keys(records: Sequence[tuple[str, Mapping[str, Any]]], kind: Kind) -> list[str]:
    """Returns the ids of the questions, from the answers alone."""
    keys: list[str] = []
    seen: dict[str, list[str]] = {}
    for where, record in records:
        key = record.get("key", record.get("question_id", record.get("index")))
        if not isinstance(key, (str, int)) or isinstance(key, bool):
            raise DataError(f"{where}: no question_id; expected a text or a number")
        key = str(key)
        if kind.name == "pope" and "key" not in record and record.get("category"):
            key = f"{record['category']}/{key}"
        if kind.name == "mme" and "key" not in record:
            # the two about an image share an id; wording and expected answer tell them apart
            asked = seen.setdefault(key, [])
            prompt = f"{record.get('prompt') or ''}\t{_value(record, _GOLD)}"
            if prompt not in asked:
                asked.append(prompt)
            key = f"{mme_image(key)}#{asked.index(prompt)}"
        keys.append(key)
    return keys


def _joined_keys(
    records: Sequence[tuple[str, Mapping[str, Any]]], kind: Kind, items: Sequence[Item]
) -> list[str]:
    """Returns the ids of the questions that were answered, looked up in the benchmark."""
    known = {item.question_id for item in items}
    sources = Counter(item.source_id for item in items if item.source_id)
    by_source = {i.source_id: i.question_id for i in items if sources[i.source_id] == 1}
    by_question = {(item.image_id, item.question): item.question_id for item in items}
    keys: list[str] = []
    strangers: list[str] = []
    for where, record in records:
        own = str(record.get("key", record.get("question_id", record.get("index", ""))))
        key = own if own in known else by_source.get(own, "")
        if not key and kind.name == "mme":
            pair = (mme_image(own.split("#")[0]), bare_question(str(record.get("prompt", ""))))
            key = by_question.get(pair, "")
        if not key:
            strangers.append(f"{own} ({where})")
        keys.append(key)
    if strangers:
        raise DataError(
            f"{len(strangers)} answers have no question in the benchmark: "
            f"{', '.join(strangers[:NUM_SHOWN])}: they are of another version or language"
        )
    return keys


def _item(key: str, where: str, record: Mapping[str, Any], kind: Kind, lang: str) -> Item:
    """Returns the question as its answer describes it.

    Raises:
        DataError: It does not say what was expected.
    """
    gold = _value(record, _GOLD)
    if not isinstance(gold, str) or not gold.strip():
        raise DataError(
            f"{where}: question {key}: no expected answer (gold) beside the answer; name the "
            "benchmark's own files with --data"
        )
    category = _value(record, _CATEGORY)
    answer_type = record.get("answer_type")
    if not answer_type:
        parsed = parse_yes_no(gold, answer_words(lang)).label if kind.name == "answers" else ""
        answer_type = "yesno" if parsed in ("yes", "no") else kind.answer_type
    item = Item(
        question_id=key,
        image=str(record.get("image") or ""),
        text=str(record.get("prompt") or ""),
        category=str(category) if category else "",
        answer=gold.strip(),
        lang=lang,
        answer_type=str(answer_type),
        options=_options(record, where),
        answers=tuple(record.get("golds") or ()),
        group=str(record.get("group") or ""),
        image_id=str(record.get("image_id") or ""),
        source_id=str(record.get("question_id", "")),
        supercategory=str(record.get("supercategory") or record.get("l2-category") or ""),
        answer_lang=str(record.get("answer_lang") or ""),
    )
    if kind.name == "mme":
        image = item.image_id or key.rsplit("#", 1)[0]
        item = replace(item, image_id=image, category=item.category or image.split("/")[0])
    if kind.name == "pope" and not item.category:
        prefix = key.split("/")[0]
        item = replace(item, category=prefix if prefix in POPE_CATEGORIES else UNNAMED)
    return item


def _options(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Returns the option texts, which are given as a list, an object or columns."""
    given = record.get("options")
    if isinstance(given, Mapping):
        return tuple(str(given[letter]) for letter in LETTERS if given.get(letter))
    if isinstance(given, list):
        if not all(isinstance(text, str) for text in given):
            raise DataError(f"{where}: options is {given!r}; expected a list of texts")
        return tuple(given)
    columns = [record[letter] for letter in LETTERS if isinstance(record.get(letter), str)]
    return tuple(text for text in columns if text.strip())
