"""Bounded input and streams that end with their client, for the web servers of this package.

Images from clients are bounded, decoded and encoded again as pixels alone. A URL is fetched only if
that is switched on, only from hosts on a list with public addresses, and within a size and a time.
The connection goes to the address that was checked, and each redirect is checked in the same way.

When the client of a stream disconnects, the iterator behind the stream is closed, so that its
source (a generation, a request to a worker) can stop.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import ipaddress
import logging
import socket
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from llava.errors import DataError
from llava.images import apply_orientation, shrink_image, to_rgb
from llava.serve.check import check_port_is_free

log = logging.getLogger(__name__)


T = TypeVar("T")

# Seconds that open streams have to finish once a server is stopped.
SHUTDOWN_TIMEOUT_S = 3
# A body that takes longer than this is refused.
BODY_TIMEOUT_S = 60.0

# Vector formats are programs, and PIL's decoders of rare formats had many security holes.
FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
# Media types that a data URL may declare; the bytes decide.
DATA_URL_KINDS = (*FORMATS.values(), "image/jpg", "application/octet-stream")
MAX_REDIRECTS = 3
PORTS = (80, 443)
# Longest side of an image that is sent to a worker; no vision tower here uses more.
MAX_SIDE_PX = 2048
_BLANKS = b"\t\n\f\r "
# Percent-encoding is quoted-printable with "%" for "=", which the standard library decodes in C;
# `urllib` would need 20 s and an object for each escape where a request holds nothing but escapes.
_TO_QUOTED = bytes.maketrans(b"%=", b"=%")
_FROM_QUOTED = bytes.maketrans(b"%", b"=")
# Other IPv6 addresses lead to no host, to this network, or through it to an IPv4 address.
_UNICAST = ipaddress.ip_network("2000::/3")
# Clients that a limiter remembers; it forgets the least recent one first.
MAX_CLIENTS = 10_000


class ClosingStream(StreamingResponse):
    """Streams an iterator and closes it at the end, even if the client has disconnected.

    Args:
        chunks: The body.
        on_close: Called once at the end, even if the iterator was never started.
        headers: Headers of the response.
        media_type: Content type of the response.
    """

    def __init__(
        self,
        chunks: Generator[bytes, None, None] | AsyncGenerator[bytes, None],
        on_close: Callable[[], Awaitable[None]] | None = None,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
    ) -> None:
        super().__init__(chunks, headers=headers, media_type=media_type)
        self._chunks = chunks
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._on_close is not None:
                await self._on_close()
            if isinstance(self._chunks, AsyncGenerator):
                await self._chunks.aclose()
            else:
                await run_in_threadpool(self._chunks.close)


class ClientGone(Exception):
    """Raised when the client has disconnected before its answer was complete."""


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """Awaits `work` for as long as the client is connected.

    Raises:
        ClientGone: The client has disconnected; `work` is cancelled.
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


async def read_body(request: Request, limit: int) -> bytes:
    """Reads the body of a request.

    Raises:
        HTTPException: 413 if the body is larger than `limit` bytes, 408 if it takes too long.
    """
    too_large = HTTPException(413, f"the body is larger than {limit:,} bytes")
    try:
        reading = _collect(request.stream(), limit, too_large)
        return await asyncio.wait_for(reading, BODY_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the body took longer than {BODY_TIMEOUT_S:g} s") from None


async def _collect(pieces: AsyncIterator[bytes], limit: int, refusal: Exception) -> bytes:
    """Joins pieces; raises `refusal` as soon as they exceed `limit` bytes."""
    found = bytearray()
    async for piece in pieces:
        found += piece
        if len(found) > limit:
            raise refusal
    return bytes(found)


@dataclass
class RateLimiter:
    """Limits the requests of each client with a token bucket.

    Attributes:
        per_minute: Requests per minute and client; 0 means no limit.
        clock: A monotonic clock in seconds.
    """

    per_minute: int
    clock: Callable[[], float] = time.monotonic
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict, repr=False)

    def take(self, client: str) -> int:
        """Counts one request.

        Returns:
            0 if the request is allowed, else the seconds after which the client may try again.
        """
        if not self.per_minute:
            return 0
        now = self.clock()
        left, since = self._buckets.pop(client, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - since) * self.per_minute / 60)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return 0 if allowed else int((1 - left) * 60 / self.per_minute) + 1


