"""Serves one model: status, streamed generation, registration and heartbeats.

In: `/worker_generate_stream` with a prompt in its template and images in base64. Out: the
NUL-delimited stream of `llava.serve.protocol`. Up to `--limit-model-concurrency` requests are
answered in one batch, up to `--max-waiting` wait, and others are told that the worker is busy. The
model is in `llava.serve.engine`, the batch in `llava.serve.batch`. `WorkerBase` is common to all
workers; workers in front of other engines are in `llava.serve.remote_worker`.

    python -m llava.serve.model_worker --model-path runs/mini
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import functools
import io
import logging
import math
import queue
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import requests
import torch
from fastapi import APIRouter, FastAPI, Request
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from llava.constants import WORKER_HEART_BEAT_INTERVAL
from llava.conversation import template_of_config
from llava.errors import ConfigError, DataError, Flag, UserError, flag, make_parser, run_command
from llava.images import apply_orientation, image_fault
from llava.serve.batch import BLOCK, Event, Ticket, Unanswered, build_scheduler
from llava.serve.check import check_at_least, check_port_is_free
from llava.serve.engine import ContextFull, Engine, GenerationRequest, load_engine
from llava.serve.protocol import (
    CONNECT_TIMEOUT_S,
    GENERATION_FAILED,
    INVALID_REQUEST,
    MAX_NEW_TOKENS,
    TOO_LONG_MESSAGE,
    encode_chunk,
    encode_error,
    post_json,
)
from llava.serve.web import FORMATS, ClosingStream, run_server
from llava.utils import build_logger

log = logging.getLogger(__name__)

RETRY_INTERVAL_S = 5.0
# A change of the queue is reported at once, but not more often than this.
MIN_BEAT_INTERVAL_S = 0.1
DEFAULT_CONCURRENCY = 5
DEFAULT_WAITING = 64
DEFAULT_DRAIN_S = 30.0

MAX_IMAGES = 32
# Width times height of an image; LLaVA's clients and ours send far smaller ones.
MAX_PIXELS = 50_000_000
# Cached positions: 16 requests of 2,048 positions, which take 16 GiB with Vicuna-7B in float16.
DEFAULT_KV_TOKENS = 32_768
# A reader that is further behind than this many events gets all of them in one object.
MAX_BACKLOG = 16
WARM_UP_PROMPT = "USER: {}Hello. ASSISTANT:"


class WorkerBase(ABC):
    """A worker as its controller sees it.

    Args:
        controller_addr: URL of the controller.
        worker_addr: URL under which the controller and the clients reach this worker.
        worker_id: Short random name for logs.
        no_register: Do not register with the controller.

    Attributes:
        model_name: Name to serve the model under.
        details: Keys that the status has beyond LLaVA's.
        is_leaving: Set when it is to stop; it then serves no model and sends no more heartbeats.
        beat_now: Set when the queue has changed, so that a heartbeat is sent at once.
    """

    model_name: str
    details: dict[str, Any]

    def __init__(
        self, controller_addr: str, worker_addr: str, worker_id: str, no_register: bool
    ) -> None:
        self.controller_addr = controller_addr
        self.worker_addr = worker_addr
        self.worker_id = worker_id
        self.no_register = no_register
        self.is_leaving = False
        self.beat_now = threading.Event()

    @abstractmethod
    def answer(self, params: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """Answers one request; closing the generator cancels it."""

    @abstractmethod
    def get_queue_length(self) -> int:
        """Returns the number of requests that are running or waiting."""

    @abstractmethod
    def drain(self, timeout_s: float) -> bool:
        """Waits for running requests; returns whether all were answered."""

    def get_status(self) -> dict[str, Any]:
        """Returns the status; a worker that is leaving serves no model."""
        return {
            "model_names": [] if self.is_leaving else [self.model_name],
            "speed": 1,
            "queue_length": self.get_queue_length(),
            **self.details,
        }

    def start(self) -> None:
        """Registers with the controller and sends heartbeats from a thread, unless told not to."""
        if not self.no_register:
            threading.Thread(target=heart_beat_worker, args=(self,), daemon=True).start()

    def stop(self) -> None:
        """Ends the heartbeats."""
        self.is_leaving = True
        self.beat_now.set()

    def leave(self, timeout_s: float) -> None:
        """Tells the controller to send no more requests, then finishes those that there are."""
        self.stop()
        if not self.no_register:
            with contextlib.suppress(requests.RequestException):
                self.register_to_controller()
        if not self.drain(timeout_s):
            log.warning(
                "%d requests were not answered within %g s", self.get_queue_length(), timeout_s
            )

    def register_to_controller(self) -> None:
        """Registers with the controller.

        Raises:
            requests.RequestException: If the controller does not answer.
        """
        body = {
            "worker_name": self.worker_addr,
            "check_heart_beat": True,
            "worker_status": self.get_status(),
        }
        post_json(self.controller_addr + "/register_worker", body, CONNECT_TIMEOUT_S)
        what = "nothing any more" if self.is_leaving else self.model_name
        log.info("registered %s with %s", what, self.controller_addr)

    def send_heart_beat(self) -> bool:
        """Sends a heartbeat; returns whether the controller knows this worker.

        Raises:
            requests.RequestException: If the controller does not answer.
        """
        body = {"worker_name": self.worker_addr, "queue_length": self.get_queue_length()}
        url = self.controller_addr + "/receive_heart_beat"
        return bool(post_json(url, body, CONNECT_TIMEOUT_S)["exist"])


def heart_beat_worker(worker: WorkerBase) -> None:
    """Keeps a worker registered until it is stopped; run it in a daemon thread."""
    registered = False
    while not worker.is_leaving:
        try:
            if not registered or not worker.send_heart_beat():
                worker.register_to_controller()
            registered = True
            pause_s = float(WORKER_HEART_BEAT_INTERVAL)
        except (requests.RequestException, ValueError, KeyError) as error:
            log.error("no contact to the controller %s: %s", worker.controller_addr, error)
            pause_s = RETRY_INTERVAL_S
        time.sleep(MIN_BEAT_INTERVAL_S)
        worker.beat_now.wait(pause_s)
        worker.beat_now.clear()


router = APIRouter()


@router.post("/worker_generate_stream")
async def generate_stream(params: dict[str, Any], request: Request) -> Response:
    """Generates an answer until the client hangs up."""
    return ClosingStream(request.app.state.worker.answer(params))


@router.post("/worker_get_status")
async def get_status(request: Request) -> dict[str, Any]:
    """Returns the status."""
    return request.app.state.worker.get_status()


def create_app(worker: WorkerBase | None = None) -> FastAPI:
    """Builds the web application around a worker; `serve` sets that of `app`."""
    application = FastAPI(title="LLaVA worker", docs_url=None, redoc_url=None, openapi_url=None)
    application.include_router(router)
    application.state.worker = worker
    return application


app = create_app()


# The flags that all workers have: LLaVA's, and `--drain-timeout`.
WORKER_FLAGS: tuple[Flag, ...] = (
    flag("--host", default="localhost"),
    flag("--port", type=int, default=21002),
    flag("--worker-address", default="http://localhost:21002"),
    flag("--controller-address", default="http://localhost:21001"),
    flag("--model-name"),
    flag("--limit-model-concurrency", type=int, default=DEFAULT_CONCURRENCY),
    flag("--stream-interval", type=int, default=1, help="has no effect"),
    flag("--no-register", action="store_true"),
    flag(
        "--drain-timeout",
        type=float,
        default=DEFAULT_DRAIN_S,
        help="seconds to finish answers in when told to stop",
    ),
)


def start(
    name: str, parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, str]:
    """Reads the flags of a worker and starts its log.

    Args:
        name: Name of the log.
        parser: Parser of the command line.
        argv: The command line; None for that of the process.

    Returns:
        The flags, and the worker's id, which is part of the log's file name.

    Raises:
        ConfigError: The port is in use, which is better said before the model is loaded.
    """
    args, worker_id = parser.parse_args(argv), uuid.uuid4().hex[:6]
    build_logger(name, f"model_worker_{worker_id}.log")
    check_port_is_free(args.host, args.port)
    return args, worker_id


def serve(worker: WorkerBase, args: argparse.Namespace) -> None:
    """Serves a worker until it is told to stop; it then finishes its requests.

    Raises:
        ConfigError: If the port is taken.
    """
    check_port_is_free(args.host, args.port)
    app.state.worker = worker
    worker.start()
    run_server(
        app,
        args.host,
        args.port,
        on_stop=lambda: worker.leave(args.drain_timeout),
        # for readers that are slow to take the end of their answers
        timeout_graceful_shutdown=3,
    )


class Mailbox:
    """Passes events from other threads to queues of the running event loop.

    The loop is woken once for all events that have arrived: with a full batch, waking it for each
    row would take longer than a small model's step.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[tuple[asyncio.Queue[Event], Event]] = deque()
        self._is_woken = False

    def put(self, events: asyncio.Queue[Event], event: Event) -> None:
        """Passes an event to a queue, from any thread.

        Raises:
            RuntimeError: If the loop has been closed.
        """
        self._arrived.append((events, event))
        # Two threads may both wake the loop, which does no harm; at least one always does.
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_woken = False  # first, so that events from now on wake the loop again
        while self._arrived:
            events, event = self._arrived.popleft()
            events.put_nowait(event)


