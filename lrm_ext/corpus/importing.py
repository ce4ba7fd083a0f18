"""Imports datasets into a corpus.

Input: files of several formats, in English. Output: a corpus folder, written batch by batch in
constant memory; it appears when it is complete. Every row that is left out is counted with its
reason. Rules from a file mark the rows whose meaning does not survive translation. Images can be
opened, many at a time, and copied.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from llava.data.records import iter_records
from llava.data.sample import DropPolicy, DropReport, Sample, SampleError, record_images
from llava.errors import ConfigError, DataError
from llava.files import leaves_folder, load_toml, writing
from llava.images import ImageError, open_image
from lrm_ext.corpus.columns import (
    Flags,
    Turns,
    batch_of,
    check_sample,
    iter_row_batches,
    to_flags,
    usable_sample,
)
from lrm_ext.corpus.formats import Format
from lrm_ext.corpus.store import ENGLISH, ROW_SCHEMA, CorpusRow, batch_images, num_images
from lrm_ext.corpus.writer import CorpusWriter

RULES_FILE = Path(__file__).with_name("translatable.toml")
_MAX_EXAMPLES = 3
_MAX_REMEMBERED = 1_000_000
log = logging.getLogger(__name__)

_BATCH_ROWS = 2048
_NUM_IMAGES_LOOKED_FOR = 20
NUM_THREADS = min(32, 2 * (os.cpu_count() or 1))  # decoding releases the GIL


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule on which rows stay English."""

    name: str
    field: Literal["source", "task", "question", "answer"]
    pattern: str

    def __post_init__(self) -> None:
        """Checks the pattern.

        Raises:
            ValueError: RE2 cannot compile it.
        """
        try:
            pc.match_substring_regex(pa.array([""]), self.pattern)
        except pa.ArrowInvalid as error:
            raise ValueError(f"pattern {self.pattern!r} is not usable: {error}") from error


class _RulesFile(msgspec.Struct, forbid_unknown_fields=True):
    rules: tuple[Rule, ...] = ()