class _Server(uvicorn.Server):
    """A server that calls a function before it closes its connections."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes all connections."""
        if self._on_stop is not None:
            await run_in_threadpool(self._on_stop)
        await super().shutdown(sockets)


def build_server(
    app: FastAPI, host: str, port: int, on_stop: Callable[[], None] | None = None, **options: Any
) -> uvicorn.Server:
    """Builds a server without starting it; see `run_server`."""
    options.setdefault("timeout_graceful_shutdown", SHUTDOWN_TIMEOUT_S)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", **options)
    return _Server(config, on_stop)


def run_server(
    app: FastAPI, host: str, port: int, on_stop: Callable[[], None] | None = None, **options: Any
) -> None:
    """Serves an application until SIGINT or SIGTERM.

    Args:
        app: The application.
        host: Address to listen on.
        port: Port to listen on.
        on_stop: Called in a thread when the server is told to stop. Connections stay open while it
            waits for running requests.
        options: Further arguments of `uvicorn.Config`.

    Raises:
        ConfigError: The port is in use.
    """
    check_port_is_free(host, port)
    log.info("listening on http://%s:%d", host, port)
    try:
        build_server(app, host, port, on_stop, **options).run()
    except KeyboardInterrupt:
        log.info("stopped")


@dataclass(frozen=True)
class ImageLimits:
    """Limits for the images of a client.

    Attributes:
        max_bytes: Size of a file.
        max_pixels: Width times height.
        max_images: Number of images in a request.
        url_hosts: Hosts that images may be fetched from; empty to refuse URLs.
        fetch_timeout_s: Seconds that a fetch may take, redirects included.
    """

    max_bytes: int = 10 * 2**20
    max_pixels: int = 25_000_000
    max_images: int = 8
    url_hosts: frozenset[str] = field(default_factory=frozenset)
    fetch_timeout_s: float = 10.0


async def read_image(url: str, limits: ImageLimits) -> str:
    """Reads the image of a URL.

    Args:
        url: A base64 data URL or an http(s) URL.
        limits: The limits to enforce.

    Returns:
        A PNG as base64 text.

    Raises:
        DataError: The image is refused. The message gives the reason and never the content.
    """
    url = url.strip()
    scheme = url[:16].partition(":")[0].lower()
    if scheme == "data":
        raw = await run_in_threadpool(decode_data_url, url, limits)
    elif scheme in ("http", "https"):
        raw = await fetch(url, limits)
    else:
        raise DataError(
            f"the address begins with {url[:16]!r}; expected a data URL such as "
            "data:image/png;base64,..." + (" or http(s)://" if limits.url_hosts else "")
        )
    return await run_in_threadpool(rewrite, raw, limits)


def decode_data_url(url: str, limits: ImageLimits) -> bytes:
    """Returns the bytes of a data URL, decoded as browsers decode it.

    The data is percent-decoded and then read as base64; blanks and line ends are ignored, and
    padding may be missing.

    Raises:
        DataError: The URL holds no base64 image of an allowed type, or a file that is too large.
    """
    header, comma, encoded = url[5:].partition(",")
    kind, *parameters = (part.strip() for part in header.lower().split(";"))
    if not comma or "base64" not in parameters:
        raise DataError("the data URL has no ';base64,' before its data")
    if kind not in DATA_URL_KINDS:
        raise DataError(f"the data URL is {kind[:40]!r}; expected {', '.join(FORMATS.values())}")
    quoted = encoded.encode("ascii", "replace").translate(_TO_QUOTED, _BLANKS)
    data = binascii.a2b_qp(quoted).translate(_FROM_QUOTED, _BLANKS)
    if len(data) > (limits.max_bytes + 2) // 3 * 4:
        raise DataError(_too_large(limits))
    if len(data) % 4 == 0:
        data = data.removesuffix(b"=").removesuffix(b"=")
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except binascii.Error as error:
        raise DataError(f"the data URL is not valid base64: {error}") from None


def _too_large(limits: ImageLimits) -> str:
    return f"the image's file is larger than {limits.max_bytes:,} bytes"


def rewrite(raw: bytes, limits: ImageLimits) -> str:
    """Returns the result of `clean` as base64 text.

    Raises:
        DataError: As for `clean`.
    """
    return base64.b64encode(clean(raw, limits)).decode()


