"""What the web servers of this package share: bounded input, streams that end with their client.

Images from strangers are bounded, decoded, and written anew without anything but pixels. A URL is
fetched only where that is switched on, from hosts on a list, from addresses that are public (the
address that was checked is the one that is connected to), within a size and a time; each redirect
is checked as the first address was.

When the reader of a stream goes away, the iterator behind it is closed, so that whatever feeds it
(a generation, a request to a worker) can stop.
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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from llava.errors import DataError
from llava.images import apply_orientation, shrink_image, to_rgb
from llava.serve.check import check_port_is_free

log = logging.getLogger(__name__)


T = TypeVar("T")

# Seconds that open streams get to finish when a server is told to stop.
SHUTDOWN_TIMEOUT_S = 3
# A body that comes more slowly than this is given up.
BODY_TIMEOUT_S = 60.0

# Vector formats are programs; what else PIL reads has had its share of holes.
FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
# What a data URL may call its image; the bytes decide.
DATA_URL_KINDS = (*FORMATS.values(), "image/jpg", "application/octet-stream")
MAX_REDIRECTS = 3
PORTS = (80, 443)
# Longest side that a worker gets; no vision tower here sees more.
MAX_SIDE_PX = 2048
_BLANKS = b"\t\n\f\r "
# Percent-encoding is quoted-printable with "%" for "=", which the standard library decodes in C;
# `urllib` would need 20 s and an object for each escape where a request holds nothing but escapes.
_TO_QUOTED = bytes.maketrans(b"%=", b"=%")
_FROM_QUOTED = bytes.maketrans(b"%", b"=")
# Other IPv6 addresses lead to no host, to this network, or through it to an IPv4 address.
_UNICAST = ipaddress.ip_network("2000::/3")


# Clients that are remembered; the one that has been silent for longest is forgotten first.
MAX_CLIENTS = 10_000


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
    too_large = BodyRefused(413, f"the body is larger than {limit:,} bytes")
    try:
        reading = _collect(request.stream(), limit, too_large)
        return await asyncio.wait_for(reading, BODY_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise BodyRefused(408, f"the body took longer than {BODY_TIMEOUT_S:g} s") from None


async def _collect(pieces: AsyncIterator[bytes], limit: int, refusal: Exception) -> bytes:
    """Join pieces; raise `refusal` as soon as they are longer than `limit`."""
    found = bytearray()
    async for piece in pieces:
        found += piece
        if len(found) > limit:
            raise refusal
    return bytes(found)


@dataclass
class RateLimiter:
    """A bucket of requests for each client, which fills up steadily.

    Attributes:
        per_minute: Requests a minute and client; 0 for no limit.
        clock: Seconds, growing steadily.
    """

    per_minute: int
    clock: Callable[[], float] = time.monotonic
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict, repr=False)

    def take(self, client: str) -> int:
        """Count one request.

        Returns:
            0 if it is allowed, else the seconds after which it is worth trying again.
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


@dataclass(frozen=True)
class ImageLimits:
    """What an image may be.

    Attributes:
        max_bytes: Size of its file.
        max_pixels: Width times height.
        max_images: How many a request may hold.
        url_hosts: Hosts that images are fetched from; none switches URLs off.
        fetch_timeout_s: How long a fetch may take, redirects included.
    """

    max_bytes: int = 10 * 2**20
    max_pixels: int = 25_000_000
    max_images: int = 8
    url_hosts: frozenset[str] = field(default_factory=frozenset)
    fetch_timeout_s: float = 10.0


async def read_image(url: str, limits: ImageLimits) -> str:
    """Read one image.

    Args:
        url: A data URL with base64, or an http(s) URL.
        limits: What is allowed.

    Returns:
        A PNG as base64 text.

    Raises:
        DataError: It is refused; the text says why and never holds the image.
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
    """Return the bytes of a data URL, decoded as browsers do.

    The data is percent-decoded, then read as base64 without its blanks and line ends; padding may
    be left out.

    Raises:
        DataError: It is no base64 image of an allowed kind, or too large.
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
    """Return what `clean` makes of an image, as base64 text.

    Raises:
        DataError: As there.
    """
    return base64.b64encode(clean(raw, limits)).decode()


def clean(raw: bytes, limits: ImageLimits) -> bytes:
    """Decode an image, turn it as its metadata says, and encode its pixels alone as a new PNG.

    Raises:
        DataError: It cannot be decoded, is of another format, or has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(raw), formats=list(FORMATS)) as image:
            width, height = image.size
            if width * height > limits.max_pixels:
                raise DataError(
                    f"the image has {width} x {height} pixels; expected up to "
                    f"{limits.max_pixels:,} in all"
                )
            # A phone stores how it was held beside the pixels: once that is gone, nobody knows.
            upright = to_rgb(apply_orientation(image))
            pixels = shrink_image(upright, MAX_SIDE_PX, MAX_SIDE_PX)
            pixels.info.clear()  # else PIL would write colour profile and comments again
            buffer = io.BytesIO()
            pixels.save(buffer, "PNG")
            return buffer.getvalue()
    except DataError:
        raise
    except Exception as error:  # decoders raise nearly everything at a hostile file
        kinds = ", ".join(FORMATS)
        raise DataError(
            f"the image cannot be read ({type(error).__name__}); expected a whole {kinds} file"
        ) from None


Resolver = Callable[[str, int], Awaitable[list[str]]]


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host.

    Raises:
        OSError: The name is unknown.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def is_public(address: str) -> bool:
    """Whether an address is on the open internet: no private, local, reserved or tunnelled one."""
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
    """Fetch a file from an allowed host.

    Args:
        url: http(s) URL.
        limits: Hosts, size and time.
        resolver: Returns a host's addresses.
        transport: For tests: what carries the request out.

    Raises:
        DataError: URLs are off, the host is not on the list, its address is private, or the
            answer is an error, too large or too slow.
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
            # To the very address that was checked: a second look-up may give another one.
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
    """Return host, port and a checked address of a URL.

    Raises:
        DataError: The URL leads where no image may be fetched from.
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
