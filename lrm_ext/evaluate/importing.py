"""From a benchmark's official files to a folder that `lrm eval` asks.

The folder holds `<lang>.jsonl`, one question a line with what the model is asked (LLaVA's prompt in
that language) and its parts beside it; `benchmark.json`, which says whose rules score it and which
version it is; and the pictures that came inside a table. Other pictures stay where they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llava.errors import ConfigError, DataError
from llava.files import write_atomically
from lrm_ext.evaluate.items import LLAVA, PROMPT_STYLES, Item, read_items
from lrm_ext.evaluate.kind import Kind
from lrm_ext.evaluate.kinds import (
    DESCRIPTION_FILE,
    IMAGES_DIR,
    PAPER,
    find_kind,
    get_kind,
    read_description,
)
from lrm_ext.evaluate.mapping import available_languages, find_mapping, read_set, set_names
from lrm_ext.evaluate.official import PictureStore, Questions, Source

ENGLISH: Final = "en"
_HASH_CHARS: Final = 8


@dataclass(frozen=True)
class OpenQuestions:
    """Questions to score answers against.

    Attributes:
        items: The questions.
        english: The same in English, where they are at hand.
        lang: Their language.
        version: What they are called.
    """

    items: tuple[Item, ...]
    english: tuple[Item, ...]
    lang: str
    version: str


def read_official(
    name: str,
    path: Path,
    lang: str,
    store: PictureStore,
    labels: Path | None = None,
    images: Path | None = None,
    style: str = LLAVA,
) -> Questions:
    """Read a benchmark's official files and check that they are whole.

    Args:
        name: The benchmark.
        path: Its file or folder.
        lang: The language that they are in.
        store: Where pictures inside tables go.
        labels: Files with the expected answers, where the questions come without.
        images: Folder of the pictures, where it is not the usual one.
        style: Of the prompt (`PROMPT_STYLES`).

    Raises:
        ConfigError: The benchmark or style is unknown.
        DataError: A file is not as it must be.
    """
    if style not in PROMPT_STYLES:
        raise ConfigError(f"--prompt is {style!r}; expected one of {', '.join(PROMPT_STYLES)}")
    kind = get_kind(name)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    source = Source(kind, path, lang, store, labels, images, style)
    if kind.read is None:
        raise ConfigError(f"{name} has no official files; choose from {', '.join(PAPER)}")
    questions = kind.read(source)
    if not questions.items:
        raise DataError(f"{path}: no questions in it")
    _refuse_twice(questions, kind.name, path)
    kind.check(questions.items, False)
    return questions


def _refuse_twice(questions: Questions, name: str, path: Path) -> None:
    seen: set[str] = set()
    for item in questions.items:
        if item.question_id in seen:
            raise DataError(f"{path}: {name}: question {item.question_id} is there twice")
        seen.add(item.question_id)


def languages_of(name: str, path: Path, lang: str | None) -> tuple[str, ...]:
    """The languages to import: the one that was asked for, else all that a set's files have.

    Raises:
        DataError: A set's folder has none.
    """
    if lang is not None:
        return (lang,)
    mapping = find_mapping(name)
    if mapping is None:
        return (ENGLISH,)
    found = available_languages(mapping, path) if path.is_dir() else ()
    if not found:
        raise DataError(
            f"{path}: no questions of {mapping.title} in it; expected "
            f"{', '.join(mapping.questions)} ({{lang}}: {', '.join(mapping.languages.values())}), "
            "or a file, with its language (--lang)"
        )
    return found


def kind_of(name: str) -> Kind:
    """Whose rules score a benchmark or set.

    Raises:
        ConfigError: There is none of this name.
    """
    mapping = find_mapping(name)
    if mapping is None and find_kind(name) is None:
        raise ConfigError(
            f"unknown benchmark {name!r}; choose from {', '.join((*PAPER, *set_names()))}, or "
            "name a mapping file (.toml)"
        )
    return get_kind(mapping.kind if mapping else name)


def version_of(path: Path, items: tuple[Item, ...]) -> str:
    """What a set of questions is called: file, number of questions, and a digest of them."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr((item.question_id, item.question, item.options, item.answer)).encode())
    stem = path.name if path.is_dir() else path.stem
    return f"{stem}-{len(items)}-{digest.hexdigest()[:_HASH_CHARS]}"


