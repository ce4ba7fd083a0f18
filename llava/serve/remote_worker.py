"""What the workers share that hold no model themselves but pass requests on to another engine.

In: an asynchronous stream of texts from a subclass, each the answer so far. Out: LLaVA's protocol.
Engines get token ids: LLaVA tokenises the text between images apart, and no text makes every engine
do the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import conv_templates, conversation_to_dict
from llava.data.tokenize import encode_prompt
from llava.errors import ConfigError, UserError
from llava.mm_utils import get_model_name_from_path
from llava.model.tokenizer import load_tokenizer
from llava.serve.model_worker import DEFAULT_WAITING, WorkerBase
from llava.serve.protocol import (
    BUSY,
    GENERATION_FAILED,
    INVALID_REQUEST,
    STOPPING,
    encode_chunk,
    encode_error,
)

log = logging.getLogger(__name__)


class AsyncQueue:
    """A bounded number of requests at a time for adapters, whose engine queues by itself.

    Args:
        limit: Requests that are passed on at the same time.
        max_waiting: Requests that may wait beyond those.
    """

    def __init__(self, limit: int, max_waiting: int = DEFAULT_WAITING) -> None:
        self._semaphore = asyncio.Semaphore(limit)
        self._limit = limit
        self._max_waiting = max_waiting
        self.num_requests = 0

    @property
    def is_full(self) -> bool:
        """Whether no request can even wait."""
        return self.num_requests >= self._limit + self._max_waiting

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncGenerator[None, None]:
        """Wait for a place and keep it."""
        self.num_requests += 1
        try:
            async with self._semaphore:
                yield
        finally:
            self.num_requests -= 1


class AdapterWorker(WorkerBase):
    """A worker in front of another engine.

    Args:
        controller_addr: URL of the controller.
        worker_addr: URL under which the controller and the clients reach this worker.
        worker_id: Short random name for logs.
        no_register: Stay unknown to the controller.
        model_name: Name to serve the model under; a path is shortened by LLaVA's rule.
        model_path: The exported checkpoint: its tokenizer and, where it has one, its template.
        limit_model_concurrency: Requests that are passed on at the same time.

    Raises:
        CheckpointError: There is no tokenizer at `model_path`.
        ConfigError: It knows no `<image>`.
    """

    def __init__(
        self,
        controller_addr: str,
        worker_addr: str,
        worker_id: str,
        no_register: bool,
        model_name: str,
        model_path: str,
        limit_model_concurrency: int,
    ) -> None:
        super().__init__(controller_addr, worker_addr, worker_id, no_register)
        self.model_name = get_model_name_from_path(model_name)
        self.tokenizer = load_tokenizer(model_path)
        image_token_id(self.tokenizer)
        self._conversation = read_conversation(model_path)
        self._queue = AsyncQueue(limit_model_concurrency)

    @abstractmethod
    def texts(self, params: dict[str, Any]) -> AsyncGenerator[str, None]:
        """Yield the answer so far, as often as it grows; closing the generator cancels it."""

    def get_queue_length(self) -> int:
        """Return how many requests are passed on or wait."""
        return self._queue.num_requests

    def get_status(self) -> dict[str, Any]:
        """Return the status, with the checkpoint's template where this machine can read it."""
        return {**super().get_status(), "conversation": self._conversation}

    def drain(self, timeout_s: float) -> bool:
        """Wait until all requests are answered; whether they were."""
        deadline = time.monotonic() + timeout_s
        while self._queue.num_requests and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self._queue.num_requests

    async def answer(self, params: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """Pass one request on and its answer back."""
        if self.is_leaving:
            yield encode_error(GENERATION_FAILED, "the worker is about to stop", STOPPING)
            return
        if self._queue.is_full:
            yield encode_error(GENERATION_FAILED, "the queue is full, try again later", BUSY)
            return
        self.beat_soon()
        prompt = str(params.get("prompt", ""))
        seen: str | None = None
        try:
            async with self._queue.slot(), contextlib.aclosing(self.texts(params)) as texts:
                async for text in texts:
                    if text != seen:
                        seen = text
                        yield encode_chunk(prompt + text)
            if seen is None:  # an empty answer is an answer
                yield encode_chunk(prompt)
        except UserError as error:
            log.error("refused a request: %s", error)
            yield encode_error(GENERATION_FAILED, str(error), INVALID_REQUEST)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("the engine behind this worker failed")
            reason = f"the engine failed ({type(error).__name__}); see the worker's log"
            yield encode_error(GENERATION_FAILED, reason)
        finally:
            self.beat_soon()


def engine_ids(prompt: str, tokenizer: Any) -> list[int]:
    """Return the ids that LLaVA gives for a prompt, with the id of `<image>` for each image.

    Args:
        prompt: LLaVA's prompt, with `<image>` where an image goes.
        tokenizer: Of an exported checkpoint. Some leave BOS to the chat template.
    """
    ids = encode_prompt(prompt, tokenizer, image_token_id(tokenizer))
    bos = tokenizer.bos_token
    if bos and ids[:1] != [tokenizer.bos_token_id] and tokenizer.chat_template:
        question = [{"role": "user", "content": "a"}]
        if tokenizer.apply_chat_template(question, tokenize=False).startswith(bos):
            return [tokenizer.bos_token_id, *ids]
    return ids


def image_token_id(tokenizer: Any) -> int:
    """Return the id of `<image>`.

    Raises:
        ConfigError: The tokenizer has no such token, so the checkpoint is not an exported one.
    """
    index = tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    if index is None or index == tokenizer.unk_token_id:
        raise ConfigError(
            f"the tokenizer of {tokenizer.name_or_path} has no token {DEFAULT_IMAGE_TOKEN}; "
            "expected a checkpoint that `lrm export hf` wrote"
        )
    return int(index)


def read_conversation(model_path: str) -> dict[str, Any] | None:
    """Return the conversation template of a checkpoint, None where there is none here.

    An exported checkpoint has it in `llava_config.json`, LLaVA's own in `config.json`. An export
    with `--conv-mode` names another template than LLaVA's configuration inside it.
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
