"""Turns a benchmark's official files into a folder that `lrm eval` asks.

The folder holds `<lang>.jsonl`, one question a line with what the model is asked (LLaVA's prompt in
that language) and its parts beside it; `benchmark.json`, which says whose rules score it and which
version it is; and the images that came inside a table. Other images stay where they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from llava.errors import ConfigError, DataError
from lrm_ext.evaluate.items import LLAVA, PROMPT_STYLES, Item, check_options, read_items
from lrm_ext.evaluate.kind import Kind, gold_of
from lrm_ext.evaluate.kinds import PAPER, find_kind, get_kind
from lrm_ext.evaluate.mapping import (
    available_languages,
    download_patterns,
    find_mapping,
    needed_files,
    read_set,
    set_names,
)
from lrm_ext.evaluate.official import ImageStore, Questions, Source
from lrm_ext.evaluate.reading import answer_words
from lrm_ext.evaluate.registry import (
    DESCRIPTION_FILE,
    IMAGES_DIR,
    read_description,
    scored_by,
    version_of,
    write_folder,
)

ENGLISH: Final = "en"
_SNAPSHOT: Final = re.compile(r"/snapshots/([0-9a-f]{40})(?:/|$)")


@dataclass(frozen=True)
class OpenQuestions:
    """Questions to score answers against.

    Attributes:
        items: The questions.
        english: The same in English, if they are at hand.
        lang: Their language.
        version: What they are called.
    """

    items: tuple[Item, ...]
    english: tuple[Item, ...]
    lang: str
    version: str


def kind_of(name: str) -> Kind:
    """Returns whose rules score a benchmark or set.

    Raises:
        ConfigError: There is none of this name.
    """
    mapping = find_mapping(name)
    kind = find_kind(scored_by(mapping.kind, mapping.official) if mapping else name)
    if kind is None:
        raise ConfigError(
            f"unknown benchmark {name!r}; choose from {', '.join((*PAPER, *set_names()))}, or "
            "name a mapping file (.toml)"
        )
    return kind


def languages_of(name: str, path: Path, langs: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the languages to import: those that were asked for, else all that the files have.

    Raises:
        DataError: A set's folder has none.
    """
    mapping = find_mapping(name)
    if mapping is None:
        return tuple(langs or (ENGLISH,))
    if langs:
        ours = {called: lang for lang in mapping.languages for called in mapping.names(lang)}
        return tuple(lang if lang in mapping.languages else ours.get(lang, lang) for lang in langs)
    by_column = any("{lang}" in wanted for wanted in mapping.filter.values())
    found = available_languages(mapping, path) if path.is_dir() or by_column else ()
    if not found:
        raise DataError(
            f"{path}: no questions of {mapping.title} in it; expected "
            f"{', '.join(mapping.files.questions)} ({{lang}}: "
            f"{', '.join(mapping.languages.values())}), or a file, with its language (--lang)"
        )
    return found


def download(name: str, repository: str, revision: str | None, langs: Sequence[str] = ()) -> Path:
    """Returns a snapshot of a set on the Hugging Face Hub, downloaded unless it is in the cache.

    Args:
        name: The set; of one with a mapping only the files that it names are taken.
        repository: The data set, `owner/name`.
        revision: Branch, tag or commit; None for the latest.
        langs: Codes of the languages; all if empty.

    Raises:
        ConfigError: It cannot be had.
    """
    from huggingface_hub import snapshot_download

    mapping = find_mapping(name)
    codes = languages_of(name, Path(repository), langs) if langs else ()
    patterns = download_patterns(mapping, codes) if mapping else None
    try:
        found = snapshot_download(
            repository, repo_type="dataset", revision=revision, allow_patterns=patterns
        )
    except (OSError, ValueError) as error:  # the hub's own errors are of these kinds
        raise ConfigError(
            f"{repository} cannot be had from the Hugging Face Hub: {error}; where there is a "
            f"network, run `hf download --repo-type dataset {repository}`, copy the folder that it "
            "names to here, and name it without --hub"
        ) from error
    return Path(found)


