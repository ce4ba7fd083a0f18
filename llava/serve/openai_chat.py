"""From messages in OpenAI's shape to a worker's request, and from its stream to pieces of answers.

In: a checked `ChatRequest` and a controller. Out: `Piece`s of one or several answers as they come.
Nothing here knows of HTTP servers; errors are `ApiError`s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, SeparatorStyle
from llava.errors import DataError
from llava.serve.async_client import AsyncClient
from llava.serve.engine import StopFilter
from llava.serve.openai_schema import ApiError, ChatRequest, Message
from llava.serve.protocol import (
    BUSY,
    DEADLINE,
    INVALID_REQUEST,
    NO_WORKER,
    OK,
    STOPPING,
    TOO_LONG_MESSAGE,
    stop_string,
)
from llava.serve.web import PictureLimits, read_picture

log = logging.getLogger(__name__)

# A worker that is gone is replaced this often, as long as nothing has been sent of its answer.
MAX_ATTEMPTS = 3
SEED_RANGE = 2**63


@dataclass(frozen=True)
class Piece:
    """A piece of one of the answers.

    Attributes:
        choice: Which answer, from 0.
        text: What is new.
        finish_reason: `stop` or `length` with the last piece, else None.
        usage: Tokens of the prompt and of the answer so far; None when the worker does not say.
    """

    choice: int
    text: str
    finish_reason: str | None = None
    usage: tuple[int, int] | None = None


async def read_pictures(messages: Sequence[Message], limits: PictureLimits) -> list[str]:
    """Read all pictures of a conversation, in order.

    Returns:
        PNGs as base64 text.

    Raises:
        ApiError: 400 with the picture's field.
    """
    urls = [
        (f"messages[{index}].content[{part}].image_url.url", url)
        for index, message in enumerate(messages)
        for part, url in message.image_urls()
    ]
    if len(urls) > limits.max_pictures:
        raise ApiError(
            400,
            f"{len(urls)} pictures were sent; expected up to {limits.max_pictures}",
            "messages",
            "too_many_images",
        )
    pictures = []
    for field, url in urls:
        try:
            pictures.append(await read_picture(url, limits))
        except DataError as error:
            raise ApiError(400, f"{field}: {error}", field, "invalid_image") from None
    return pictures


def build_prompt(conversation: Conversation, messages: Sequence[Message]) -> str:
    """Write messages into a template.

    A message's pictures come before its text, as in training. System messages take the place of the
    template's own; answers without text are left out; neighbours of one role become one message.

    Args:
        conversation: A fresh conversation; it is filled.
        messages: At least one, the last the user's.
    """
    system = [message.text() for message in messages if message.role in ("system", "developer")]
    if system:
        # chatml's templates hold the tag with the text
        tag, newline, _ = conversation.system.partition("\n")
        is_tagged = conversation.sep_style is SeparatorStyle.MPT and newline
        conversation.system = (tag + newline if is_tagged else "") + "\n".join(system)
    turns: list[tuple[str, list[str]]] = []
    for message in messages:
        text = f"{DEFAULT_IMAGE_TOKEN}\n" * len(message.image_urls()) + message.text()
        if message.role not in ("user", "assistant") or (message.role == "assistant" and not text):
            continue
        if turns and turns[-1][0] == message.role:
            turns[-1][1].append(text)
        else:
            turns.append((message.role, [text]))
    begins_with_answer = turns[0][0] == "assistant"
    if begins_with_answer:
        # Templates count on a question first: it decides which separator follows which message.
        conversation.append_message(conversation.roles[0], " ")
    for role, texts in turns:
        conversation.append_message(
            conversation.roles[0 if role == "user" else 1], "\n".join(texts)
        )
    conversation.append_message(conversation.roles[1], None)
    segments = conversation.segments(conversation.messages)
    # Llama 2 has the system text inside the first question, so an empty question stays there.
    if begins_with_answer and conversation.sep_style is not SeparatorStyle.LLAMA_2:
        segments = [each for each in segments if each.message != conversation.offset]
    return "".join(segment.text for segment in segments)


class ChatAnswer:
    """The answers to one request.

    Args:
        client: The controller.
        request: What was asked.
        pictures: PNGs as base64 text.
    """

    def __init__(self, client: AsyncClient, request: ChatRequest, pictures: list[str]) -> None:
        self._client = client
        self._request = request
        self._pictures = pictures

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield pieces of all answers as they come; closing the iterator cancels them.

        Raises:
            ApiError: No worker serves the model, or it fails.
        """
        num_choices = self._request.n or 1
        if num_choices == 1:
            async with contextlib.aclosing(self._choice(0)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        ready: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()

        async def run(choice: int) -> None:
            end: BaseException | None = None
            try:
                async for piece in self._choice(choice):
                    ready.put_nowait(piece)
            except Exception as error:
                end = error
            ready.put_nowait(end)

        tasks = [asyncio.create_task(run(choice)) for choice in range(num_choices)]
        try:
            while num_choices:
                item = await ready.get()
                if isinstance(item, Piece):
                    yield item
                elif item is None:
                    num_choices -= 1
                else:
                    raise item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _choice(self, choice: int) -> AsyncGenerator[Piece, None]:
        """One answer; another worker takes over where one is gone before its first piece."""
        for attempt in range(MAX_ATTEMPTS):
            worker = await self._worker()
            started = False
            try:
                async with contextlib.aclosing(self._ask(worker, choice)) as pieces:
                    async for piece in pieces:
                        started = True
                        yield piece
                return
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                log.error("worker %s failed: %s", worker, type(error).__name__)
                if started or attempt == MAX_ATTEMPTS - 1:
                    break
                with contextlib.suppress(httpx.HTTPError):
                    await self._client.refresh()
        raise ApiError(502, "the worker is gone or does not answer", code="worker_unreachable")

    async def _worker(self) -> str:
        model = self._request.model
        try:
            address = await self._client.worker_address(model)
            served = [] if address else await self._client.list_models()
        except (httpx.HTTPError, ValueError, KeyError):
            raise ApiError(
                503, "the controller does not answer", code="no_controller", retry_after_s=5
            ) from None
        if address:
            return address
        if not served:
            raise ApiError(503, "no model runs at the moment", code="no_worker", retry_after_s=5)
        raise ApiError(
            404,
            f"The model {model[:80]!r} does not exist; served: {', '.join(served)}",
            "model",
            "model_not_found",
        )

    def _body(self, conversation: Conversation, choice: int) -> dict[str, Any]:
        request = self._request
        body: dict[str, Any] = {
            "model": request.model,
            "prompt": build_prompt(conversation, request.messages),
            "images": self._pictures,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "max_new_tokens": request.num_new_tokens,
            "stop": stop_string(conversation),
            # Workers of LLaVA do not know the rest and ignore it.
            "details": True,
        }
        if request.seed is not None:
            body["seed"] = (request.seed + choice) % SEED_RANGE
        return body

    async def _ask(self, worker: str, choice: int) -> AsyncGenerator[Piece, None]:
        """One worker's answer."""
        conversation = await self._client.template(worker, self._request.model)
        body = self._body(conversation, choice)
        start = len(body["prompt"])
        stops = StopFilter(self._request.stops)
        seen, text, usage, finish_reason = start, "", None, None
        has_text = False
        stream = self._client.stream_generation(worker, body)
        async with contextlib.aclosing(stream):
            async for chunk in stream:
                if chunk["error_code"] != OK:
                    raise _error_of_worker(chunk)
                if chunk["text"] == body["prompt"] + TOO_LONG_MESSAGE:
                    raise ApiError(
                        400,
                        "the messages and their pictures fill the model's context; send less",
                        "messages",
                        "context_length_exceeded",
                    )
                usage = _usage_of(chunk) or usage
                finish_reason = chunk.get("finish_reason", finish_reason)
                text = stops.push(chunk["text"][seen:])
                seen = len(chunk["text"])
                if not has_text:
                    text = text.lstrip()
                    has_text = bool(text)
                if text:
                    yield Piece(choice, text, usage=usage)
                if stops.stopped:
                    finish_reason = "stop"
                    break
        yield Piece(choice, stops.flush(), finish_reason or "stop", usage)


def _usage_of(chunk: dict[str, Any]) -> tuple[int, int] | None:
    usage = chunk.get("usage")
    if not isinstance(usage, dict):
        return None
    return int(usage["prompt_tokens"]), int(usage["completion_tokens"])


def _error_of_worker(chunk: dict[str, Any]) -> ApiError:
    """Say in OpenAI's words what a worker or controller reports."""
    reason = str(chunk.get("reason") or chunk["text"])
    kind = chunk.get("kind")
    if kind in (BUSY, STOPPING):
        return ApiError(503, reason, code="overloaded", retry_after_s=1)
    if kind == DEADLINE:
        return ApiError(504, reason, code="deadline_exceeded")
    if kind == INVALID_REQUEST:
        return ApiError(400, reason, code="invalid_value")
    status = 503 if chunk["error_code"] == NO_WORKER else 500
    return ApiError(status, reason, code="generation_failed")
