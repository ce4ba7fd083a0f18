"""OpenAI's chat API in front of a controller: `/v1/models`, `/v1/chat/completions`.

In: requests as the `openai` client sends them, with text and pictures. Out: its answers, whole or
streamed, and its errors. It speaks LLaVA's protocol to controller and workers, so it works with
LLaVA's own, too. `/health` and `/metrics` are for those who run it. It holds no model, keeps no
picture and logs no contents.

    python -m llava.serve.openai_api --controller-address http://localhost:21001 --port 8000
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import hmac
import json
import logging
import os
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import APIRouter, FastAPI, Request
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from llava.errors import ConfigError, run_command
from llava.serve.check import check_port_is_free, find_problems
from llava.serve.openai_chat import (
    ApiError,
    AsyncClient,
    ChatAnswer,
    ChatRequest,
    Piece,
    parse_chat_request,
    read_pictures,
)
from llava.serve.web import (
    BodyRefused,
    ClientGone,
    ClosingStream,
    ImageLimits,
    RateLimiter,
    read_body,
    run_server,
    until_gone,
)
from llava.utils import build_logger, moderation_msg, violates_moderation

log = logging.getLogger(__name__)

KEYS_VARIABLE = "LRM_API_KEYS"
SERVER_FAILED = "the server failed; its log says why"


_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


def read_api_keys(path: Path | None) -> tuple[str, ...]:
    """Read the keys: a file with one a line, or the variable `LRM_API_KEYS` (comma-separated).

    Returns:
        The keys; none lets everybody in.

    Raises:
        ConfigError: The file cannot be read or holds no key.
    """
    if path is None:
        return tuple(key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {path}: {error}") from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"--api-key-file {path} holds no key: write one a line")
    return keys


@dataclass(frozen=True)
class Admission:
    """Decides who may send a request, and how often.

    Attributes:
        keys: Valid API keys; none lets everybody in.
        limiter: How often a client may ask.
    """

    keys: tuple[str, ...] = ()
    limiter: RateLimiter = field(default_factory=lambda: RateLimiter(0))

    def check_key(self, authorization: str | None, address: str) -> str:
        """Return the client's name: of its key, or its address where no keys are asked for.

        Raises:
            ApiError: 401, the key is missing or wrong.
        """
        if not self.keys:
            return address
        scheme, _, given = (authorization or "").partition(" ")
        found = scheme.lower() == "bearer" and any(
            [hmac.compare_digest(given.strip().encode(), key.encode()) for key in self.keys]
        )
        if not found:
            what = "Incorrect API key provided." if authorization else "No API key was given."
            raise ApiError(401, f"{what} Send 'Authorization: Bearer KEY'.", code="invalid_api_key")
        return "key-" + hashlib.sha256(given.strip().encode()).hexdigest()[:12]

    def count(self, client: str) -> None:
        """Count a client's request.

        Raises:
            ApiError: 429, with the seconds after which it is worth trying again.
        """
        if wait_s := self.limiter.take(client):
            raise ApiError(
                429,
                f"more than {self.limiter.per_minute} requests a minute",
                code="rate_limit_exceeded",
                kind="requests",
                retry_after_s=wait_s,
            )


class Metrics:
    """The figures of one API, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "lrm_api_requests", "Answered requests", ["status"], registry=self.registry
        )
        self.running = Gauge(
            "lrm_api_running_requests", "Requests that are being answered", registry=self.registry
        )
        self.tokens = Counter(
            "lrm_api_tokens", "Tokens that workers counted", ["kind"], registry=self.registry
        )
        self.pictures = Counter("lrm_api_pictures", "Pictures read", registry=self.registry)
        self.first_token = Histogram(
            "lrm_api_first_token_seconds",
            "From the request to the first text",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "lrm_api_request_seconds",
            "From the request to the end of the answer",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """Return the figures as Prometheus reads them."""
        return generate_latest(self.registry)


class Reply:
    """What is known of a request and its answers."""

    def __init__(self) -> None:
        self.id = "chatcmpl-" + uuid.uuid4().hex
        self.started = time.monotonic()
        self.created = int(time.time())
        self.status = 200
        self.error: str | None = None
        self.client = ""
        self.model = ""
        self.num_choices = 1
        self.num_pictures = 0
        self.streams = False
        self.is_closed = False
        self.first_text_s: float | None = None
        self._include_usage = False
        self._texts: dict[int, list[str]] = {}
        self._reasons: dict[int, str] = {}
        self._usages: dict[int, tuple[int, int]] = {}

    def begin(self, chat: ChatRequest) -> None:
        """Take note of what was asked for."""
        self.model = chat.model
        self.num_choices = chat.n or 1
        self.streams = bool(chat.stream)
        options = chat.stream_options
        self._include_usage = bool(options and options.include_usage)
        self._texts = {choice: [] for choice in range(self.num_choices)}

    def add(self, piece: Piece) -> None:
        """Add a piece to its answer."""
        if piece.text and self.first_text_s is None:
            self.first_text_s = time.monotonic() - self.started
        if not self.streams:
            self._texts[piece.choice].append(piece.text)
        if piece.finish_reason is not None:
            self._reasons[piece.choice] = piece.finish_reason
        if piece.usage is not None:
            self._usages[piece.choice] = piece.usage

    @property
    def usage(self) -> tuple[int, int] | None:
        """Tokens of the prompt, counted once, and of all answers; None if a worker does not say."""
        if not self._usages or len(self._usages) < self.num_choices:
            return None
        prompts, answers = zip(*self._usages.values(), strict=True)
        return max(prompts), sum(answers)

    def _usage_json(self) -> dict[str, int] | None:
        if self.usage is None:
            return None
        prompt, completion = self.usage
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def completion(self) -> dict[str, Any]:
        """Return the whole reply."""
        choices = [
            {
                "index": choice,
                "message": {"role": "assistant", "content": "".join(texts), "refusal": None},
                "logprobs": None,
                "finish_reason": self._reasons.get(choice, "stop"),
            }
            for choice, texts in self._texts.items()
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage_json()}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _event(self, choices: list[dict[str, Any]], **extra: Any) -> bytes:
        body = {**self._head("chat.completion.chunk"), "choices": choices, **extra}
        if self._include_usage:
            body.setdefault("usage", None)
        return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"

    def _delta(self, choice: int, delta: dict[str, str], reason: str | None = None) -> bytes:
        return self._event(
            [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}]
        )

    def opening(self) -> Iterator[bytes]:
        """Yield the events that say who speaks."""
        for choice in range(self.num_choices):
            yield self._delta(choice, {"role": "assistant", "content": ""})

    def events(self, piece: Piece) -> Iterator[bytes]:
        """Add a piece; yield its events."""
        self.add(piece)
        if piece.text:
            yield self._delta(piece.choice, {"content": piece.text})
        if piece.finish_reason is not None:
            yield self._delta(piece.choice, {}, piece.finish_reason)

    def closing(self) -> Iterator[bytes]:
        """Yield the usage, where it was asked for, and the end."""
        if self._include_usage:
            yield self._event([], usage=self._usage_json())
        self.is_closed = True
        yield b"data: [DONE]\n\n"

    def record(self, seconds: float) -> dict[str, Any]:
        """Return the line of the log."""
        first = None if self.first_text_s is None else round(self.first_text_s, 3)
        return {
            "id": self.id,
            "status": self.status,
            "error": self.error,
            "client": self.client,
            "model": self.model[:80],
            "stream": self.streams,
            "choices": self.num_choices,
            "pictures": self.num_pictures,
            "tokens": self.usage,
            "first_text_s": first,
            "seconds": round(seconds, 3),
        }


