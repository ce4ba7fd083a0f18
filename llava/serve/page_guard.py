"""Checks each HTTP request to the page before Gradio handles it.

In: a request to the page. Out: the same request with safe content, or a refusal with a reason.
Uploads are bounded and encoded again, so that Gradio stores only pixels, under the hash of their
content. Questions are bounded and may name only files that were uploaded. Gradio's routes that the
page does not use are closed, and the requests of a client are limited.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
from gradio.utils import get_upload_folder
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava.errors import DataError
from llava.serve.chat import ENGLISH, PageSettings
from llava.serve.web import RateLimiter, clean, read_body

log = logging.getLogger(__name__)

API = "/gradio_api/"
# Routes that the page's script uses; Gradio's others fetch, record, proxy or report.
_OPEN_GET = ("info", "queue/data", "queue/status", "startup-events", "app_id", "upload_progress")
_OPEN_GET_BELOW = ("file=", "heartbeat/")
_OPEN_POST = ("upload", "queue/join", "cancel", "reset")
_CLOSED = ("/monitoring/", "/login/", "/logout/")
# An image of 25 million pixels takes 75 MB while it is decoded.
MAX_DECODING = 4
# What Starlette says of a form with more files than it may have.
TOO_MANY = "Too many files"


def preferred_language(accept_language: str, codes: Iterable[str]) -> str:
    """Chooses a language in the browser's order of preference.

    Args:
        accept_language: The header `Accept-Language`, such as `hr-HR,hr;q=0.9,en;q=0.8`.
        codes: The available languages.

    Returns:
        The code of the best match: the tag itself, or the tag without region or script. Without a
        match, English if it is available, else the first code.
    """
    by_tag = {code.lower(): code for code in codes}
    ranges = re.findall(r"([\w-]+)\s*(?:;\s*q=(\d(?:\.\d+)?))?", accept_language.lower())
    accepted = [(tag, float(quality or 1)) for tag, quality in ranges]
    for tag, quality in sorted(accepted, key=lambda pair: -pair[1]):
        while tag and quality:
            if tag in by_tag:
                return by_tag[tag]
            tag = tag.rpartition("-")[0]
    return by_tag.get(ENGLISH) or next(iter(by_tag.values()))


class PageGuard:
    """An ASGI middleware around Gradio's app.

    Args:
        app: Gradio's app.
        settings: Limits of the page, and the texts of refusals.
    """

    def __init__(self, app: ASGIApp, settings: PageSettings) -> None:
        self._app = app
        self._settings = settings
        # Gradio stores uploads here, and serves files from no other folder
        self._cache = Path(get_upload_folder()).resolve()
        self._limiter = RateLimiter(settings.per_minute)
        self._decoding = asyncio.Semaphore(MAX_DECODING)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Checks one request and passes it on."""
        app = self._app
        if scope["type"] == "http":
            try:
                scope, receive = await self._check(Request(scope, receive))
            except HTTPException as refusal:
                app = _refusal(refusal, is_upload=scope["path"].endswith(API + "upload"))
        await app(scope, receive, send)

    async def _check(self, request: Request) -> tuple[Scope, Receive]:
        """Returns scope and receiver of a request whose content is safe.

        Raises:
            HTTPException: The request is refused.
        """
        path, method = request.scope["path"], request.method
        _, is_api, route = path.partition(API)
        if f"{path}/".startswith(_CLOSED) or (is_api and not _is_open(method, route)):
            raise HTTPException(404, "not found")
        if is_api and route.startswith("file="):
            self._check_file(route.removeprefix("file="), "file")
        if not is_api or method != "POST":
            return request.scope, request.receive
        if route in ("upload", "queue/join"):
            self._count(request)
        return await (self._upload if route == "upload" else self._question)(request)

    def _check_file(self, path: str, name: str) -> None:
        """Refuses a file outside Gradio's cache."""
        try:
            inside = Path(path).resolve().is_relative_to(self._cache)
        except (OSError, ValueError, RuntimeError):
            inside = False
        if "://" in path or not Path(path).is_absolute() or not inside:
            raise HTTPException(403, f"{name} leads to no file of this page")

    def _count(self, request: Request) -> None:
        wait_s = self._limiter.take(request.client.host if request.client else "")
        if wait_s:
            said = self._say(request, "too_often", seconds=wait_s)
            text = f"{said} (more than {self._settings.per_minute} requests a minute)"
            raise HTTPException(429, text, {"Retry-After": str(wait_s)})

    async def _upload(self, request: Request) -> tuple[Scope, Receive]:
        """Replaces uploaded images by newly encoded ones."""
        limits = self._settings.images
        try:
            body = await read_body(request, limits.max_images * limits.max_bytes + 2**16)
            replayed = Request(request.scope, _replay(body, request.receive))
            files = await _files(replayed, limits.max_images)
            parts = [("files", await self._rewrite(raw, i)) for i, raw in enumerate(files)]
        except (HTTPException, DataError) as error:
            status = error.status_code if isinstance(error, HTTPException) else 400
            reason = getattr(error, "detail", error)
            key = "too_many_pictures" if TOO_MANY in str(reason) else "picture_refused"
            mib, megapixels = limits.max_bytes >> 20, f"{limits.max_pixels / 1e6:g}"
            said = self._say(request, key, limit=limits.max_images, mib=mib, megapixels=megapixels)
            raise HTTPException(status, f"{said} ({reason})") from None
        made = httpx.Request("POST", "http://page/upload", files=parts)
        return _with_body(request, made.read(), made.headers["content-type"])

    def _say(self, request: Request, key: str, **values: object) -> str:
        languages = self._settings.languages
        wanted = preferred_language(request.headers.get("accept-language", ""), languages)
        return languages[wanted].say(key, **values)

    async def _rewrite(self, raw: bytes, index: int) -> tuple[str, bytes, str]:
        limits = self._settings.images
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
        """Limits the size of a question and refuses files in it that were not uploaded."""
        try:
            body = await read_body(request, self._settings.max_body_bytes)
            value = json.loads(body or b"{}")
            if not isinstance(value, dict):
                raise ValueError("it is no object")
            self._check_files(value)
            checked = json.dumps(value, allow_nan=False).encode() if body else body
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"the body is no valid JSON object: {error}") from None
        return _with_body(request, checked, "application/json")

    def _check_files(self, value: Any, name: str = "body") -> None:
        """Refuses a question that names a file outside Gradio's cache, at any depth."""
        if isinstance(value, list):
            for index, each in enumerate(value):
                self._check_files(each, f"{name}[{index}]")
        elif isinstance(value, dict):
            path = value.get("path")
            if path is not None:
                if not isinstance(path, str):
                    raise HTTPException(400, f"{name}.path is no text")
                self._check_file(path, f"{name}.path")
            if value.get("url") is not None:
                # Gradio would fetch the image from there, whatever its size.
                if path is None:
                    raise HTTPException(400, f"{name}.url: images must be uploaded")
                value["url"] = None
            for key, each in value.items():
                self._check_files(each, f"{name}.{key[:40]}")


