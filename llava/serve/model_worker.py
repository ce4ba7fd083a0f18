"""Serves one model: status, streamed generation, registration and heartbeats.

In: `/worker_generate_stream` with a templated prompt and base64 pictures. Out: the NUL-delimited
stream of `llava.serve.protocol`. Requests beyond `--limit-model-concurrency` wait. The model itself
is in `llava.serve.engine`.

    python -m llava.serve.model_worker --model-path runs/mini
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import requests
import torch
from fastapi import APIRouter, FastAPI, Request
from PIL import Image, UnidentifiedImageError
from starlette.responses import Response

from llava.constants import WORKER_HEART_BEAT_INTERVAL
from llava.errors import DataError, UserError
from llava.mm_utils import load_image_from_base64
from llava.serve.engine import (
    ContextFull,
    Engine,
    GenerationRequest,
    load_engine,
)
from llava.serve.protocol import (
    CONNECT_TIMEOUT_S,
    GENERATION_FAILED,
    TOO_LONG_MESSAGE,
    encode_chunk,
    encode_error,
)
from llava.serve.web import ClosingStream, check_port_is_free, run_command, run_server
from llava.utils import build_logger

log = logging.getLogger(__name__)

MAX_NEW_TOKENS = 1024
RETRY_INTERVAL_S = 5.0
DEFAULT_CONCURRENCY = 5


class ModelWorker:
    """One model behind the wire protocol.

    Args:
        controller_addr: URL of the controller.
        worker_addr: URL under which the controller and the clients reach this worker.
        worker_id: Short random name for logs.
        no_register: Stay unknown to the controller.
        model_path: Checkpoint folder or Hub name.
        model_base: Base model of a LoRA or projector-only checkpoint.
        model_name: Name to serve it under; by default from the path.
        load_8bit: Quantise to 8 bits.
        load_4bit: Quantise to 4 bits.
        device: Where to run.
        use_flash_attn: Use flash-attention 2.
        engine: A loaded model, in place of loading `model_path`.
        limit_model_concurrency: Requests that generate at the same time.
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
    ) -> None:
        self.controller_addr = controller_addr
        self.worker_addr = worker_addr
        self.worker_id = worker_id
        self.no_register = no_register
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
        self.semaphore = asyncio.Semaphore(limit_model_concurrency)
        self._num_requests = 0
        self._stopped = threading.Event()
        self._beat_now = threading.Event()

    def start(self) -> None:
        """Register with the controller and send heartbeats from a thread, unless told not to."""
        if self.no_register:
            return
        threading.Thread(target=heart_beat_worker, args=(self,), daemon=True).start()

    def stop(self) -> None:
        """End the heartbeats."""
        self._stopped.set()
        self._beat_now.set()

    def register_to_controller(self) -> None:
        """Tell the controller of this worker.

        Raises:
            requests.RequestException: The controller does not answer.
        """
        body = {
            "worker_name": self.worker_addr,
            "check_heart_beat": True,
            "worker_status": self.get_status(),
        }
        response = requests.post(
            self.controller_addr + "/register_worker", json=body, timeout=CONNECT_TIMEOUT_S
        )
        response.raise_for_status()
        log.info("registered %s with %s", self.model_name, self.controller_addr)

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

    def get_queue_length(self) -> int:
        """Return how many requests generate or wait."""
        return self._num_requests

    def get_status(self) -> dict[str, Any]:
        """Return the status; `conversation` and `context_len` are additions to LLaVA's keys."""
        config = self.engine.model.config
        return {
            "model_names": [self.model_name],
            "speed": 1,
            "queue_length": self.get_queue_length(),
            "conversation": getattr(config, "conversation", None),
            "context_len": self.engine.context_len,
            "multimodal": self.engine.is_multimodal,
        }

    async def acquire(self) -> None:
        """Wait for a slot to generate in."""
        self._num_requests += 1
        self._beat_now.set()
        try:
            await self.semaphore.acquire()
        except BaseException:
            self._num_requests -= 1
            raise

    def release(self) -> None:
        """Give the slot back."""
        self._num_requests -= 1
        self.semaphore.release()
        self._beat_now.set()

    def wait_for_next_beat(self, seconds: float) -> bool:
        """Wait until a heartbeat is due, by time or by a change of the queue.

        Returns:
            False when the worker has been stopped.
        """
        self._beat_now.wait(seconds)
        self._beat_now.clear()
        return not self._stopped.is_set()

    def generate_stream(
        self, params: dict[str, Any], cancel: threading.Event | None = None
    ) -> Iterator[bytes]:
        """Answer one request; an error ends the stream with code 1 and its cause.

        Args:
            params: Body of `/worker_generate_stream`.
            cancel: Set it to end the generation.

        Yields:
            Encoded objects, each with the prompt and everything generated so far.
        """
        try:
            request = parse_request(params)
            text = request.prompt
            for piece in self.engine.stream(request, cancel):
                text += piece
                yield encode_chunk(text)
            if text == request.prompt:  # an empty answer is an answer
                yield encode_chunk(text)
        except ContextFull:
            yield encode_chunk(request.prompt + TOO_LONG_MESSAGE)
        except UserError as error:
            log.error("refused a request: %s", error)
            yield encode_error(GENERATION_FAILED, str(error))
        except torch.OutOfMemoryError:
            log.exception("out of memory")
            yield encode_error(GENERATION_FAILED, "the worker ran out of memory")
        except Exception as error:
            log.exception("the generation failed")
            reason = f"the generation failed ({type(error).__name__}); see the worker's log"
            yield encode_error(GENERATION_FAILED, reason)


