"""The base of workers that pass requests on to another engine.

In: an asynchronous stream of texts from a subclass, each the answer so far. Out: LLaVA's protocol.
Engines that take token ids get them, because LLaVA tokenises the text between images separately,
and no prompt text makes every engine do the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import conv_templates, conversation_to_dict
from llava.data.tokenize import encode_prompt
from llava.errors import ConfigError
from llava.files import get_model_name_from_path
from llava.model.tokenizer import load_tokenizer
from llava.serve.batch import Unanswered
from llava.serve.model_worker import (
    DEFAULT_WAITING,
    WorkerBase,
    encode_failure,
)
from llava.serve.protocol import BUSY, STOPPING, encode_chunk


class RemoteWorker(WorkerBase):
    """A worker in front of another engine, which batches by itself.

    Args:
        controller_addr: URL of the controller.
        worker_addr: URL under which the controller and the clients reach this worker.
        worker_id: Short random name for logs.
        no_register: Do not register with the controller.
        model_name: Name to serve the model under; LLaVA's rule shortens a path.
        model_path: The exported checkpoint, whose tokenizer and template are used; None if the
            engine applies its own, and the subclass sets `details`.
        limit_model_concurrency: Maximum number of requests that are passed on at the same time.

    Raises:
        CheckpointError: If there is no tokenizer at `model_path`.
        ConfigError: If the tokenizer has no token `<image>`.
    """

    def __init__(
        self,
        controller_addr: str,
        worker_addr: str,
        worker_id: str,
        no_register: bool,
        model_name: str,
        model_path: str | None,
        limit_model_concurrency: int,
    ) -> None:
        super().__init__(controller_addr, worker_addr, worker_id, no_register)
        self.model_name = get_model_name_from_path(model_name)
        if model_path is not None:
            self.tokenizer = load_tokenizer(model_path)
            image_token_id(self.tokenizer)
            self.details = {"conversation": read_conversation(model_path)}
        self.num_requests = 0
        self._max_requests = limit_model_concurrency + DEFAULT_WAITING
        self._places = asyncio.Semaphore(limit_model_concurrency)

    @abstractmethod
    def texts(self, params: dict[str, Any]) -> AsyncGenerator[str, None]:
        """Yields the answer so far, as often as it grows; closing the generator cancels it."""

    def get_queue_length(self) -> int:
        """Returns the number of requests that are running or waiting."""
        return self.num_requests

    def drain(self, timeout_s: float) -> bool:
        """Waits for running requests; returns whether all were answered."""
        deadline = time.monotonic() + timeout_s
        while self.num_requests and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.num_requests

    async def answer(self, params: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """Passes a request on and its answer back."""
        prompt = str(params.get("prompt", ""))
        seen: str | None = None
        self.num_requests += 1
        self.beat_now.set()
        try:
            if self.is_leaving:
                raise Unanswered(STOPPING, "the worker is about to stop and takes no new requests")
            if self.num_requests > self._max_requests:
                raise Unanswered(BUSY, "the queue is full, try again later")
            async with self._places, contextlib.aclosing(self.texts(params)) as texts:
                async for text in texts:
                    if text != seen:
                        seen = text
                        yield encode_chunk(prompt + text)
            if seen is None:  # even an empty answer is one object
                yield encode_chunk(prompt)
        except Exception as error:
            yield encode_failure(error, prompt)
        finally:
            self.num_requests -= 1
            self.beat_now.set()


def engine_ids(prompt: str, tokenizer: Any) -> list[int]:
    """Returns LLaVA's ids of a prompt, with the id of `<image>` for each image.

    Args:
        prompt: LLaVA's prompt, with `<image>` for each image.
        tokenizer: Tokenizer of an exported checkpoint; some leave BOS to the chat template.
    """
    ids = encode_prompt(prompt, tokenizer, image_token_id(tokenizer))
    bos = tokenizer.bos_token
    if bos and ids[:1] != [tokenizer.bos_token_id] and tokenizer.chat_template:
        question = [{"role": "user", "content": "a"}]
        if tokenizer.apply_chat_template(question, tokenize=False).startswith(bos):
            return [tokenizer.bos_token_id, *ids]
    return ids


def image_token_id(tokenizer: Any) -> int:
    """Returns the id of `<image>`.

    Raises:
        ConfigError: If the tokenizer has no such token, that is, the checkpoint was not exported.
    """
    index = tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    if index is None or index == tokenizer.unk_token_id:
        raise ConfigError(
            f"the tokenizer of {tokenizer.name_or_path} has no token {DEFAULT_IMAGE_TOKEN}; "
            "expected a checkpoint that `lrm export hf` wrote"
        )
    return int(index)


def read_conversation(model_path: str) -> dict[str, Any] | None:
    """Returns the conversation template of a checkpoint, or None if it has none.

    Exported checkpoints have it in `llava_config.json`, LLaVA's own in `config.json`. An export
    with `--conv-mode` names another template than the configuration of LLaVA inside it.
    """
    for name in ("llava_config.json", "config.json"):
        try:
            config = json.loads((Path(model_path) / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(config, dict):
            continue
        chosen = config.get("conversation")
        stored = config.get("config", config).get("conversation")  # an export wraps LLaVA's
        if isinstance(stored, dict) and chosen in (None, stored, stored.get("name")):
            return stored
        if isinstance(chosen, str) and chosen in conv_templates:
            return conversation_to_dict(conv_templates[chosen], chosen)
    return None
