"""Translates a corpus into one language, part by part, and survives being killed at any moment.

A `Job` adds `text/<lang>/` to a corpus. Answers are in the cache and finished parts on disk; the
same job continues from there and produces the same bytes. An unfinished translation lies in

    text/.<lang>.work/job.json         the job; another job starts from scratch
    text/.<lang>.work/parts/00000…     one record batch each, renamed into place when complete
    text/<lang>/00000.arrow …          shards, usable.u32 and translation.json at the end

Shards are assembled from all parts and moved into place; `corpus.toml` is replaced last.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
from filelock import Timeout

from llava.errors import ConfigError, DataError
from llava.files import flush_to_disk, lock_of, writing
from lrm_ext.corpus.store import (
    ENGLISH,
    META_FILE,
    STATUSES,
    TEXT_SCHEMA,
    Corpus,
    CorpusText,
    Meta,
    shard_name,
)
from lrm_ext.languages.registry import get_language
from lrm_ext.translate.cache import Cache
from lrm_ext.translate.engines.base import TranslationEngine, Usage, build_engine, get_spec
from lrm_ext.translate.quality import QUALITY_VERSION, Checker, get_thresholds
from lrm_ext.translate.segment import SEEN_TEXT, RowPlan, build_texts, plan_row
from lrm_ext.translate.translator import Glossary, Translator

if TYPE_CHECKING:
    from lrm_ext.translate.ray_executor import RayWorkers

DESCRIPTION_FILE = "translation.json"
NOT_TRANSLATABLE = "not translatable"


def text_dir(corpus: Path, lang: str) -> Path:
    """Returns the folder of a language's texts."""
    return corpus / "text" / lang


def read_description(folder: Path) -> dict[str, Any] | None:
    """Returns the description of a folder of texts; None if translation did not make it."""
    try:
        found = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def only_run(corpus: Path, lang: str, what: str) -> Iterator[None]:
    """Holds the lock of a language's texts, which ends with the process.

    Raises:
        DataError: Another process holds it.
    """
    path = corpus / "text" / lang
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = lock_of(path, timeout_s=0)
    try:
        held = lock.acquire()
    except Timeout as error:
        raise DataError(
            f"{lock.lock_file}: another run is at work on the {what}; wait for it, or end it."
        ) from error
    with held:
        yield