def clean(raw: bytes, limits: ImageLimits) -> bytes:
    """Decodes an image, applies its orientation, and encodes the pixels alone as a new PNG.

    Raises:
        DataError: The image cannot be decoded, has another format, or has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(raw), formats=list(FORMATS)) as image:
            width, height = image.size
            if width * height > limits.max_pixels:
                raise DataError(
                    f"the image has {width} x {height} pixels; expected up to "
                    f"{limits.max_pixels:,} in all"
                )
            # Phones store the orientation as metadata, which the new file does not have.
            upright = to_rgb(apply_orientation(image))
            pixels = shrink_image(upright, MAX_SIDE_PX, MAX_SIDE_PX)
            pixels.info.clear()  # PIL would write the colour profile and comments otherwise
            buffer = io.BytesIO()
            pixels.save(buffer, "PNG")
            return buffer.getvalue()
    except DataError:
        raise
    except Exception as error:  # decoders raise almost any exception on a hostile file
        kinds = ", ".join(FORMATS)
        raise DataError(
            f"the image cannot be read ({type(error).__name__}); expected a whole {kinds} file"
        ) from None


Resolver = Callable[[str, int], Awaitable[list[str]]]


async def resolve(host: str, port: int) -> list[str]:
    """Returns the addresses of a host.

    Raises:
        OSError: The name cannot be resolved.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def is_public(address: str) -> bool:
    """Tells whether an address is public: not private, local, reserved or tunnelled."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return is_public(str(parsed.ipv4_mapped))
        if parsed not in _UNICAST or parsed.sixtofour is not None or parsed.teredo is not None:
            return False
    return parsed.is_global and not parsed.is_multicast


async def fetch(
    url: str,
    limits: ImageLimits,
    *,
    resolver: Resolver = resolve,
    transport: httpx.AsyncBaseTransport | None = None,
) -> bytes:
    """Fetches a file from an allowed host.

    Args:
        url: An http(s) URL.
        limits: Allowed hosts, size and time.
        resolver: Returns the addresses of a host.
        transport: Carries out the requests; for tests.

    Raises:
        DataError: URLs are switched off, the host is not on the list, one of its addresses is
            private, or the response is an error, too large or too slow.
    """
    if not limits.url_hosts:
        raise DataError("images by URL are switched off here: send the image as a data URL")
    try:
        return await asyncio.wait_for(
            _follow(url, limits, resolver, transport), limits.fetch_timeout_s
        )
    except asyncio.TimeoutError:
        raise DataError(
            f"fetching the image took longer than {limits.fetch_timeout_s:g} s"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
        raise DataError(f"the image could not be fetched ({type(error).__name__})") from None


async def _follow(
    url: str,
    limits: ImageLimits,
    resolver: Resolver,
    transport: httpx.AsyncBaseTransport | None,
) -> bytes:
    async with httpx.AsyncClient(
        transport=transport, timeout=limits.fetch_timeout_s, trust_env=False
    ) as client:
        for _ in range(MAX_REDIRECTS + 1):
            host, port, address = await _checked_address(url, limits, resolver)
            # Connect to the address that was checked: a second lookup may return another one.
            target = httpx.URL(url).copy_with(host=address, port=port)
            async with client.stream(
                "GET",
                target,
                headers={"Host": host, "Accept": ", ".join(FORMATS.values())},
                extensions={"sni_hostname": host},
            ) as response:
                if response.is_redirect:
                    url = urljoin(url, response.headers.get("location", ""))
                    continue
                if response.status_code != 200:
                    raise DataError(f"the image's address answers {response.status_code}")
                too_large = DataError(_too_large(limits))
                return await _collect(response.aiter_bytes(), limits.max_bytes, too_large)
    raise DataError(f"the image's address redirects more than {MAX_REDIRECTS} times")


async def _checked_address(
    url: str, limits: ImageLimits, resolver: Resolver
) -> tuple[str, int, str]:
    """Returns host, port and a checked address of a URL.

    Raises:
        DataError: No image may be fetched from this URL.
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise DataError("the image's address is not a URL") from None
    if parts.scheme not in ("http", "https") or parts.username or parts.password:
        raise DataError("the image's address must be http(s)://host/..., without a user")
    if host not in limits.url_hosts:
        raise DataError(f"images may not be fetched from {host[:80]!r}: it is not on the list")
    if port not in PORTS:
        raise DataError(f"images may not be fetched from port {port}")
    addresses = await resolver(host, port)
    if not addresses or not all(is_public(address) for address in addresses):
        raise DataError(f"{host} has a private address: nothing is fetched from there")
    return host, port, addresses[0]