def revision_of(path: Path) -> str:
    """Returns the commit of a snapshot of the Hub, which its path names; "" for another path."""
    match = _SNAPSHOT.search(path.absolute().as_posix())
    return match[1] if match else ""


def read_benchmark(name: str, source: Source) -> Questions:
    """Reads a set by its mapping, or official files, and checks that they are whole.

    Raises:
        ConfigError: The benchmark or style is unknown.
        DataError: A file is not as it must be.
    """
    if source.style not in PROMPT_STYLES:
        known = ", ".join(PROMPT_STYLES)
        raise ConfigError(f"--prompt is {source.style!r}; expected one of {known}")
    if mapping := find_mapping(name):
        if source.style != LLAVA:
            raise ConfigError(f"--prompt is for {', '.join(PAPER)} only")
        if get_kind(mapping.kind).files is None:
            return read_set(mapping, source)
        source = replace(source, path=needed_files(mapping, source)[0])
    kind = kind_of(name)
    if kind.files is None:
        raise ConfigError(f"{name} has no official files; choose from {', '.join(PAPER)}")
    if not source.path.exists():
        raise DataError(f"{source.path}: no such file or folder")
    questions = kind.files.read(source)
    if not questions.items:
        raise DataError(f"{source.path}: no questions in it")
    [(question_id, number)] = Counter(item.question_id for item in questions.items).most_common(1)
    if number > 1:
        raise DataError(f"{source.path}: {kind.name}: question {question_id} is there twice")
    for item in questions.items:
        if item.answer_type == "letter":
            check_options(item, f"{source.path}: question {item.question_id}")
        else:
            gold_of(item, answer_words(ENGLISH))
    kind.check(questions.items)
    return questions


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
    """Writes official files as a benchmark folder, or adds a language to one.

    Args:
        name: The benchmark, a set, or a mapping file.
        path: Its files.
        out: The folder to write.
        lang: The language that the files are in.
        labels: Files with the expected answers, if the questions come without.
        images: Folder of the images, if it is not the usual one.
        style: Of the prompt (`PROMPT_STYLES`).

    Raises:
        ConfigError: The benchmark, language or style is unknown.
        DataError: A file is not as it must be, or the folder holds another benchmark.
    """
    store = ImageStore(out / IMAGES_DIR, images)
    questions = read_benchmark(name, Source(path, lang, store, labels, images, style))
    root, kind = questions.image_root or out / IMAGES_DIR, kind_of(name).name
    notes = mapping.notes() if (mapping := find_mapping(name)) else {}
    if revision := revision_of(path):
        notes["revision"] = revision
    version = write_folder(out, kind, lang, questions.items, root, path, style, notes)
    return OpenQuestions(questions.items, (), lang, version)


def open_questions(name: str, path: Path, lang: str) -> OpenQuestions:
    """Opens questions of a benchmark folder, or of official files as they are.

    Raises:
        ConfigError: The benchmark is unknown.
        DataError: They are not as they must be, or the folder has not this language.
    """
    if not (path / DESCRIPTION_FILE).is_file():
        items = read_benchmark(name, Source(path, lang, ImageStore(None))).items
        return OpenQuestions(items, (), lang, version_of(path, items))
    described = read_description(path)
    kind = kind_of(name).name
    if described["kind"] != kind:
        raise ConfigError(f"{path} holds {described['kind']}, not {kind}")
    items = tuple(read_items(path / f"{lang}.jsonl", lang))
    has_english = lang != ENGLISH and (path / f"{ENGLISH}.jsonl").is_file()
    english = tuple(read_items(path / f"{ENGLISH}.jsonl", ENGLISH)) if has_english else ()
    return OpenQuestions(items, english, lang, str(described["files"][lang]["version"]))
