"""Imports data sets into a corpus.

Input: files of several formats, in English. Output: a corpus folder, written row batch by row
batch in constant memory; it appears when it is whole. Every row that is left out is counted with
its reason. Rules from a file mark the rows whose meaning does not survive translation; images are
opened, many at a time, and copied if asked.
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
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from llava.data.drop import DropPolicy, DropReport
from llava.data.records import iter_records
from llava.data.sample import Sample, SampleError, record_images
from llava.errors import ConfigError, DataError
from llava.files import writing
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
from lrm_ext.corpus.store import ENGLISH, ROW_SCHEMA, CorpusRow
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.files import leaves_folder
from lrm_ext.languages._toml import load_toml

RULES_FILE = Path(__file__).with_name("translatable.toml")
_MAX_EXAMPLES = 3
_MAX_REMEMBERED = 1_000_000
log = logging.getLogger(__name__)

_BATCH_ROWS = 2048
_NUM_PICTURES_LOOKED_FOR = 20
NUM_THREADS = min(32, 2 * (os.cpu_count() or 1))  # decoding does not hold Python's lock


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One reason for a row to stay English."""

    name: str
    field: Literal["source", "task", "question", "answer"]
    pattern: str

    def __post_init__(self) -> None:
        """Check the pattern.

        Raises:
            ValueError: RE2 cannot read it.
        """
        try:
            pc.match_substring_regex(pa.array([""]), self.pattern)
        except pa.ArrowInvalid as error:
            raise ValueError(f"pattern {self.pattern!r} is not usable: {error}") from error


class _RulesFile(msgspec.Struct, forbid_unknown_fields=True):
    rules: tuple[Rule, ...] = ()


@dataclass
class Rules:
    """All of them, and what they have caught.

    Attributes:
        rules: In the order of the file.
        caught: Rows by rule; a row that two rules match counts in both.
        examples: The first few rows of each rule: id and beginning of the question.
        num_english: Rows that stay English.
    """

    rules: tuple[Rule, ...]
    caught: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    num_english: int = 0

    def __post_init__(self) -> None:
        """Prepare one pattern a field, which matches what any of its rules matches."""
        patterns: dict[str, list[str]] = {}
        for rule in self.rules:
            patterns.setdefault(rule.field, []).append(f"(?:{rule.pattern})")
        self._together = {name: "|".join(parts) for name, parts in patterns.items()}

    @classmethod
    def load(cls, path: Path = RULES_FILE) -> Rules:
        """Read a file of rules.

        Raises:
            ConfigError: The file is missing, not TOML, or a rule is not as it must be.
        """
        return cls(load_toml(path, _RulesFile).rules)

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the rows of a batch (`ROW_SCHEMA`) that stay English."""
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
    """Rows of which a field matches."""
    if name in ("source", "task"):
        return to_flags(pc.match_substring_regex(batch.column(name), pattern))
    turns = Turns.of(batch.column("turns"))
    return turns.any(
        turns.of_role("human" if name == "question" else "gpt") & turns.matching(pattern)
    )


class ImageFolder:
    """The folder of a corpus' pictures, which may be opened or copied.

    Args:
        root: The folder.
        pool: Opens several at once; None: they are not opened.
        copy_to: Folder to copy them into; paths below it are those below `root`. Pictures that are
            embedded in a source are written there, too.
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
        """Drop the rows of a batch whose picture cannot be used.

        Raises:
            DataError: As `policy` raises.
        """
        self._look_for_any(batch)
        is_usable = np.ones(len(batch), dtype=bool)
        for i, problem in enumerate(self.problems(batch.column("image").to_pylist())):
            if problem is not None:
                is_usable[i] = False
                policy.report.read[ENGLISH] -= 1  # counted again as dropped
                text = f"sample {batch.column('id')[i].as_py()!r}: {problem}"
                policy.drop(SampleError(text, problem.reason, ENGLISH))
        return batch if is_usable.all() else batch.filter(pa.array(is_usable))

    def problems(self, names: Sequence[str | None]) -> list[SampleError | None]:
        """Open pictures, several at a time, each of them once.

        Args:
            names: Paths relative to the root; None for a row without a picture.

        Returns:
            For each what is wrong with it; None if nothing is.
        """
        if self._pool is None:
            return []
        if len(self._known) > _MAX_REMEMBERED:
            self._known.clear()
        new = sorted({name for name in names if name is not None} - self._known.keys())
        self._known.update(zip(new, self._pool.map(self._problem, new), strict=True))
        return [None if name is None else self._known[name] for name in names]

    def save_embedded(self, image: Mapping[str, Any], where: str) -> str:
        """Write a picture of a table to a file named by its content.

        Args:
            image: Has the file's content as `bytes`.
            where: For messages.

        Returns:
            Its path below the folder that pictures are copied to.

        Raises:
            SampleError: It is no picture, or pictures are not copied.
        """
        if self._copy_to is None:
            raise SampleError(
                f"{where}: the picture is embedded in the file; a corpus refers to pictures by "
                "path. Import with --copy-images, which writes it to a file.",
                "embedded_picture",
            )
        data = image["bytes"]
        try:
            open_image(data, where).close()
        except ImageError as error:
            raise SampleError(str(error), error.reason) from error
        with Image.open(io.BytesIO(data)) as picture:
            ending = (picture.format or "img").lower()
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
            text = f"picture {name!r} lies outside of {self.root}"
            return SampleError(text, "outside_root")
        if not path.is_file():
            return SampleError(f"no such picture: {path}", "missing_picture")
        try:
            open_image(path).close()
        except ImageError as error:
            return SampleError(str(error), error.reason)
        if target is not None:
            with writing(target) as partial_file:
                shutil.copyfile(path, partial_file)
        return None

    def _look_for_any(self, batch: pa.RecordBatch) -> None:
        """Warn once if not even the first pictures are there, for then the folder is wrong."""
        if self._has_looked:
            return
        names = batch.column("image").drop_null().slice(0, _NUM_PICTURES_LOOKED_FOR).to_pylist()
        self._has_looked = bool(names)
        if names and not any((self.root / name).is_file() for name in names):
            log.warning(
                "none of the first %d pictures is there, such as %s; is --images right? "
                "`lrm corpus validate --verify-images` looks for all of them",
                len(names),
                self.root / names[0],
            )


