"""The wire format between page, controller and workers, and its client.

An answer is a stream of JSON objects, each followed by one NUL byte. Each object holds the whole
text so far, beginning with the prompt, so a reader may skip objects. Every call of the client has a
time limit. The conversation template of a checkpoint takes precedence over LLaVA's rule on names.

In: dictionaries, raw bytes or addresses. Out: raw bytes, dictionaries, conversations. This module
knows neither HTTP servers nor models.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import requests

from llava.conversation import (
    Conversation,
    conversation_from_dict,
    get_conversation,
)
from llava.utils import server_error_msg

log = logging.getLogger(__name__)

OK = 0
GENERATION_FAILED = 1
NO_WORKER = 2
WORKER_UNREACHABLE = 3

# Causes of a failed generation, as `kind` beside the code; clients of LLaVA ignore them.
INVALID_REQUEST = "invalid_request"
BUSY = "busy"
DEADLINE = "deadline"
STOPPING = "stopping"

# LLaVA's workers generate no more.
MAX_NEW_TOKENS = 1024

# Keys of a status that describe a model, beyond LLaVA's protocol.
MODEL_KEYS = ("conversation", "context_len", "multimodal")

TOO_LONG_MESSAGE = "Exceeds max token length. Please start a new conversation, thanks."

DELIMITER = b"\0"
CLIENT_HEADERS = {"User-Agent": "LLaVA Client"}

# Seconds. Reading may take longer than connecting: a long prompt delays the first token.
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 120.0

# Models that LLaVA's page lists first.
PINNED_MODELS = ("vicuna-13b", "koala-13b")


def model_details(status: dict[str, Any], model: str) -> dict[str, Any]:
    """Returns the details of a model in a status: those of `MODEL_KEYS` that are known.

    The status of a worker has them at the top level, that of a controller under `models`.
    """
    details = (status.get("models") or {}).get(model, status)
    return {key: details[key] for key in MODEL_KEYS if details.get(key) is not None}


def encode_chunk(text: str, error_code: int = OK, **extra: Any) -> bytes:
    """Encodes one object of a stream.

    Args:
        text: The prompt and all text generated so far, or an error message.
        error_code: `OK` or one of the codes of this module.
        extra: Further keys, such as `reason`; clients of LLaVA ignore them.

    Returns:
        UTF-8 JSON followed by one NUL byte.
    """
    return json.dumps({"text": text, "error_code": error_code, **extra}).encode() + DELIMITER


def encode_error(error_code: int, reason: str, **extra: str) -> bytes:
    """Encodes an error: LLaVA's fixed text, with the cause as `reason` and perhaps its `kind`."""
    return encode_chunk(server_error_msg, error_code, reason=reason, **extra)


def decode_chunks(pieces: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yields the objects of a stream, which may be cut into pieces anywhere.

    Args:
        pieces: Raw bytes from the network.

    Yields:
        The decoded objects, in order.

    Raises:
        ValueError: If an object is not JSON, or the stream ends inside an object.
    """
    rest = b""
    for piece in pieces:
        *complete, rest = (rest + piece).split(DELIMITER)
        for chunk in complete:
            if chunk:
                yield json.loads(chunk)
    if rest:
        raise ValueError(f"the stream ended inside an object, after {rest[:80]!r}")


def text_before_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Returns the part of an unfinished text that no stop string can take away any more.

    Args:
        text: All that has been generated so far.
        stops: Texts that end an answer and are cut from it; none of them is empty.

    Returns:
        The text up to the first stop string, or else to what may be the beginning of one; and
        whether it holds one.
    """
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    if found:
        return text[: min(found)], True
    begun = (n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n]))
    return text[: len(text) - max(begun, default=0)], False


def post_json(
    url: str, body: dict[str, Any] | None = None, timeout_s: float = READ_TIMEOUT_S
) -> Any:
    """Posts JSON and returns the JSON of the response.

    Raises:
        requests.RequestException: If there is no response, an error, or a response without JSON.
    """
    response = requests.post(url, json=body or {}, timeout=(CONNECT_TIMEOUT_S, timeout_s))
    response.raise_for_status()
    return response.json()


def get_model_list(controller_url: str) -> list[str]:
    """Returns the names of the models, pinned ones first, after a refresh of all workers.

    Raises:
        requests.RequestException: If the controller does not answer.
    """
    post_json(controller_url + "/refresh_all_workers")
    models = post_json(controller_url + "/list_models")["models"]
    pins = {name: rank for rank, name in enumerate(PINNED_MODELS)}
    return sorted(models, key=lambda name: (pins.get(name, len(pins)), name))


