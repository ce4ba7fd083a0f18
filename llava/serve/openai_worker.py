"""A worker of LLaVA's protocol in front of a service with OpenAI's API that holds the model.

In and out: as for `llava.serve.model_worker`. The service (vLLM, SGLang, our own API) applies the
model's chat template itself, so that nothing of the model is needed here. The worker tells its
clients to write prompts in a ChatML template, of which it makes messages again.

    vllm serve runs/mini-hf --port 8000
    python -m llava.serve.openai_worker --base-url http://127.0.0.1:8000/v1
"""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import openai

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, SeparatorStyle, conversation_to_dict
from llava.errors import ConfigError, DataError, flag, make_parser, run_command
from llava.serve.check import check_port_is_free
from llava.serve.model_worker import WORKER_FLAGS, parse_request, serve, start
from llava.serve.protocol import CONNECT_TIMEOUT_S, READ_TIMEOUT_S
from llava.serve.remote_worker import RemoteWorker

ROLES = {"<|im_start|>user": "user", "<|im_start|>assistant": "assistant"}
TEMPLATE = Conversation("", tuple(ROLES), (), 0, SeparatorStyle.CHATML, "<|im_end|>", None)


def to_messages(prompt: str, images: Sequence[str]) -> list[dict[str, Any]]:
    """Makes OpenAI's messages of a prompt in `TEMPLATE`.

    Args:
        prompt: The prompt, with `<image>` for each image; it ends with an open answer.
        images: The images in base64.

    Raises:
        DataError: The prompt is in another template.
    """
    *turns, opened = prompt.split(f"{TEMPLATE.sep}\n")
    remaining, messages = list(images), []
    tags = [turn.partition("\n")[0] for turn in turns]
    if opened.strip() != TEMPLATE.roles[1] or not ROLES.keys() >= set(tags):
        raise DataError(
            f"the prompt begins with {prompt[:40]!r}; expected a prompt in the template that the "
            "worker's status names"
        )
    for tag, turn in zip(tags, turns, strict=True):
        text = turn.removeprefix(f"{tag}\n")
        first, *rest = text.split(DEFAULT_IMAGE_TOKEN)
        parts: list[dict[str, Any]] = [{"type": "text", "text": first}]
        for each in rest:
            image = remaining.pop(0)
            kind = "jpeg" if image.startswith("/9j/") else "png"  # services look at the bytes
            url = f"data:image/{kind};base64,{image}"
            parts.append({"type": "image_url", "image_url": {"url": url}})
            parts.append({"type": "text", "text": each.removeprefix("\n")})
        parts = [part for part in parts if part.get("text") != ""]
        # a service without images may know plain text only
        messages.append({"role": ROLES[tag], "content": parts if rest else text})
    return messages


class OpenAIWorker(RemoteWorker):
    """A worker whose model is behind a service with OpenAI's API.

    Args:
        controller_addr: URL of the controller.
        worker_addr: URL under which the controller and the clients reach this worker.
        base_url: URL of the service, with its `/v1`. Its key is read from `OPENAI_API_KEY`.
        worker_id: Short random name for logs.
        no_register: Do not register with the controller.
        model_name: The service's name for the model; by default the first that it lists.
        limit_model_concurrency: Maximum number of requests that are passed on at the same time.

    Raises:
        ConfigError: If the service does not answer, or lists no such model.
    """

    def __init__(
        self,
        controller_addr: str,
        worker_addr: str,
        base_url: str,
        worker_id: str,
        no_register: bool,
        model_name: str | None,
        limit_model_concurrency: int,
    ) -> None:
        key = os.environ.get("OPENAI_API_KEY") or "none"
        try:
            listed = openai.OpenAI(base_url=base_url, api_key=key, timeout=CONNECT_TIMEOUT_S)
            names = [each.id for each in listed.models.list()]
        except openai.OpenAIError as error:
            raise ConfigError(
                f"--base-url {base_url}: no service with OpenAI's API answers ({error}); start "
                "one, e.g. `vllm serve FOLDER --port 8000`, and end the address with /v1"
            ) from None
        if not names or (model_name or names[0]) not in names:
            raise ConfigError(
                f"--base-url {base_url}: the service has the models {names}, expected "
                f"{model_name or 'one'}"
            )
        self._served_name = model_name or names[0]
        super().__init__(
            controller_addr, worker_addr, worker_id, no_register, self._served_name, None,
            limit_model_concurrency,
        )  # fmt: skip
        self.details = {"conversation": conversation_to_dict(TEMPLATE, "openai")}
        self._service: Any = openai.AsyncOpenAI(
            base_url=base_url, api_key=key, timeout=READ_TIMEOUT_S
        )

    async def texts(self, params: dict[str, Any]) -> AsyncGenerator[str, None]:
        """Yields the answer so far whenever it has grown."""
        request = parse_request(params)
        messages = to_messages(request.prompt, params.get("images") or [])
        optional: dict[str, Any] = {} if request.seed is None else {"seed": request.seed}
        if request.stop not in (None, "", TEMPLATE.sep):
            optional["stop"] = request.stop
        stream = await self._service.chat.completions.create(
            model=self._served_name,
            messages=messages,
            temperature=request.temperature,
            top_p=request.top_p or 1e-6,  # some refuse 0
            max_tokens=request.max_new_tokens,
            stream=True,
            **optional,
        )
        async with stream:
            text = ""
            async for chunk in stream:
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
                # a template may leave the space before an answer to the model
                yield text.lstrip()


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line."""
    return make_parser(
        __doc__,
        *WORKER_FLAGS,
        flag("--base-url", help="e.g. http://127.0.0.1:8000/v1"),
        prog="python -m llava.serve.openai_worker",
    )


def run(args: argparse.Namespace, worker_id: str = "") -> None:
    """Serves the worker until interrupted."""
    check_port_is_free(args.host, args.port)
    if not args.base_url:
        raise ConfigError("--base-url is missing: where does the service listen?")
    worker = OpenAIWorker(
        args.controller_address,
        args.worker_address,
        args.base_url,
        worker_id,
        args.no_register,
        args.model_name,
        args.limit_model_concurrency,
    )
    serve(worker, args)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    run(*start("openai_worker", build_parser(), argv))


if __name__ == "__main__":
    run_command(main)
