"""Answers requests in OpenAI's format through LLaVA's controller and workers.

In: decoded JSON and a controller. Out: a checked `ChatRequest`, and `Piece`s of one or several
answers as they come. Errors are `ApiError`s that name the field, in the format that clients of
OpenAI's API expect. This module knows no HTTP server.

Requests that OpenAI refuses are refused (unknown fields, wrong types, numbers out of range).
Features that OpenAI has but no model here supports are refused by name, not ignored. Empty fields
(null, an empty list or object) are accepted under any name: clients send whole replies back, and
every service adds fields of its own to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import operator
import re
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import httpx
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import ChatConversation, Conversation, SeparatorStyle
from llava.errors import DataError, TemplateError
from llava.serve.protocol import (
    BUSY,
    CLIENT_HEADERS,
    CONNECT_TIMEOUT_S,
    DEADLINE,
    DELIMITER,
    INVALID_REQUEST,
    MAX_NEW_TOKENS,
    NO_WORKER,
    OK,
    READ_TIMEOUT_S,
    STOPPING,
    TOO_LONG_MESSAGE,
    template_from_status,
    text_before_stop,
)
from llava.serve.web import ImageLimits, read_image

log = logging.getLogger(__name__)

MAX_CHOICES = 8
MAX_STOPS = 4
MAX_STOP_LENGTH = 256
MAX_MESSAGES = 512

# Seconds after which workers are asked for their templates again.
TEMPLATE_LIFETIME_S = 30.0
MAX_CONNECTIONS = 1024

# Workers that are tried for an answer, as long as nothing of it has been sent.
MAX_ATTEMPTS = 3
SEED_RANGE = 2**63


class ApiError(Exception):
    """An error in OpenAI's format.

    Args:
        status: HTTP status.
        message: What was found and what was expected.
        param: The field, such as `messages[0].content`.
        code: OpenAI's code of the cause.
        kind: OpenAI's `type`; by default it follows from the status.
        retry_after_s: Seconds after which it is worth trying again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """Returns the body of the response."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Returns the headers of the response."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_silent_fields(cls, data: Any) -> Any:
        """Drops null, and unknown fields that are empty, such as `"tool_calls": []`."""
        if not isinstance(data, dict):
            return data
        return {
            key: value
            for key, value in data.items()
            if value is not None and (key in cls.model_fields or value not in ([], {}))
        }


class _Cacheable(_Strict):
    # A hint for services that bill cached tokens.
    cache_control: dict[str, Any] | None = None


class TextPart(_Cacheable):
    """A part with text."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """The address of an image; `detail` is accepted and has no effect."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Cacheable):
    """A part with an image; the URL may also be given without an object around it."""

    type: Literal["image_url"]
    image_url: Annotated[
        ImageUrl, BeforeValidator(lambda value: {"url": value} if isinstance(value, str) else value)
    ]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Cacheable):
    """A message of the conversation; only the assistant's may have no content."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[list[Part], Field(min_length=1)] | None,
        BeforeValidator(
            lambda value: [{"type": "text", "text": value}] if isinstance(value, str) else value
        ),
    ] = Field(None, validate_default=True)
    name: str | None = None

    @field_validator("content")
    @classmethod
    def _check_content(cls, parts: list[Part] | None, info: ValidationInfo) -> list[Part] | None:
        role = info.data.get("role")
        if parts is None and role != "assistant":
            raise PydanticCustomError("missing", "Field required")
        texts = [part.text for part in parts or () if isinstance(part, TextPart)]
        if len(texts) < len(parts or ()) and role != "user":
            raise ValueError("only the user's messages may hold images")
        if any(DEFAULT_IMAGE_TOKEN in text for text in texts):
            raise ValueError(
                f"it holds {DEFAULT_IMAGE_TOKEN}, which stands for an image in a prompt: send "
                "images as parts of type image_url, and write the word in another way"
            )
        _check_unicode("".join(texts))
        return parts

    def text(self) -> str:
        """Returns all text, one part a line."""
        return "\n".join(part.text for part in self.content or () if isinstance(part, TextPart))

    def placed_text(self) -> str:
        """Returns the text with `<image>` for each image.

        A single image comes before the text, several stand where they are among its parts, as in
        training. A part begins a new line unless there is a blank between it and the one before.
        """
        num_images = len(self.image_urls())
        if num_images < 2:
            return f"{DEFAULT_IMAGE_TOKEN}\n" * num_images + self.text()
        parts = (
            part.text if isinstance(part, TextPart) else DEFAULT_IMAGE_TOKEN
            for part in self.content or ()
        )
        text = next(parts)
        for part in parts:
            has_blank = text[-1:].isspace() or part[:1].isspace()
            text += part if has_blank else "\n" + part
        return text

    def image_urls(self) -> list[tuple[int, str]]:
        """Returns the position and the URL of each image."""
        return [
            (index, part.image_url.url)
            for index, part in enumerate(self.content or ())
            if isinstance(part, ImagePart)
        ]


def _check_unicode(text: str) -> str:
    """Refuses single surrogates: JSON can hold them, but UTF-8 and tokenizers cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it is not valid Unicode") from None
    return text


