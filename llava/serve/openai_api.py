"""OpenAI's chat API in front of a controller: `/v1/models`, `/v1/chat/completions`.

In: requests as the `openai` client sends them, with text and images. Out: replies, whole or
streamed, and errors in OpenAI's format. The API speaks LLaVA's protocol to controller and workers,
so it works with LLaVA's own, too. `/health` and `/metrics` are for operators. The API holds no
model, keeps no image and logs no contents.

    python -m llava.serve.openai_api --controller-address http://localhost:21001 --port 8000
"""

from __future__ import annotations

import argparse
import contextlib
import functools
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

from llava.errors import ConfigError, flag, make_parser, run_command
from llava.serve.check import check_at_least, check_port_is_free, find_problems
from llava.serve.openai_chat import (
    ApiError,
    AsyncClient,
    ChatAnswer,
    ChatRequest,
    Piece,
    parse_chat_request,
    read_images,
)
from llava.serve.web import (
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
    """Reads the API keys.

    Args:
        path: File with one key a line; None for the variable `LRM_API_KEYS` (comma-separated).

    Returns:
        The keys; without any, everybody is let in.

    Raises:
        ConfigError: If the file cannot be read or holds no key.
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


class CompletionReply:
    """Collects the answers to a request; writes the reply, a stream's events and the log line."""

    def __init__(self) -> None:
        self.id = "chatcmpl-" + uuid.uuid4().hex
        self.started = time.monotonic()
        self.created = int(time.time())
        self.status = 200
        self.error: str | None = None
        self.client = ""
        self.chat = ChatRequest.model_construct(model="", messages=[])  # until it is known
        self.num_images = 0
        self.first_text_s: float | None = None
        self._pieces: list[Piece] = []

    def fail(self, error: Exception) -> ApiError:
        """Notes why there is no complete answer; returns the error for the client."""
        api_error = _as_api_error(error)
        kind = api_error.kind if error is api_error else type(error).__name__
        self.status, self.error = api_error.status, api_error.code or kind
        return api_error

    def add(self, piece: Piece) -> None:
        """Adds a piece of an answer."""
        if piece.text and self.first_text_s is None:
            self.first_text_s = time.monotonic() - self.started
        self._pieces.append(piece)

    @property
    def usage(self) -> dict[str, int] | None:
        """Tokens of the prompt and of all answers; None if a worker does not count them."""
        usages = {piece.choice: piece.usage for piece in self._pieces if piece.usage is not None}
        if len(usages) < self.chat.n:
            return None
        prompts, answers = zip(*usages.values(), strict=True)
        prompt, completion = max(prompts), sum(answers)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _json(self, kind: str, choices: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.chat.model}
        return {**head, "choices": choices, **extra}

    def completion(self) -> dict[str, Any]:
        """Returns the whole reply."""
        choices = []
        for index in range(self.chat.n):
            pieces = [piece for piece in self._pieces if piece.choice == index]
            content = "".join(piece.text for piece in pieces)
            message = {"role": "assistant", "content": content, "refusal": None}
            reason = next((p.finish_reason for p in pieces if p.finish_reason), "stop")
            choices.append(_choice(index, "message", message, reason))
        return self._json("chat.completion", choices, usage=self.usage)

    def _event(self, *choices: dict[str, Any], usage: dict[str, int] | None = None) -> bytes:
        extra = {"usage": usage} if self.chat.stream_options.include_usage else {}
        return _server_sent(self._json("chat.completion.chunk", list(choices), **extra))

    async def collect(self, pieces: AsyncIterator[Piece]) -> None:
        """Adds all pieces."""
        async for piece in pieces:
            self.add(piece)

    async def events(
        self, piece: Piece | None, rest: AsyncGenerator[Piece, None]
    ) -> AsyncGenerator[bytes, None]:
        """Yields server-sent events; an error after the first piece is one of them.

        Args:
            piece: The first piece.
            rest: The other pieces.
        """
        try:
            for index in range(self.chat.n):
                yield self._event(_choice(index, "delta", {"role": "assistant", "content": ""}))
            while piece is not None:
                self.add(piece)
                if piece.text:
                    yield self._event(_choice(piece.choice, "delta", {"content": piece.text}))
                if piece.finish_reason is not None:
                    yield self._event(_choice(piece.choice, "delta", {}, piece.finish_reason))
                piece = await anext(rest, None)
            if self.chat.stream_options.include_usage:
                yield self._event(usage=self.usage)
            self.status, self.error = 200, None
            yield b"data: [DONE]\n\n"
        except Exception as error:
            if not isinstance(error, ApiError):
                log.exception("a stream failed")
            yield _server_sent(self.fail(error).body())

    def record(self, seconds: float) -> dict[str, Any]:
        """Returns the log line."""
        first, usage = self.first_text_s, self.usage
        return {
            "id": self.id,
            "status": self.status,
            "error": self.error,
            "client": self.client,
            "model": self.chat.model[:80],
            "stream": self.chat.stream,
            "choices": self.chat.n,
            "pictures": self.num_images,
            "tokens": usage and [usage["prompt_tokens"], usage["completion_tokens"]],
            "first_text_s": None if first is None else round(first, 3),
            "seconds": round(seconds, 3),
        }


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ClientGone):
        return ApiError(499, "the client hung up", code="client_gone")
    return ApiError(500, SERVER_FAILED)