@dataclass
class ApiSettings:
    """How an API behaves.

    Attributes:
        controller: The controller's URL.
        pictures: What pictures may be.
        admission: Who may ask, and how often.
        max_body_bytes: Size of a request.
        max_requests: Requests that are answered at the same time.
        moderate: Ask OpenAI's moderation service about each question, as LLaVA's page does.
    """

    controller: str
    pictures: ImageLimits = field(default_factory=ImageLimits)
    admission: Admission = field(default_factory=Admission)
    max_body_bytes: int = 32 * 2**20
    max_requests: int = 256
    moderate: bool = False


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m llava.serve.openai_api", description=__doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000)
    add("--controller-address", default="http://localhost:21001")
    add("--api-key-file", type=Path, help="one key a line; LRM_API_KEYS holds them otherwise")
    add("--rate-limit", type=int, default=0, help="requests a minute and client; 0: any")
    add("--max-requests", type=int, default=256, help="answered at the same time")
    add("--max-body-mib", type=int, default=32, help="size of a request")
    add("--max-images", type=int, default=8, help="pictures in a request")
    add("--max-image-mib", type=int, default=10, help="size of a picture's file")
    add("--max-image-pixels", type=int, default=25_000_000, help="width times height")
    add(
        "--allow-url-host",
        action="append",
        default=[],
        metavar="HOST",
        help="fetch pictures from this host (several times for several); none: data URLs only",
    )
    add("--fetch-timeout", type=float, default=10.0, help="seconds for a picture by URL")
    add("--moderate", action="store_true", help="ask OpenAI's moderation (OPENAI_API_KEY)")
    add(
        "--forwarded-allow-ips",
        default="",
        help="proxies whose X-Forwarded-For says who the client is",
    )
    return parser


