"""Benchmarks on disk: where their files lie, which languages they have, how they are written.

A benchmark is a folder with one `<lang>.jsonl` per language, and a folder of images; if it has a
`benchmark.json`, that says whose rules score it. `scenes` is the built-in one: questions on test
scenes of the emoji corpus, unpacked on first use; `scenes-val` has validation scenes, for choosing
between models; `mini-mme` and its like have test scenes in the shape of the four benchmarks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from llava.errors import ConfigError, DataError
from llava.files import write_atomically
from lrm_ext.evaluate.items import LLAVA, QUESTION, Item, read_items

log = logging.getLogger(__name__)
BENCHMARKS: Final = (
    "scenes", "scenes-val", "mini-mme", "mini-pope", "mini-seed_bench", "mini-mmbench",
)  # fmt: skip
DESCRIPTION_FILE: Final = "benchmark.json"
IMAGES_DIR: Final = "images"
# Whose sets need not have the same questions in every language.
FREE_KINDS: Final = ("answers", "captions")
_KEYS: Final = {"kind": str, "prompt": str, "image_root": str, "files": dict}
_HASH_CHARS: Final = 8


@dataclass(frozen=True)
class Benchmark:
    """A benchmark on disk.

    Attributes:
        name: Its name in file names and reports.
        folder: Holds `<lang>.jsonl`.
        image_root: Folder that the image paths in them are relative to.
        kind: Whose rules score it, as `scored_by` names them; None for accuracy by the local rules.
        versions: What the questions of each language are called, if that is known.
        prompt: Style of the prompts, if that is known.
    """

    name: str
    folder: Path
    image_root: Path
    kind: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    prompt: str = ""

    def path(self, lang: str) -> Path:
        """Returns the file of one language."""
        return self.folder / f"{lang}.jsonl"

    def languages(self) -> tuple[str, ...]:
        """Returns the languages that there is a file for."""
        return tuple(sorted(path.stem for path in self.folder.glob("*.jsonl")))

    def read(self, lang: str) -> list[Item]:
        """Reads one language's questions.

        Raises:
            DataError: See `read_items`; a language without a file is never replaced by English.
        """
        if not self.path(lang).is_file():
            raise DataError(
                f"benchmark {self.name} has no {lang}.jsonl in {self.folder}; "
                f"it has {', '.join(self.languages()) or 'no language at all'}{self._advice(lang)}"
            )
        return read_items(self.path(lang), lang)

    def _advice(self, lang: str) -> str:
        if self.name not in ("scenes", "scenes-val"):
            return ""
        return f"; `lrm corpus unpack-emoji --languages {lang}` adds a language"

    def image_path(self, image: str) -> Path:
        """Returns where an image lies, whether it is there or not."""
        return Path(os.path.normpath(self.image_root / image))


def open_folder(name: str, folder: Path) -> Benchmark:
    """Opens a benchmark by its folder.

    Raises:
        DataError: Its `benchmark.json` is damaged.
    """
    if not (folder / DESCRIPTION_FILE).is_file():
        return Benchmark(name, folder, folder)
    described = read_description(folder)
    versions = {lang: str(file.get("version", "")) for lang, file in described["files"].items()}
    root = Path(os.path.normpath(folder.resolve() / described["image_root"]))
    rules = sorted({file.get("official", "") for file in described["files"].values()} - {""})
    if len(rules) > 1:
        raise DataError(f"{folder}: its languages name the rules {', '.join(rules)}; expected one")
    kind = scored_by(described["kind"], "".join(rules))
    return Benchmark(name, folder, root, kind, versions, described["prompt"])


def scored_by(kind: str, official: str) -> str:
    """Names the rules of a set: its kind and, after a colon, the owner's rule if it has one."""
    return f"{kind}:{official}" if official else kind


