"""Works on the parts of a translation with several processes or machines (`--executor ray`).

Input: a job and the numbers of parts. Output: what each cost, as it is done. A worker is a Ray
actor that keeps its engines, models included, and takes one part after the other; it writes the
part itself, so that no text passes through the driver. The cache is an actor on the driver's
machine, as SQLite must not be shared over a network; corpus, glossary and language files have to be
in the same place on all machines.

Plain actors, not Ray Data: what is done is a number that goes in and a file that is renamed into
place (`parts.py`), in any order. A data set of blocks that Ray moves about, retries and writes by
itself would have to be brought into that shape again.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from llava.errors import ConfigError, DataError, UserError
from lrm_ext.corpus.store import Corpus
from lrm_ext.languages.registry import FOLDER_VARIABLE
from lrm_ext.translation.cache import Answer, Cache
from lrm_ext.translation.engines.base import Engine, Usage
from lrm_ext.translation.parts import PartStore
from lrm_ext.translation.runner import Job, build_translator, describe, translate_part

log = logging.getLogger(__name__)

MAX_DEATHS = 3  # of workers over one part, before it is the part's fault
_POLL_S = 0.1
# of a cluster that is started here; nothing but answers of the cache passes through it
_OBJECT_STORE_BYTES = 256 << 20
_INSTALL = "--executor ray needs Ray: pip install 'lrm-llava[ray]'"


@dataclass(frozen=True)
class RayExecutor:
    """An `Executor` of workers.

    A cluster that runs already is used where RAY_ADDRESS names it ("auto": the one on this
    machine); else one is started on this machine and ended with the translation.

    Attributes:
        num_workers: Workers; as many as there are CPUs (or GPUs, if a worker needs one) if None.
        gpus_per_worker: GPUs that a worker needs; a fraction shares one.
    """

    num_workers: int | None = None
    gpus_per_worker: float = 0.0

    def __call__(self, job: Job, missing: list[int]) -> Iterator[tuple[Counter[str], Usage]]:
        """Work on parts until all are done.

        Raises:
            ConfigError: Ray is not installed, or its cluster is too small.
            UserError: What a worker raised.
            DataError: Workers died again and again over one part.
        """
        if not missing:
            return
        ray = _import_ray()
        with _cluster(ray):
            num_workers = min(self._num_workers(ray), len(missing))
            log.info("%d workers, %d parts", num_workers, len(missing))
            actors = _start(ray, _at_home(job), num_workers, self.gpus_per_worker)
            pool = ray.util.ActorPool(actors[1:])
            try:
                yield from pool.map_unordered(lambda actor, n: actor.work.remote(n), missing)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayActorError as error:
                raise DataError(
                    f"workers died {MAX_DEATHS} times over one part of {job.corpus}, perhaps for "
                    f"want of memory ({str(error).splitlines()[0]}). What was done is kept: run "
                    "again, with fewer workers or smaller batches."
                ) from error
            finally:
                for actor in actors:
                    ray.kill(actor)

    def _num_workers(self, ray: Any) -> int:
        found = ray.cluster_resources()
        num_cpus, num_gpus = int(found.get("CPU", 0)), found.get("GPU", 0.0)
        room = num_cpus
        if self.gpus_per_worker:
            room = min(room, int(num_gpus / self.gpus_per_worker))
        if room < max(1, self.num_workers or 1):
            raise ConfigError(
                f"--executor ray: {self.num_workers or 1} workers of one CPU and "
                f"{self.gpus_per_worker:g} GPUs each do not fit into the cluster, which has "
                f"{num_cpus} CPUs and {num_gpus:g} GPUs; ask for less, or start more machines."
            )
        return self.num_workers or room


def _import_ray() -> Any:
    """Ray, with its reports to its makers switched off.

    Raises:
        ConfigError: It is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
        import ray.util
    except ImportError as error:
        raise ConfigError(_INSTALL) from error
    return ray


@contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """A connection to a cluster; one that the caller has is left as it is."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"logging_level": logging.WARNING}
    if not os.environ.get("RAY_ADDRESS"):
        options["address"] = "local"
        options["include_dashboard"] = False
        options["object_store_memory"] = _OBJECT_STORE_BYTES
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = os.environ.get("RAY_ADDRESS") or "on this machine"
        raise ConfigError(f"--executor ray: no cluster {where}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _at_home(job: Job) -> Job:
    """The job with paths that mean the same wherever a worker runs."""
    glossary = None if job.glossary is None else job.glossary.resolve()
    return replace(job, corpus=job.corpus.resolve(), cache=job.cache.resolve(), glossary=glossary)


def _start(ray: Any, job: Job, num_workers: int, gpus_per_worker: float) -> list[Any]:
    """Start the actor of the cache, and then the workers."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # workers find it by its name: a handle among what an actor is made of would not survive the
    # actor's restart
    name = f"lrm-cache-{uuid.uuid4().hex}"
    options = {"num_cpus": 0, "scheduling_strategy": here, "name": name}
    cache = ray.remote(**options)(CacheActor).remote(job.cache)
    worker = ray.remote(
        num_cpus=1, num_gpus=gpus_per_worker, max_restarts=-1, max_task_retries=MAX_DEATHS - 1
    )(Worker)
    home = (os.getcwd(), os.environ.get(FOLDER_VARIABLE))
    return [cache, *(worker.remote(job, n, name, home) for n in range(num_workers))]


