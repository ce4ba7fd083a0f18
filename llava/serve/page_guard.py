"""The door of the page: what may come in over HTTP before Gradio sees it.

In: every request to the page. Out: the same request, made harmless, or a refusal with its reason.
Uploads are bounded and written anew, so that Gradio stores only pixels, under the hash of their
content; questions are bounded, and a file that they name must be one that was uploaded; Gradio's
routes that this page does not need are closed; a client may ask only so often.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from gradio.utils import get_upload_folder
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava.errors import ConfigError, DataError
from llava.serve.page_state import (
    DAY_S,
    ENGLISH,
    ENGLISH_TEXT,
    KEEP_DAYS,
    PageText,
    preferred_language,
)
from llava.serve.web import BodyRefused, PictureLimits, RateLimiter, clean, read_body

log = logging.getLogger(__name__)

API = "/gradio_api/"
# What the page's own script asks for; Gradio's other routes fetch, record, proxy or report.
_OPEN_GET = ("info", "queue/data", "queue/status", "startup-events", "app_id", "upload_progress")
_OPEN_GET_BELOW = ("file=", "heartbeat/")
_OPEN_POST = ("upload", "queue/join", "cancel", "reset")
_CLOSED = ("/monitoring", "/login", "/logout")
# A picture of 25 million pixels takes 75 MB while it is decoded.
MAX_DECODING = 4

MAX_UPLOADS = 4


@dataclass(frozen=True)
class GuardSettings:
    """What the page lets in.

    Attributes:
        pictures: What an upload may be.
        max_body_bytes: Size of a question with its settings.
        per_minute: Questions, clicks and uploads a minute and client; 0 for any number.
        cache: Folder in which Gradio keeps uploads, the only one that files are served from.
        languages: What users are told, by language; the browser says which it prefers.
    """

    pictures: PictureLimits = field(default_factory=lambda: PictureLimits(max_pictures=4))
    max_body_bytes: int = 2**20
    per_minute: int = 120
    cache: Path = field(default_factory=lambda: Path(get_upload_folder()))
    languages: Mapping[str, PageText] = field(default_factory=lambda: {ENGLISH: ENGLISH_TEXT})


class Refusal(Exception):
    """A request that does not come in; `response` says why."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


