"""What all workers share: registration, heartbeats, the two routes, and leaving in good order.

In: an asynchronous stream of bytes for a request, from a subclass. Out: a worker that a controller
of LLaVA knows what to do with. The subclasses are `llava.serve.model_worker` (our own engine),
`llava.serve.sglang_worker` and `llava.serve.vllm_worker`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import Any

import requests
from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response

from llava.constants import WORKER_HEART_BEAT_INTERVAL
from llava.serve.protocol import CONNECT_TIMEOUT_S
from llava.serve.web import ClosingStream, check_port_is_free, run_server

log = logging.getLogger(__name__)

RETRY_INTERVAL_S = 5.0
# A heartbeat also follows each change of the queue, but not more often than this.
MIN_BEAT_INTERVAL_S = 0.1
DEFAULT_CONCURRENCY = 5
DEFAULT_WAITING = 64
DEFAULT_DRAIN_S = 30.0


class WorkerBase(ABC):
    """A worker as its controller sees it.

    Args:
        controller_addr: URL of the controller.
        worker_addr: URL under which the controller and the clients reach this worker.
        worker_id: Short random name for logs.
        no_register: Stay unknown to the controller.
    """

    model_name: str

    def __init__(
        self, controller_addr: str, worker_addr: str, worker_id: str, no_register: bool
    ) -> None:
        self.controller_addr = controller_addr
        self.worker_addr = worker_addr
        self.worker_id = worker_id
        self.no_register = no_register
        self.is_leaving = False
        self._stopped = threading.Event()
        self._beat_now = threading.Event()

    @abstractmethod
    def answer(self, params: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """Answer one request; closing the generator cancels it."""

    @abstractmethod
    def get_queue_length(self) -> int:
        """Return how many requests generate or wait."""

    @abstractmethod
    def drain(self, timeout_s: float) -> bool:
        """Wait until all requests are answered; whether they were."""

    def get_status(self) -> dict[str, Any]:
        """Return the status; a worker that leaves serves nothing any more."""
        return {
            "model_names": [] if self.is_leaving else [self.model_name],
            "speed": 1,
            "queue_length": self.get_queue_length(),
        }

    def start(self) -> None:
        """Register with the controller and send heartbeats from a thread, unless told not to."""
        if self.no_register:
            return
        threading.Thread(target=heart_beat_worker, args=(self,), daemon=True).start()

    def stop(self) -> None:
        """End the heartbeats."""
        self._stopped.set()
        self._beat_now.set()

    def leave(self, timeout_s: float) -> None:
        """Tell the controller to send nothing more, then finish what there is."""
        self.is_leaving = True
        self.stop()
        if not self.no_register:
            with contextlib.suppress(requests.RequestException):
                self.register_to_controller()
        if not self.drain(timeout_s):
            log.warning(
                "%d requests were not answered within %g s", self.get_queue_length(), timeout_s
            )

    def register_to_controller(self) -> None:
        """Tell the controller of this worker.

        Raises:
            requests.RequestException: The controller does not answer.
        """
        status = self.get_status()
        body = {
            "worker_name": self.worker_addr,
            "check_heart_beat": True,
            "worker_status": status,
        }
        response = requests.post(
            self.controller_addr + "/register_worker", json=body, timeout=CONNECT_TIMEOUT_S
        )
        response.raise_for_status()
        names = ", ".join(status["model_names"]) or "nothing any more"
        log.info("registered %s with %s", names, self.controller_addr)

    def send_heart_beat(self) -> bool:
        """Send one heartbeat; False when the controller does not know this worker.

        Raises:
            requests.RequestException: The controller does not answer.
        """
        body = {"worker_name": self.worker_addr, "queue_length": self.get_queue_length()}
        response = requests.post(
            self.controller_addr + "/receive_heart_beat", json=body, timeout=CONNECT_TIMEOUT_S
        )
        response.raise_for_status()
        return bool(response.json()["exist"])

    def beat_soon(self) -> None:
        """Let the next heartbeat come at once: the queue has changed."""
        self._beat_now.set()

    def wait_for_next_beat(self, seconds: float) -> bool:
        """Wait until a heartbeat is due, by time or by a change of the queue.

        Returns:
            False when the worker has been stopped.
        """
        self._stopped.wait(MIN_BEAT_INTERVAL_S)
        self._beat_now.wait(seconds)
        self._beat_now.clear()
        return not self._stopped.is_set()


def heart_beat_worker(worker: WorkerBase) -> None:
    """Keep a worker registered until it is stopped; run it in a daemon thread."""
    registered = False
    while True:
        try:
            if not registered or not worker.send_heart_beat():
                worker.register_to_controller()
            registered = True
            pause_s = float(WORKER_HEART_BEAT_INTERVAL)
        except (requests.RequestException, ValueError, KeyError) as error:
            log.error("no contact to the controller %s: %s", worker.controller_addr, error)
            pause_s = RETRY_INTERVAL_S
        if not worker.wait_for_next_beat(pause_s):
            return


class AsyncQueue:
    """A bounded number of requests at a time for adapters, whose engine queues by itself.

    Args:
        limit: Requests that are passed on at the same time.
        max_waiting: Requests that may wait beyond those.
    """

    def __init__(self, limit: int, max_waiting: int = DEFAULT_WAITING) -> None:
        self._semaphore = asyncio.Semaphore(limit)
        self._limit = limit
        self._max_waiting = max_waiting
        self.num_requests = 0

    @property
    def is_full(self) -> bool:
        """Whether no request can even wait."""
        return self.num_requests >= self._limit + self._max_waiting

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncGenerator[None, None]:
        """Wait for a place and keep it."""
        self.num_requests += 1
        try:
            async with self._semaphore:
                yield
        finally:
            self.num_requests -= 1


router = APIRouter()


@router.post("/worker_generate_stream")
async def generate_stream(params: dict[str, Any], request: Request) -> Response:
    """Generate; the generation ends when the client goes."""
    return ClosingStream(request.app.state.worker.answer(params))


@router.post("/worker_get_status")
async def get_status(request: Request) -> dict[str, Any]:
    """Return the status."""
    return request.app.state.worker.get_status()


def create_app(worker: WorkerBase | None = None) -> FastAPI:
    """Build the web application around a worker; `main` sets `app.state.worker` later."""
    application = FastAPI(title="LLaVA worker", docs_url=None, redoc_url=None, openapi_url=None)
    application.include_router(router)
    application.state.worker = worker
    return application


def new_worker_id() -> str:
    """Return a short random name for a worker."""
    return uuid.uuid4().hex[:6]


def add_worker_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that all workers have; LLaVA's, and `--drain-timeout`."""
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=21002)
    parser.add_argument("--worker-address", default="http://localhost:21002")
    parser.add_argument("--controller-address", default="http://localhost:21001")
    parser.add_argument("--model-name")
    parser.add_argument("--limit-model-concurrency", type=int, default=DEFAULT_CONCURRENCY)
    parser.add_argument("--stream-interval", type=int, default=1, help="has no effect")
    parser.add_argument("--no-register", action="store_true")
    parser.add_argument(
        "--drain-timeout",
        type=float,
        default=DEFAULT_DRAIN_S,
        help="seconds to finish answers in when told to stop",
    )


def serve(app: FastAPI, worker: WorkerBase, args: argparse.Namespace) -> None:
    """Serve a worker until it is told to stop; it then finishes what it has begun.

    Raises:
        ConfigError: The port is taken.
    """
    check_port_is_free(args.host, args.port)
    app.state.worker = worker
    worker.start()
    run_server(
        app,
        args.host,
        args.port,
        on_stop=lambda: worker.leave(args.drain_timeout),
        # a reader that is slow to take the end of its answer
        timeout_graceful_shutdown=3,
    )