class StreamOptions(_Strict):
    """Options of a streamed reply."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ResponseFormat(BaseModel):
    """The format of the answer; only free text is supported."""

    type: Literal["text"]


class ChatRequest(_Strict):
    """Body of `/v1/chat/completions`; null stands for a field's default."""

    model: Annotated[str, AfterValidator(_check_unicode)]
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int = Field(MAX_NEW_TOKENS, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, ge=0, le=1, allow_inf_nan=False)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Annotated[
        list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
    ] = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    # Accepted without effect.
    user: str = ""
    safety_identifier: str = ""
    prompt_cache_key: str = ""
    metadata: dict[str, str] = Field(default_factory=dict)
    service_tier: Literal["auto", "default"] = "auto"
    parallel_tool_calls: bool = True
    # Accepted only with the values that describe what happens anyway.
    store: Literal[False] = False
    presence_penalty: float = Field(0, ge=0, le=0)
    frequency_penalty: float = Field(0, ge=0, le=0)
    logprobs: Literal[False] = False
    top_logprobs: int = Field(0, ge=0, le=0)
    logit_bias: dict[str, float] = Field(default_factory=dict, max_length=0)
    tools: list[Any] = Field(default_factory=list, max_length=0)
    tool_choice: Literal["none", "auto"] = "auto"
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] = Field(default_factory=list)

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: list[str]) -> list[str]:
        if len(stop) > MAX_STOPS or not all(0 < len(text) <= MAX_STOP_LENGTH for text in stop):
            raise ValueError(
                f"it is {len(stop)} text(s); expected up to {MAX_STOPS}, each with 1 to "
                f"{MAX_STOP_LENGTH} characters"
            )
        _check_unicode("".join(stop))
        return stop


def parse_chat_request(data: Any) -> ChatRequest:
    """Checks a request.

    Args:
        data: Decoded JSON.

    Returns:
        The request; its last message is from the user.

    Raises:
        ApiError: 400 with the name of the first field that is wrong.
    """
    if not isinstance(data, dict):
        raise ApiError(400, f"the body is a JSON {type(data).__name__}; expected an object")
    try:
        request = ChatRequest.model_validate(data)
    except ValidationError as error:
        raise _first_error(error) from None
    last = request.messages[-1]
    if last.role != "user":
        raise ApiError(
            400,
            f"the last message is the {last.role}'s; expected the user's",
            f"messages[{len(request.messages) - 1}].role",
            "invalid_value",
        )
    return request


def _first_error(error: ValidationError) -> ApiError:
    """Returns the first error."""
    first = error.errors(include_url=False, include_context=False)[0]
    param = field_name(first["loc"])
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {param}", param)
    if first["type"] == "missing":
        return ApiError(400, f"Missing required parameter: {param!r}.", param, "missing_parameter")
    found = "" if isinstance(first["input"], dict | list) else f" (found {first['input']!r:.80})"
    what = first["msg"].removeprefix("Value error, ")
    if first["type"] == "union_tag_invalid" and "video" in str(first["input"]["type"]):
        what = "videos are not taken; send some of its frames as parts of type image_url"
    return ApiError(400, f"Invalid value for {param!r}: {what}{found}.", param, "invalid_value")