def settings_from(args: argparse.Namespace) -> ApiSettings:
    """Turn flags into settings.

    Raises:
        ConfigError: A number is below its least value, or the key file is no key file.
    """
    for name in ("max_requests", "max_body_mib", "max_images", "max_image_mib", "fetch_timeout"):
        if getattr(args, name) <= 0:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is {getattr(args, name)}; expected a number above 0")
    pictures = ImageLimits(
        max_bytes=args.max_image_mib * 2**20,
        max_pixels=args.max_image_pixels,
        max_images=args.max_images,
        url_hosts=frozenset(host.lower() for host in args.allow_url_host),
        fetch_timeout_s=args.fetch_timeout,
    )
    admission = Admission(read_api_keys(args.api_key_file), RateLimiter(max(0, args.rate_limit)))
    return ApiSettings(
        args.controller_address.rstrip("/"),
        pictures,
        admission,
        args.max_body_mib * 2**20,
        args.max_requests,
        args.moderate,
    )


class Api:
    """The state of a running API."""

    def __init__(self, settings: ApiSettings) -> None:
        self.settings = settings
        self.client = AsyncClient(settings.controller)
        self.metrics = Metrics()
        self.started = int(time.time())
        self.num_running = 0

    def enter(self) -> None:
        """Count a request in.

        Raises:
            ApiError: 503, too many are being answered.
        """
        if self.num_running >= self.settings.max_requests:
            raise ApiError(
                503,
                f"{self.num_running} requests are being answered, which is all that fits; "
                "try again",
                code="overloaded",
                retry_after_s=1,
            )
        self.num_running += 1
        self.metrics.running.inc()

    def leave(self, reply: Reply) -> None:
        """Count a request out and write its line into the log."""
        self.num_running -= 1
        self.metrics.running.dec()
        self.count(reply)

    def count(self, reply: Reply) -> None:
        """Add a request to figures and log."""
        seconds = time.monotonic() - reply.started
        self.metrics.requests.labels(str(reply.status)).inc()
        self.metrics.duration.observe(seconds)
        if reply.first_text_s is not None:
            self.metrics.first_token.observe(reply.first_text_s)
        self.metrics.pictures.inc(reply.num_pictures)
        if reply.usage is not None:
            for kind, number in zip(("prompt", "completion"), reply.usage, strict=True):
                self.metrics.tokens.labels(kind).inc(number)
        log.info("%s", json.dumps(reply.record(seconds), ensure_ascii=False))


async def _read_json(request: Request, limit: int) -> Any:
    """Read a bounded body.

    Raises:
        ApiError: It is too large, too slow or not JSON.
    """
    try:
        body = await read_body(request, limit)
    except BodyRefused as error:
        code = "request_too_large" if error.status == 413 else None
        raise ApiError(error.status, str(error), code=code) from None

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON number")

    try:
        return json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise ApiError(400, f"the body is not valid JSON: {reason}", code="invalid_json") from None


router = APIRouter()


def _api(request: Request) -> Api:
    return request.app.state.api


def _admit(request: Request) -> str:
    """Return the client's name.

    Raises:
        ApiError: It may not ask, or not now.
    """
    admission = _api(request).settings.admission
    address = request.client.host if request.client else ""
    return admission.check_key(request.headers.get("authorization"), address)