class PageGuard:
    """An ASGI middleware around Gradio's app.

    Args:
        app: Gradio's.
        settings: What is let in.
    """

    def __init__(self, app: ASGIApp, settings: GuardSettings) -> None:
        self._app = app
        self._settings = settings
        self._limiter = RateLimiter(settings.per_minute)
        self._decoding = asyncio.Semaphore(MAX_DECODING)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            scope, receive = await self._check(scope, receive)
        except Refusal as refusal:
            await refusal.response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _check(self, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        path, method = scope["path"], scope["method"]
        if any(path == closed or path.startswith(closed + "/") for closed in _CLOSED):
            raise Refusal(_error(404, "not found"))
        _, is_api, route = path.partition(API)
        if not is_api:
            return scope, receive
        if not _is_open(method, route):
            raise Refusal(_error(404, "not found"))
        if route.startswith("file="):
            self._check_file(route.removeprefix("file="), "file")
        if method != "POST":
            return scope, receive
        request = Request(scope, receive)
        if route in ("upload", "queue/join"):
            self._count(request, route)
        if route == "upload":
            return await self._upload(request)
        return await self._question(request)

    def _check_file(self, path: str, name: str) -> None:
        """Refuse a file that is not one of Gradio's cache."""
        try:
            inside = Path(path).resolve().is_relative_to(self._settings.cache.resolve())
        except (OSError, ValueError, RuntimeError):
            inside = False
        if "://" in path or not Path(path).is_absolute() or not inside:
            raise Refusal(_error(403, f"{name} leads to no file of this page"))

    def _count(self, request: Request, route: str) -> None:
        wait_s = self._limiter.take(request.client.host if request.client else "")
        if wait_s:
            said = self._say(request, "too_often", seconds=wait_s)
            text = f"{said} (more than {self._settings.per_minute} requests a minute)"
            headers = {"Retry-After": str(wait_s)}
            raise Refusal(_error(429, text, headers, as_text=route == "upload"))

    async def _upload(self, request: Request) -> tuple[Scope, Receive]:
        """Write uploaded pictures anew and put them in place of what came."""
        limits = self._settings.pictures
        limit = limits.max_pictures * limits.max_bytes + 2**16
        try:
            body = await read_body(request, limit)
            replayed = Request(request.scope, _replay(body, request.receive))
            files = await _files(replayed, limits.max_pictures)
            parts = []
            for index, raw in enumerate(files):
                parts.append(("files", await self._rewrite(raw, index)))
        except (BodyRefused, DataError) as error:
            status = error.status if isinstance(error, BodyRefused) else 400
            megapixels = f"{limits.max_pixels / 1e6:g}"
            said = self._say(
                request, "picture_refused", mib=limits.max_bytes >> 20, megapixels=megapixels
            )
            raise Refusal(_error(status, f"{said} ({error})", as_text=True)) from None
        made = httpx.Request("POST", "http://page/upload", files=parts)
        return _with_body(request, made.read(), made.headers["content-type"])

    def _say(self, request: Request, key: str, **values: object) -> str:
        languages = self._settings.languages
        wanted = preferred_language(request.headers.get("accept-language", ""), languages)
        return languages[wanted].say(key, **values)

    async def _rewrite(self, raw: bytes, index: int) -> tuple[str, bytes, str]:
        limits = self._settings.pictures
        if len(raw) > limits.max_bytes:
            raise DataError(
                f"files[{index}] has {len(raw):,} bytes; expected up to {limits.max_bytes:,}"
            )
        async with self._decoding:
            try:
                pixels = await run_in_threadpool(clean, raw, limits)
            except DataError as error:
                raise DataError(f"files[{index}]: {error}") from None
        return f"{hashlib.sha256(pixels).hexdigest()[:32]}.png", pixels, "image/png"

    async def _question(self, request: Request) -> tuple[Scope, Receive]:
        """Bound a question, and refuse files in it that were not uploaded."""
        try:
            body = await read_body(request, self._settings.max_body_bytes)
        except BodyRefused as error:
            raise Refusal(_error(error.status, str(error))) from None
        kind = request.headers.get("content-type", "application/json")
        if not body:
            return _with_body(request, body, kind)
        try:
            value = json.loads(body)
            if not isinstance(value, dict):
                raise ValueError("it is no object")
            self._check_files(value)
            body = json.dumps(value, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise Refusal(_error(400, f"the body is no valid JSON object: {error}")) from None
        return _with_body(request, body, "application/json")

    def _check_files(self, value: Any, name: str = "body") -> None:
        """Walk a question: where it has a file, that is one of the cache, and nothing else."""
        if isinstance(value, list):
            for index, each in enumerate(value):
                self._check_files(each, f"{name}[{index}]")
        elif isinstance(value, dict):
            path = value.get("path")
            if path is not None:
                if not isinstance(path, str):
                    raise Refusal(_error(400, f"{name}.path is no text"))
                self._check_file(path, f"{name}.path")
            if value.get("url") is not None:
                # Gradio would read the picture from there, whatever its size.
                if path is None:
                    raise Refusal(_error(400, f"{name}.url: pictures must be uploaded"))
                value["url"] = None
            for key, each in value.items():
                self._check_files(each, f"{name}.{key[:40]}")


def _is_open(method: str, route: str) -> bool:
    if method == "POST":
        return route in _OPEN_POST
    return method in ("GET", "HEAD") and (route in _OPEN_GET or route.startswith(_OPEN_GET_BELOW))


def _error(
    status: int, text: str, headers: dict[str, str] | None = None, *, as_text: bool = False
) -> Response:
    """Return a refusal; Gradio's script shows `detail`, of an upload the text itself."""
    log.warning("refused a request (%d): %s", status, text)
    if as_text:
        return PlainTextResponse(text, status, headers)
    return JSONResponse({"detail": text}, status, headers)


async def _files(request: Request, max_files: int) -> list[bytes]:
    """Return the files of a form.

    Raises:
        DataError: It is no form, has no file or too many.
    """
    try:
        async with request.form(max_files=max_files, max_fields=8) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            found = [await file.read() for file in files]
    except (HTTPException, AssertionError, KeyError, ValueError) as error:
        reason = getattr(error, "detail", None) or "it cannot be read"
        raise DataError(f"files: the upload is no form of up to {max_files} files: {reason}") from (
            None
        )
    if not found:
        raise DataError("files is missing: the upload holds no file")
    return found


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read already, then what else comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _with_body(request: Request, body: bytes, kind: str) -> tuple[Scope, Receive]:
    """Return a request with another body."""
    replaced = (b"content-length", b"content-type", b"transfer-encoding")
    headers = [pair for pair in request.scope["headers"] if pair[0].lower() not in replaced]
    headers += [
        (b"content-length", str(len(body)).encode()),
        (b"content-type", kind.encode("latin-1")),
    ]
    return {**request.scope, "headers": headers}, _replay(body, request.receive)


@dataclass(frozen=True)
class PageSafety:
    """What a page lets in, and how long it keeps it.

    Attributes:
        guard: What may come in.
        keep_days: Age of stored pictures at which they are deleted; 0 keeps them for ever.
        forwarded_allow_ips: Proxies whose X-Forwarded-For says who the client is; "" for none.
    """

    guard: GuardSettings = field(default_factory=GuardSettings)
    keep_days: float = KEEP_DAYS
    forwarded_allow_ips: str = ""

    @property
    def keep_s(self) -> float:
        """Age in seconds at which stored pictures are deleted."""
        return self.keep_days * DAY_S

    def launch_options(self, log_dir: Path) -> dict[str, Any]:
        """Return what `Blocks.launch` needs.

        Args:
            log_dir: Folder of conversation logs, from which no file may be served.
        """
        return {
            "app_kwargs": {"middleware": [Middleware(PageGuard, settings=self.guard)]},
            "allowed_paths": [],
            "blocked_paths": [str(log_dir.resolve())],
            "enable_monitoring": False,
        }


def add_safety_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add = parser.add_argument
    add("--max-images", type=int, default=MAX_UPLOADS, help="pictures in an upload")
    add("--max-image-mib", type=int, default=10, help="size of a picture's file")
    add("--max-image-pixels", type=int, default=25_000_000, help="width times height")
    add("--keep-days", type=float, default=KEEP_DAYS, help="for stored pictures; 0: for ever")
    add("--rate-limit", type=int, default=120, help="requests a minute and client; 0: any")
    add(
        "--forwarded-allow-ips",
        default="",
        help="proxies whose X-Forwarded-For says who the client is",
    )


def safety_from(
    args: argparse.Namespace, languages: Mapping[str, PageText] | None = None
) -> PageSafety:
    """Turn flags into settings.

    Args:
        args: Has the flags.
        languages: What the page says, by language; by default English alone.

    Raises:
        ConfigError: A number is below its least value.
    """
    for name, least in (
        ("max_images", 1),
        ("max_image_mib", 1),
        ("max_image_pixels", 1),
        ("keep_days", 0),
        ("rate_limit", 0),
    ):
        if not getattr(args, name) >= least:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is {getattr(args, name)}; expected {least} or more")
    pictures = PictureLimits(
        max_bytes=args.max_image_mib * 2**20,
        max_pixels=args.max_image_pixels,
        max_pictures=args.max_images,
    )
    guard = GuardSettings(
        pictures, per_minute=args.rate_limit, languages=languages or {ENGLISH: ENGLISH_TEXT}
    )
    return PageSafety(guard, args.keep_days, args.forwarded_allow_ips)
