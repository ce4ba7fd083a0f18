"""The wire format between page, controller and workers.

A generation answer is a stream of JSON objects, each followed by one NUL byte. Each holds the whole
text so far (prompt first), so a reader may skip objects. Nothing here knows of HTTP servers or
models.

In: dictionaries or raw bytes. Out: the other one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from llava.utils import server_error_msg

OK = 0
GENERATION_FAILED = 1
NO_WORKER = 2
WORKER_UNREACHABLE = 3

# Causes of a failed generation, as `kind` beside the code; clients of LLaVA ignore them.
INVALID_REQUEST = "invalid_request"
BUSY = "busy"
DEADLINE = "deadline"
STOPPING = "stopping"

# What a status says of a model beyond LLaVA's protocol.
MODEL_KEYS = ("conversation", "context_len", "multimodal")

TOO_LONG_MESSAGE = "Exceeds max token length. Please start a new conversation, thanks."

DELIMITER = b"\0"
CLIENT_HEADERS = {"User-Agent": "LLaVA Client"}

# Seconds. Reading waits longer than connecting: a long prompt may take its time to the first token.
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 120.0


def model_details(status: dict[str, Any], model: str) -> dict[str, Any]:
    """Return what a status says of one model: those of `MODEL_KEYS` that it knows.

    A worker says it of its one model beside the name, a controller under `models`, by name.
    """
    details = (status.get("models") or {}).get(model, status)
    return {key: details[key] for key in MODEL_KEYS if details.get(key) is not None}


def encode_chunk(text: str, error_code: int = OK, **extra: Any) -> bytes:
    """Encode one object of a stream.

    Args:
        text: Prompt and everything generated so far, or an error message.
        error_code: `OK` or one of the codes of this module.
        extra: Further keys, such as `reason`; clients of LLaVA ignore them.

    Returns:
        UTF-8 JSON followed by one NUL byte.
    """
    return json.dumps({"text": text, "error_code": error_code, **extra}).encode() + DELIMITER


def encode_error(error_code: int, reason: str, kind: str | None = None) -> bytes:
    """Encode an error: LLaVA's fixed text, and the cause in words as `reason`."""
    extra = {} if kind is None else {"kind": kind}
    return encode_chunk(server_error_msg, error_code, reason=reason, **extra)


def decode_chunks(pieces: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a stream from pieces that are cut anywhere.

    Args:
        pieces: Raw bytes as they come from the network.

    Yields:
        The decoded objects, in order.

    Raises:
        ValueError: An object is not JSON, or the stream ends inside one.
    """
    rest = b""
    for piece in pieces:
        *complete, rest = (rest + piece).split(DELIMITER)
        for chunk in complete:
            if chunk:
                yield json.loads(chunk)
    if rest:
        raise ValueError(f"the stream ended inside an object, after {rest[:80]!r}")