@router.get("/health")
async def health(request: Request) -> Response:
    """Say whether a model can be asked: 200 or 503."""
    try:
        models = await _api(request).client.list_models()
    except (httpx.HTTPError, ValueError, KeyError):
        return JSONResponse({"status": "the controller does not answer"}, 503)
    if not models:
        return JSONResponse({"status": "no worker has registered", "models": []}, 503)
    return JSONResponse({"status": "ok", "models": models})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Return the figures for Prometheus."""
    _admit(request)
    return Response(_api(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def _models(request: Request) -> list[dict[str, Any]]:
    _admit(request)
    try:
        names = await _api(request).client.list_models()
    except (httpx.HTTPError, ValueError, KeyError):
        raise ApiError(
            503, "the controller does not answer", code="no_controller", retry_after_s=5
        ) from None
    created = _api(request).started
    return [
        {"id": name, "object": "model", "created": created, "owned_by": "llava"} for name in names
    ]


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """List the models."""
    return {"object": "list", "data": await _models(request)}


@router.get("/v1/models/{name:path}")
async def get_model(name: str, request: Request) -> dict[str, Any]:
    """Return one model."""
    for model in await _models(request):
        if model["id"] == name:
            return model
    raise ApiError(404, f"The model {name[:80]!r} does not exist", "model", "model_not_found")


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """Answer a conversation, whole or streamed."""
    api, reply = _api(request), Reply()
    entered = streaming = False
    try:
        reply.client = _admit(request)
        api.settings.admission.count(reply.client)
        api.enter()
        entered = True
        pieces = await _pieces(api, request, reply)
        try:
            first = await until_gone(request, anext(pieces))
            if reply.streams:
                streaming = True
                return _stream(api, reply, first, pieces)
            reply.add(first)
            await until_gone(request, _collect(reply, pieces))
            return JSONResponse(reply.completion())
        finally:
            if not streaming:
                await pieces.aclose()
    except ApiError as error:
        reply.status, reply.error = error.status, error.code or error.kind
        raise
    except ClientGone:
        reply.status, reply.error = 499, "client_gone"
        return Response(status_code=499)
    except Exception as error:
        reply.status, reply.error = 500, type(error).__name__
        raise
    finally:
        if entered and not streaming:
            api.leave(reply)
        elif not entered:
            api.count(reply)


async def _pieces(api: Api, request: Request, reply: Reply) -> AsyncGenerator[Piece, None]:
    """Check a request and begin to answer it."""
    settings = api.settings
    chat = parse_chat_request(await _read_json(request, settings.max_body_bytes))
    reply.begin(chat)
    if settings.moderate:
        text = "\n".join(message.text() for message in chat.messages if message.role == "user")
        if await run_in_threadpool(violates_moderation, text):
            raise ApiError(400, moderation_msg, "messages", "content_policy_violation")
    pictures = await until_gone(request, read_pictures(chat.messages, settings.pictures))
    reply.num_pictures = len(pictures)
    return ChatAnswer(api.client, chat, pictures).pieces()


async def _collect(reply: Reply, pieces: AsyncGenerator[Piece, None]) -> None:
    async for piece in pieces:
        reply.add(piece)


def _stream(api: Api, reply: Reply, first: Piece, pieces: AsyncGenerator[Piece, None]) -> Response:
    async def close() -> None:
        if not reply.is_closed and reply.error is None:
            reply.status, reply.error = 499, "client_gone"
        api.leave(reply)
        await pieces.aclose()

    return ClosingStream(
        _events(reply, first, pieces),
        close,
        {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        "text/event-stream",
    )


async def _events(
    reply: Reply, first: Piece, pieces: AsyncGenerator[Piece, None]
) -> AsyncIterator[bytes]:
    """Yield server-sent events; what fails after the first piece is one of them."""
    try:
        for event in (*reply.opening(), *reply.events(first)):
            yield event
        async for piece in pieces:
            for event in reply.events(piece):
                yield event
        for event in reply.closing():
            yield event
    except Exception as error:
        if not isinstance(error, ApiError):
            log.exception("a stream failed")
            error = ApiError(500, SERVER_FAILED)
        reply.status, reply.error = error.status, error.code or error.kind
        yield b"data: " + json.dumps(error.body()).encode() + b"\n\n"


async def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        what = f"Invalid URL ({request.method} {request.url.path[:200]})"
        error = ApiError(error.status_code, what)
    elif not isinstance(error, ApiError):
        error = ApiError(500, SERVER_FAILED)
    return JSONResponse(error.body(), error.status, headers=error.headers())


def create_app(settings: ApiSettings) -> FastAPI:
    """Build the web application. Pages of other origins may not use it: no CORS header is sent."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await app.state.api.client.aclose()

    application = FastAPI(
        title="LLaVA", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    application.include_router(router)
    application.state.api = Api(settings)
    for kind in (ApiError, HTTPException, Exception):
        application.add_exception_handler(kind, _on_error)
    return application


def run(args: argparse.Namespace) -> None:
    """Serve until interrupted."""
    proxies = args.forwarded_allow_ips
    settings = settings_from(args)
    app = create_app(settings)
    check_port_is_free(args.host, args.port)
    for problem in find_problems(settings.controller):
        log.warning("%s", problem)
    options = {"proxy_headers": bool(proxies), "forwarded_allow_ips": proxies or None}
    run_server(app, args.host, args.port, **options)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = build_parser().parse_args(argv)
    build_logger("openai_api", "openai_api.log")
    run(args)


if __name__ == "__main__":
    run_command(main)
