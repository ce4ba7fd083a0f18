"""Spreads the work of local engines over several processes or machines (`--executor ray`).

Input: engines that run a model or a program. Output: the same engines as seen from the driver,
whose segments are translated by Ray actors, each with engines of its own. The driver keeps the
cache, protects, checks and writes, so a text is asked once however many workers there are, and only
segments and their translations travel. Engines that ask a service stay in the driver: waiting does
not become faster with more workers, and a budget is counted in one place.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

from llava.errors import ConfigError, DataError, UserError
from lrm_ext.languages.registry import FOLDER_VARIABLE
from lrm_ext.translate.cache import Cache
from lrm_ext.translate.engines.base import (
    Engine,
    Reply,
    Segment,
    build_engine,
    get_spec,
)

log = logging.getLogger(__name__)

MAX_DEATHS = 3  # of workers over one block, before it is the block's fault
ROWS_PER_WORKER = 2048  # of the corpus that are asked about at once
BLOCK_SEGMENTS = 256  # that a worker gets at a time
# of a cluster that is started here; nothing but segments passes through it
_OBJECT_STORE_BYTES = 256 << 20
# What `build_engine` makes an engine of: its name, its options and the target language.
Recipe = tuple[str, tuple[tuple[str, str], ...], str]
_INSTALL = "--executor ray needs Ray: pip install 'lrm-llava[ray]'"


class RayWorkers:
    """Worker actors, started when the first segment is to be translated.

    A cluster that runs already is used where RAY_ADDRESS names it ("auto": the one on this
    machine); else one is started on this machine and ended by `close`.

    Args:
        num_workers: As many as there are CPUs (or GPUs, if a worker needs one) if None.
        gpus_per_worker: GPUs that a worker needs; a fraction shares one.

    Raises:
        ConfigError: Ray is not installed.
    """

    def __init__(self, num_workers: int | None = None, gpus_per_worker: float = 0.0) -> None:
        self._ray = _import_ray()
        self._num_wanted = num_workers
        self._gpus_per_worker = gpus_per_worker
        self._open = ExitStack()

    def wrap(
        self, engine: Engine, name: str, options: Mapping[str, str], target: str
    ) -> Engine | RayEngine:
        """The engine with its work done by the workers; one that asks a service stays as it is.

        Args:
            engine: As `build_engine` made it from the other arguments.
            name: See `build_engine`.
            options: See `build_engine`.
            target: See `build_engine`.
        """
        if engine.is_table or get_spec(name).uses_service:
            log.info("engine %s is used from this process; workers would not speed it up", name)
            return engine
        return RayEngine(engine, self, (name, tuple(options.items()), target))

    @cached_property
    def actors(self) -> list[Any]:
        """The workers.

        Raises:
            ConfigError: There is no cluster, or it is too small.
        """
        ray = self._ray
        self._open.enter_context(_cluster(ray))
        worker = ray.remote(
            num_cpus=1,
            num_gpus=self._gpus_per_worker,
            max_restarts=-1,
            max_task_retries=MAX_DEATHS - 1,
        )(Worker)
        home = (os.getcwd(), os.environ.get(FOLDER_VARIABLE))
        actors = [worker.remote(home) for _ in range(self._num_workers())]
        for actor in actors:
            self._open.callback(ray.kill, actor)
        log.info("%d workers", len(actors))
        return actors

    def translate(self, recipe: Recipe, segments: Sequence[Segment]) -> Iterator[Reply]:
        """Translate segments, in any order.

        Args:
            recipe: Of the engine.
            segments: What to translate.

        Raises:
            UserError: What a worker raised.
            DataError: Workers died again and again over one block.
        """
        ray = self._ray
        pool = ray.util.ActorPool(self.actors)
        blocks = (
            (start, segments[start : start + BLOCK_SEGMENTS])
            for start in range(0, len(segments), BLOCK_SEGMENTS)
        )
        try:
            for replies in pool.map_unordered(
                lambda actor, block: actor.translate.remote(recipe, *block), blocks
            ):
                yield from replies
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError as error:
            raise DataError(
                f"workers died {MAX_DEATHS} times over one block of {BLOCK_SEGMENTS} texts, "
                f"perhaps for lack of memory ({str(error).splitlines()[0]}). What is done is kept: "
                "run again, with fewer workers or smaller batches."
            ) from error

    def close(self) -> None:
        """End the workers and a cluster that was started here; it may be called twice."""
        self._open.close()
        self.__dict__.pop("actors", None)

    def _num_workers(self) -> int:
        found = self._ray.cluster_resources()
        num_cpus, num_gpus = int(found.get("CPU", 0)), found.get("GPU", 0.0)
        room = num_cpus
        if self._gpus_per_worker:
            room = min(room, int(num_gpus / self._gpus_per_worker))
        if room < max(1, self._num_wanted or 1):
            raise ConfigError(
                f"--executor ray: {self._num_wanted or 1} workers of one CPU and "
                f"{self._gpus_per_worker:g} GPUs each do not fit into the cluster, which has "
                f"{num_cpus} CPUs and {num_gpus:g} GPUs; ask for less, or start more machines."
            )
        return self._num_wanted or room


class RayEngine(Engine):
    """An engine whose work the workers do; see `Engine` for its attributes."""

    def __init__(self, engine: Engine, workers: RayWorkers, recipe: Recipe) -> None:
        for name in ("name", "version", "options", "context", "mask_styles", "is_sentence_level"):
            setattr(self, name, getattr(engine, name))
        self._workers = workers
        self._recipe = recipe

    @property
    def rows_ahead(self) -> int:  # type: ignore[override]  # known when the workers are
        """Enough for all workers to have something to do."""
        return ROWS_PER_WORKER * len(self._workers.actors)

    def translate(self, segments: Sequence[Segment]) -> Iterator[Reply]:
        """See `Engine`."""
        return self._workers.translate(self._recipe, segments)

    def close(self) -> None:
        """See `Engine`."""
        self._workers.close()


class Worker:
    """Translates blocks of segments; an actor that keeps its engines, models included.

    Args:
        home: The driver's folder, for paths in options of engines, and its folder of languages.
    """

    def __init__(self, home: tuple[str, str | None]) -> None:
        folder, languages = home
        os.chdir(folder)
        if languages is not None:
            os.environ[FOLDER_VARIABLE] = languages
        self._engines: dict[Recipe, Engine] = {}

    def translate(self, recipe: Recipe, start: int, segments: Sequence[Segment]) -> list[Reply]:
        """Translate a block, whose first segment is number `start`.

        Raises:
            UserError: See `build_engine` and `Engine.translate`.
        """
        if recipe not in self._engines:
            name, options, target = recipe
            # only engines that ask services look into the cache
            no_cache = cast(Cache, None)
            self._engines[recipe] = build_engine(name, dict(options), target, no_cache)
        return [
            Reply(tuple(replace(o, index=start + o.index) for o in reply.outcomes), reply.usage)
            for reply in self._engines[recipe].translate(segments)
        ]


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