def get_benchmark(name: str, folder: Path | None = None) -> Benchmark:
    """Opens a benchmark.

    Args:
        name: One of `BENCHMARKS`, or any name when `folder` is given.
        folder: A folder of `<lang>.jsonl` files of your own, or a folder of such folders; image
            paths are relative to it, unless its `benchmark.json` says otherwise.

    Raises:
        ConfigError: The name is unknown or the folder does not exist.
        DataError: Its `benchmark.json` is damaged.
    """
    if folder is not None:
        if not folder.is_dir():
            raise ConfigError(f"no benchmark folder {folder}; expected one with <lang>.jsonl files")
        inner = folder / name
        return open_folder(name, inner if inner.is_dir() else folder)
    if name not in BENCHMARKS:
        raise ConfigError(
            f"unknown benchmark {name}; choose from {', '.join(BENCHMARKS)}. Others do not come "
            f"with the project: `lrm benchmark import {name} FILES --out DIR/{name}`, then `lrm "
            f"eval --benchmarks {name} --benchmark-dir DIR` (`lrm benchmark list` names them)"
        )
    from lrm_ext.emoji.unpack import ensure_unpacked

    corpus = ensure_unpacked()
    if name.startswith("mini-"):
        return open_folder(name, ensure_mini(name, corpus))
    return Benchmark(name, corpus / "benchmarks" / name, corpus / IMAGES_DIR)


def ensure_mini(name: str, corpus: Path) -> Path:
    """Returns the folder of a small benchmark, made now if it is not there.

    Args:
        name: `mini-mme` or its like.
        corpus: The unpacked built-in corpus.

    Raises:
        DataError: The corpus is damaged.
    """
    from llava.files import lock_of
    from lrm_ext.emoji.unpack import COMPLETE_FILE
    from lrm_ext.evaluate.mini import FORMAT, PATTERNS_FILE

    folder = corpus / "benchmarks" / name
    patterns = PATTERNS_FILE.read_text(encoding="utf-8")
    inputs = f"{FORMAT} {(corpus / COMPLETE_FILE).read_text()} {patterns}"
    digest, marker = hashlib.sha256(inputs.encode()).hexdigest(), folder / COMPLETE_FILE
    folder.parent.mkdir(parents=True, exist_ok=True)
    # several processes may answer together
    with lock_of(folder):
        if not marker.is_file() or marker.read_text() != digest:
            log.info("making %s", folder)
            _make_mini(name, corpus, folder)
            marker.write_text(digest)
    return folder


def _make_mini(name: str, corpus: Path, folder: Path) -> None:
    from lrm_ext.evaluate.mini import MINI, mini_languages, scenes_of

    mini, corpus_images = MINI[name], corpus / IMAGES_DIR
    scenes = scenes_of(corpus_images)
    shutil.rmtree(folder, ignore_errors=True)
    for lang in mini_languages():
        items, root = mini.make(scenes, lang, corpus_images, folder / IMAGES_DIR)
        write_folder(folder, mini.kind, lang, items, root, Path(mini.source), QUESTION)


def names_in(folder: Path) -> tuple[str, ...]:
    """Names the benchmarks in a folder: itself if it has questions, else its folders that do.

    Raises:
        ConfigError: There is no such folder, or there are no questions in it.
    """
    if any(folder.glob("*.jsonl")):
        return (folder.resolve().name,)
    inner = sorted(folder.iterdir()) if folder.is_dir() else []
    if names := tuple(one.name for one in inner if one.is_dir() and any(one.glob("*.jsonl"))):
        return names
    raise ConfigError(
        f"no benchmark in {folder}; expected a folder with <lang>.jsonl files, or one of such "
        "folders"
    )


def open_named(name: str) -> Benchmark:
    """Opens a benchmark by its folder, else one of `BENCHMARKS`.

    Raises:
        ConfigError: The name is unknown.
        DataError: Its `benchmark.json` is damaged.
    """
    folder = Path(name)
    return open_folder(folder.resolve().name, folder) if folder.is_dir() else get_benchmark(name)