def encode_failure(error: BaseException, text: str) -> bytes:
    """Encodes the end of a stream after an error; unexpected errors are only in the log.

    Args:
        error: The cause.
        text: The prompt and all text generated so far.
    """
    if isinstance(error, ContextFull):
        return encode_chunk(text + TOO_LONG_MESSAGE)
    if isinstance(error, Unanswered | UserError):
        log.warning("refused a request: %s", error)
        kind = error.kind if isinstance(error, Unanswered) else INVALID_REQUEST
        return encode_error(GENERATION_FAILED, str(error), kind=kind)
    log.error("the generation failed", exc_info=error)
    if isinstance(error, torch.OutOfMemoryError):
        return encode_error(GENERATION_FAILED, "the worker ran out of memory")
    reason = f"the generation failed ({type(error).__name__}); see the worker's log"
    return encode_error(GENERATION_FAILED, reason)


class ModelWorker(WorkerBase):
    """One model behind the wire protocol.

    Args:
        controller_addr: URL of the controller.
        worker_addr: URL under which the controller and the clients reach this worker.
        worker_id: Short random name for logs.
        no_register: Do not register with the controller.
        model_path: Checkpoint folder or Hub name.
        model_base: Base model of a LoRA or projector-only checkpoint.
        model_name: Name to serve the model under; by default derived from the path.
        load_8bit: Quantise to 8 bits.
        load_4bit: Quantise to 4 bits.
        device: Device to run on.
        use_flash_attn: Use flash-attention 2.
        engine: A loaded model, instead of `model_path`.
        limit_model_concurrency: Maximum number of requests that are answered at the same time.
        max_waiting: Maximum number of requests that wait for their turn.
        request_timeout_s: Maximum time of a request; None for no limit.
        max_kv_tokens: Maximum number of cached positions of all running requests; None for no
            limit.
    """

    def __init__(
        self,
        controller_addr: str,
        worker_addr: str,
        worker_id: str,
        no_register: bool,
        model_path: str,
        model_base: str | None,
        model_name: str | None,
        load_8bit: bool,
        load_4bit: bool,
        device: str,
        use_flash_attn: bool = False,
        *,
        engine: Engine | None = None,
        limit_model_concurrency: int = DEFAULT_CONCURRENCY,
        max_waiting: int = DEFAULT_WAITING,
        request_timeout_s: float | None = None,
        max_kv_tokens: int | None = DEFAULT_KV_TOKENS,
    ) -> None:
        super().__init__(controller_addr, worker_addr, worker_id, no_register)
        self.engine = engine or load_engine(
            model_path,
            model_base,
            model_name,
            load_8bit=load_8bit,
            load_4bit=load_4bit,
            device=device,
            use_flash_attn=use_flash_attn,
        )
        self.model_name = model_name or self.engine.name
        self.details = {
            "conversation": template_of_config(self.engine.model.config),
            "context_len": self.engine.context_len,
            "multimodal": self.engine.is_multimodal,
        }
        self._mailbox: Mailbox | None = None  # made in the event loop that serves
        self.scheduler = build_scheduler(
            self.engine,
            limit_model_concurrency,
            max_waiting,
            request_timeout_s,
            self.beat_now.set,
            max_kv_tokens,
        )

    def get_queue_length(self) -> int:
        """Returns the number of requests that are running or waiting."""
        return self.scheduler.num_requests

    def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and waits for the others; returns whether all were answered."""
        return self.scheduler.drain(timeout_s)

    def close(self) -> None:
        """Stops the heartbeats and the scheduler."""
        self.stop()
        self.scheduler.close()

    def warm_up(self) -> None:
        """Answers a tiny request, so that the first user does not wait for one-time work.

        Raises:
            Exception: Whatever the model raises: better now than at the first request.
        """
        images = (Image.new("RGB", (64, 64)),) if self.engine.is_multimodal else ()
        prompt = WARM_UP_PROMPT.format("<image>\n" * len(images))
        request = GenerationRequest(prompt, images, temperature=0, max_new_tokens=2)
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.scheduler.submit(Ticket(request, events.put))
        while not (event := events.get()).is_last:
            pass
        if event.error is not None:
            raise event.error

    async def answer(self, params: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """Answers a request; after an error, the last object has code 1 and the cause.

        Args:
            params: Body of `/worker_generate_stream`. With `details`, which LLaVA's clients never
                send, each object also has the number of tokens so far, and the last one has the
                reason for the end.

        Yields:
            Encoded objects, each with the prompt and all text generated so far.
        """
        text, has_details = str(params.get("prompt", "")), params.get("details") is True
        if self._mailbox is None:
            self._mailbox = Mailbox()
        events: asyncio.Queue[Event] = asyncio.Queue()
        ticket = None
        try:
            request = await run_in_threadpool(parse_request, params)
            ticket = Ticket(request, functools.partial(self._mailbox.put, events))
            await run_in_threadpool(self.scheduler.submit, ticket)
            is_empty, last = True, Event()
            while not last.is_last:
                ready = [await events.get()]
                if events.qsize() > MAX_BACKLOG:
                    # A slow reader gets everything that has arrived meanwhile at once.
                    ready += [events.get_nowait() for _ in range(events.qsize())]
                last, new = ready[-1], "".join(event.text for event in ready)
                text += new
                # even an empty answer is one object
                if new or (last.finish_reason is not None and (has_details or is_empty)):
                    is_empty = False
                    yield encode_chunk(text, **(last.details() if has_details else {}))
                if last.error is not None:
                    raise last.error
        except Exception as error:
            yield encode_failure(error, text)
        finally:
            if ticket is not None:
                ticket.cancelled.set()


def parse_request(params: dict[str, Any]) -> GenerationRequest:
    """Checks the body of a request.

    Args:
        params: `prompt`, and optionally `images` (base64), `temperature`, `top_p`,
            `max_new_tokens`, `stop`, `seed`.

    Returns:
        The request, with `max_new_tokens` limited to 1024.

    Raises:
        DataError: If a value is missing or wrong; the message names it.
    """
    prompt, stop, seed = (params.get(name) for name in ("prompt", "stop", "seed"))
    encoded = params.get("images") or []
    types: list[tuple[str, Any, Any, str]] = [
        ("prompt", prompt, str, "text"),
        ("stop", stop, str | None, "text or null"),
        ("images", encoded, list, "a list of base64 texts"),
    ]
    for name, value, kind, expected in types:
        if not isinstance(value, kind):
            raise DataError(f"{name} is {type(value).__name__}; expected {expected}")
    if len(encoded) > MAX_IMAGES:
        raise DataError(f"images has {len(encoded)} entries; expected up to {MAX_IMAGES}")
    if seed is not None and (not isinstance(seed, int) or not 0 <= seed < 2**63):
        raise DataError(f"seed is {seed!r:.80}; expected a whole number from 0 to 2**63 - 1")
    return GenerationRequest(
        prompt=prompt,
        images=tuple(_decode_image(image, index) for index, image in enumerate(encoded)),
        temperature=_number(params, "temperature", 1.0),
        top_p=_number(params, "top_p", 1.0),
        max_new_tokens=min(int(_number(params, "max_new_tokens", 256)), MAX_NEW_TOKENS),
        stop=stop,
        seed=seed,
    )


def _number(params: dict[str, Any], name: str, default: float) -> float:
    value = params.get(name, default)
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if math.isfinite(number := float(value)):
            return number
    raise DataError(f"{name} is {value!r:.80}; expected a number")


def _decode_image(encoded: Any, index: int) -> Image.Image:
    try:
        # Not every decoder of PIL: some of them run other programs.
        raw = io.BytesIO(base64.b64decode(encoded))
        image = Image.open(raw, formats=[*FORMATS, "BMP"])
        num_pixels = image.width * image.height
        if num_pixels > MAX_PIXELS:
            raise ValueError(f"{num_pixels:,} pixels; expected up to {MAX_PIXELS:,}")
        return apply_orientation(image)
    except Exception as error:  # decoders raise nearly everything at a hostile file
        raise DataError(f"images[{index}] is not an image: {image_fault(error)}") from error


def release_model_semaphore(fn: Callable[[], None] | None = None) -> None:
    """Calls `fn`; the scheduler counts requests, so there is no semaphore to release."""
    if fn is not None:
        fn()


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line."""
    return make_parser(
        __doc__,
        *WORKER_FLAGS,
        flag("--model-path", default="facebook/opt-350m"),
        flag("--model-base"),
        flag("--device", default="cuda"),
        flag("--multi-modal", action="store_true", help="deprecated, has no effect"),
        flag("--load-8bit", action="store_true"),
        flag("--load-4bit", action="store_true"),
        flag("--use-flash-attn", action="store_true"),
        flag("--max-waiting", type=int, default=DEFAULT_WAITING, help="requests that may wait"),
        flag("--request-timeout", type=float, default=600.0, help="seconds for an answer; 0: any"),
        flag(
            "--max-kv-tokens",
            type=int,
            default=DEFAULT_KV_TOKENS,
            help="cached positions of all running requests; 0: no limit",
        ),
        prog="python -m llava.serve.model_worker",
    )


