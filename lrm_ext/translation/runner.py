"""Translates a corpus into one language, part by part; it may be killed at any moment.

Input: a corpus and a `Job`. Output: the corpus with `text/<lang>/`. What was answered is in the
cache, what was finished is in parts (`parts.py`); running the same job again goes on from there and
gives the same bytes.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from llava.errors import ConfigError
from lrm_ext.corpus.store import ENGLISH, TEXT_SCHEMA, Corpus
from lrm_ext.languages.registry import get_language
from lrm_ext.translation.cache import Cache
from lrm_ext.translation.engines.base import AheadEngine, Engine, Usage
from lrm_ext.translation.engines.registry import build_engine, get_spec
from lrm_ext.translation.glossary import Glossary
from lrm_ext.translation.parts import PartStore, locked, read_description, text_dir
from lrm_ext.translation.quality import QUALITY_VERSION, Checker, get_thresholds
from lrm_ext.translation.rows import SEEN_TEXT, RowPlan, build_texts, plan_row
from lrm_ext.translation.translator import Judge, Translator

if TYPE_CHECKING:
    from lrm_ext.translation.ray_executor import RayWorkers

log = logging.getLogger(__name__)

# Goes up when framing or protection change what becomes of a row.
PROTECTION_VERSION = 2
_OBJECTS_BETWEEN_COLLECTIONS = 50_000
_NO_TEXT = dict.fromkeys(TEXT_SCHEMA.names)


@dataclass(frozen=True)
class Job:
    """One corpus into one language.

    Attributes:
        corpus: Folder of the corpus.
        target: Code of the language.
        engines: Names and options (as text) in the order in which they are tried.
        cache: The cache file.
        glossary: A glossary file.
        seen_text: Sources whose short answers are copied; see `plan_row`.
        checks: Whether translations are checked.
        limits: What passes a check, where that is not what the language's file says.
        replaces: Replace a translation that is there already.
    """

    corpus: Path
    target: str
    engines: tuple[tuple[str, Mapping[str, str]], ...]
    cache: Path
    glossary: Path | None = None
    seen_text: frozenset[str] = SEEN_TEXT
    checks: bool = True
    limits: Mapping[str, float] = field(default_factory=dict)
    replaces: bool = False

    def checker(self) -> Checker | None:
        """What checks the translations.

        Raises:
            ConfigError: There is no such language or check.
        """
        if not self.checks:
            return None
        thresholds = get_thresholds(self.target).with_limits(self.limits)
        return Checker(ENGLISH, self.target, thresholds)


@dataclass
class Result:
    """What there is now, and what this run did.

    Attributes:
        counts: Rows of the language by status, "not translatable", and "<status>: <reason>".
        work: What happened to units: asked, found in the cache, by which way.
        usage: What this run cost.
        num_parts: Parts in all.
        num_done: Parts that were done before this run.
    """

    counts: Counter[str] = field(default_factory=Counter)
    work: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)
    num_parts: int = 0
    num_done: int = 0


def translate_corpus(
    job: Job,
    workers: RayWorkers | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Translate what is not translated yet.

    Args:
        job: What to do.
        workers: Do the work of local engines; this process does it if left out.
        progress: Called with the numbers of parts done and in all.

    Raises:
        ConfigError: An unknown language or engine, or the corpus has the language already.
        DataError: The corpus is damaged, the disk is full, or another run is at work on it.
        EngineError: An engine cannot go on. Run again to go on from there.
    """
    corpus = Corpus.open(job.corpus)
    if get_language(job.target).code == ENGLISH:
        raise ConfigError("the corpus is English; choose another language to translate into.")
    translator = build_translator(job, workers=workers)
    lock = job.corpus / "text" / f".{job.target}.lock"
    try:
        with locked(lock, f"translation into {job.target!r}"):
            store = PartStore(corpus, job.target, describe(job, translator))
            if store.is_complete():
                log.info("%s: the texts in %s are complete", job.corpus, job.target)
                description = read_description(text_dir(job.corpus, job.target)) or {}
                counts = Counter(description["counts"])
                return Result(counts, num_parts=store.num_parts, num_done=store.num_parts)
            _check_free(job, store)
            store.begin()
            missing = store.missing()
            result = Result(num_parts=store.num_parts, num_done=store.num_parts - len(missing))
            progress(result.num_done, result.num_parts)
            steps = _translate_parts(job, store, translator, missing)
            for done, (work, usage) in enumerate(steps, start=result.num_done + 1):
                result.work += work
                result.usage += usage
                progress(done, result.num_parts)
            result.counts = store.commit()
            return result
    finally:
        translator.close()


