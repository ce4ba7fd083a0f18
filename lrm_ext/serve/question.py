"""One question to a demo that has just started, to see that it answers.

In: the controller's or the API's address, and a model's name. Out: the answer.
"""

from __future__ import annotations

import requests

from llava.errors import ConfigError
from llava.serve import protocol
from llava.serve.protocol import OK, READ_TIMEOUT_S, stop_string, template_of_worker

CHECK_QUESTION = "What can you do?"


def ask_once(controller: str, model: str) -> str:
    """Ask the model one question without a picture.

    Returns:
        The answer.

    Raises:
        ConfigError: The worker reports an error.
    """
    address = protocol.get_worker_address(controller, model)
    conversation = template_of_worker(address, model)
    conversation.append_message(conversation.roles[0], CHECK_QUESTION)
    conversation.append_message(conversation.roles[1], None)
    prompt = conversation.get_prompt()
    text = prompt
    body = {
        "model": model,
        "prompt": prompt,
        "temperature": 0,
        "max_new_tokens": 16,
        "stop": stop_string(conversation),
    }
    for chunk in protocol.stream_generation(controller, body):
        if chunk["error_code"] != OK:
            raise ConfigError(f"the worker failed: {chunk.get('reason', chunk['text'])}")
        text = chunk["text"]
    return text[len(prompt) :].strip()


def ask_api(address: str, model: str) -> str:
    """Ask the API at an address the same question.

    Returns:
        The answer.

    Raises:
        ConfigError: It reports an error.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": CHECK_QUESTION}],
        "temperature": 0,
        "max_tokens": 16,
    }
    response = requests.post(address + "/v1/chat/completions", json=body, timeout=READ_TIMEOUT_S)
    if not response.ok:
        raise ConfigError(f"the API failed: {response.text}")
    return str(response.json()["choices"][0]["message"]["content"])
