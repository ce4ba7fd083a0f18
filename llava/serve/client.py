"""Talking to a controller and its workers over HTTP: what the page and `test_message` share.

In: the controller's address. Out: model names, a worker's address, its template, and the streamed
objects of a generation. Every call is bounded in time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import requests

from llava.serve.protocol import (
    CLIENT_HEADERS,
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    decode_chunks,
)

log = logging.getLogger(__name__)

# Models that LLaVA's page lists first.
PINNED_MODELS = ("vicuna-13b", "koala-13b")


def _post(address: str, route: str, body: dict[str, Any] | None = None) -> Any:
    response = requests.post(
        address + route, json=body or {}, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
    )
    response.raise_for_status()
    return response.json()


def get_model_list(controller_url: str) -> list[str]:
    """Return the names of the models, pinned ones first, after asking all workers again.

    Raises:
        requests.RequestException: The controller does not answer.
    """
    _post(controller_url, "/refresh_all_workers")
    models = _post(controller_url, "/list_models")["models"]
    pins = {name: rank for rank, name in enumerate(PINNED_MODELS)}
    return sorted(models, key=lambda name: (pins.get(name, len(pins)), name))


def get_worker_address(controller_url: str, model: str) -> str:
    """Return the address of a worker for a model, "" if there is none.

    Raises:
        requests.RequestException: The controller does not answer.
    """
    return _post(controller_url, "/get_worker_address", {"model": model})["address"]


def get_worker_status(worker_address: str) -> dict[str, Any]:
    """Return what a worker says of itself.

    Raises:
        requests.RequestException: The worker does not answer.
    """
    return _post(worker_address, "/worker_get_status")


def stream_generation(worker_address: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Ask a worker (or a controller) to generate; closing the iterator hangs up.

    Args:
        worker_address: URL.
        body: Body of `/worker_generate_stream`.

    Yields:
        Objects with `text`, `error_code` and, for errors, perhaps `reason`.

    Raises:
        requests.RequestException: The worker does not answer or goes away.
        ValueError: What it sends is not the protocol.
    """
    with requests.post(
        worker_address + "/worker_generate_stream",
        headers=CLIENT_HEADERS,
        json=body,
        stream=True,
        timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
    ) as response:
        response.raise_for_status()
        yield from decode_chunks(response.iter_content(chunk_size=None))