@dataclass
class Rules:
    """All rules, and the rows that they matched.

    Attributes:
        rules: The rules, in the order of the file.
        caught: Number of rows by rule; a row that two rules match counts for both.
        examples: Id and beginning of the question of the first rows of each rule.
        num_english: Number of rows that stay English.
    """

    rules: tuple[Rule, ...]
    caught: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    num_english: int = 0

    def __post_init__(self) -> None:
        """Joins the patterns of each field, so that one search finds what any rule matches."""
        patterns: dict[str, list[str]] = {}
        for rule in self.rules:
            patterns.setdefault(rule.field, []).append(f"(?:{rule.pattern})")
        self._together = {name: "|".join(parts) for name, parts in patterns.items()}

    @classmethod
    def load(cls, path: Path = RULES_FILE) -> Rules:
        """Reads a file of rules.

        Raises:
            ConfigError: The file is missing or not TOML, or a rule is not valid.
        """
        return cls(load_toml(path, _RulesFile).rules)

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Marks the rows of a batch (`ROW_SCHEMA`) that stay English."""
        stays = np.zeros(len(batch), dtype=bool)
        for name, any_of in self._together.items():
            stays |= _matches(batch, name, any_of)
        if not stays.any():
            return batch
        caught = batch.filter(pa.array(stays))
        for rule in self.rules:
            self._note(rule, caught, _matches(caught, rule.field, rule.pattern))
        self.num_english += len(caught)
        column = pa.array(~stays & batch.column("translatable").to_numpy(zero_copy_only=False))
        index = ROW_SCHEMA.get_field_index("translatable")
        return batch.set_column(index, ROW_SCHEMA.field(index), column)

    def _note(self, rule: Rule, batch: pa.RecordBatch, found: Flags) -> None:
        kept = self.examples.setdefault(rule.name, [])
        self.caught[rule.name] += int(found.sum())
        for i in np.flatnonzero(found)[: _MAX_EXAMPLES - len(kept)].tolist():
            row = batch.slice(i, 1).to_pylist()[0]
            kept.append(f"{row['id']}: {row['turns'][0]['text']!r:.100}")


def _matches(batch: pa.RecordBatch, name: str, pattern: str) -> Flags:
    """Tells in which rows a field matches."""
    if name in ("source", "task"):
        return to_flags(pc.match_substring_regex(batch.column(name), pattern))
    turns = Turns.of(batch.column("turns"))
    return turns.any(
        turns.of_role("human" if name == "question" else "gpt") & turns.matching(pattern)
    )


class ImageFolder:
    """The image folder of a corpus; checks the images and copies them if asked.

    Args:
        root: The folder.
        pool: Opens several images at once; None if they are not opened.
        copy_to: Folder to copy images to, with the same relative paths. Images that are embedded in
            a source are written there, too.
    """

    def __init__(
        self, root: Path, pool: Executor | None = None, copy_to: Path | None = None
    ) -> None:
        self.root = root
        self._pool = pool
        self._copy_to = copy_to
        self._known: dict[str, SampleError | None] = {}
        self._has_looked = pool is not None

    def keep_usable(self, batch: pa.RecordBatch, policy: DropPolicy) -> pa.RecordBatch:
        """Drops the rows of a batch with an image that cannot be used.

        Raises:
            DataError: `policy` allows no more dropped rows.
        """
        self._look_for_any(batch)
        is_usable = np.ones(len(batch), dtype=bool)
        for i, problem in enumerate(self.problems(batch_images(batch))):
            if problem is not None:
                is_usable[i] = False
                policy.report.read[ENGLISH] -= 1  # counted again as dropped
                text = f"sample {batch.column('id')[i].as_py()!r}: {problem}"
                policy.drop(SampleError(text, problem.reason, ENGLISH))
        return batch if is_usable.all() else batch.filter(pa.array(is_usable))

    def problems(self, rows: Sequence[tuple[str, ...]]) -> list[SampleError | None]:
        """Opens images, several at a time and each of them once.

        Args:
            rows: The images of each row, as paths relative to the root.

        Returns:
            What is wrong with the first bad image of each row; None if nothing is.
        """
        if self._pool is None:
            return []
        if len(self._known) > _MAX_REMEMBERED:
            self._known.clear()
        new = sorted({name for names in rows for name in names} - self._known.keys())
        self._known.update(zip(new, self._pool.map(self._problem, new), strict=True))
        return [next(filter(None, map(self._known.get, names)), None) for names in rows]

    def save_embedded(self, image: Mapping[str, Any], where: str) -> str:
        """Writes an image that is embedded in a table to a file named by a hash of its content.

        Args:
            image: Has the content of the file as `bytes`.
            where: Location of the row, for messages.

        Returns:
            Path of the file below the folder that images are copied to.

        Raises:
            SampleError: It is not an image, or images are not copied.
        """
        if self._copy_to is None:
            raise SampleError(
                f"{where}: the image is embedded in the file, but a corpus refers to images by "
                "path. Import with --copy-images, which writes it to a file.",
                "embedded_picture",
            )
        data = image["bytes"]
        try:
            open_image(data, where).close()
        except ImageError as error:
            raise SampleError(str(error), error.reason) from error
        with Image.open(io.BytesIO(data)) as opened:
            ending = (opened.format or "img").lower()
        digest = hashlib.sha256(data).hexdigest()[:32]
        name = f"embedded/{digest[:2]}/{digest}.{ending}"
        if not (self._copy_to / name).is_file():
            with writing(self._copy_to / name) as partial_file:
                partial_file.write_bytes(data)
        return name

    def _problem(self, name: str) -> SampleError | None:
        path = self.root / name
        target = None if self._copy_to is None else self._copy_to / name
        if target is not None and target.is_file():  # embedded ones, too
            return None
        if leaves_folder(name):
            text = f"image {name!r} is outside {self.root}"
            return SampleError(text, "outside_root")
        if not path.is_file():
            return SampleError(f"no such image: {path}", "missing_picture")
        try:
            open_image(path).close()
        except ImageError as error:
            return SampleError(str(error), error.reason)
        if target is not None:
            with writing(target) as partial_file:
                shutil.copyfile(path, partial_file)
        return None

    def _look_for_any(self, batch: pa.RecordBatch) -> None:
        """Warns once if none of the first images exists: then the folder is probably wrong."""
        if self._has_looked:
            return
        names = [*chain.from_iterable(batch_images(batch))][:_NUM_IMAGES_LOOKED_FOR]
        self._has_looked = bool(names)
        if names and not any((self.root / name).is_file() for name in names):
            log.warning(
                "none of the first %d images exists, such as %s; is --images right? "
                "`lrm corpus validate --verify-images` checks all of them",
                len(names),
                self.root / names[0],
            )


@dataclass(frozen=True)
class ImportSource:
    """A dataset to import.

    Attributes:
        format: Its format.
        path: Its file or folder.
        name: Source of rows that do not name one; None for that of the format or of the file.
    """

    format: Format
    path: Path
    name: str | None = None

    @property
    def source(self) -> str:
        """Source of the rows that do not name one."""
        return self.name or self.format.source or self.path.stem


@dataclass
class ImportResult:
    """The result of an import.

    Attributes:
        rules: The rules, with the rows that stay English.
        reports: What was read and dropped, by the path of the source.
        rows: Number of rows by source.
        text_only: Number of rows without an image by source.
    """

    rules: Rules
    reports: dict[Path, DropReport] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    text_only: Counter[str] = field(default_factory=Counter)


def import_corpus(
    sources: Iterable[ImportSource],
    out: Path,
    *,
    images: Path,
    rules: Rules | None = None,
    max_drop_rate: float = 0.0,
    verify_images: bool = False,
    copy_images: bool = False,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda num_rows: None,
) -> ImportResult:
    """Creates a corpus from datasets.

    Args:
        sources: Datasets in English, in the order of their rows in the corpus.
        out: The corpus folder to create.
        images: Folder that holds all images; rows refer to them relative to it.
        rules: Rules on which rows stay English; those of the project if omitted.
        max_drop_rate: Share of the rows of each source that may be dropped, so that no source
            vanishes among the others; at 0 the first bad row raises.
        verify_images: Open every image.
        copy_images: Open every image and copy it into the corpus, and write out images that are
            embedded in a source, which are refused otherwise.
        overwrite: Replace a corpus that is at `out`.
        progress: Called with the number of rows written so far.

    Raises:
        ConfigError: `images` does not exist, or the images of a source are not below it.
        DataError: A record, an image or a file is not valid, or too many are dropped.
    """
    if not images.is_dir():
        raise ConfigError(
            f"{images}: no such folder; expected the one that holds all images (--images)."
        )
    result = ImportResult(Rules.load() if rules is None else rules)
    root = "images" if copy_images else os.path.relpath(images.resolve(), out.resolve())
    with (
        CorpusWriter(out, (), image_root=root, overwrite=overwrite) as writer,
        ThreadPoolExecutor(NUM_THREADS) as pool,
    ):
        folder = ImageFolder(
            images,
            pool if verify_images or copy_images else None,
            writer.work_dir / "images" if copy_images else None,
        )
        for source in sources:
            policy = DropPolicy(max_drop_rate)
            result.reports[source.path] = policy.report
            for batch in row_batches(source, folder, policy):
                batch = result.rules.apply(folder.keep_usable(batch, policy))
                writer.append_rows(batch)
                text_only = batch.filter(pa.array(num_images(batch) == 0))
                result.rows.update(batch.column("source").to_pylist())
                result.text_only.update(text_only.column("source").to_pylist())
                progress(result.rows.total())
            policy.finish()
        if not result.rows:
            raise DataError("no rows were found; nothing is written.")
    return result


def row_batches(
    source: ImportSource, images: ImageFolder, policy: DropPolicy
) -> Iterator[pa.RecordBatch]:
    """Reads a dataset as rows of a corpus.

    Args:
        source: The dataset, in English.
        images: The image folder.
        policy: Decides what happens to a record that cannot be used.

    Yields:
        Batches of `ROW_SCHEMA`, all rows translatable.

    Raises:
        ConfigError: The images are not below `images`.
        DataError: The dataset cannot be read, or `policy` refuses a record.
    """
    if source.format.rows is None:
        yield from iter_row_batches(source.path, source.source, policy)
        return
    prefix = _image_prefix(source, images.root)
    made = (
        usable_sample(
            partial(_record_of, source, raw, where, number, prefix, images), where, policy
        )
        for number, (where, raw) in enumerate(source.format.rows(source.path))
    )
    samples = (sample for sample in made if sample is not None)
    while some := list(islice(samples, _BATCH_ROWS)):
        yield batch_of(some, source.source)


def _record_of(
    source: ImportSource,
    raw: Mapping[str, Any],
    where: str,
    number: int,
    prefix: str,
    images: ImageFolder,
) -> dict[str, Any]:
    """Makes a LLaVA record whose image paths are relative to the image folder."""
    record = source.format.to_record(raw, where, f"{source.path.stem}-{number}")
    paths = [
        images.save_embedded(image, where)
        if isinstance(image, dict)
        else f"{prefix}/{image}"
        if prefix
        else image
        for image in record_images(record)
    ]
    return {**record, "image": paths, "images": None} if paths else record


def _image_prefix(source: ImportSource, images: Path) -> str:
    """Returns the image folder of a source relative to `images`.

    Raises:
        ConfigError: It is not below `images`.
    """
    if source.format.images is None:
        return ""
    folder = source.path if source.path.is_dir() else source.path.parent
    # first by name, because links below `images` may lead out of it, then with links resolved
    for real in (os.path.abspath, os.path.realpath):
        path = Path(os.path.relpath(real(folder / source.format.images), real(images)))
        if path.parts[:1] != ("..",):
            break
    else:
        raise ConfigError(
            f"{source.path}: the images of {source.format.name} are expected in "
            f"{folder / source.format.images}, which is not below --images {images}; name a "
            "folder that holds the images of all sources."
        )
    return "" if path == Path(".") else path.as_posix()


def import_llava(
    english: str | Path,
    out: str | Path,
    *,
    translations: Mapping[str, str | Path] | None = None,
    image_root: str = "images",
    source: str | None = None,
    is_translatable: Callable[[Sample], bool] = lambda sample: True,
    overwrite: bool = False,
) -> int:
    """Creates a corpus from LLaVA records and their translations.

    Args:
        english: The English records.
        out: The corpus folder to create.
        translations: For each language, a file with the same records in the same order.
        image_root: Image folder, relative to `out` or absolute.
        source: Name of the dataset, for records that do not name one.
        is_translatable: Tells which rows may be sampled in other languages; by default all.
        overwrite: Replace a corpus that is at `out`.

    Returns:
        Number of rows.

    Raises:
        DataError: A record is not valid or not English, or a translation belongs to another record;
            the error names file, line and sample, and nothing is written.
    """
    files = dict(translations or {})
    with CorpusWriter(out, files, image_root=image_root, overwrite=overwrite) as writer:
        num_rows = 0
        paths = [english, *files.values()]
        for records in zip_longest(*map(iter_records, paths)):
            if short := [f"{p}" for p, found in zip(paths, records, strict=True) if found is None]:
                raise DataError(
                    f"{', '.join(short)}: ends after {num_rows} records, the others go on. "
                    "Translations need the same records in the same order."
                )
            samples: list[Sample] = []
            for (where, record), lang in zip(records, (ENGLISH, *files), strict=True):
                samples.append(sample := Sample.from_record(record, where))
                check_sample(sample, where, lang)
                if (sample.id, sample.image) != (samples[0].id, samples[0].image):
                    raise DataError(
                        f"{where}: sample {sample.id!r} with image {sample.image!r}, expected "
                        f"the translation of {samples[0].id!r} with {samples[0].image!r} "
                        f"({records[0][0]})."
                    )
            first, *others = samples
            origin = (first.source or source, first.task, is_translatable(first))
            row = CorpusRow(first.id, first.image, *origin, first.turns)
            turns = [sample.turns for sample in others]
            writer.append(row, dict(zip(files, turns, strict=True)))
            num_rows += 1
    log.info("%s: %d rows in en%s", out, num_rows, "".join(f", {lang}" for lang in files))
    return num_rows