def _translate_parts(
    job: Job, store: PartStore, translator: Translator, numbers: Sequence[int]
) -> Iterator[tuple[Counter[str], Usage]]:
    """Translate parts; an engine that wants much at once is asked about many of them first."""
    if not numbers:
        return
    rows = max(e.rows_ahead if isinstance(e, AheadEngine) else 0 for e in translator.engines)
    size = max(1, rows // max(1, len(store.row_numbers(0))))
    for start in range(0, len(numbers), size):
        group = numbers[start : start + size]
        work: Counter[str] = Counter()
        usage = Usage()
        if rows:
            translator.counts, translator.usage = Counter(), Usage()
            plans = (plan for number in group for plan in _plans(job, store, number).values())
            translator.translate(unit for plan in plans for unit in plan.units)
            # found again below: all but what was asked is counted there
            asked = {k: n for k, n in translator.counts.items() if k.endswith(": asked")}
            work, usage = Counter(asked), translator.usage
        for number in group:
            more_work, more_usage = translate_part(job, store, translator, number)
            yield work + more_work, usage + more_usage
            work, usage = Counter(), Usage()


def _plans(job: Job, store: PartStore, number: int) -> dict[int, RowPlan]:
    return {
        i: plan_row(row, job.target, job.seen_text)
        for i, row in store.rows(number)
        if row.translatable
    }


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Search for garbage less often: what is made for a row stays until its part is written."""
    before = gc.get_threshold()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@collecting_rarely()
def translate_part(
    job: Job, store: PartStore, translator: Translator, number: int
) -> tuple[Counter[str], Usage]:
    """Translate one part and write it.

    Returns:
        What happened to its units, and the cost.
    """
    translator.counts, translator.usage = Counter(), Usage()
    plans = _plans(job, store, number)
    translations = translator.translate(unit for plan in plans.values() for unit in plan.units)
    checker = job.checker()
    check = checker.check_rows if checker else None
    texts = dict(zip(plans, build_texts([*plans.values()], translations, check), strict=True))
    records = [texts[i].to_arrow() if i in texts else _NO_TEXT for i in store.row_numbers(number)]
    store.write(number, pa.RecordBatch.from_pylist(records, schema=TEXT_SCHEMA))
    return translator.counts, translator.usage


def build_translator(
    job: Job, cache: Cache | None = None, workers: RayWorkers | None = None
) -> Translator:
    """Make the engines and the glossary of a job; no model is loaded yet.

    Args:
        job: The job.
        cache: Where answers are kept; the job's file if left out.
        workers: Do the work of local engines; this process does it if left out.

    Raises:
        ConfigError: An engine is unknown, or does not translate into the language.
    """
    glossary = Glossary.load(job.glossary, job.target)
    cache = Cache(job.cache) if cache is None else cache
    engines: list[Engine] = []
    for name, options in job.engines:
        engine = build_engine(name, options, job.target, cache)
        engines.append(workers.wrap(engine, name, options, job.target) if workers else engine)
    checker = job.checker()
    judge = _judge(checker) if checker and len(engines) > 1 else None
    return Translator(engines, cache, job.target, glossary, judge)


def _judge(checker: Checker) -> Judge:
    """Has the next engine tried if a check fails."""

    def judge(source: str, target: str) -> str | None:
        reasons = checker.check_text(source, target).reasons
        return reasons[0] if reasons else None

    return judge


def describe(job: Job, translator: Translator) -> dict[str, Any]:
    """All that decides what the texts will be, for people and for comparing."""
    rows = sorted((job.corpus / "rows").iterdir())
    return {
        **describe_engines(job, translator),
        "copied answers of": sorted(job.seen_text),
        "rows": [[path.name, path.stat().st_size] for path in rows],
    }


def describe_engines(job: Job, translator: Translator) -> dict[str, Any]:
    """The part of it that does not hang on what is translated."""
    terms = json.dumps(sorted(Glossary.load(job.glossary, job.target).terms.items()))
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
        "checks": _describe_checks(job),
    }


def _describe_checks(job: Job) -> dict[str, Any] | None:
    checker = job.checker()
    if checker is None:
        return None
    # JSON has no tuples and no frozen mappings; what was read back is compared with this
    values = json.dumps(asdict(replace(checker.thresholds, limits={})), default=sorted)
    return {
        "version": QUALITY_VERSION,
        "limits": dict(checker.thresholds.limits),
        "thresholds": json.loads(values),
    }


def _check_free(job: Job, store: PartStore) -> None:
    if store.exists() and not job.replaces:
        description = read_description(text_dir(job.corpus, job.target))
        engines = [e["name"] for e in description["engines"]] if description else []
        engines = engines or ["people"]
        raise ConfigError(
            f"{job.corpus} has texts in {job.target!r} already, made by {', '.join(engines)} or "
            "with other settings. To make them anew use --replace; what is cached is not asked "
            "again."
        )
