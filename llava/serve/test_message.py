"""Sends one message without images to a worker and prints the streamed answer.

In: addresses, the name of a model and a message. Out: the conversation on the terminal.

    python -m llava.serve.test_message --model-name llava-mini --message "Hello"
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

import requests

from llava.errors import ConfigError, UserError, flag, make_parser
from llava.serve.protocol import (
    OK,
    get_model_list,
    get_worker_address,
    stream_generation,
    text_request,
)


def send(
    controller_address: str,
    worker_address: str | None,
    model_name: str,
    message: str,
    max_new_tokens: int,
    output: TextIO,
) -> None:
    """Sends a message and writes the answer while it is generated.

    Raises:
        ConfigError: No worker serves the model, or the worker reports an error.
    """
    if not worker_address:
        models = get_model_list(controller_address)
        worker_address = get_worker_address(controller_address, model_name)
        if not worker_address:
            raise ConfigError(
                f"no worker serves {model_name!r}; served: {', '.join(models) or 'nothing'}"
            )
    body = text_request(
        worker_address, model_name, message, max_new_tokens=max_new_tokens, temperature=0.7
    )
    output.write(body["prompt"])
    written = len(body["prompt"])
    for chunk in stream_generation(worker_address, body):
        if chunk["error_code"] != OK:
            reason = chunk.get("reason", chunk["text"])
            raise ConfigError(f"{reason} (error_code: {chunk['error_code']})")
        output.write(chunk["text"][written:])
        output.flush()
        written = len(chunk["text"])
    output.write("\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = make_parser(
        __doc__,
        flag("--controller-address", default="http://localhost:21001"),
        flag("--worker-address"),
        flag("--model-name", default="facebook/opt-350m"),
        flag("--max-new-tokens", type=int, default=32),
        flag("--message", default="Tell me a story with more than 1000 words."),
        prog="python -m llava.serve.test_message",
    )
    args = parser.parse_args(argv)
    try:
        send(**vars(args), output=sys.stdout)
    except (UserError, requests.RequestException) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
