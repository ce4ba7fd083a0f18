"""Asking a service over HTTP: paced, retried with back-off, and honest about what went wrong.

Input: JSON to post. Output: the service's JSON. What may pass (time-outs, 429, 5xx, a proxy's HTML)
is tried again; what will not (a refused key, an unknown model, no money left) is an `EngineError`;
what is the request's own fault is a `RejectedError`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from lrm_ext.translation.engines.base import EngineError

log = logging.getLogger(__name__)

_MAY_PASS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_FATAL = {401: "the key is refused", 403: "access is refused", 404: "no such model or address"}
_MAX_WAIT_S = 60.0


class RejectedError(Exception):
    """The service will not take this request, and others perhaps yes."""


class ExhaustedError(Exception):
    """All tries failed for reasons that may pass."""


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

    async def post(self, path: str, body: Mapping[str, Any], num_tokens: int) -> dict[str, Any]:
        """Post JSON until it is answered.

        Args:
            path: Below the service's address.
            body: What to send.
            num_tokens: About how many tokens it costs, for the rate limit.

        Raises:
            EngineError: The service cannot be used at all.
            RejectedError: It does not take this request.
            ExhaustedError: It did not answer in `max_tries` tries.
        """
        fault = ""
        asked_wait_s: float | None = None
        for attempt in range(self._limits.max_tries):
            if attempt:
                await asyncio.sleep(self._wait_s(attempt, asked_wait_s))
            await self._pace.take(num_tokens)
            asked_wait_s = None
            try:
                response = await self._client.post(self._url + path, json=body)
            except httpx.HTTPError as error:
                fault = f"{type(error).__name__} {error}".strip()
                continue
            asked_wait_s = _retry_after(response)
            if response.status_code == 200:
                try:
                    data = response.json()
                except ValueError:
                    data = None
                if isinstance(data, dict):
                    self.num_answered += 1
                    return data
                fault = f"no JSON but {_shown(response)}"
                continue
            fault = f"HTTP {response.status_code}: {_shown(response)}"
            self._raise_for(response, fault)
        raise ExhaustedError(f"{fault} ({self._limits.max_tries} tries)")

    async def close(self) -> None:
        """Close connections."""
        await self._client.aclose()

    def _raise_for(self, response: httpx.Response, fault: str) -> None:
        status = response.status_code
        if status in _FATAL:
            raise EngineError(f"{self._url}: {_FATAL[status]}: {fault}")
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