def missing_images(benchmark: Benchmark, items: Sequence[Item]) -> list[str]:
    """Returns paths of images that are not there, each once, sorted."""
    images = {image for item in items for image in item.images}
    return sorted(image for image in images if not benchmark.image_path(image).is_file())


def read_description(folder: Path) -> dict[str, Any]:
    """Reads a folder's description.

    Returns:
        `kind`; `prompt`, its style; `image_root`, relative to the folder; `files`, with `version`,
        `source` and `num_questions` of each language.

    Raises:
        DataError: It is not as it must be.
    """
    path = folder / DESCRIPTION_FILE
    try:
        described = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); import the benchmark again") from error
    for key, kind in _KEYS.items():
        if not isinstance(described, dict) or not isinstance(described.get(key), kind):
            raise DataError(f"{path}: {key} is missing or wrong; import the benchmark again")
    return dict(described)


def version_of(path: Path, items: Sequence[Item]) -> str:
    """Names a set of questions by file, number of questions, and a digest of them."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr((item.question_id, item.question, item.options, item.answer)).encode())
    stem = path.name if path.is_dir() else path.stem
    return f"{stem}-{len(items)}-{digest.hexdigest()[:_HASH_CHARS]}"


def write_folder(
    out: Path,
    kind: str,
    lang: str,
    items: Sequence[Item],
    image_root: Path,
    source: Path,
    style: str = LLAVA,
    notes: Mapping[str, Any] | None = None,
) -> str:
    """Writes one language of a benchmark folder.

    Args:
        out: The folder.
        kind: Whose rules score it.
        lang: The language.
        items: Its questions.
        image_root: Folder that their image paths are relative to.
        source: What they were made from.
        style: Of the prompt.
        notes: What else the folder is to say of this language.

    Returns:
        The version of the questions.

    Raises:
        DataError: The folder holds another benchmark, or other questions in other languages.
    """
    relative = os.path.relpath(image_root.resolve(), out.resolve())
    described: dict[str, Any] = {"kind": kind, "prompt": style, "image_root": relative, "files": {}}
    if (out / DESCRIPTION_FILE).is_file():
        there = read_description(out)
        if there["kind"] != kind:
            raise DataError(f"{out}: holds {there['kind']}, not {kind}; choose another folder")
        if there["prompt"] != style:
            raise DataError(
                f"{out}: its other languages are asked in style {there['prompt']}, not {style}"
            )
        if kind not in FREE_KINDS:
            _refuse_others(out, [one for one in there["files"] if one != lang], lang, items)
        if there["image_root"] not in ("", relative):
            raise DataError(
                f"{out}: its images are in {there['image_root']}, those of {source} in {relative}"
            )
        described["files"] = there["files"]
    version = version_of(source, items)
    said = {"version": version, "source": source.name, "num_questions": len(items)}
    described["files"][lang] = {**said, **(notes or {})}
    out.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(item.to_record(), ensure_ascii=False) + "\n" for item in items)
    write_atomically(out / f"{lang}.jsonl", "".join(lines))
    text = json.dumps(described, indent=1, ensure_ascii=False)
    write_atomically(out / DESCRIPTION_FILE, text + "\n")
    return version


def _refuse_others(out: Path, others: Iterable[str], lang: str, items: Sequence[Item]) -> None:
    """Demands that all languages of a folder have the same questions and expected answers."""
    here = {i.question_id: i.answer for i in items}
    closed = any(item.answer_type != "text" for item in items)
    for other in others:
        there = {i.question_id: i.answer for i in read_items(out / f"{other}.jsonl", other)}
        if there.keys() != here.keys() or (closed and there != here):
            raise DataError(
                f"{out}: the questions in {lang} are not those in {other} "
                f"({len(here)} and {len(there)}; ids and expected answers must be equal)"
            )
