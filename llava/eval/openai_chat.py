"""Ask a model behind OpenAI's chat API, for the scripts that let GPT judge or answer.

In: messages. Out: the reply. The key is in `OPENAI_API_KEY`; `OPENAI_API_BASE` names another server
of the same protocol. Only scripts that a user starts for this purpose come here.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence

import requests

from llava.errors import ConfigError, DataError

log = logging.getLogger(__name__)

DEFAULT_API_BASE = "https://api.openai.com/v1"
TIMEOUT_S = 120
PAUSE_S = 3.0
_BUSY = (408, 409, 429, 500, 502, 503, 504)


def require_key() -> str:
    """The key.

    Raises:
        ConfigError: it is not set.
    """
    key = os.environ.get("OPENAI_API_KEY")
    if not key:
        raise ConfigError("OPENAI_API_KEY is not set; it is needed to ask OpenAI's models")
    return key


def chat(
    messages: Sequence[Mapping[str, str]],
    model: str,
    temperature: float | None,
    max_tokens: int,
    num_tries: int = 10,
) -> str:
    """Get a reply; a busy server is asked again after a pause.

    Args:
        messages: `role` and `content` each.
        model: the server's name for it.
        temperature: None for the server's default.
        max_tokens: longest reply.
        num_tries: how often to ask.

    Raises:
        ConfigError: there is no key, or the server refuses the request.
        DataError: the server stayed busy.
    """
    base = os.environ.get("OPENAI_API_BASE", DEFAULT_API_BASE).rstrip("/")
    body = {"model": model, "messages": list(messages), "max_tokens": max_tokens}
    if temperature is not None:
        body["temperature"] = temperature
    headers = {"Authorization": f"Bearer {require_key()}"}
    reason = ""
    for number in range(num_tries):
        if number:
            time.sleep(PAUSE_S)
        try:
            response = requests.post(
                f"{base}/chat/completions", json=body, headers=headers, timeout=TIMEOUT_S
            )
        except requests.RequestException as error:
            reason = str(error)
            continue
        if response.ok:
            return str(response.json()["choices"][0]["message"]["content"])
        reason = f"{response.status_code}: {response.text[:500]}"
        if response.status_code not in _BUSY:
            raise ConfigError(f"{base} refuses the request for model {model!r} ({reason})")
        log.warning("%s is busy (%s)", base, reason)
    raise DataError(f"no reply from {base} after {num_tries} tries ({reason})")
