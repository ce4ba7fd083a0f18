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
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

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
from lrm_ext.corpus.columns import Flags, Turns, batch_of, check_sample, iter_row_batches, to_flags
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
# Tells from an English sample whether its meaning survives translation.
IsTranslatable = Callable[[Sample], bool]
# Writes a picture that is embedded in a data set, of which it is told where that is.
SaveEmbedded = Callable[[dict[str, Any], str], str]


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One reason for a row to stay English."""

    name: str
    field: Literal["source", "task", "question", "answer"]
    pattern: str

    def __post_init__(self) -> None:
        """Check the pattern.

        Raises:
            ValueError: Python or RE2 cannot read it.
        """
        try:
            re.compile(self.pattern)
            pc.match_substring_regex(pa.array([""]), self.pattern)
        except (re.error, pa.ArrowInvalid) as error:
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
        if not found.any():
            return
        self.caught[rule.name] += int(found.sum())
        kept = self.examples.setdefault(rule.name, [])
        for i in np.flatnonzero(found)[: _MAX_EXAMPLES - len(kept)]:
            row: dict[str, Any] = batch.slice(int(i), 1).to_pylist()[0]
            kept.append(f"{row['id']}: {row['turns'][0]['text']!r:.100}")


def _matches(batch: pa.RecordBatch, name: str, pattern: str) -> Flags:
    """Rows of which a field matches."""
    if name in ("source", "task"):
        return to_flags(pc.match_substring_regex(batch.column(name), pattern))
    turns = Turns.of(batch.column("turns"))
    of_role = turns.of_role("human" if name == "question" else "gpt")
    texts = turns.texts.filter(pa.array(of_role))
    flags = np.zeros(len(of_role), dtype=bool)
    flags[of_role] = to_flags(pc.match_substring_regex(texts, pattern))
    return turns.any(flags)


class Problem(NamedTuple):
    """Why a picture cannot be used.

    Attributes:
        reason: "outside_root", "missing_picture", or that of an `ImageError`.
        message: What was found, with its path.
    """

    reason: str
    message: str


class PictureCheck:
    """Checks each picture once; a context manager.

    Args:
        root: Folder of the pictures.
        num_threads: How many are opened at once; decoding does not hold Python's lock.
    """

    def __init__(self, root: Path, num_threads: int | None = None) -> None:
        self.root = root
        self._pool = ThreadPoolExecutor(num_threads or min(32, 2 * (os.cpu_count() or 1)))
        self._known: dict[str, Problem | None] = {}

    def __enter__(self) -> PictureCheck:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, batch: pa.RecordBatch, policy: DropPolicy) -> pa.RecordBatch:
        """Drop the rows of a batch whose picture cannot be used.

        Raises:
            DataError: As `policy` raises.
        """
        problems = self.problems(batch.column("image").to_pylist())
        bad = [i for i, problem in enumerate(problems) if problem is not None]
        for i in bad:
            problem, sample_id = problems[i], batch.column("id")[i].as_py()
            assert problem is not None
            policy.report.read[ENGLISH] -= 1  # counted again as dropped
            text = f"sample {sample_id!r}: {problem.message}"
            policy.drop(SampleError(text, problem.reason, ENGLISH))
        return batch if not bad else batch.take(np.setdiff1d(np.arange(len(batch)), bad))

    def problems(self, names: Sequence[str | None]) -> list[Problem | None]:
        """Open pictures, several at a time.

        Args:
            names: Paths relative to the root; None for a row without a picture.

        Returns:
            For each what is wrong with it; None if nothing is.
        """
        if len(self._known) > _MAX_REMEMBERED:
            self._known.clear()
        new = sorted({name for name in names if name is not None} - self._known.keys())
        self._known.update(zip(new, self._pool.map(self._problem, new), strict=True))
        return [None if name is None else self._known[name] for name in names]

    def _problem(self, name: str) -> Problem | None:
        path = self.root / name
        if leaves_folder(name):
            return Problem("outside_root", f"picture {name!r} lies outside of {self.root}")
        if not path.is_file():
            return Problem("missing_picture", f"no such picture: {path}")
        try:
            open_image(path).close()
        except ImageError as error:
            return Problem(error.reason, str(error))
        return None


class PictureCopy(PictureCheck):
    """Checks each picture and copies it; those that are embedded in a source are written out.

    Args:
        root: Folder of the pictures that sources refer to.
        out: Folder to copy into; paths below it are those below `root`.
        num_threads: How many are opened at once.
    """

    def __init__(self, root: Path, out: Path, num_threads: int | None = None) -> None:
        super().__init__(root, num_threads)
        self._out = out

    def save_embedded(self, image: dict[str, Any], where: str) -> str:
        """Write a picture of a table to a file named by its content.

        Args:
            image: Has the file's content as `bytes`.
            where: For messages.

        Returns:
            Its path below `out`.

        Raises:
            SampleError: It is no picture.
        """
        data = image["bytes"]
        try:
            open_image(data, where).close()
        except ImageError as error:
            raise SampleError(str(error), error.reason) from error
        with Image.open(io.BytesIO(data)) as picture:
            ending = (picture.format or "img").lower()
        digest = hashlib.sha256(data).hexdigest()[:32]
        name = f"embedded/{digest[:2]}/{digest}.{ending}"
        if not (self._out / name).is_file():
            with writing(self._out / name) as partial:
                partial.write_bytes(data)
        return name

    def _problem(self, name: str) -> Problem | None:
        target = self._out / name
        if target.is_file():  # embedded ones, too
            return None
        problem = super()._problem(name)
        if problem is None:
            with writing(target) as partial:
                shutil.copyfile(self.root / name, partial)
        return problem


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
    rules = Rules.load() if rules is None else rules
    result = ImportResult(rules)
    root = "images" if copy_images else os.path.relpath(images.resolve(), out.resolve())
    with (
        CorpusWriter(out, (), image_root=root, overwrite=overwrite) as writer,
        _check(images, verify_images, writer.work_dir / "images" if copy_images else None) as check,
    ):
        save = check.save_embedded if isinstance(check, PictureCopy) else refuse_embedded
        has_looked, num_rows = check is not None, 0
        for source in sources:
            policy = DropPolicy(max_drop_rate)
            result.reports[source.path] = policy.report
            for batch in row_batches(source, images, policy, save):
                has_looked = has_looked or _looks_for_images(batch, images)
                batch = rules.apply(batch if check is None else check(batch, policy))
                writer.append_rows(batch)
                _count(batch, result)
                num_rows += len(batch)
                progress(num_rows)
            policy.finish()
        if not num_rows:
            raise DataError("no rows were found; nothing is written.")
    return result


def _check(
    images: Path, verifies: bool, copies_to: Path | None
) -> AbstractContextManager[PictureCheck | None]:
    if copies_to is not None:
        return PictureCopy(images, copies_to)
    return PictureCheck(images) if verifies else nullcontext()


def _looks_for_images(batch: pa.RecordBatch, images: Path) -> bool:
    """Warn if not even the first images are there, for then the folder is wrong.

    Returns:
        False if the batch has no image to look for.
    """
    names = batch.column("image").drop_null().slice(0, _NUM_PICTURES_LOOKED_FOR).to_pylist()
    if names and not any((images / name).is_file() for name in names):
        log.warning(
            "none of the first %d pictures is there, such as %s; is --images right? "
            "`lrm corpus validate --verify-images` looks for all of them",
            len(names),
            images / names[0],
        )
    return bool(names)


def _count(batch: pa.RecordBatch, result: ImportResult) -> None:
    names = batch.column("source").to_pylist()
    result.rows.update(names)
    if batch.column("image").null_count:
        without = pc.is_null(batch.column("image")).to_pylist()
        result.without_picture.update(
            name for name, is_text in zip(names, without, strict=True) if is_text
        )


def refuse_embedded(image: dict[str, Any], where: str) -> str:
    """Refuse a picture that is in the file, not beside it.

    Raises:
        SampleError: Always.
    """
    raise SampleError(
        f"{where}: the picture is embedded in the file; a corpus refers to pictures by path. "
        "Import with --copy-images, which writes it to a file.",
        "embedded_picture",
    )


def row_batches(
    source: ImportSource,
    images: Path,
    policy: DropPolicy,
    save_embedded: SaveEmbedded = refuse_embedded,
) -> Iterator[pa.RecordBatch]:
    """Read a data set as rows of a corpus.

    Args:
        source: The data set, in English.
        images: Folder below which its pictures lie.
        policy: What happens to a record that cannot be used.
        save_embedded: Writes a picture that is embedded in the data set to a file, and gives its
            path below the corpus' pictures.

    Yields:
        Batches of `ROW_SCHEMA`, all rows translatable.

    Raises:
        ConfigError: The pictures do not lie below `images`.
        DataError: The data set cannot be read, or as `policy` raises.
    """
    if source.format.read is None:
        yield from iter_row_batches(source.path, source.source, policy)
        return
    prefix = _picture_prefix(source, images)
    samples: list[Sample] = []
    for sample in _samples(source, prefix, policy, save_embedded):
        samples.append(sample)
        if len(samples) == _BATCH_ROWS:
            yield batch_of(samples)
            samples = []
    if samples:
        yield batch_of(samples)


def _samples(
    source: ImportSource, prefix: str, policy: DropPolicy, save_embedded: SaveEmbedded
) -> Iterator[Sample]:
    assert source.format.read is not None
    for where, make in source.format.read(source.path):
        try:
            record = make()
            images = record_images(record)
            if len(images) == 1:
                (image,) = images
                if isinstance(image, dict):
                    image = save_embedded(image, where)
                elif prefix:
                    image = f"{prefix}/{image}"
                record = {**record, "image": image, "images": None}
            sample = Sample.from_record(record, where)
            check_sample(sample, where, ENGLISH)
        except SampleError as error:
            error.lang = ENGLISH
            policy.drop(error)
            continue
        policy.keep(ENGLISH)
        yield sample if sample.source else replace(sample, source=source.source)


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
    is_translatable: IsTranslatable | None = None,
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
        streams = [iter_records(english), *(iter_records(path) for path in files.values())]
        for records in zip_longest(*streams):
            if None in records:
                names = [str(english), *map(str, files.values())]
                short = [n for n, record in zip(names, records, strict=True) if record is None]
                raise DataError(
                    f"{', '.join(short)}: ends after {num_rows} records, the others go on. "
                    "Translations need the same records in the same order."
                )
            samples = [Sample.from_record(record, where) for where, record in records]
            for sample, (where, _), lang in zip(samples, records, (ENGLISH, *files), strict=True):
                check_sample(sample, where, lang)
            _check_same(samples, [where for where, _ in records])
            row = _row_of(samples[0], source, is_translatable)
            turns = [sample.turns for sample in samples[1:]]
            writer.append(row, dict(zip(files, turns, strict=True)))
            num_rows += 1
    log.info("%s: %d rows in en%s", out, num_rows, "".join(f", {lang}" for lang in files))
    return num_rows


def _row_of(
    sample: Sample, source: str | None, is_translatable: IsTranslatable | None
) -> CorpusRow:
    return CorpusRow(
        id=sample.id,
        image=sample.image,
        source=sample.source or source,
        task=sample.task,
        translatable=is_translatable is None or is_translatable(sample),
        turns=sample.turns,
    )


def _check_same(samples: list[Sample], wheres: list[str]) -> None:
    """Demand that a row's records are about the same thing."""
    english = samples[0]
    for sample, where in zip(samples, wheres, strict=True):
        if (sample.id, sample.image) != (english.id, english.image):
            raise DataError(
                f"{where}: sample {sample.id!r} with picture {sample.image!r}, expected the "
                f"translation of {english.id!r} with {english.image!r} ({wheres[0]})."
            )
