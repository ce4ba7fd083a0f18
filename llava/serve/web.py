"""What the web servers of this package share: a stream that ends with its client, and a runner.

Leaves with the client: when the reader of a stream goes away, the iterator behind it is closed, so
that whatever feeds it (a generation, a request to a worker) can stop.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from llava.errors import ConfigError

log = logging.getLogger(__name__)

MAX_PORT = 65_535

T = TypeVar("T")

# Seconds that open streams get to finish when a server is told to stop.
SHUTDOWN_TIMEOUT_S = 3
# A body that comes more slowly than this is given up.
BODY_TIMEOUT_S = 60.0


class ClosingStream(StreamingResponse):
    """Streams an iterator and closes it in the end, also when the client has gone.

    Args:
        chunks: The body, from an ordinary or an asynchronous iterator.
        on_close: Called once at the end, also where the iterator never began.
        headers: Of the answer.
        media_type: Of the answer.
    """

    def __init__(
        self,
        chunks: Iterator[bytes] | AsyncIterator[bytes],
        on_close: Callable[[], Awaitable[None] | None] | None = None,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
    ) -> None:
        super().__init__(chunks, headers=headers, media_type=media_type)
        self._chunks = chunks
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._on_close is not None:
                waiting = self._on_close()
                if waiting is not None:
                    await waiting
            if hasattr(self._chunks, "aclose"):
                await self._chunks.aclose()
            elif hasattr(self._chunks, "close"):
                await run_in_threadpool(self._chunks.close)


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for something, but no longer than the client does.

    Raises:
        ClientGone: The client hung up; the work has been cancelled.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watcher = asyncio.ensure_future(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, watcher):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


class BodyRefused(Exception):
    """A body is too large or comes too slowly.

    Args:
        status: HTTP status: 413 or 408.
        message: What was expected.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_body(request: Request, limit: int) -> bytes:
    """Read a bounded body.

    Raises:
        BodyRefused: It is too large or too slow.
    """
    body = bytearray()

    async def read() -> None:
        async for piece in request.stream():
            body.extend(piece)
            if len(body) > limit:
                raise BodyRefused(413, f"the body is larger than {limit:,} bytes")

    try:
        await asyncio.wait_for(read(), BODY_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise BodyRefused(408, f"the body took longer than {BODY_TIMEOUT_S:g} s") from None
    return bytes(body)


def check_port_is_free(host: str, port: int, flag: str = "--port") -> None:
    """Refuse a port that another program listens on.

    Args:
        host: Where to listen.
        port: Where to listen.
        flag: What gives another one.

    Raises:
        ConfigError: The port is taken, not allowed or none, or the host is unknown.
    """
    if not 0 <= port <= MAX_PORT:
        raise ConfigError(f"{flag} is {port}; expected 0 to {MAX_PORT}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except socket.gaierror as error:
        raise ConfigError(f"cannot listen on {host}: {error.strerror}") from None
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port} ({error.strerror}): another program may use it; "
                f"give another port with {flag}"
            ) from None


class _Server(uvicorn.Server):
    """A server that does something of its own before it closes its connections."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close all connections."""
        if self._on_stop is not None:
            await run_in_threadpool(self._on_stop)
        await super().shutdown(sockets)


def build_server(
    app: FastAPI, host: str, port: int, on_stop: Callable[[], None] | None = None, **options: Any
) -> uvicorn.Server:
    """Build a server that is not running yet; see `run_server`."""
    options.setdefault("timeout_graceful_shutdown", SHUTDOWN_TIMEOUT_S)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", **options)
    return _Server(config, on_stop)


def run_server(
    app: FastAPI, host: str, port: int, on_stop: Callable[[], None] | None = None, **options: Any
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        app: What to serve.
        host: Where to listen.
        port: Where to listen.
        on_stop: Called, in a thread, when the server is told to stop; it may take its time to
            finish what runs, and connections are open meanwhile.
        options: For `uvicorn.Config`.

    Raises:
        ConfigError: The port is taken.
    """
    check_port_is_free(host, port)
    log.info("listening on http://%s:%d", host, port)
    try:
        build_server(app, host, port, on_stop, **options).run()
    except KeyboardInterrupt:
        log.info("stopped")