@dataclass(frozen=True)
class ImportSource:
    """One data set to import.

    Attributes:
        format: How it lies on disk.
        path: Its file or folder.
        name: Written into rows that do not name their source; None: the format's, or the file's.
    """

    format: Format
    path: Path
    name: str | None = None

    @property
    def source(self) -> str:
        """What rows that do not name their source get."""
        return self.name or self.format.source or self.path.stem


@dataclass
class ImportResult:
    """What was imported.

    Attributes:
        rules: What stays English, and why.
        reports: What was read and left out, by the path that was given.
        rows: Rows by source.
        without_picture: Rows that are text only, by source.
    """

    rules: Rules
    reports: dict[Path, DropReport] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    without_picture: Counter[str] = field(default_factory=Counter)


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
    """Make a corpus of data sets.

    Args:
        sources: Data sets in English, in the order in which their rows will lie.
        out: The corpus folder to make.
        images: Folder below which all pictures lie; rows refer to them relative to it.
        rules: Which rows stay English; the project's own rules if left out.
        max_drop_rate: Share of the rows of each source that may be left out, so that none vanishes
            among the others; at 0 the first bad one raises.
        verify_images: Open each picture.
        copy_images: Copy each picture into the corpus, opening it; and write out those that are
            embedded in a source, which are refused otherwise.
        overwrite: Replace a corpus that is at `out`.
        progress: Called with the number of rows written so far.

    Raises:
        ConfigError: There is no folder `images`, or a source's pictures do not lie below it.
        DataError: A record, a picture or a file is not as it must be, or too many are left out.
    """
    if not images.is_dir():
        raise ConfigError(
            f"{images}: no such folder; expected the one below which all pictures lie (--images)."
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
                text_only = batch.filter(batch.column("image").is_null())
                result.rows.update(batch.column("source").to_pylist())
                result.without_picture.update(text_only.column("source").to_pylist())
                progress(result.rows.total())
            policy.finish()
        if not result.rows:
            raise DataError("no rows were found; nothing is written.")
    return result


def row_batches(
    source: ImportSource, images: ImageFolder, policy: DropPolicy
) -> Iterator[pa.RecordBatch]:
    """Read a data set as rows of a corpus.

    Args:
        source: The data set, in English.
        images: The folder of its pictures.
        policy: What happens to a record that cannot be used.

    Yields:
        Batches of `ROW_SCHEMA`, all rows translatable.

    Raises:
        ConfigError: The pictures do not lie below `images`.
        DataError: The data set cannot be read, or as `policy` raises.
    """
    if source.format.rows is None:
        yield from iter_row_batches(source.path, source.source, policy)
        return
    prefix = _picture_prefix(source, images.root)
    samples: list[Sample] = []
    for number, (where, raw) in enumerate(source.format.rows(source.path)):
        default_id = f"{source.path.stem}-{number}"
        make = partial(_record_of, source.format, raw, where, default_id, prefix, images)
        sample = usable_sample(make, where, policy)
        if sample is not None:
            samples.append(sample)
        if len(samples) == _BATCH_ROWS:
            yield batch_of(samples, source.source)
            samples = []
    if samples:
        yield batch_of(samples, source.source)


def _record_of(
    layout: Format,
    raw: Mapping[str, Any],
    where: str,
    default_id: str,
    prefix: str,
    images: ImageFolder,
) -> dict[str, Any]:
    """A LLaVA record whose picture is relative to the corpus' pictures."""
    record = layout.to_record(raw, where, default_id)
    found = record_images(record)
    if len(found) != 1:
        return record
    image = found[0]
    if isinstance(image, dict):
        image = images.save_embedded(image, where)
    elif prefix:
        image = f"{prefix}/{image}"
    return {**record, "image": image, "images": None}


def _picture_prefix(source: ImportSource, images: Path) -> str:
    """Where the source's pictures are, relative to `images`.

    Raises:
        ConfigError: They are not below it.
    """
    if source.format.pictures is None:
        return ""
    folder = source.path if source.path.is_dir() else source.path.parent
    # as it is named, for links below `images` may lead out of it; then as it really lies
    for real in (os.path.abspath, os.path.realpath):
        path = Path(os.path.relpath(real(folder / source.format.pictures), real(images)))
        if path.parts[:1] != ("..",):
            break
    else:
        raise ConfigError(
            f"{source.path}: the pictures of {source.format.name} are expected in "
            f"{folder / source.format.pictures}, which is not below --images {images}; name a "
            "folder that holds the pictures of all sources."
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
    """Make a corpus of LLaVA records.

    Args:
        english: The English records.
        out: The corpus folder to make.
        translations: For a language, a file with the same records in the same order.
        image_root: Folder of the pictures as seen from `out`, or absolute.
        source: Name of the data set, for records that do not say.
        is_translatable: Which rows may be drawn in other languages; left out, all.
        overwrite: Replace a corpus that is at `out`.

    Returns:
        Number of rows.

    Raises:
        DataError: A record is not as it must be, is not English, or a translation is not of the
            same record; it names file, line and sample. Nothing is written then.
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
                        f"{where}: sample {sample.id!r} with picture {sample.image!r}, expected "
                        f"the translation of {samples[0].id!r} with {samples[0].image!r} "
                        f"({records[0][0]})."
                    )
            sample = samples[0]
            row = CorpusRow(
                sample.id,
                sample.image,
                sample.source or source,
                sample.task,
                is_translatable(sample),
                sample.turns,
            )
            turns = [translated.turns for translated in samples[1:]]
            writer.append(row, dict(zip(files, turns, strict=True)))
            num_rows += 1
    log.info("%s: %d rows in en%s", out, num_rows, "".join(f", {lang}" for lang in files))
    return num_rows
