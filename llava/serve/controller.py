"""Manages workers: registration, heartbeats, dispatch, and a proxy for their streams.

In: POST requests with JSON from workers and clients. Out: JSON, or the stream of a worker. A
controller answers `/worker_get_status` and `/worker_generate_stream` as a worker does, so that
controllers can be nested; the details of each model are passed on. It holds no model.

    python -m llava.serve.controller --host localhost --port 21001
"""

from __future__ import annotations

import argparse
import logging
import random
import threading
import time
from collections.abc import Generator, Sequence
from enum import Enum, auto
from typing import Annotated, Any

import requests
from fastapi import Body, FastAPI
from pydantic import BaseModel
from starlette.responses import Response

from llava.constants import CONTROLLER_HEART_BEAT_EXPIRATION
from llava.errors import ConfigError, flag, make_parser, run_command
from llava.serve.protocol import (
    CONNECT_TIMEOUT_S,
    NO_WORKER,
    WORKER_UNREACHABLE,
    encode_error,
    model_details,
    post_json,
    stream_bytes,
)
from llava.serve.web import ClosingStream, run_server
from llava.utils import build_logger

log = logging.getLogger(__name__)


class DispatchMethod(Enum):
    """The ways to choose among the workers that serve a model."""

    LOTTERY = auto()
    SHORTEST_QUEUE = auto()

    @classmethod
    def from_str(cls, name: str) -> DispatchMethod:
        """Returns the method called `lottery` or `shortest_queue`.

        Raises:
            ConfigError: If there is no such method.
        """
        if name.upper() not in cls.__members__:
            choices = ", ".join(method.name.lower() for method in cls)
            raise ConfigError(f"unknown dispatch method {name!r}; choose from: {choices}")
        return cls[name.upper()]


class ModelDetails(BaseModel):
    """The details of a model in a status (`llava.serve.protocol.MODEL_KEYS`)."""

    conversation: dict[str, Any] | str | None = None
    context_len: int | None = None
    multimodal: bool | None = None


class WorkerStatus(ModelDetails):
    """The status of a worker; further keys are allowed and ignored.

    A controller, whose models differ, has the details of each of them under `models`.
    """

    model_names: list[str]
    speed: float = 1
    queue_length: int = 0
    models: dict[str, ModelDetails] | None = None


class WorkerInfo(WorkerStatus):
    """A registered worker.

    Attributes:
        model_names: Models that it serves.
        speed: Its weight in the dispatch.
        queue_length: Number of requests that are running or waiting there.
        check_heart_beat: Whether it is removed when its heartbeats stop.
        last_heart_beat: `time.time()` of the last heartbeat, in seconds.
    """

    check_heart_beat: bool
    last_heart_beat: float


