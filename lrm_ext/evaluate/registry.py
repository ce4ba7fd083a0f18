"""The benchmarks by name: where their files lie and which languages they have.

A benchmark is a folder with one `<lang>.jsonl` per language, and a folder of pictures; where it has
a `benchmark.json`, that says whose rules score it. `scenes` is the built-in one: questions on test
scenes of the emoji corpus, unpacked on first use; `scenes-val` has validation scenes, for choosing
between models; `mini-mme` and its like have test scenes in the shape of the four benchmarks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from llava.errors import ConfigError, DataError
from lrm_ext.evaluate.items import Item, read_items
from lrm_ext.evaluate.kinds import DESCRIPTION_FILE, PAPER, find_kind, read_description


@dataclass(frozen=True)
class Benchmark:
    """A benchmark on disk.

    Attributes:
        name: Its name in file names and reports.
        folder: Holds `<lang>.jsonl`.
        image_root: Folder that the picture paths in them are relative to.
        kind: Whose rules score it (see `kinds.py`); None for accuracy by the local rules.
        versions: What the questions of each language are called, where that is known.
        prompt: Style of the prompts, where that is known.
    """

    name: str
    folder: Path
    image_root: Path
    kind: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    prompt: str = ""

    def path(self, lang: str) -> Path:
        """The file of one language."""
        return self.folder / f"{lang}.jsonl"

    def languages(self) -> tuple[str, ...]:
        """Languages that there is a file for."""
        return tuple(sorted(path.stem for path in self.folder.glob("*.jsonl")))

    def read(self, lang: str) -> list[Item]:
        """Read one language's questions.

        Raises:
            DataError: See `read_items`; a language without a file is never replaced by English.
        """
        if not self.path(lang).is_file():
            raise DataError(
                f"benchmark {self.name} has no {lang}.jsonl in {self.folder}; "
                f"it has {', '.join(self.languages()) or 'no language at all'}"
            )
        return read_items(self.path(lang), lang)

    def image_path(self, image: str) -> Path:
        """Where a picture lies, whether it is there or not."""
        return Path(os.path.normpath(self.image_root / image))


def _open_built_in(name: str) -> Benchmark:
    from lrm_ext.emoji.unpack import ensure_unpacked

    root = ensure_unpacked()
    return Benchmark(name, root / "benchmarks" / name, root / "images")


def _open_mini(name: str) -> Benchmark:
    from lrm_ext.emoji.unpack import ensure_unpacked
    from lrm_ext.evaluate.mini import ensure_mini

    return open_folder(name, ensure_mini(name, ensure_unpacked()))


def open_folder(name: str, folder: Path) -> Benchmark:
    """A benchmark by its folder.

    Raises:
        DataError: Its `benchmark.json` is damaged.
    """
    if not (folder / DESCRIPTION_FILE).is_file():
        return Benchmark(name, folder, folder)
    described = read_description(folder)
    versions = {lang: str(file.get("version", "")) for lang, file in described["files"].items()}
    root = Path(os.path.normpath(folder.resolve() / described["image_root"]))
    return Benchmark(name, folder, root, described["kind"], versions, described["prompt"])


BENCHMARKS: Final[dict[str, Callable[[str], Benchmark]]] = {
    "scenes": _open_built_in,
    "scenes-val": _open_built_in,
    "mini-mme": _open_mini,
    "mini-pope": _open_mini,
    "mini-seed_bench": _open_mini,
    "mini-mmbench": _open_mini,
}


def get_benchmark(name: str, folder: Path | None = None) -> Benchmark:
    """Open a benchmark.

    Args:
        name: One of `BENCHMARKS`, or any name when `folder` is given.
        folder: A folder of `<lang>.jsonl` files of your own, or a folder of such folders; picture
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
        if (kind := find_kind(name)) and kind.name in PAPER:
            raise ConfigError(
                f"{name} does not come with the project: `lrm benchmark import {kind.name} FILES "
                f"--out DIR/{name}`, then `lrm eval --benchmarks {name} --benchmark-dir DIR`. Its "
                f"small built-in version is mini-{kind.name}"
            )
        raise ConfigError(f"unknown benchmark {name}; choose from {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name](name)


def names_in(folder: Path) -> tuple[str, ...]:
    """Names of the benchmarks in a folder: its own if it has questions, else its folders' that do.

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
    """A benchmark by its folder, else one of `BENCHMARKS`.

    Raises:
        ConfigError: The name is unknown.
        DataError: Its `benchmark.json` is damaged.
    """
    folder = Path(name)
    return open_folder(folder.resolve().name, folder) if folder.is_dir() else get_benchmark(name)


def missing_images(benchmark: Benchmark, items: Sequence[Item]) -> list[str]:
    """Paths of pictures that are not there, each once, sorted."""
    images = {item.image for item in items}
    return sorted(image for image in images if not benchmark.image_path(image).is_file())
