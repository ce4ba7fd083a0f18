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
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import httpx
from fastapi import APIRouter, FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from llava.errors import run_command
from llava.serve.async_client import AsyncClient
from llava.serve.check import find_problems
from llava.serve.openai_chat import ChatAnswer, Piece, read_pictures
from llava.serve.openai_metrics import CONTENT_TYPE_LATEST, Metrics
from llava.serve.openai_reply import Reply
from llava.serve.openai_schema import ApiError, parse_chat_request
from llava.serve.openai_settings import ApiSettings, build_parser, settings_from
from llava.serve.web import (
    BodyRefused,
    ClientGone,
    ClosingStream,
    check_port_is_free,
    read_body,
    run_server,
    until_gone,
)
from llava.utils import build_logger, moderation_msg, violates_moderation

log = logging.getLogger(__name__)


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
        api.settings.admission.limiter.take(reply.client)
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
            error = ApiError(500, "the server failed; its log says why")
        reply.status, reply.error = error.status, error.code or error.kind
        yield b"data: " + json.dumps(error.body()).encode() + b"\n\n"


def _error_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, headers=error.headers())


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error_response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"Invalid URL ({request.method} {request.url.path[:200]})"
    return _error_response(ApiError(error.status_code, what))


async def _on_any_error(request: Request, error: Exception) -> Response:
    return _error_response(ApiError(500, "the server failed; its log says why"))


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
    application.add_exception_handler(ApiError, _on_api_error)
    application.add_exception_handler(HTTPException, _on_http_error)
    application.add_exception_handler(Exception, _on_any_error)
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