class PartStore:
    """The parts of one language of one corpus.

    Args:
        corpus: The corpus.
        target: Code of the language.
        job: Everything that decides the texts; parts of another job are not used.
    """

    def __init__(self, corpus: Corpus, target: str, job: Mapping[str, Any]) -> None:
        self.corpus = corpus
        self.target = target
        self.job = dict(job)
        self._meta = Meta.load(corpus.path)
        self._work = corpus.path / "text" / f".{target}.work"
        self._final = text_dir(corpus.path, target)
        self._per_shard = self._meta.rows_per_shard // self._meta.rows_per_batch
        self.num_parts = -(-self._meta.num_rows // self._meta.rows_per_batch)

    def finished(self) -> Counter[str] | None:
        """Returns the counts of rows if this job was finished, or killed while finishing."""
        description = read_description(self._final)
        if description is None or {k: description.get(k) for k in self.job} != self.job:
            return None
        self._announce(description["counts"])
        shutil.rmtree(self._work, ignore_errors=True)
        return Counter(description["counts"])

    def make(
        self,
        batches: Callable[[Sequence[int]], Iterable[pa.RecordBatch]],
        progress: Callable[[int, int], None],
    ) -> Counter[str]:
        """Makes the missing parts and adds the language to the corpus.

        Args:
            batches: Yields the parts with the given numbers; each is written before the next.
            progress: Called with the number of finished parts and the total.

        Returns:
            Counts of rows by status and by reason.

        Raises:
            DataError: The disk is full, or the folder cannot be written.
        """
        with _disk_errors(self._work):
            job = self._work / "job.json"
            if not job.is_file() or job.read_text(encoding="utf-8") != _dump(self.job):
                shutil.rmtree(self._work, ignore_errors=True)
                (self._work / "parts").mkdir(parents=True)
                _write(job, self.job)
            for path in (self._work / "parts").glob(".*.partial"):
                path.unlink()
        missing = self.missing()
        first = self.num_parts - len(missing)
        progress(first, self.num_parts)
        made = zip(missing, batches(missing), strict=True)
        for num_done, (number, batch) in enumerate(made, start=first + 1):
            self._write_part(number, batch)
            progress(num_done, self.num_parts)
        return self._commit()

    def missing(self) -> list[int]:
        """Returns the numbers of the parts that are not done."""
        return [n for n in range(self.num_parts) if not self._part(n).is_file()]

    def row_numbers(self, number: int) -> range:
        """Returns the numbers of the rows of a part."""
        start = number * self._meta.rows_per_batch
        return range(start, min(start + self._meta.rows_per_batch, self._meta.num_rows))

    def _write_part(self, number: int, batch: pa.RecordBatch) -> None:
        assert batch.num_rows == len(self.row_numbers(number))
        path = self._part(number)
        with (
            _disk_errors(path),
            writing(path, flush=True) as new,
            pa.OSFile(str(new), "wb") as sink,
            pa.ipc.new_file(sink, TEXT_SCHEMA) as file,
        ):
            file.write_batch(batch)

    def _commit(self) -> Counter[str]:
        """Assembles the parts and adds the language to the corpus."""
        out = self._work / "out"
        with _disk_errors(out):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            counts = self._assemble(out)
            _write(out / DESCRIPTION_FILE, {**self.job, "counts": dict(sorted(counts.items()))})
            if self._final.exists():
                shutil.rmtree(self._work / "old", ignore_errors=True)
                self._final.rename(self._work / "old")
            out.rename(self._final)
            flush_to_disk(self._final.parent)
            self._announce(counts)
            shutil.rmtree(self._work)
        return counts

    def _assemble(self, out: Path) -> Counter[str]:
        counts: Counter[str] = Counter({**dict.fromkeys(STATUSES, 0), "usable": 0})
        rows = self.corpus.row_batches()
        with (out / "usable.u32").open("wb") as usable:
            for first in range(0, self.num_parts, self._per_shard):
                path = out / shard_name(first // self._per_shard)
                last = min(first + self._per_shard, self.num_parts)
                with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, TEXT_SCHEMA) as file:
                    for number in range(first, last):
                        batch = self._read(number)
                        file.write_batch(batch)
                        flags = next(rows).column("translatable").to_pylist()
                        numbers = _count(batch, flags, counts) + self.row_numbers(number).start
                        usable.write(numbers.astype("<u4").tobytes())
                flush_to_disk(path)
        flush_to_disk(out / "usable.u32")
        return counts

    def _read(self, number: int) -> pa.RecordBatch:
        path = self._part(number)
        try:
            batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: damaged ({error}); delete it and run again.") from error
        if batch.num_rows != len(self.row_numbers(number)) or batch.schema != TEXT_SCHEMA:
            raise DataError(f"{path}: not a part of this corpus; delete it and run again.")
        return batch

    def _announce(self, counts: Mapping[str, int]) -> None:
        """Adds the language to `corpus.toml`; several languages may finish at once."""
        with lock_of(self.corpus.path / META_FILE):
            meta = Meta.load(self.corpus.path)
            ours = {name: counts[name] for name in (*STATUSES, "usable")}
            if meta.counts.get(self.target) == ours:
                return
            # by name, so that the order does not depend on which language finishes first
            languages = dict(sorted({**meta.counts, self.target: ours}.items()))
            with writing(self.corpus.path / META_FILE, flush=True) as new:
                replace(meta, counts=languages).dump(new)

    def _part(self, number: int) -> Path:
        return self._work / "parts" / shard_name(number)


def _count(batch: pa.RecordBatch, is_translatable: Sequence[bool], counts: Counter[str]) -> Any:
    """Counts a part's rows and returns the offsets of usable ones, as an array."""
    statuses = batch.column("status").to_pylist()
    for status, reason in zip(statuses, batch.column("reason").to_pylist(), strict=True):
        counts[status or NOT_TRANSLATABLE] += 1
        if status not in (None, "ok"):
            counts[f"{status}: {(reason or '').partition(':')[0]}"] += 1
    usable = [s == "ok" and may_be for s, may_be in zip(statuses, is_translatable, strict=True)]
    offsets = np.flatnonzero(usable)
    counts["usable"] += len(offsets)
    return offsets


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error}. Nothing is lost: make room and run again."
        ) from error