class Worker:
    """Translates parts; an actor.

    Nothing is opened before the first part, so that what goes wrong is raised by the work.

    Args:
        job: What to do, with absolute paths.
        number: Number of the worker.
        cache: Name of the cache's actor.
        home: The driver's folder, for paths in options of engines, and its folder of languages.
    """

    def __init__(self, job: Job, number: int, cache: str, home: tuple[str, str | None]) -> None:
        self._job = job
        self._cache = SharedCache(job.cache, number, cache)
        self._home = home
        self._opened: tuple[PartStore, Any] | None = None

    def work(self, number: int) -> tuple[Counter[str], Usage]:
        """Translate a part, unless a worker that died had just finished it."""
        if self._opened is None:
            self._opened = self._open()
        store, translator = self._opened
        self._cache.release()  # what this worker had claimed when it died
        if store.is_done(number):
            return Counter(), Usage()
        return translate_part(self._job, store, translator, number)

    def _open(self) -> tuple[PartStore, Any]:
        folder, languages = self._home
        os.chdir(folder)
        if languages is not None:
            os.environ[FOLDER_VARIABLE] = languages
        translator = build_translator(self._job, self._cache)
        corpus = Corpus.open(self._job.corpus)
        return PartStore(corpus, self._job.target, describe(self._job, translator)), translator


class CacheActor:
    """Holds the cache, and who is asking for what; an actor.

    Args:
        path: The cache file.
    """

    def __init__(self, path: Path) -> None:
        self._cache = Cache(path)
        self._claims: dict[bytes, int] = {}

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the cache that changes no claims."""
        return getattr(self._cache, method)(*arguments)

    def put(
        self,
        answers: Mapping[bytes, Answer],
        engine: tuple[str, str, dict[str, Any]],
        target: str,
        usage: Usage,
    ) -> None:
        """Commit answers; whoever waits for them gets them with the next look."""
        name, version, options = engine
        named = SimpleNamespace(name=name, version=version, options=options)
        self._cache.put(answers, cast(Engine, named), target, usage)
        for key in answers:
            self._claims.pop(key, None)

    def claim(self, keys: Sequence[bytes], worker: int) -> frozenset[bytes]:
        """Keys that nobody was asking for, and that have not been answered in the meantime."""
        free = [key for key in keys if key not in self._claims]
        known = self._cache.get_many(free)
        ours = frozenset(key for key in free if key not in known)
        self._claims.update(dict.fromkeys(ours, worker))
        return ours

    def look(self, keys: Sequence[bytes]) -> tuple[dict[bytes, Answer], bool]:
        """Answers that are there, and whether one of the other keys is still being asked for."""
        found = self._cache.get_many(keys)
        return found, any(key in self._claims for key in keys if key not in found)

    def release(self, worker: int) -> None:
        """Forget a worker's claims."""
        self._claims = {key: who for key, who in self._claims.items() if who != worker}


class SharedCache(Cache):
    """What a worker sees of the cache.

    Args:
        path: The cache file, for messages; only the actor opens it.
        worker: Number of the worker.
        name: Name of the `CacheActor`.
    """

    def __init__(self, path: Path, worker: int, name: str) -> None:
        self.path = path
        self._worker = worker
        self._name = name

    @cached_property
    def _actor(self) -> Any:
        return _import_ray().get_actor(self._name)

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        """As `Cache.get_many`."""
        return cast(dict[bytes, Answer], self._call("get_many", keys))

    def put(
        self, answers: Mapping[bytes, Answer], engine: Engine, target: str, usage: Usage
    ) -> None:
        """As `Cache.put`."""
        named = (engine.name, engine.version, dict(engine.options))
        self._get(self._actor.put.remote(answers, named, target, usage))

    def spent(self, engine: str, target: str | None = None) -> Usage:
        """As `Cache.spent`."""
        return cast(Usage, self._call("spent", engine, target))

    def note(self, engine: str, name: str, value: str | None) -> None:
        """As `Cache.note`."""
        self._call("note", engine, name, value)

    def notes(self, engine: str) -> dict[str, str]:
        """As `Cache.notes`."""
        return cast(dict[str, str], self._call("notes", engine))

    def claim(self, keys: Sequence[bytes]) -> frozenset[bytes]:
        """As `Cache.claim`: without those that another worker is asking for."""
        return cast(frozenset[bytes], self._get(self._actor.claim.remote(keys, self._worker)))

    def wait(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        """As `Cache.wait`. Nobody waits before having asked for its own, so none waits forever."""
        while True:
            found, is_pending = self._get(self._actor.look.remote(keys))
            if not is_pending:
                return cast(dict[bytes, Answer], found)
            time.sleep(_POLL_S)

    def release(self) -> None:
        """As `Cache.release`."""
        self._get(self._actor.release.remote(self._worker))

    def __len__(self) -> int:
        return cast(int, self._call("__len__"))

    def close(self) -> None:
        """Nothing: the actor's file is closed with it."""

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._get(self._actor.call.remote(method, *arguments))

    def _get(self, reply: Any) -> Any:
        """The actor's reply.

        Raises:
            UserError: What the cache raised.
        """
        ray = _import_ray()
        try:
            return ray.get(reply)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
