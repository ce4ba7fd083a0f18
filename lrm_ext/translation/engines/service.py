"""Asking a service over HTTP: paced, retried with back-off, and honest about what went wrong.

Input: JSON to post. Output: the service's JSON. What may pass (time-outs, 429, 5xx, a proxy's HTML)
is tried again; what will not (a refused key, an unknown model, no money left) is an `EngineError`;
what is the request's own fault is a `RejectedError`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from lrm_ext.translation.engines.base import EngineError, ExhaustedError, RejectedError

log = logging.getLogger(__name__)

_MAY_PASS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_FATAL = {401: "the key is refused", 403: "access is refused", 404: "no such model or address"}
_MAX_WAIT_S = 60.0


class NotFoundError(EngineError):
    """What is asked for is not there."""


@dataclass(frozen=True)
class Limits:
    """How a service is asked.

    Attributes:
        timeout_s: Longest wait for one answer.
        max_tries: Tries for one request.
        first_wait_s: Wait before the second try; it doubles, with a random part.
        requests_per_minute: None: no limit.
        tokens_per_minute: None: no limit.
    """

    timeout_s: float = 120.0
    max_tries: int = 6
    first_wait_s: float = 1.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


class Service:
    """A service that takes and gives JSON.

    Args:
        url: Where it is.
        key: Sent as a bearer token; None for none.
        limits: How it may be asked.
    """

    def __init__(self, url: str, key: str | None, limits: Limits) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.num_answered = 0
        self._limits = limits
        self._url = url
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=limits.timeout_s,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )
        self._pace = _Pace(limits)

    async def post(
        self,
        path: str,
        body: Mapping[str, Any],
        num_tokens: int,
        max_tries: int | None = None,
    ) -> dict[str, Any]:
        """Post JSON until it is answered.

        Args:
            path: Below the service's address.
            body: What to send.
            num_tokens: About how many tokens it costs, for the rate limit.
            max_tries: Other than the service's limits say.

        Raises:
            EngineError: The service cannot be used at all.
            RejectedError: It does not take this request.
            ExhaustedError: It did not answer in `max_tries` tries.
        """
        tries = max_tries or self._limits.max_tries
        return _json(await self._ask("POST", path, _object, num_tokens, tries, json=body))

    async def get(self, path: str) -> dict[str, Any]:
        """Get JSON; raises as `post` does."""
        return _json(await self._ask("GET", path, _object))

    async def get_lines(self, path: str) -> list[dict[str, Any]]:
        """Get a file of JSON lines, whole; raises as `post` does."""
        response = await self._ask("GET", path, lambda response: _lines(response) is not None)
        return _lines(response) or []

    async def upload(self, path: str, fields: Mapping[str, str], file: bytes) -> dict[str, Any]:
        """Post a form with a file of JSON lines; raises as `post` does."""
        files = {"file": ("requests.jsonl", file, "application/jsonl")}
        return _json(await self._ask("POST", path, _object, data=fields, files=files))

    async def _ask(
        self,
        method: str,
        path: str,
        is_good: Callable[[httpx.Response], bool],
        num_tokens: int = 0,
        max_tries: int | None = None,
        **body: Any,
    ) -> httpx.Response:
        fault = ""
        max_tries = max_tries or self._limits.max_tries
        asked_wait_s: float | None = None
        for attempt in range(max_tries):
            if attempt:
                await asyncio.sleep(self._wait_s(attempt, asked_wait_s))
            await self._pace.take(num_tokens)
            asked_wait_s = None
            try:
                response = await self._client.request(method, self._url + path, **body)
            except httpx.HTTPError as error:
                fault = f"{type(error).__name__} {error}".strip()
                continue
            asked_wait_s = _retry_after(response)
            if response.status_code == 200:
                if is_good(response):
                    self.num_answered += 1
                    return response
                fault = f"no JSON but {_shown(response)}"
                continue
            fault = f"HTTP {response.status_code}: {_shown(response)}"
            self._raise_for(response, fault)
        raise ExhaustedError(f"{fault} ({max_tries} tries)")

    async def close(self) -> None:
        """Close connections."""
        await self._client.aclose()

    def _raise_for(self, response: httpx.Response, fault: str) -> None:
        status = response.status_code
        if status in _FATAL:
            kind = NotFoundError if status == 404 else EngineError
            raise kind(f"{self._url}: {_FATAL[status]}: {fault}")
        if status == 402 or "insufficient_quota" in response.text[:2000]:
            raise EngineError(f"{self._url}: the account has no money left: {fault}")
        if status not in _MAY_PASS:
            if not self.num_answered:
                raise EngineError(f"{self._url}: the first request is not accepted: {fault}")
            raise RejectedError(fault)

    def _wait_s(self, attempt: int, asked: float | None) -> float:
        wait = self._limits.first_wait_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
        return min(_MAX_WAIT_S, max(wait, asked or 0.0))


class _Pace:
    """Spreads requests and tokens evenly."""

    def __init__(self, limits: Limits) -> None:
        self._per_request = 60 / limits.requests_per_minute if limits.requests_per_minute else 0.0
        self._per_token = 60 / limits.tokens_per_minute if limits.tokens_per_minute else 0.0
        self._free_at = 0.0

    async def take(self, num_tokens: int) -> None:
        now = time.monotonic()
        start = max(now, self._free_at)
        self._free_at = start + max(self._per_request, self._per_token * num_tokens)
        await asyncio.sleep(start - now)


def _object(response: httpx.Response) -> bool:
    try:
        return isinstance(response.json(), dict)
    except ValueError:
        return False


def _lines(response: httpx.Response) -> list[dict[str, Any]] | None:
    """The objects of a file of JSON lines; None if it is something else."""
    try:
        lines = [json.loads(line) for line in response.content.splitlines() if line.strip()]
    except ValueError:
        return None
    return lines if all(isinstance(line, dict) for line in lines) else None


def _json(response: httpx.Response) -> dict[str, Any]:
    data: dict[str, Any] = response.json()
    return data


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("retry-after", "")
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError):
        return None


def _shown(response: httpx.Response) -> str:
    kind = response.headers.get("content-type", "no content type")
    return f"{kind}, {response.text[:200]!r}"
