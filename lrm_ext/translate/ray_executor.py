"""Distributes the work of local engines over processes or machines (`--executor ray`).

`RayWorkers.wrap` returns an engine whose segments are translated by Ray actors, each with its own
copy of the engine. The driver caches, protects, checks and writes, so that each text is translated
once however many workers there are, and only segments and translations are transferred. Engines
that ask a service stay in the driver: more workers would not shorten the waiting, and one process
must count the budget.
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
    Reply,
    TextSegment,
    TranslationEngine,
    build_engine,
    get_spec,
)

log = logging.getLogger(__name__)

MAX_DEATHS = 3  # of workers on one block before the block is blamed
ROWS_PER_WORKER = 2048  # of the corpus in one request
BLOCK_SEGMENTS = 256  # in one task of a worker
# for a cluster that is started here; only segments pass through it
_OBJECT_STORE_BYTES = 256 << 20
# The arguments of `build_engine`: the name, the options and the target language.
Recipe = tuple[str, tuple[tuple[str, str], ...], str]
_INSTALL = "--executor ray needs Ray: pip install 'lrm-llava[ray]'"


class RayWorkers:
    """Worker actors, which start with the first translation.

    Uses the cluster that RAY_ADDRESS names ("auto": the one on this machine); without it, starts a
    cluster on this machine, which `close` stops.

    Args:
        num_workers: Number of workers; None for as many as there are CPUs, or GPUs if a worker
            needs one.
        gpus_per_worker: GPUs that a worker needs; workers share a GPU if it is a fraction.

    Raises:
        ConfigError: Ray is not installed.
    """

    def __init__(self, num_workers: int | None = None, gpus_per_worker: float = 0.0) -> None:
        self._ray = _import_ray()
        self._num_wanted = num_workers
        self._gpus_per_worker = gpus_per_worker
        self._open = ExitStack()

    def wrap(
        self, engine: TranslationEngine, name: str, options: Mapping[str, str], target: str
    ) -> TranslationEngine | RayEngine:
        """Returns an engine whose work the workers do; engines that ask a service stay unchanged.

        Args:
            engine: As `build_engine` made it from the other arguments.
            name: See `build_engine`.
            options: See `build_engine`.
            target: See `build_engine`.
        """
        if engine.is_table or get_spec(name).uses_service:
            log.info("engine %s runs in this process; workers would not speed it up", name)
            return engine
        return RayEngine(engine, self, (name, tuple(options.items()), target))

    @cached_property
    def actors(self) -> list[Any]:
        """The worker actors.

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

    def translate(self, recipe: Recipe, segments: Sequence[TextSegment]) -> Iterator[Reply]:
        """Translates segments, in any order.

        Args:
            recipe: Of the engine.
            segments: What to translate.

        Raises:
            UserError: A worker raised it.
            DataError: Workers died repeatedly on one block.
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
                f"workers died {MAX_DEATHS} times on one block of {BLOCK_SEGMENTS} texts, "
                f"perhaps for lack of memory ({str(error).splitlines()[0]}). Finished parts are "
                "kept: run again with fewer workers or smaller batches."
            ) from error

    def close(self) -> None:
        """Stops the workers, and a cluster that was started here; may be called twice."""
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


class RayEngine(TranslationEngine):
    """An engine whose work the workers do."""

    def __init__(self, engine: TranslationEngine, workers: RayWorkers, recipe: Recipe) -> None:
        self.name, self.version, self.options = engine.name, engine.version, engine.options
        self.context, self.mask_styles = engine.context, engine.mask_styles
        self.is_sentence_level = engine.is_sentence_level
        self._workers = workers
        self._recipe = recipe

    @property
    def rows_ahead(self) -> int:  # type: ignore[override]  # known once workers run
        """See `TranslationEngine`; enough rows to occupy all workers."""
        return ROWS_PER_WORKER * len(self._workers.actors)

    def translate(self, segments: Sequence[TextSegment]) -> Iterator[Reply]:
        """See `TranslationEngine`."""
        return self._workers.translate(self._recipe, segments)

    def close(self) -> None:
        """See `TranslationEngine`."""
        self._workers.close()


class Worker:
    """An actor that translates blocks of segments and keeps its engines and their models.

    Args:
        home: The driver's working folder, for paths in options, and its folder of languages.
    """

    def __init__(self, home: tuple[str, str | None]) -> None:
        folder, languages = home
        os.chdir(folder)
        if languages is not None:
            os.environ[FOLDER_VARIABLE] = languages
        self._engines: dict[Recipe, TranslationEngine] = {}

    def translate(self, recipe: Recipe, start: int, segments: Sequence[TextSegment]) -> list[Reply]:
        """Translates a block that starts at segment `start`.

        Raises:
            UserError: See `build_engine` and `TranslationEngine.translate`.
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
    """Imports Ray, with usage reports switched off.

    Raises:
        ConfigError: Ray is not installed.
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
    """Connects to a cluster; leaves a connection of the caller unchanged."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    ours = {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
    }
    try:
        ray.init(logging_level=logging.WARNING, **({} if address else ours))
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = address or "on this machine"
        raise ConfigError(f"--executor ray: no cluster {where}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()
