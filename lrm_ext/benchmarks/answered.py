"""Read a file of answers: with the questions beside them, or on its own.

In: JSON Lines as `lrm eval` writes them, or LLaVA's scripts (EVAL_SPEC 8). Out: questions and the
answers by their ids. A file of `lrm eval` says of each question all that scoring needs; LLaVA's
needs the benchmark's own files, to which it is joined by id, or in MME by picture and question.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from llava.errors import DataError
from llava.eval.records import read_json_lines
from lrm_ext.benchmarks.items import LETTERS, Item, text_of
from lrm_ext.benchmarks.kind import Kind
from lrm_ext.benchmarks.kinds import find_kind, get_kind
from lrm_ext.benchmarks.mme import bare_question
from lrm_ext.benchmarks.parse import parse_yes_no
from lrm_ext.benchmarks.pope import CATEGORIES as POPE_CATEGORIES
from lrm_ext.benchmarks.pope import UNNAMED
from lrm_ext.benchmarks.words import answer_words

log = logging.getLogger(__name__)

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
    version: str
    prompt_id: str
    cut_keys: frozenset[str]
    num_twice: int


def read_answered(
    path: Path,
    kind: Kind,
    *,
    lang: str | None = None,
    items: Sequence[Item] | None = None,
    last_wins: bool = False,
    version: str = "",
) -> Answered:
    """Read answers and the questions that they are to.

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
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected answers in JSON Lines")
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
        _check_benchmark(record, kind, where)
    keys = _own_keys(records, kind) if items is None else _joined_keys(records, kind, items)
    texts: dict[str, str] = {}
    first: dict[str, int] = {}
    num_twice = 0
    for number, (key, (where, record)) in enumerate(zip(keys, records, strict=True)):
        text = _value(record, _TEXT)
        if not isinstance(text, str):
            raise DataError(f"{where}: question {key}: text is {text!r}; expected a string")
        num_twice += key in texts
        if texts.get(key, text) != text and not last_wins:
            raise DataError(
                f"{where}: question {key} is answered a second time, differently; delete one of "
                "the lines, or take the last (--on-duplicate last)"
            )
        texts[key] = text_of(record, text)
        first.setdefault(key, number)
    if num_twice:
        log.warning("%s: %d questions are answered twice; each counts once", path, num_twice)
    if items is None:
        items = [
            _item(records[number][1], key, kind, found_lang, records[number][0])
            for key, number in first.items()
        ]
        items += kind.skipped(items)
    cut = {
        key
        for key, (_, record) in zip(keys, records, strict=True)
        if record.get("finish_reason") == "length"
    }
    return Answered(
        items=tuple(items),
        texts=texts,
        lang=found_lang,
        version=version or found_version,
        prompt_id=_one_of(records, "prompt_id", path),
        cut_keys=frozenset(cut),
        num_twice=num_twice,
    )


def stated_kind(path: Path) -> Kind:
    """The kind that the first line of a file of answers names; short answers where it names none.

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
    """The value that all lines give a field; "" where none has it."""
    values = Counter(str(record[field]) for _, record in records if record.get(field))
    if len(values) > 1:
        shown = ", ".join(f"{value} ({number} lines)" for value, number in values.items())
        raise DataError(f"{path}: the lines are of several values of {field}: {shown}; split it")
    return next(iter(values), "")


def _check_benchmark(record: Mapping[str, Any], kind: Kind, where: str) -> None:
    stated = record.get("kind") or record.get("benchmark")
    other = find_kind(stated) if isinstance(stated, str) else None
    if other is not None and other is not kind:
        raise DataError(f"{where}: an answer to {stated}, expected {kind.name}")


def mme_picture(path: str) -> str:
    """`category/stem` of a picture of MME, whose files lie in one of two places."""
    parts = PurePosixPath(path)
    return f"{parts.parts[0]}/{parts.stem}" if parts.parts else ""


def _own_keys(records: Sequence[tuple[str, Mapping[str, Any]]], kind: Kind) -> list[str]:
    """Ids of the questions, from the answers alone."""
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
            # the two about a picture share an id; wording and expected answer tell them apart
            asked = seen.setdefault(key, [])
            prompt = f"{record.get('prompt') or ''}\t{_value(record, _GOLD)}"
            if prompt not in asked:
                asked.append(prompt)
            key = f"{mme_picture(key)}#{asked.index(prompt)}"
        keys.append(key)
    return keys


def _joined_keys(
    records: Sequence[tuple[str, Mapping[str, Any]]], kind: Kind, items: Sequence[Item]
) -> list[str]:
    """Ids of the questions that answers are to, looked up in the benchmark."""
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
            pair = (mme_picture(own.split("#")[0]), bare_question(str(record.get("prompt", ""))))
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


def _item(record: Mapping[str, Any], key: str, kind: Kind, lang: str, where: str) -> Item:
    """The question as its answer describes it.

    Raises:
        DataError: It does not say what was expected.
    """
    gold = _value(record, _GOLD)
    if not isinstance(gold, str) or not gold.strip():
        raise DataError(
            f"{where}: question {key}: no expected answer (gold) beside the answer; name the "
            "benchmark's own files with --data"
        )
    image = str(record.get("image") or "")
    category = _value(record, _CATEGORY)
    item = Item(
        question_id=key,
        image=image,
        text=str(record.get("prompt") or ""),
        category=str(category) if category else "",
        answer=gold.strip(),
        lang=lang,
        answer_type=str(record.get("answer_type") or _type_of(gold, kind, lang)),
        options=_options(record, where),
        answers=tuple(record.get("golds") or ()),
        group=str(record.get("group") or ""),
        image_id=str(record.get("image_id") or ""),
        source_id=str(record.get("question_id", "")),
        supercategory=str(record.get("supercategory") or record.get("l2-category") or ""),
        answer_lang=str(record.get("answer_lang") or ""),
    )
    if kind.name == "mme":
        picture = item.image_id or key.rsplit("#", 1)[0]
        item = replace(item, image_id=picture, category=item.category or picture.split("/")[0])
    if kind.name == "pope" and not item.category:
        prefix = key.split("/")[0]
        item = replace(item, category=prefix if prefix in POPE_CATEGORIES else UNNAMED)
    return item


def _type_of(gold: str, kind: Kind, lang: str) -> str:
    """What sort of answer is expected, where the file does not say it."""
    if kind.name == "answers" and parse_yes_no(gold, answer_words(lang)).label in ("yes", "no"):
        return "yesno"
    return kind.answer_type


def _options(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Option texts by letter: a list (with LLaVA's `option_char`), an object, or columns."""
    given = record.get("options")
    if isinstance(given, Mapping):
        return tuple(str(given[letter]) for letter in LETTERS if given.get(letter))
    if isinstance(given, list):
        if not all(isinstance(text, str) for text in given):
            raise DataError(f"{where}: options is {given!r}; expected a list of texts")
        return tuple(given)
    columns = [record[letter] for letter in LETTERS if isinstance(record.get(letter), str)]
    return tuple(text for text in columns if text.strip())