def import_benchmark(
    name: str,
    path: Path,
    out: Path,
    *,
    lang: str = ENGLISH,
    labels: Path | None = None,
    images: Path | None = None,
    style: str = LLAVA,
) -> OpenQuestions:
    """Write official files as a benchmark folder, or add a language to one.

    Args:
        name: The benchmark.
        path: Its file or folder.
        out: The folder to write.
        lang: The language that the files are in.
        labels: Files with the expected answers, where the questions come without.
        images: Folder of the pictures, where it is not the usual one.
        style: Of the prompt (`PROMPT_STYLES`).

    Raises:
        ConfigError: The benchmark, language or style is unknown.
        DataError: A file is not as it must be, or the folder holds another benchmark.
    """
    store = PictureStore(out / IMAGES_DIR, images)
    if mapping := find_mapping(name):
        if style != LLAVA:
            raise ConfigError("--prompt is for mme, pope, seed_bench and mmbench only")
        questions = read_set(mapping, path, lang, store, images)
        _refuse_twice(questions, mapping.name, path)
        root = questions.image_root or out / IMAGES_DIR
        return write_folder(out, mapping.kind, lang, questions.items, root, path)
    questions = read_official(name, path, lang, store, labels, images, style)
    root = questions.image_root or out / IMAGES_DIR
    return write_folder(out, get_kind(name).name, lang, questions.items, root, path, style)


def write_folder(
    out: Path,
    kind: str,
    lang: str,
    items: tuple[Item, ...],
    image_root: Path,
    source: Path,
    style: str = LLAVA,
    notes: Mapping[str, Any] | None = None,
) -> OpenQuestions:
    """Write one language of a benchmark folder.

    Args:
        out: The folder.
        kind: Whose rules score it.
        lang: The language.
        items: Its questions.
        image_root: Folder that their picture paths are relative to.
        source: What they were made from.
        style: Of the prompt.
        notes: What else the folder is to say of this language.

    Raises:
        DataError: The folder holds another benchmark, or other questions in other languages.
    """
    version = version_of(source, items)
    described: dict[str, Any] = {"kind": kind, "prompt": style, "image_root": "", "files": {}}
    if (out / DESCRIPTION_FILE).is_file():
        described = dict(read_description(out))
        if described["kind"] != kind:
            raise DataError(f"{out}: holds {described['kind']}, not {kind}; choose another folder")
        if described["prompt"] != style:
            raise DataError(
                f"{out}: its other languages are asked in style {described['prompt']}, not {style}"
            )
        if kind in PAPER:
            _refuse_others(out, described, lang, items)
    out.mkdir(parents=True, exist_ok=True)
    relative = os.path.relpath(image_root.resolve(), out.resolve())
    if described["image_root"] not in ("", relative):
        raise DataError(
            f"{out}: its pictures are in {described['image_root']}, those of {source} in {relative}"
        )
    described["image_root"] = relative
    described["files"] = {
        **described["files"],
        lang: {"version": version, "source": source.name, "num_questions": len(items)}
        | dict(notes or {}),
    }
    lines = (json.dumps(item.to_record(), ensure_ascii=False) + "\n" for item in items)
    write_atomically(out / f"{lang}.jsonl", "".join(lines))
    write_atomically(
        out / DESCRIPTION_FILE, json.dumps(described, indent=1, ensure_ascii=False) + "\n"
    )
    return OpenQuestions(items, (), lang, version)


def _refuse_others(
    out: Path, described: Mapping[str, Any], lang: str, items: tuple[Item, ...]
) -> None:
    """Demand that all languages of a folder have the same questions and expected answers."""
    for other in described["files"]:
        if other == lang:
            continue
        there = {i.question_id: i.answer for i in read_items(out / f"{other}.jsonl", other)}
        here = {i.question_id: i.answer for i in items}
        closed = any(item.answer_type != "text" for item in items)
        if there.keys() != here.keys() or (closed and there != here):
            raise DataError(
                f"{out}: the questions in {lang} are not those in {other} "
                f"({len(here)} and {len(there)}; ids and expected answers must be equal)"
            )


def open_questions(name: str, path: Path, lang: str) -> OpenQuestions:
    """Questions of a benchmark folder, or of official files as they are.

    Raises:
        ConfigError: The benchmark is unknown.
        DataError: They are not as they must be, or the folder has not this language.
    """
    if not (path / DESCRIPTION_FILE).is_file():
        if mapping := find_mapping(name):
            items = read_set(mapping, path, lang, PictureStore(None)).items
        else:
            items = read_official(name, path, lang, PictureStore(None)).items
        return OpenQuestions(items, (), lang, version_of(path, items))
    described = read_description(path)
    kind = kind_of(name).name
    if described["kind"] != kind:
        raise ConfigError(f"{path} holds {described['kind']}, not {kind}")
    items = tuple(read_items(path / f"{lang}.jsonl", lang))
    has_english = lang != ENGLISH and (path / f"{ENGLISH}.jsonl").is_file()
    english = tuple(read_items(path / f"{ENGLISH}.jsonl", ENGLISH)) if has_english else ()
    return OpenQuestions(items, english, lang, str(described["files"][lang]["version"]))