def _dump(data: Mapping[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _write(path: Path, data: Mapping[str, Any]) -> None:
    with writing(path, flush=True) as new:
        new.write_text(_dump(data), encoding="utf-8")


log = logging.getLogger(__name__)

# Increases when framing or protection change what a row becomes.
PROTECTION_VERSION = 2
_OBJECTS_BETWEEN_COLLECTIONS = 50_000
_NO_TEXT = dict.fromkeys(TEXT_SCHEMA.names)


@dataclass(frozen=True)
class Job:
    """The translation of one corpus into one language.

    Attributes:
        corpus: Folder of the corpus.
        target: Code of the language.
        engines: Names and options (as text) in the order in which they are tried.
        cache: The cache file.
        glossary: A glossary file.
        checks: Whether translations are checked.
        limits: Limits of checks that replace those of the language file.
        replaces: Whether to replace an existing translation.
    """

    corpus: Path
    target: str
    engines: tuple[tuple[str, Mapping[str, str]], ...]
    cache: Path
    glossary: Path | None = None
    checks: bool = True
    limits: Mapping[str, float] = field(default_factory=dict)
    replaces: bool = False

    def checker(self) -> Checker | None:
        """Returns the checker of translations; None without checks.

        Raises:
            ConfigError: The language or a check is unknown.
        """
        if not self.checks:
            return None
        thresholds = get_thresholds(self.target).with_limits(self.limits)
        return Checker(self.target, thresholds)


@dataclass
class Result:
    """The state of a translation, and what this run did.

    Attributes:
        counts: Rows of the language by status, "not translatable", and "<status>: <reason>".
        work: Counts of units: asked for, found in the cache, and by way of translation.
        usage: Cost of this run.
    """

    counts: Counter[str] = field(default_factory=Counter)
    work: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)


def translate_corpus(
    job: Job,
    workers: RayWorkers | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Translates a corpus, or continues an unfinished translation.

    Args:
        job: The job.
        workers: Run local engines; by default they run in this process.
        progress: Called with the number of finished parts and the total.

    Raises:
        ConfigError: A language or engine is unknown, or the corpus has the language already.
        DataError: The corpus is damaged, the disk is full, or another run is at work on it.
        EngineError: An engine cannot continue. The next run continues from there.
    """
    corpus = Corpus.open(job.corpus)
    if get_language(job.target).code == ENGLISH:
        raise ConfigError("the corpus is English; choose another language to translate into.")
    translator = build_translator(job, workers)
    try:
        with only_run(job.corpus, job.target, f"translation into {job.target!r}"):
            store = PartStore(corpus, job.target, describe(job, translator))
            if (counts := store.finished()) is not None:
                log.info("%s: the texts in %s are complete", job.corpus, job.target)
                return Result(counts)
            _check_free(job)
            counts = store.make(partial(_translated, job, store, translator), progress)
            return Result(counts, +translator.counts, translator.usage)
    finally:
        translator.close()


def _translated(
    job: Job, store: PartStore, translator: Translator, numbers: Sequence[int]
) -> Iterator[pa.RecordBatch]:
    """Yields translated parts; for engines with `rows_ahead`, asks for many parts in advance."""
    checker = job.checker()
    rows = translator.rows_ahead if numbers else 0
    size = max(1, rows // max(1, len(store.row_numbers(0))))
    for i, number in enumerate(numbers):
        if rows and i % size == 0:
            before = translator.counts.copy()
            plans = (plan for n in numbers[i : i + size] for plan in _plans(job, store, n).values())
            translator.translate(unit for plan in plans for unit in plan.units)
            # the units are found again below and counted there, except for those asked for
            asked = {k: n for k, n in translator.counts.items() if k.endswith(": asked")}
            translator.counts = Counter({**before, **asked})
        yield _translate_part(job, store, translator, checker, number)


def _plans(job: Job, store: PartStore, number: int) -> dict[int, RowPlan]:
    return {
        i: plan_row(row, job.target)
        for i in store.row_numbers(number)
        if (row := store.corpus.row(i)).translatable
    }


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Collects garbage less often, because objects of a row live until its part is written."""
    before = gc.get_threshold()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@collecting_rarely()
def _translate_part(
    job: Job, store: PartStore, translator: Translator, checker: Checker | None, number: int
) -> pa.RecordBatch:
    plans = _plans(job, store, number)
    translations = translator.translate(unit for plan in plans.values() for unit in plan.units)
    check = checker.check_rows if checker else None
    texts = dict(zip(plans, build_texts([*plans.values()], translations, check), strict=True))
    return batch_of(texts.get(i) for i in store.row_numbers(number))


def batch_of(texts: Iterable[CorpusText | None]) -> pa.RecordBatch:
    """Returns texts as the record batch of a part; None for a row without text."""
    records = [_NO_TEXT if text is None else text.to_arrow() for text in texts]
    return pa.RecordBatch.from_pylist(records, schema=TEXT_SCHEMA)


def build_translator(job: Job, workers: RayWorkers | None = None) -> Translator:
    """Makes the engines and the glossary of a job; loads no model yet.

    Args:
        job: The job.
        workers: Run local engines; by default they run in this process.

    Raises:
        ConfigError: An engine is unknown, or does not translate into the language.
    """
    glossary = Glossary.load(job.glossary, job.target)
    cache = Cache(job.cache)
    engines: list[TranslationEngine] = []
    for name, options in job.engines:
        engine = build_engine(name, options, job.target, cache)
        engines.append(workers.wrap(engine, name, options, job.target) if workers else engine)
    checker = job.checker()
    is_good = None
    if checker and len(engines) > 1:
        is_good = lambda source, target: checker.check_text(source, target).ok  # noqa: E731
    return Translator(engines, cache, job.target, glossary, is_good)


def describe(job: Job, translator: Translator) -> dict[str, Any]:
    """Returns everything that decides the texts, for readers and for comparison."""
    rows = sorted((job.corpus / "rows").iterdir())
    return {
        **describe_engines(job, translator),
        "copied answers of": sorted(SEEN_TEXT),
        "rows": [[path.name, path.stat().st_size] for path in rows],
    }


def describe_engines(job: Job, translator: Translator) -> dict[str, Any]:
    """Returns the part of `describe` that does not depend on the corpus."""
    terms = json.dumps(sorted(Glossary.load(job.glossary, job.target).terms.items()))
    checker, checks = job.checker(), None
    if checker is not None:
        # as JSON in a fixed order, because it is compared with what an earlier run wrote
        found = json.loads(msgspec.json.encode(checker.thresholds, order="deterministic"))
        thresholds = {**found, "limits": {}}
        checks = {"version": QUALITY_VERSION, "limits": found["limits"], "thresholds": thresholds}
    return {
        "target": job.target,
        "engines": [
            {
                "name": engine.name,
                "version": engine.version,
                "options": dict(engine.options),
                "licence": get_spec(engine.name).licence,
            }
            for engine in translator.engines
        ],
        "glossary": hashlib.sha256(terms.encode()).hexdigest()[:16],
        "protection": PROTECTION_VERSION,
        "checks": checks,
    }


def _check_free(job: Job) -> None:
    folder = text_dir(job.corpus, job.target)
    if folder.exists() and not job.replaces:
        description = read_description(folder)
        engines = [e["name"] for e in description["engines"]] if description else []
        engines = engines or ["people"]
        raise ConfigError(
            f"{job.corpus} has texts in {job.target!r} already, made by {', '.join(engines)} or "
            "with other settings. To make them anew use --replace; what is cached is not asked "
            "again."
        )
