"""Talking to a controller and its workers without a thread for each request.

What `llava.serve.protocol` is to the page, this is to the API. In: the controller's address. Out:
model names, a chosen worker with its template, and the streamed objects of a generation.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import httpx

from llava.conversation import Conversation
from llava.errors import TemplateError
from llava.serve.protocol import (
    CLIENT_HEADERS,
    CONNECT_TIMEOUT_S,
    DELIMITER,
    READ_TIMEOUT_S,
    template_from_status,
)

log = logging.getLogger(__name__)

# Seconds for which a worker's template is not asked for again.
TEMPLATE_LIFETIME_S = 30.0
MAX_CONNECTIONS = 1024


@dataclass
class AsyncClient:
    """A controller as the API sees it.

    Attributes:
        controller: The controller's URL.
    """

    controller: str
    _http: httpx.AsyncClient = field(init=False, repr=False)
    _templates: dict[tuple[str, str], tuple[float, Conversation]] = field(
        init=False, default_factory=dict, repr=False
    )

    def __post_init__(self) -> None:
        self._http = httpx.AsyncClient(
            headers=CLIENT_HEADERS,
            timeout=httpx.Timeout(
                READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=CONNECT_TIMEOUT_S
            ),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=64),
            trust_env=False,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _post(self, url: str, body: dict[str, Any] | None = None) -> Any:
        response = await self._http.post(url, json=body or {})
        response.raise_for_status()
        return response.json()

    async def list_models(self) -> list[str]:
        """Return the names of the models, sorted.

        Raises:
            httpx.HTTPError: The controller does not answer.
        """
        return sorted((await self._post(self.controller + "/list_models"))["models"])

    async def worker_address(self, model: str) -> str:
        """Return the address of a worker for a model, "" if there is none.

        Raises:
            httpx.HTTPError: The controller does not answer.
        """
        return (await self._post(self.controller + "/get_worker_address", {"model": model}))[
            "address"
        ]

    async def refresh(self) -> None:
        """Let the controller ask all workers again and forget those that are gone.

        Raises:
            httpx.HTTPError: The controller does not answer.
        """
        await self._post(self.controller + "/refresh_all_workers")

    async def template(self, worker: str, model: str) -> Conversation:
        """Return a fresh conversation in the template of the worker's checkpoint, else by name."""
        now = time.monotonic()
        asked_at, known = self._templates.get((worker, model), (float("-inf"), None))
        if known is None or now - asked_at > TEMPLATE_LIFETIME_S:
            known = await self._ask_template(worker, model)
            self._templates = {
                key: entry
                for key, entry in self._templates.items()
                if now - entry[0] <= TEMPLATE_LIFETIME_S
            }
            self._templates[worker, model] = (now, known)
        return known.copy()

    async def _ask_template(self, worker: str, model: str) -> Conversation:
        try:
            status = await self._post(worker + "/worker_get_status")
            return template_from_status(status, model)
        except (httpx.HTTPError, ValueError, TemplateError) as error:
            log.warning("worker %s gives no template (%s): by name", worker, error)
        return template_from_status({}, model)

    async def stream_generation(
        self, worker: str, body: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Ask a worker to generate; closing the iterator hangs up.

        Yields:
            Objects with `text`, `error_code` and further keys.

        Raises:
            httpx.HTTPError: The worker does not answer or goes away.
            ValueError: What it sends is not the protocol.
        """
        rest = b""
        async with self._http.stream(
            "POST", worker + "/worker_generate_stream", json=body
        ) as response:
            response.raise_for_status()
            async for piece in response.aiter_raw():
                *complete, rest = (rest + piece).split(DELIMITER)
                # Each object holds all text so far: of several that wait, the last one will do.
                for chunk in complete[-1:]:
                    yield json.loads(chunk)
        if rest:
            raise ValueError(f"the stream ended inside an object, after {rest[:80]!r}")
