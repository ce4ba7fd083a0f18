"""Sources in, a corpus out.

Input: files of several formats, in English. Output: a corpus folder, written row batch by row
batch in constant memory; it appears when it is whole. Every row that is left out is counted with
its reason, and rows whose meaning does not survive translation are marked by rules.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llava.data.drop import DropPolicy, DropReport
from llava.data.records import iter_records
from llava.data.sample import Sample, SampleError, record_images
from llava.errors import ConfigError, DataError
from lrm_ext.corpus.formats.table import Format
from lrm_ext.corpus.layout import ENGLISH, CorpusRow
from lrm_ext.corpus.llava_columns import batch_of, check_sample, iter_row_batches
from lrm_ext.corpus.pictures import PictureCheck, PictureCopy
from lrm_ext.corpus.translatable import Rules
from lrm_ext.corpus.writer import CorpusWriter

log = logging.getLogger(__name__)

_BATCH_ROWS = 2048
_NUM_PICTURES_LOOKED_FOR = 20
# Tells from an English sample whether its meaning survives translation.
IsTranslatable = Callable[[Sample], bool]
# Writes a picture that is embedded in a data set, of which it is told where that is.
SaveEmbedded = Callable[[dict[str, Any], str], str]


@dataclass(frozen=True)
class Source:
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
    sources: Iterable[Source],
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
        num_rows = 0
        for source in sources:
            policy = DropPolicy(max_drop_rate)
            result.reports[source.path] = policy.report
            save = check.save_embedded if isinstance(check, PictureCopy) else refuse_embedded
            for batch in row_batches(source, images, policy, save):
                batch = rules.apply(check(batch, policy))
                writer.append_rows(batch)
                _count(batch, result)
                num_rows += len(batch)
                progress(num_rows)
            policy.finish()
        if not num_rows:
            raise DataError("no rows were found; nothing is written.")
    return result


def _check(images: Path, verifies: bool, copies_to: Path | None) -> PictureCheck | _FolderCheck:
    if copies_to is not None:
        return PictureCopy(images, copies_to)
    return PictureCheck(images) if verifies else _FolderCheck(images)


class _FolderCheck:
    """Opens no picture; says if not even the first ones are there, for then the folder is wrong."""

    def __init__(self, images: Path) -> None:
        self._images = images
        self._is_looking = True

    def __enter__(self) -> _FolderCheck:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def __call__(self, batch: pa.RecordBatch, policy: DropPolicy) -> pa.RecordBatch:
        if self._is_looking and batch.column("image").null_count < len(batch):
            self._is_looking = False
            self._look(batch)
        return batch

    def _look(self, batch: pa.RecordBatch) -> None:
        pictures = batch.column("image").drop_null()
        names = pictures.slice(0, _NUM_PICTURES_LOOKED_FOR).to_pylist()
        if not any((self._images / name).is_file() for name in names):
            log.warning(
                "none of the first %d pictures is there, such as %s; is --images right? "
                "`lrm corpus validate --verify-images` looks for all of them",
                len(names),
                self._images / names[0],
            )


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
    source: Source, images: Path, policy: DropPolicy, save_embedded: SaveEmbedded = refuse_embedded
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
    source: Source, prefix: str, policy: DropPolicy, save_embedded: SaveEmbedded
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


def _picture_prefix(source: Source, images: Path) -> str:
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