def run(args: argparse.Namespace, worker_id: str = "") -> None:
    """Loads the model and serves it until interrupted."""
    check_port_is_free(args.host, args.port)
    check_at_least(
        args, limit_model_concurrency=1, max_waiting=0, request_timeout=0, max_kv_tokens=0
    )
    if 0 < args.max_kv_tokens < BLOCK:
        raise ConfigError(
            f"--max-kv-tokens is {args.max_kv_tokens}; expected {BLOCK} or more, or 0"
        )
    if args.multi_modal:
        log.warning("--multi-modal is deprecated: the checkpoint itself says what it takes")
    started = time.monotonic()
    worker = ModelWorker(
        args.controller_address,
        args.worker_address,
        worker_id,
        args.no_register,
        args.model_path,
        args.model_base,
        args.model_name,
        args.load_8bit,
        args.load_4bit,
        args.device,
        args.use_flash_attn,
        limit_model_concurrency=args.limit_model_concurrency,
        max_waiting=args.max_waiting,
        request_timeout_s=args.request_timeout or None,
        max_kv_tokens=args.max_kv_tokens or None,
    )
    loaded = time.monotonic()
    worker.warm_up()
    log.info(
        "loaded %s in %.1f s, warmed up in %.1f s",
        worker.model_name,
        loaded - started,
        time.monotonic() - loaded,
    )
    serve(worker, args)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    run(*start("model_worker", build_parser(), argv))


if __name__ == "__main__":
    run_command(main)