def heart_beat_worker(worker: ModelWorker) -> None:
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


def parse_request(params: dict[str, Any]) -> GenerationRequest:
    """Check the body of a request.

    Args:
        params: `prompt`, and optionally `images` (base64), `temperature`, `top_p`,
            `max_new_tokens`, `stop`.

    Returns:
        The request, with `max_new_tokens` capped at 1024.

    Raises:
        DataError: A value is missing or wrong; the text names it.
    """
    prompt = params.get("prompt")
    if not isinstance(prompt, str):
        raise DataError(f"prompt is {type(prompt).__name__}; expected text")
    stop = params.get("stop")
    if stop is not None and not isinstance(stop, str):
        raise DataError(f"stop is {type(stop).__name__}; expected text or null")
    encoded = params.get("images") or []
    if not isinstance(encoded, list):
        raise DataError(f"images is {type(encoded).__name__}; expected a list of base64 texts")
    return GenerationRequest(
        prompt=prompt,
        images=tuple(_decode_image(image, index) for index, image in enumerate(encoded)),
        temperature=_number(params, "temperature", 1.0),
        top_p=_number(params, "top_p", 1.0),
        max_new_tokens=min(int(_number(params, "max_new_tokens", 256)), MAX_NEW_TOKENS),
        stop=stop,
    )


def _number(params: dict[str, Any], name: str, default: float) -> float:
    value = params.get(name, default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{name} is {value!r}; expected a number")
    return number


def _decode_image(encoded: Any, index: int) -> Image.Image:
    try:
        image = load_image_from_base64(encoded)
        image.load()
    except (
        ValueError,
        TypeError,
        OSError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(f"images[{index}] is no picture: {error}") from error
    return image


router = APIRouter()


@router.post("/worker_generate_stream")
async def generate_stream(params: dict[str, Any], request: Request) -> Response:
    """Generate; the generation ends when the client goes."""
    worker: ModelWorker = request.app.state.worker
    await worker.acquire()
    cancel = threading.Event()

    def close() -> None:
        cancel.set()
        worker.release()

    return ClosingStream(worker.generate_stream(params, cancel), on_close=close)


@router.post("/worker_get_status")
async def get_status(request: Request) -> dict[str, Any]:
    """Return the status."""
    return request.app.state.worker.get_status()


def create_app(worker: ModelWorker | None = None) -> FastAPI:
    """Build the web application around a worker; `main` sets `app.state.worker` later."""
    application = FastAPI(title="LLaVA model worker")
    application.include_router(router)
    application.state.worker = worker
    return application


app = create_app()


def release_model_semaphore(fn: Callable[[], None] | None = None) -> None:
    """Give back the slot of the worker of `app`, then call `fn`."""
    app.state.worker.release()
    if fn is not None:
        fn()


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m llava.serve.model_worker", description=__doc__)
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=21002)
    parser.add_argument("--worker-address", default="http://localhost:21002")
    parser.add_argument("--controller-address", default="http://localhost:21001")
    parser.add_argument("--model-path", default="facebook/opt-350m")
    parser.add_argument("--model-base")
    parser.add_argument("--model-name")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--multi-modal", action="store_true", help="deprecated, has no effect")
    parser.add_argument("--limit-model-concurrency", type=int, default=DEFAULT_CONCURRENCY)
    parser.add_argument("--stream-interval", type=int, default=1, help="has no effect")
    parser.add_argument("--no-register", action="store_true")
    parser.add_argument("--load-8bit", action="store_true")
    parser.add_argument("--load-4bit", action="store_true")
    parser.add_argument("--use-flash-attn", action="store_true")
    return parser


def run(args: argparse.Namespace, worker_id: str | None = None) -> None:
    """Load the model and serve it until interrupted."""
    check_port_is_free(args.host, args.port)
    if args.multi_modal:
        log.warning("--multi-modal is deprecated: the checkpoint itself says what it takes")
    started = time.monotonic()
    worker = ModelWorker(
        args.controller_address,
        args.worker_address,
        worker_id or new_worker_id(),
        args.no_register,
        args.model_path,
        args.model_base,
        args.model_name,
        args.load_8bit,
        args.load_4bit,
        args.device,
        args.use_flash_attn,
        limit_model_concurrency=args.limit_model_concurrency,
    )
    log.info("loaded %s in %.1f s", worker.model_name, time.monotonic() - started)
    app.state.worker = worker
    worker.start()
    run_server(app, args.host, args.port)


def new_worker_id() -> str:
    """Return a short random name for a worker."""
    return uuid.uuid4().hex[:6]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = build_parser().parse_args(argv)
    worker_id = new_worker_id()
    build_logger("model_worker", f"model_worker_{worker_id}.log")
    run(args, worker_id)


if __name__ == "__main__":
    run_command(main)