class Controller:
    """Lists the workers and chooses among them. All methods are thread-safe."""

    def __init__(self, dispatch_method: str | DispatchMethod = "shortest_queue") -> None:
        if isinstance(dispatch_method, str):
            dispatch_method = DispatchMethod.from_str(dispatch_method)
        self.dispatch_method = dispatch_method
        self.worker_info: dict[str, WorkerInfo] = {}
        self._lock = threading.Lock()

    def register_worker(
        self, worker_name: str, check_heart_beat: bool, worker_status: dict[str, Any] | None
    ) -> bool:
        """Adds or updates a worker.

        Args:
            worker_name: The worker's URL.
            check_heart_beat: Remove it when its heartbeats stop.
            worker_status: `model_names`, `speed`, `queue_length` and details of the models; None
                to ask the worker.

        Returns:
            Whether it is registered now.
        """
        try:
            status = worker_status or post_json(
                worker_name + "/worker_get_status", timeout_s=CONNECT_TIMEOUT_S
            )
            beat = {"check_heart_beat": check_heart_beat, "last_heart_beat": time.time()}
            info = WorkerInfo.model_validate({**status, **beat})
        except (requests.RequestException, ValueError, TypeError) as error:
            log.error("worker %s gives no status and is not registered: %s", worker_name, error)
            return False
        with self._lock:
            known = self.worker_info.get(worker_name)
            self.worker_info[worker_name] = info
        if known is None or known.model_names != info.model_names:
            log.info("registered worker %s: %s", worker_name, ", ".join(info.model_names))
        return True

    def remove_worker(self, worker_name: str) -> None:
        """Forgets a worker."""
        with self._lock:
            self.worker_info.pop(worker_name, None)

    def refresh_all_workers(self) -> None:
        """Asks every worker for its status again and forgets those that do not answer."""
        with self._lock:
            known = dict(self.worker_info)
        for name, info in known.items():
            if not self.register_worker(name, info.check_heart_beat, None):
                self.remove_worker(name)

    def list_models(self) -> list[str]:
        """Returns the names of all models, sorted."""
        with self._lock:
            return sorted({name for info in self.worker_info.values() for name in info.model_names})

    def get_worker_address(self, model_name: str) -> str:
        """Returns the address of a worker for a model, "" if none serves it."""
        with self._lock:
            serving = {
                name: info
                for name, info in self.worker_info.items()
                if model_name in info.model_names and info.speed > 0
            }
            if not serving:
                return ""
            if self.dispatch_method is DispatchMethod.LOTTERY:
                speeds = [info.speed for info in serving.values()]
                if sum(speeds) < 1e-4:  # all are practically stopped
                    return ""
                return random.choices(list(serving), weights=speeds)[0]
            chosen = min(serving, key=lambda name: serving[name].queue_length / serving[name].speed)
            # Counted here, because the next choice may come before the next heartbeat.
            serving[chosen].queue_length += 1
            return chosen

    def receive_heart_beat(self, worker_name: str, queue_length: int) -> bool:
        """Notes a heartbeat; returns False if the worker has to register again."""
        with self._lock:
            info = self.worker_info.get(worker_name)
            if info is None:
                return False
            info.queue_length = queue_length
            info.last_heart_beat = time.time()
            return True

    def remove_stale_workers_by_expiration(self) -> None:
        """Removes workers whose heartbeats have stopped."""
        oldest = time.time() - CONTROLLER_HEART_BEAT_EXPIRATION
        with self._lock:
            stale = [
                name
                for name, info in self.worker_info.items()
                if info.check_heart_beat and info.last_heart_beat < oldest
            ]
            for name in stale:
                del self.worker_info[name]
        for name in stale:
            log.warning(
                "removed worker %s: silent for %d s", name, CONTROLLER_HEART_BEAT_EXPIRATION
            )

    def worker_api_get_status(self) -> dict[str, Any]:
        """Returns the status of all workers together, as one worker would, with all models."""
        with self._lock:
            infos = list(self.worker_info.values())
        models: dict[str, dict[str, Any]] = {}
        for info in infos:
            for name in info.model_names:
                for key, value in model_details(info.model_dump(), name).items():
                    if models.setdefault(name, {}).setdefault(key, value) != value:
                        log.warning("workers of model %s differ in %s", name, key)
        return {
            "model_names": sorted({name for info in infos for name in info.model_names}),
            "speed": sum(info.speed for info in infos),
            "queue_length": sum(info.queue_length for info in infos),
            **({"models": models} if models else {}),
        }

    def worker_api_generate_stream(self, params: dict[str, Any]) -> Generator[bytes, None, None]:
        """Passes a request to a worker and its stream back.

        Args:
            params: The body of `/worker_generate_stream`; `model` chooses the worker.

        Yields:
            The worker's bytes, or one error object.
        """
        model_name = str(params.get("model", ""))
        address = self.get_worker_address(model_name)
        if not address:
            served = ", ".join(self.list_models()) or "none"
            log.error("no worker for model %r; served: %s", model_name, served)
            yield encode_error(NO_WORKER, f"no worker serves model {model_name!r}")
            return
        try:
            yield from stream_bytes(address, params)
        except requests.RequestException as error:
            log.error("worker %s failed: %s", address, error)
            yield encode_error(WORKER_UNREACHABLE, "the worker is gone or does not answer")


def heart_beat_controller(controller: Controller) -> None:
    """Removes silent workers every 30 s; run it in a daemon thread."""
    while True:
        time.sleep(CONTROLLER_HEART_BEAT_EXPIRATION)
        controller.remove_stale_workers_by_expiration()


def create_app(controller: Controller | None = None) -> FastAPI:
    """Builds the web application around a controller."""
    controller = controller or Controller()
    application = FastAPI(title="LLaVA controller")
    post = application.post

    @post("/register_worker")
    def register_worker(
        worker_name: Annotated[str, Body()],
        check_heart_beat: Annotated[bool, Body()] = False,
        worker_status: Annotated[WorkerStatus | None, Body()] = None,
    ) -> None:
        status = worker_status.model_dump() if worker_status else None
        controller.register_worker(worker_name, check_heart_beat, status)

    @post("/refresh_all_workers")
    def refresh_all_workers() -> None:
        controller.refresh_all_workers()

    @post("/list_models")
    def list_models() -> dict[str, list[str]]:
        return {"models": controller.list_models()}

    @post("/get_worker_address")
    def get_worker_address(model: Annotated[str, Body(embed=True)]) -> dict[str, str]:
        return {"address": controller.get_worker_address(model)}

    @post("/receive_heart_beat")
    def receive_heart_beat(
        worker_name: Annotated[str, Body()], queue_length: Annotated[int, Body()]
    ) -> dict[str, bool]:
        return {"exist": controller.receive_heart_beat(worker_name, queue_length)}

    @post("/worker_generate_stream")
    def worker_generate_stream(params: dict[str, Any]) -> Response:
        return ClosingStream(controller.worker_api_generate_stream(params))

    @post("/worker_get_status")
    def worker_get_status() -> dict[str, Any]:
        return controller.worker_api_get_status()

    return application


app = create_app()


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line."""
    return make_parser(
        __doc__,
        flag("--host", default="localhost"),
        flag("--port", type=int, default=21001),
        flag("--dispatch-method", choices=["lottery", "shortest_queue"], default="shortest_queue"),
        prog="python -m llava.serve.controller",
    )


def run(args: argparse.Namespace) -> None:
    """Serves until interrupted."""
    controller = Controller(args.dispatch_method)
    threading.Thread(target=heart_beat_controller, args=(controller,), daemon=True).start()
    run_server(create_app(controller), args.host, args.port)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    args = build_parser().parse_args(argv)
    build_logger("controller", "controller.log")
    run(args)


if __name__ == "__main__":
    run_command(main)