def _choice(index: int, key: str, value: Any, reason: str | None = None) -> dict[str, Any]:
    return {"index": index, key: value, "logprobs": None, "finish_reason": reason}


def _server_sent(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


@dataclass
class ApiSettings:
    """Settings of an API.

    Attributes:
        controller: URL of the controller.
        pictures: Limits of images.
        keys: Valid API keys; without any, everybody is let in.
        per_minute: Requests per minute and client; 0 for no limit.
        max_body_bytes: Maximum size of a request.
        max_requests: Maximum number of requests that are answered at the same time.
        moderate: Ask OpenAI's moderation service about each question, as LLaVA's page does.
    """

    controller: str
    pictures: ImageLimits = field(default_factory=ImageLimits)
    keys: tuple[str, ...] = ()
    per_minute: int = 0
    max_body_bytes: int = 32 * 2**20
    max_requests: int = 256
    moderate: bool = False


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line."""
    return make_parser(
        __doc__,
        flag("--host", default="127.0.0.1"),
        flag("--port", type=int, default=8000),
        flag("--controller-address", default="http://localhost:21001"),
        flag("--api-key-file", type=Path, help="one key a line; LRM_API_KEYS holds them otherwise"),
        flag("--rate-limit", type=int, default=0, help="requests a minute and client; 0: any"),
        flag("--max-requests", type=int, default=256, help="answered at the same time"),
        flag("--max-body-mib", type=int, default=32, help="size of a request"),
        flag("--max-images", type=int, default=8, help="images in a request"),
        flag("--max-image-mib", type=int, default=10, help="size of an image file"),
        flag("--max-image-pixels", type=int, default=25_000_000, help="width times height"),
        flag(
            "--allow-url-host",
            action="append",
            default=[],
            metavar="HOST",
            help="fetch images from this host (may be repeated); none: data URLs only",
        ),
        flag("--fetch-timeout", type=float, default=10.0, help="seconds to fetch an image by URL"),
        flag("--moderate", action="store_true", help="ask OpenAI's moderation (OPENAI_API_KEY)"),
        flag(
            "--forwarded-allow-ips",
            default="",
            help="proxies whose X-Forwarded-For says who the client is",
        ),
        prog="python -m llava.serve.openai_api",
    )


def settings_from(args: argparse.Namespace) -> ApiSettings:
    """Turns flags into settings.

    Raises:
        ConfigError: If a number is too small, or the key file holds no keys.
    """
    check_at_least(args, max_requests=1, max_body_mib=1, max_images=1, max_image_mib=1)
    if not args.fetch_timeout > 0:
        raise ConfigError(f"--fetch-timeout is {args.fetch_timeout}; expected a number above 0")
    return ApiSettings(
        args.controller_address.rstrip("/"),
        ImageLimits(
            max_bytes=args.max_image_mib * 2**20,
            max_pixels=args.max_image_pixels,
            max_images=args.max_images,
            url_hosts=frozenset(host.lower() for host in args.allow_url_host),
            fetch_timeout_s=args.fetch_timeout,
        ),
        read_api_keys(args.api_key_file),
        max(0, args.rate_limit),
        args.max_body_mib * 2**20,
        args.max_requests,
        args.moderate,
    )


class Api:
    """The state of a running API, with its own metrics registry."""

    def __init__(self, settings: ApiSettings) -> None:
        self.settings = settings
        self.client = AsyncClient(settings.controller)
        self.started = int(time.time())
        self.num_running = 0
        self.limiter = RateLimiter(settings.per_minute)
        self.registry = CollectorRegistry()
        counter = functools.partial(Counter, registry=self.registry)
        seconds = functools.partial(Histogram, registry=self.registry, buckets=_SECONDS)
        running = Gauge(
            "lrm_api_running_requests", "Requests that are being answered", registry=self.registry
        )
        running.set_function(lambda: self.num_running)
        self._requests = counter("lrm_api_requests", "Answered requests", ["status"])
        self._tokens = counter("lrm_api_tokens", "Tokens that workers counted", ["kind"])
        self._images = counter("lrm_api_pictures", "Pictures read")
        self._first_token = seconds(
            "lrm_api_first_token_seconds", "From the request to the first text"
        )
        self._duration = seconds(
            "lrm_api_request_seconds", "From the request to the end of the answer"
        )

    def check_key(self, request: Request) -> str:
        """Returns the client's name: a hash of its key, or its address if there are no keys.

        Raises:
            ApiError: 401 if the key is missing or wrong.
        """
        if not self.settings.keys:
            return request.client.host if request.client else ""
        authorization = request.headers.get("authorization", "")
        scheme, _, text = authorization.partition(" ")
        given = text.strip().encode()
        # a list, so that the time does not tell which key is nearly right
        found = any([hmac.compare_digest(given, key.encode()) for key in self.settings.keys])
        if not found or scheme.lower() != "bearer":
            what = "Incorrect API key provided." if authorization else "No API key was given."
            raise ApiError(401, f"{what} Send 'Authorization: Bearer KEY'.", code="invalid_api_key")
        return "key-" + hashlib.sha256(given).hexdigest()[:12]

    def count(self, client: str) -> None:
        """Counts a request of a client.

        Raises:
            ApiError: 429 if there were too many, with the seconds to wait.
        """
        if wait_s := self.limiter.take(client):
            raise ApiError(
                429,
                f"more than {self.limiter.per_minute} requests a minute",
                code="rate_limit_exceeded",
                kind="requests",
                retry_after_s=wait_s,
            )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Counts a request as running.

        Raises:
            ApiError: 503 if too many are running.
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
        try:
            yield
        finally:
            self.num_running -= 1

    @contextlib.contextmanager
    def recording(self, reply: CompletionReply) -> Iterator[None]:
        """Writes a request to the metrics and the log when it ends."""
        try:
            yield
        except Exception as error:
            reply.fail(error)
            raise
        finally:
            seconds = time.monotonic() - reply.started
            self._requests.labels(str(reply.status)).inc()
            self._duration.observe(seconds)
            if reply.first_text_s is not None:
                self._first_token.observe(reply.first_text_s)
            self._images.inc(reply.num_images)
            if usage := reply.usage:
                self._tokens.labels("prompt").inc(usage["prompt_tokens"])
                self._tokens.labels("completion").inc(usage["completion_tokens"])
            log.info("%s", json.dumps(reply.record(seconds), ensure_ascii=False))


async def _read_json(request: Request, limit: int) -> Any:
    """Reads a JSON body of limited size.

    Raises:
        ApiError: If it is too large, too slow or not JSON.
    """
    try:
        body = await read_body(request, limit)
    except HTTPException as error:
        code = "request_too_large" if error.status_code == 413 else None
        raise ApiError(error.status_code, error.detail, code=code) from None

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


@router.get("/health")
async def health(request: Request) -> Response:
    """Returns 200 if a model can be asked, else 503."""
    try:
        models = await _api(request).client.list_models()
    except ApiError as error:
        return JSONResponse({"status": error.message}, 503)
    if not models:
        return JSONResponse({"status": "no worker has registered", "models": []}, 503)
    return JSONResponse({"status": "ok", "models": models})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Returns the metrics for Prometheus."""
    _api(request).check_key(request)
    return Response(generate_latest(_api(request).registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """Lists the models."""
    api = _api(request)
    api.check_key(request)
    models = [
        {"id": name, "object": "model", "created": api.started, "owned_by": "llava"}
        for name in await api.client.list_models()
    ]
    return {"object": "list", "data": models}


@router.get("/v1/models/{name:path}")
async def get_model(name: str, request: Request) -> dict[str, Any]:
    """Returns one model."""
    for model in (await list_models(request))["data"]:
        if model["id"] == name:
            return model
    raise ApiError(404, f"The model {name[:80]!r} does not exist", "model", "model_not_found")


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """Answers a conversation, whole or streamed."""
    api, reply = _api(request), CompletionReply()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(api.recording(reply))
        reply.client = api.check_key(request)
        api.count(reply.client)
        stack.enter_context(api.running())
        pieces = await _pieces(api, request, reply)
        await stack.enter_async_context(contextlib.aclosing(pieces))
        if not reply.chat.stream:
            await until_gone(request, reply.collect(pieces))
            return JSONResponse(reply.completion())
        first = await until_gone(request, anext(pieces))
        reply.fail(ClientGone())  # unless the stream comes to its end
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        events = reply.events(first, pieces)
        return ClosingStream(events, stack.pop_all().aclose, headers, "text/event-stream")


async def _pieces(
    api: Api, request: Request, reply: CompletionReply
) -> AsyncGenerator[Piece, None]:
    """Checks a request and begins to answer it."""
    settings = api.settings
    chat = parse_chat_request(await _read_json(request, settings.max_body_bytes))
    reply.chat = chat
    if settings.moderate:
        text = "\n".join(message.text() for message in chat.messages if message.role == "user")
        if await run_in_threadpool(violates_moderation, text):
            raise ApiError(400, moderation_msg, "messages", "content_policy_violation")
    images = await until_gone(request, read_images(chat.messages, settings.pictures))
    reply.num_images = len(images)
    return ChatAnswer(api.client, chat, images).pieces()


async def _on_error(request: Request, error: Exception) -> Response:
    api_error = _as_api_error(error)
    if isinstance(error, HTTPException):
        what = f"Invalid URL ({request.method} {request.url.path[:200]})"
        api_error = ApiError(error.status_code, what)
    return JSONResponse(api_error.body(), api_error.status, headers=api_error.headers())


def create_app(settings: ApiSettings) -> FastAPI:
    """Builds the web application; it sends no CORS header, so that other origins cannot use it."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await app.state.api.client.aclose()

    application = FastAPI(
        title="LLaVA", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    application.include_router(router)
    application.state.api = Api(settings)
    for kind in (ApiError, ClientGone, HTTPException, Exception):
        application.add_exception_handler(kind, _on_error)
    return application


def run(args: argparse.Namespace) -> None:
    """Serves until interrupted."""
    settings = settings_from(args)
    app = create_app(settings)
    check_port_is_free(args.host, args.port)
    for problem in find_problems(settings.controller):
        log.warning("%s", problem)
    proxies = args.forwarded_allow_ips or None
    run_server(app, args.host, args.port, proxy_headers=bool(proxies), forwarded_allow_ips=proxies)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    args = build_parser().parse_args(argv)
    build_logger("openai_api", "openai_api.log")
    run(args)


if __name__ == "__main__":
    run_command(main)
