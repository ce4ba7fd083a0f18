"""Who may ask, and how often: API keys and a rate limit per client.

In: headers and addresses. Out: the client's name for logs and limits, or an `ApiError`. Keys are
compared in constant time and never logged.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from llava.errors import ConfigError
from llava.serve.openai_schema import ApiError

KEYS_VARIABLE = "LRM_API_KEYS"
# Clients that are remembered; the one that has been silent for longest is forgotten first.
MAX_CLIENTS = 10_000


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

    def take(self, client: str) -> None:
        """Count one request.

        Raises:
            ApiError: 429, with the seconds after which it is worth trying again.
        """
        if not self.per_minute:
            return
        now = self.clock()
        left, since = self._buckets.pop(client, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - since) * self.per_minute / 60)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        if not allowed:
            raise ApiError(
                429,
                f"more than {self.per_minute} requests a minute",
                code="rate_limit_exceeded",
                kind="requests",
                retry_after_s=int((1 - left) * 60 / self.per_minute) + 1,
            )


@dataclass(frozen=True)
class Admission:
    """The door.

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
