"""A worker of LLaVA's protocol in front of an SGLang server that holds the model.

In and out: as for `llava.serve.model_worker`. The worker sends token ids and images to SGLang's
`/generate`, which batches requests itself; nothing of SGLang is imported.

    python3 -m sglang.launch_server --model-path runs/mini-hf --port 30000
    python -m llava.serve.sglang_worker --sgl-endpoint http://127.0.0.1:30000
"""

from __future__ import annotations

import argparse
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx
import requests

from llava.errors import ConfigError, flag, make_parser, run_command
from llava.serve.model_worker import (
    DEFAULT_CONCURRENCY,
    MAX_NEW_TOKENS,
    WORKER_FLAGS,
    app,
    heart_beat_worker,
    parse_request,
    serve,
    start,
)
from llava.serve.protocol import CONNECT_TIMEOUT_S, READ_TIMEOUT_S
from llava.serve.remote_worker import RemoteWorker, engine_ids

__all__ = ["MAX_NEW_TOKENS", "ModelWorker", "app", "heart_beat_worker", "pipeline"]


def pipeline(params: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Turns a request of LLaVA's protocol into the body of SGLang's `/generate`.

    Args:
        params: The request.
        tokenizer: Tokenizer of the exported checkpoint.

    Raises:
        DataError: If a value is missing or wrong; the message names it.
    """
    request = parse_request(params)
    sampling: dict[str, Any] = {
        "temperature": request.temperature,
        "top_p": request.top_p or 1e-6,  # SGLang refuses 0
        "max_new_tokens": request.max_new_tokens,
        **({"stop": [request.stop]} if request.stop else {}),
    }
    return {
        "input_ids": engine_ids(request.prompt, tokenizer),
        "sampling_params": sampling,
        "stream": True,
        **({"image_data": list(params["images"])} if request.images else {}),
    }


class SglangWorker(RemoteWorker):
    """A worker whose model is in an SGLang server.

    Args:
        controller_addr: URL of the controller.
        worker_addr: URL under which the controller and the clients reach this worker.
        sgl_endpoint: URL of the SGLang server.
        worker_id: Short random name for logs.
        no_register: Do not register with the controller.
        model_name: Name to serve the model under; by default derived from SGLang's path.
        limit_model_concurrency: Maximum number of requests that are passed on at the same time.
        model_path: The exported checkpoint on this machine; by default SGLang's path.

    Raises:
        CheckpointError: If there is no tokenizer at `model_path`.
        ConfigError: If the server does not answer, or the checkpoint was not exported.
    """

    def __init__(
        self,
        controller_addr: str,
        worker_addr: str,
        sgl_endpoint: str,
        worker_id: str,
        no_register: bool,
        model_name: str | None,
        *,
        limit_model_concurrency: int = DEFAULT_CONCURRENCY,
        model_path: str | None = None,
    ) -> None:
        self.sgl_endpoint = sgl_endpoint.rstrip("/")
        try:
            response = requests.get(
                self.sgl_endpoint + "/get_model_info", timeout=CONNECT_TIMEOUT_S
            )
            response.raise_for_status()
            path = str(response.json()["model_path"])
        except (requests.RequestException, ValueError, KeyError) as error:
            raise ConfigError(
                f"no SGLang server answers at {self.sgl_endpoint} ({type(error).__name__}): start "
                "`python3 -m sglang.launch_server --model-path FOLDER --port 30000`"
            ) from None
        super().__init__(
            controller_addr, worker_addr, worker_id, no_register, model_name or path,
            model_path or path, limit_model_concurrency,
        )  # fmt: skip

    async def texts(self, params: dict[str, Any]) -> AsyncGenerator[str, None]:
        """Yields the answer so far whenever it has grown."""
        body = pipeline(params, self.tokenizer)
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        async with (
            httpx.AsyncClient(timeout=timeout, trust_env=False) as client,
            client.stream("POST", self.sgl_endpoint + "/generate", json=body) as reply,
        ):
            reply.raise_for_status()
            async for line in reply.aiter_lines():
                data = line.removeprefix("data:").strip()
                if line.startswith("data:") and data != "[DONE]":
                    yield str(json.loads(data)["text"])


ModelWorker = SglangWorker  # LLaVA's name for it


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line."""
    return make_parser(
        __doc__,
        *WORKER_FLAGS,
        flag("--sgl-endpoint", help="e.g. http://127.0.0.1:30000"),
        flag(
            "--model-path", help="the exported checkpoint on this machine; by default SGLang's path"
        ),
        prog="python -m llava.serve.sglang_worker",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Serves the worker until interrupted."""
    args, worker_id = start("sglang_worker", build_parser(), argv)
    if not args.sgl_endpoint:
        raise ConfigError("--sgl-endpoint is missing: where does the SGLang server listen?")
    worker = SglangWorker(
        args.controller_address,
        args.worker_address,
        args.sgl_endpoint,
        worker_id,
        args.no_register,
        args.model_name,
        limit_model_concurrency=args.limit_model_concurrency,
        model_path=args.model_path,
    )
    serve(worker, args)


if __name__ == "__main__":
    run_command(main)
