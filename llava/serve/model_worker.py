"""Serves one model: status, streamed generation, registration and heartbeats.

In: `/worker_generate_stream` with a templated prompt and base64 pictures. Out: the NUL-delimited
stream of `llava.serve.protocol`. Up to `--limit-model-concurrency` requests are answered in one
batch, up to `--max-waiting` wait, the others are told that the worker is busy. The model itself is
in `llava.serve.engine`, the batch in `llava.serve.batch`.

    python -m llava.serve.model_worker --model-path runs/mini
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import functools
import io
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

from PIL import Image
from starlette.concurrency import run_in_threadpool

from llava.errors import ConfigError, DataError, run_command
from llava.image_file import image_fault
from llava.image_fit import apply_orientation
from llava.serve.batch import BLOCK, Event, Failed, build_scheduler
from llava.serve.engine import Engine, GenerationRequest, load_engine
from llava.serve.pictures import FORMATS
from llava.serve.stream_encoder import Mailbox, StreamEncoder
from llava.serve.web import check_port_is_free
from llava.serve.worker_base import (
    DEFAULT_CONCURRENCY,
    DEFAULT_WAITING,
    WorkerBase,
    add_worker_flags,
    create_app,
    heart_beat_worker,
    new_worker_id,
    serve,
)
from llava.utils import build_logger

__all__ = ["ModelWorker", "app", "heart_beat_worker", "release_model_semaphore"]

log = logging.getLogger(__name__)

MAX_NEW_TOKENS = 1024
MAX_IMAGES = 32
# Width times height of a picture; LLaVA's clients and ours send far smaller ones.
MAX_PIXELS = 50_000_000
# Of keys and values: 16 requests of 2,048 positions, or 16 GiB of Vicuna-7B in float16.
DEFAULT_KV_TOKENS = 32_768
# Pieces that a reader may be behind with before it gets several in one object.
MAX_BACKLOG = 16
WARM_UP_PROMPT = "USER: {}Hello. ASSISTANT:"


class ModelWorker(WorkerBase):
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
        limit_model_concurrency: Requests that are answered at the same time.
        max_waiting: Requests that may wait beyond those.
        request_timeout_s: How long a request may take; None for any time.
        max_kv_tokens: Positions of keys and values of all that run; None for any number.
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
        self._mailbox: Mailbox | None = None  # made by the loop that serves
        self.scheduler = build_scheduler(
            self.engine,
            limit_model_concurrency,
            max_waiting,
            request_timeout_s,
            self.beat_soon,
            max_kv_tokens,
        )

    def get_queue_length(self) -> int:
        """Return how many requests generate or wait."""
        return self.scheduler.num_requests

    def get_status(self) -> dict[str, Any]:
        """Return the status; the last three keys are additions to LLaVA's."""
        config = self.engine.model.config
        return {
            **super().get_status(),
            "conversation": getattr(config, "conversation", None),
            "context_len": self.engine.context_len,
            "multimodal": self.engine.is_multimodal,
        }

    def drain(self, timeout_s: float) -> bool:
        """Take nothing new and wait until all requests are answered; whether they were."""
        return self.scheduler.drain(timeout_s)

    def close(self) -> None:
        """End the heartbeats and the scheduler."""
        self.stop()
        self.scheduler.close()

    def warm_up(self) -> None:
        """Answer a tiny request, so that the first user does not wait for what is only done once.

        Raises:
            Exception: What the model raises: better now than at the first request.
        """
        pictures = (Image.new("RGB", (64, 64)),) if self.engine.is_multimodal else ()
        prompt = WARM_UP_PROMPT.format("<image>\n" * len(pictures))
        request = GenerationRequest(prompt, pictures, temperature=0, max_new_tokens=2)
        for event in self.scheduler.stream(request):
            if isinstance(event, Failed):
                raise event.error

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
        encoder = StreamEncoder(params)
        try:
            for event in self.scheduler.stream(parse_request(params), cancel):
                if chunk := encoder.encode([event]):
                    yield chunk
        except Exception as error:
            yield encoder.encode([Failed(error)])

    async def answer(self, params: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """As `generate_stream`, without a thread; closing the generator cancels the request."""
        encoder = StreamEncoder(params)
        if self._mailbox is None:
            self._mailbox = Mailbox()
        events: asyncio.Queue[Event] = asyncio.Queue()
        sink = functools.partial(self._mailbox.put, events)
        ticket = None
        try:
            request = await run_in_threadpool(parse_request, params)
            ticket = self.scheduler.ticket(request, sink)
            await run_in_threadpool(self.scheduler.submit, ticket)
            while not encoder.is_complete:
                ready = [await events.get()]
                if events.qsize() > MAX_BACKLOG:
                    # A reader that is slow gets all that has come meanwhile at once.
                    ready += [events.get_nowait() for _ in range(events.qsize())]
                if chunk := encoder.encode(ready):
                    yield chunk
        except Exception as error:
            yield encoder.encode([Failed(error)])
        finally:
            if ticket is not None:
                ticket.cancel()


def parse_request(params: dict[str, Any]) -> GenerationRequest:
    """Check the body of a request.

    Args:
        params: `prompt`, and optionally `images` (base64), `temperature`, `top_p`,
            `max_new_tokens`, `stop`, `seed`.

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
    if len(encoded) > MAX_IMAGES:
        raise DataError(f"images has {len(encoded)} entries; expected up to {MAX_IMAGES}")
    seed = params.get("seed")
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
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{name} is {value!r:.80}; expected a number")
    return number


def _decode_image(encoded: Any, index: int) -> Image.Image:
    try:
        # Not with every decoder that PIL has: some of them run other programs.
        raw = io.BytesIO(base64.b64decode(encoded))
        image = Image.open(raw, formats=[*FORMATS, "BMP"])
        num_pixels = image.width * image.height
        if num_pixels > MAX_PIXELS:
            raise ValueError(f"{num_pixels:,} pixels; expected up to {MAX_PIXELS:,}")
        return apply_orientation(image)
    except Exception as error:  # decoders raise nearly everything at a hostile file
        raise DataError(f"images[{index}] is no picture: {image_fault(error)}") from error


app = create_app()


def release_model_semaphore(fn: Callable[[], None] | None = None) -> None:
    """Call `fn`; requests are counted by the scheduler, there is nothing to give back."""
    if fn is not None:
        fn()


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m llava.serve.model_worker", description=__doc__)
    add_worker_flags(parser)
    parser.add_argument("--model-path", default="facebook/opt-350m")
    parser.add_argument("--model-base")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--multi-modal", action="store_true", help="deprecated, has no effect")
    parser.add_argument("--load-8bit", action="store_true")
    parser.add_argument("--load-4bit", action="store_true")
    parser.add_argument("--use-flash-attn", action="store_true")
    parser.add_argument(
        "--max-waiting", type=int, default=DEFAULT_WAITING, help="requests that may wait"
    )
    parser.add_argument(
        "--request-timeout", type=float, default=600.0, help="seconds for an answer; 0: any"
    )
    parser.add_argument(
        "--max-kv-tokens",
        type=int,
        default=DEFAULT_KV_TOKENS,
        help="positions of keys and values of all running requests; 0: any number",
    )
    return parser


def run(args: argparse.Namespace, worker_id: str | None = None) -> None:
    """Load the model and serve it until interrupted."""
    check_port_is_free(args.host, args.port)
    at_least = {
        "limit_model_concurrency": 1, "max_waiting": 0, "request_timeout": 0, "max_kv_tokens": 0
    }  # fmt: skip
    for flag, least in at_least.items():
        if not getattr(args, flag) >= least:
            name = "--" + flag.replace("_", "-")
            raise ConfigError(f"{name} is {getattr(args, flag)}; expected {least} or more")
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
    serve(app, worker, args)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = build_parser().parse_args(argv)
    worker_id = new_worker_id()
    build_logger("model_worker", f"model_worker_{worker_id}.log")
    run(args, worker_id)


if __name__ == "__main__":
    run_command(main)