def field_name(location: tuple[int | str, ...]) -> str:
    """Formats a place in a request as OpenAI does: `messages[0].content[1].image_url`."""
    name = ""
    for index, step in enumerate(location):
        if isinstance(step, int):
            name += f"[{step}]"
        elif index < 2 or location[index - 2] != "content":  # there pydantic puts a part's type
            name += f".{step}"
    return name.removeprefix(".")


class AsyncClient:
    """An asynchronous client of a controller and its workers.

    Args:
        controller: URL of the controller.
    """

    def __init__(self, controller: str) -> None:
        self.controller = controller
        self._http = httpx.AsyncClient(
            headers=CLIENT_HEADERS,
            timeout=httpx.Timeout(
                READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=CONNECT_TIMEOUT_S
            ),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=64),
            trust_env=False,
        )
        self._templates: dict[tuple[str, str], Conversation] = {}
        self._templates_since = time.monotonic()

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._http.aclose()

    async def _post(self, url: str, body: dict[str, Any] | None = None) -> Any:
        response = await self._http.post(url, json=body or {})
        response.raise_for_status()
        return response.json()

    async def _ask_controller(self, route: str, key: str, **body: str) -> Any:
        try:
            return (await self._post(self.controller + route, body))[key]
        except (httpx.HTTPError, ValueError, KeyError):
            raise ApiError(
                503, "the controller does not answer", code="no_controller", retry_after_s=5
            ) from None

    async def list_models(self) -> list[str]:
        """Returns the names of the models, sorted.

        Raises:
            ApiError: 503 if the controller does not answer.
        """
        return sorted(await self._ask_controller("/list_models", "models"))

    async def worker_address(self, model: str) -> str:
        """Returns the address of a worker for a model.

        Raises:
            ApiError: 404 if no worker serves it; 503 if there is no worker or no controller.
        """
        address = await self._ask_controller("/get_worker_address", "address", model=model)
        if address:
            return address
        served = await self.list_models()
        if not served:
            raise ApiError(503, "no model runs at the moment", code="no_worker", retry_after_s=5)
        raise ApiError(
            404,
            f"The model {model[:80]!r} does not exist; served: {', '.join(served)}",
            "model",
            "model_not_found",
        )

    async def refresh(self) -> None:
        """Makes the controller ask all workers for their status and forget those that are gone."""
        with contextlib.suppress(httpx.HTTPError):
            await self._post(self.controller + "/refresh_all_workers")

    async def template(self, worker: str, model: str) -> Conversation:
        """Returns a new conversation in the template of the worker's checkpoint, or by its name."""
        now = time.monotonic()
        if now - self._templates_since > TEMPLATE_LIFETIME_S:
            self._templates, self._templates_since = {}, now
        if (worker, model) not in self._templates:
            try:
                status = await self._post(worker + "/worker_get_status")
                found = template_from_status(status, model)
            except (httpx.HTTPError, ValueError, TemplateError) as error:
                log.warning("worker %s has no template (%s): using the model's name", worker, error)
                found = template_from_status({}, model)
            self._templates[worker, model] = found
        return self._templates[worker, model].copy()

    async def stream_generation(
        self, worker: str, body: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Asks a worker to generate; closing the iterator hangs up.

        Yields:
            Objects with `text`, `error_code` and further keys.

        Raises:
            httpx.HTTPError: If the worker does not answer or goes away.
            ValueError: If it violates the protocol.
        """
        rest = b""
        async with self._http.stream(
            "POST", worker + "/worker_generate_stream", json=body
        ) as response:
            response.raise_for_status()
            async for piece in response.aiter_raw():
                *complete, rest = (rest + piece).split(DELIMITER)
                # Each object holds all text so far, so only the last of several matters.
                for chunk in complete[-1:]:
                    yield json.loads(chunk)
        if rest:
            raise ValueError(f"the stream ended inside an object, after {rest[:80]!r}")


@dataclass(frozen=True)
class Piece:
    """A piece of one of the answers.

    Attributes:
        choice: Number of the answer, from 0.
        text: New text.
        finish_reason: `stop` or `length` with the last piece, else None.
        usage: Tokens of the prompt and of the answer so far; None if the worker does not count.
    """

    choice: int
    text: str
    finish_reason: str | None = None
    usage: tuple[int, int] | None = None


async def read_images(messages: Sequence[Message], limits: ImageLimits) -> list[str]:
    """Reads all images of a conversation, in order.

    Returns:
        PNG files in base64.

    Raises:
        ApiError: 400 with the field of an image that is refused.
    """
    urls = [
        (f"messages[{index}].content[{part}].image_url.url", url)
        for index, message in enumerate(messages)
        for part, url in message.image_urls()
    ]
    if len(urls) > limits.max_images:
        raise ApiError(
            400,
            f"{len(urls)} images were sent; expected up to {limits.max_images}",
            "messages",
            "too_many_images",
        )
    images = []
    for place, url in urls:
        try:
            images.append(await read_image(url, limits))
        except DataError as error:
            raise ApiError(400, f"{place}: {error}", place, "invalid_image") from None
    return images


def build_prompt(conversation: Conversation, messages: Sequence[Message]) -> str:
    """Writes messages into a template.

    For images see `Message.placed_text`. System messages replace the template's own. Answers
    without text are left out. Successive messages of one role become one.

    Args:
        conversation: A new conversation, which is filled.
        messages: At least one message; the last one is from the user.

    Raises:
        ApiError: The template does not take the messages.
    """
    writes_itself = isinstance(conversation, ChatConversation)
    system = [message.text() for message in messages if message.role in ("system", "developer")]
    if system:
        if conversation.sep_style is SeparatorStyle.CHATML and not conversation.system:
            raise ApiError(
                400, "the model's template takes no system text: write it into the first question",
                "messages", "chat_template",
            )  # fmt: skip
        # the system text of such styles begins with a tag and its line breaks
        is_tagged = conversation.sep_style in (SeparatorStyle.MPT, SeparatorStyle.CHATML)
        tag = re.match(r"<.*\n+", conversation.system) if is_tagged and not writes_itself else None
        conversation.system = (tag[0] if tag else "") + "\n".join(system)
    turns = [
        (is_answer, message.placed_text())
        for message in messages
        if (is_answer := message.role == "assistant") or message.role == "user"
    ]
    turns = [(is_answer, text) for is_answer, text in turns if text or not is_answer]
    begins_with_answer = turns[0][0]
    if begins_with_answer:
        # Templates expect a question first: separators depend on the position of a message.
        conversation.append_message(conversation.roles[0], " ")
    for is_answer, neighbours in itertools.groupby(turns, key=operator.itemgetter(0)):
        text = "\n".join(text for _, text in neighbours)
        conversation.append_message(conversation.roles[is_answer], text)
    conversation.append_message(conversation.roles[1], None)
    try:
        segments = conversation.segments(conversation.messages)
    except TemplateError as error:
        raise ApiError(400, str(error), "messages", "chat_template") from None
    # Llama 2 puts the system text into the first question, which therefore stays; as may a
    # tokenizer's own template.
    has_inner_system = writes_itself or conversation.sep_style is SeparatorStyle.LLAMA_2
    if begins_with_answer and not has_inner_system:
        segments = [each for each in segments if each.message != conversation.offset]
    return "".join(segment.text for segment in segments)


@dataclass
class ChatAnswer:
    """The answers to one request.

    Attributes:
        client: Client of the controller.
        request: The request.
        images: PNG files in base64.
    """

    client: AsyncClient
    request: ChatRequest
    images: list[str]

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yields pieces of all answers as they come; closing the iterator cancels the answers.

        Raises:
            ApiError: If no worker serves the model, or the worker fails.
        """
        num_running = self.request.n
        # Bounded, so that the workers' streams are read no faster than the reader takes them.
        ready: asyncio.Queue[Piece | Exception] = asyncio.Queue(num_running)

        async def run(choice: int) -> None:
            try:
                async with contextlib.aclosing(self._choice(choice)) as pieces:
                    async for piece in pieces:
                        await ready.put(piece)
            except Exception as error:
                await ready.put(error)

        tasks = [asyncio.create_task(run(choice)) for choice in range(num_running)]
        try:
            while num_running:
                item = await ready.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                num_running -= item.finish_reason is not None
        finally:
            for task in tasks:
                task.cancel()
            # Not `gather`, which, if it is cancelled, cancels the tasks while they hang up.
            await asyncio.wait(tasks)

    async def _choice(self, choice: int) -> AsyncGenerator[Piece, None]:
        """Yields one answer; if a worker is gone before its first piece, another one is asked."""
        started = False
        for attempt in range(MAX_ATTEMPTS):
            if attempt:
                await self.client.refresh()
            worker = await self.client.worker_address(self.request.model)
            try:
                async with contextlib.aclosing(self._ask(worker, choice)) as pieces:
                    async for piece in pieces:
                        started = True
                        yield piece
                return
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                log.error("worker %s failed: %s", worker, type(error).__name__)
            if started:
                break
        raise ApiError(502, "the worker is gone or does not answer", code="worker_unreachable")

    def _body(self, conversation: Conversation, choice: int) -> dict[str, Any]:
        request = self.request
        limit = request.max_completion_tokens or request.max_tokens
        return {
            "model": request.model,
            "prompt": build_prompt(conversation, request.messages),
            "images": self.images,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "max_new_tokens": min(limit, MAX_NEW_TOKENS),
            "stop": conversation.answer_end,
            # LLaVA's workers ignore the other keys.
            "details": True,
            "seed": None if request.seed is None else (request.seed + choice) % SEED_RANGE,
        }

    async def _ask(self, worker: str, choice: int) -> AsyncGenerator[Piece, None]:
        """Yields the answer of one worker."""
        body = self._body(await self.client.template(worker, self.request.model), choice)
        usage: tuple[int, int] | None = None
        answer, num_shown, is_stopped = "", 0, False
        has_text, finish_reason = False, "stop"
        async with contextlib.aclosing(self.client.stream_generation(worker, body)) as stream:
            async for chunk in stream:
                if chunk["error_code"] != OK:
                    raise _error_of_worker(chunk)
                if chunk["text"] == body["prompt"] + TOO_LONG_MESSAGE:
                    raise ApiError(
                        400,
                        "the messages and their images fill the model's context; send less",
                        "messages",
                        "context_length_exceeded",
                    )
                if counted := chunk.get("usage"):
                    usage = counted["prompt_tokens"], counted["completion_tokens"]
                finish_reason = chunk.get("finish_reason") or finish_reason
                answer = chunk["text"][len(body["prompt"]) :]
                certain, is_stopped = text_before_stop(answer, self.request.stop)
                text, num_shown = certain[num_shown:], len(certain)
                if not has_text:
                    text = text.lstrip()
                    has_text = bool(text)
                if text:
                    yield Piece(choice, text, usage=usage)
                if is_stopped:
                    finish_reason = "stop"
                    break
        # what looked like the beginning of a stop string, and was none
        rest = "" if is_stopped else answer[num_shown:]
        yield Piece(choice, rest, finish_reason, usage)


# HTTP status, OpenAI's code and `Retry-After` for each kind of a worker's error.
_WORKER_ERRORS: dict[str, tuple[int, str, int | None]] = {
    BUSY: (503, "overloaded", 1),
    STOPPING: (503, "overloaded", 1),
    DEADLINE: (504, "deadline_exceeded", None),
    INVALID_REQUEST: (400, "invalid_value", None),
}


def _error_of_worker(chunk: dict[str, Any]) -> ApiError:
    """Translates an error of a worker or controller."""
    other = (503 if chunk["error_code"] == NO_WORKER else 500, "generation_failed", None)
    status, code, retry_after_s = _WORKER_ERRORS.get(chunk.get("kind", ""), other)
    reason = str(chunk.get("reason") or chunk["text"])
    return ApiError(status, reason, code=code, retry_after_s=retry_after_s)