def get_worker_address(controller_url: str, model: str) -> str:
    """Returns the address of a worker for a model, "" if there is none.

    Raises:
        requests.RequestException: If the controller does not answer.
    """
    return post_json(controller_url + "/get_worker_address", {"model": model})["address"]


def get_worker_status(worker_address: str) -> dict[str, Any]:
    """Returns the status of a worker.

    Raises:
        requests.RequestException: If the worker does not answer.
    """
    return post_json(worker_address + "/worker_get_status")


def stream_bytes(worker_address: str, body: dict[str, Any]) -> Generator[bytes, None, None]:
    """Asks a worker or a controller to generate; closing the iterator closes the connection.

    Args:
        worker_address: URL.
        body: Body of `/worker_generate_stream`.

    Yields:
        The raw stream.

    Raises:
        requests.RequestException: If the worker does not answer or goes away.
    """
    with requests.post(
        worker_address + "/worker_generate_stream",
        headers=CLIENT_HEADERS,
        json=body,
        stream=True,
        timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
    ) as response:
        response.raise_for_status()
        yield from response.iter_content(chunk_size=None)


def stream_generation(worker_address: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Asks as `stream_bytes` does and decodes the stream.

    Yields:
        Objects with `text`, `error_code` and, after an error, perhaps `reason`.

    Raises:
        requests.RequestException: If the worker does not answer or goes away.
        ValueError: If it violates the protocol.
    """
    with contextlib.closing(stream_bytes(worker_address, body)) as pieces:
        yield from decode_chunks(pieces)


def template_name(model_name: str) -> str:
    """Returns the template that LLaVA's page chooses by the name of a model.

    For templates that LLaVA names but does not have (`mistral_orca`, `mpt_text`), the name of one
    with the same format is returned.
    """
    name = model_name.lower()
    if "llava" not in name:
        return _first_match(name, (("mpt", "mpt"), ("llama-2", "llama_2")), default="vicuna_v1")
    if "llama-2" in name:
        return "llava_llama_2"
    if "mistral" in name or "mixtral" in name:
        return _first_match(
            name, (("orca", "chatml_direct"), ("hermes", "chatml_direct")), "mistral_instruct"
        )
    has_tag = "mmtag" in name
    is_plain = "plain" in name
    return _first_match(
        name,
        (
            ("llava-v1.6-34b", "chatml_direct"),
            ("v1", "v1_mmtag" if has_tag or (is_plain and "finetune" not in name) else "llava_v1"),
            ("mpt", "mpt"),
        ),
        default="v0_mmtag" if has_tag or is_plain else "llava_v0",
    )


def _first_match(name: str, rules: tuple[tuple[str, str], ...], default: str) -> str:
    return next((template for part, template in rules if part in name), default)


def template_of_worker(worker_address: str, model_name: str) -> Conversation:
    """Returns a new conversation in the template of the worker's checkpoint, or by its name."""
    try:
        status = get_worker_status(worker_address)
    except (requests.RequestException, ValueError) as error:
        log.warning("worker %s gives no status (%s): using the model's name", worker_address, error)
        status = {}
    return template_from_status(status, model_name)


def template_from_status(status: dict[str, Any], model_name: str) -> Conversation:
    """Returns a new conversation in the template that a status has for a model, or by its name.

    Raises:
        TemplateError: If the template is broken.
    """
    own = model_details(status, model_name).get("conversation")
    if isinstance(own, dict):
        return conversation_from_dict(own)
    return get_conversation(own or template_name(model_name))


def text_request(worker_address: str, model: str, question: str, **sampling: Any) -> dict[str, Any]:
    """Returns the body of a request with one question and no image.

    Args:
        worker_address: URL of the worker, whose template is used if it has one.
        model: Name of the model.
        question: The question.
        sampling: Further keys, such as `temperature` and `max_new_tokens`.
    """
    conversation = template_of_worker(worker_address, model)
    conversation.append_message(conversation.roles[0], question)
    conversation.append_message(conversation.roles[1], None)
    return {
        "model": model,
        "prompt": conversation.get_prompt(),
        "stop": conversation.answer_end,
        **sampling,
    }