def _is_open(method: str, route: str) -> bool:
    if method == "POST":
        return route in _OPEN_POST
    return method in ("GET", "HEAD") and (route in _OPEN_GET or route.startswith(_OPEN_GET_BELOW))


def _refusal(error: HTTPException, is_upload: bool) -> Response:
    """Returns a refusal; Gradio's script shows `detail`, or for an upload the plain text."""
    log.warning("refused a request (%d): %s", error.status_code, error.detail)
    if is_upload:
        return PlainTextResponse(error.detail, error.status_code, error.headers)
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


async def _files(request: Request, max_files: int) -> list[bytes]:
    """Returns the files of a form.

    Raises:
        DataError: The body is no form, or has no file or too many.
    """
    try:
        async with request.form(max_files=max_files, max_fields=8) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            found = [await file.read() for file in files]
    except (HTTPException, AssertionError, KeyError, ValueError) as error:
        reason = getattr(error, "detail", None) or "it cannot be read"
        expected = f"files: the upload is no form of up to {max_files} files"
        raise DataError(f"{expected}: {reason}") from None
    if not found:
        raise DataError("files is missing: the upload holds no file")
    return found


def _replay(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that yields a body that was read before, then further messages."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _with_body(request: Request, body: bytes, kind: str) -> tuple[Scope, Receive]:
    """Returns scope and receiver of a request with another body."""
    headers = MutableHeaders(raw=list(request.scope["headers"]))
    headers.update({"content-length": str(len(body)), "content-type": kind})
    del headers["transfer-encoding"]
    return {**request.scope, "headers": headers.raw}, _replay(body, request.receive)
