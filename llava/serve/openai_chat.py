"""From a request in OpenAI's shape to a worker's, and from its stream to pieces of answers.

In: decoded JSON and a controller. Out: a checked `ChatRequest`, and `Piece`s of one or several
answers as they come. Nothing here knows of HTTP servers; errors are `ApiError`s that name the
field, in the shape that clients of OpenAI's API expect.

What OpenAI refuses is refused (unknown fields, wrong types, numbers out of bounds); what it takes
but no model here can do is refused by name, not ignored. A field that says nothing (null, an empty
list or object) is accepted under any name: clients send back whole replies, and every service adds
fields of its own to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import httpx
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, SeparatorStyle
from llava.errors import DataError, TemplateError
from llava.serve.engine import StopFilter
from llava.serve.protocol import (
    BUSY,
    CLIENT_HEADERS,
    CONNECT_TIMEOUT_S,
    DEADLINE,
    DELIMITER,
    INVALID_REQUEST,
    NO_WORKER,
    OK,
    READ_TIMEOUT_S,
    STOPPING,
    TOO_LONG_MESSAGE,
    stop_string,
    template_from_status,
)
from llava.serve.web import ImageLimits, read_image

log = logging.getLogger(__name__)

# What LLaVA's workers generate at most.
MAX_NEW_TOKENS = 1024
MAX_CHOICES = 8
MAX_STOPS = 4
MAX_STOP_LENGTH = 256
MAX_MESSAGES = 512

# Seconds for which a worker's template is not asked for again.
TEMPLATE_LIFETIME_S = 30.0
MAX_CONNECTIONS = 1024

# A worker that is gone is replaced this often, as long as nothing has been sent of its answer.
MAX_ATTEMPTS = 3
SEED_RANGE = 2**63


class ApiError(Exception):
    """An answer other than the one that was asked for.

    Args:
        status: HTTP status.
        message: What was found, what was expected.
        param: The field, such as `messages[0].content`.
        code: OpenAI's short word for the cause.
        kind: OpenAI's `type`; by default from the status.
        retry_after_s: When it is worth trying again.
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
        """Return the JSON of the answer."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Return the headers of the answer."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_silent_fields(cls, data: Any) -> Any:
        """Drop unknown fields that say nothing, such as `"refusal": null` or `"tool_calls": []`."""
        if not isinstance(data, dict):
            return data
        return {
            key: value
            for key, value in data.items()
            if key in cls.model_fields or value not in (None, [], {})
        }


class _Cacheable(_Strict):
    # A hint to services that bill by cached tokens.
    cache_control: dict[str, Any] | None = None


class TextPart(_Cacheable):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """Where a picture is; `detail` is taken and means nothing to these models."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


def _url_as_object(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class ImagePart(_Cacheable):
    """A picture; its URL may also stand there without the object around it."""

    type: Literal["image_url"]
    image_url: Annotated[ImageUrl, BeforeValidator(_url_as_object)]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Cacheable):
    """One message of the conversation; only an assistant's may have no content."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    name: str | None = None

    def texts(self) -> list[str]:
        """Return the pieces of text."""
        if isinstance(self.content, str):
            return [self.content]
        return [part.text for part in self.content or () if isinstance(part, TextPart)]

    def text(self) -> str:
        """Return all text, a line for each piece."""
        return "\n".join(self.texts())

    def image_urls(self) -> list[tuple[int, str]]:
        """Return position and URL of each picture."""
        if isinstance(self.content, str):
            return []
        return [
            (index, part.image_url.url)
            for index, part in enumerate(self.content or ())
            if isinstance(part, ImagePart)
        ]


class StreamOptions(_Strict):
    """What a stream says besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ResponseFormat(BaseModel):
    """Only free text: nothing here can force a model to write JSON."""

    type: Literal["text"]


class ChatRequest(_Strict):
    """Body of `/v1/chat/completions`."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    # Taken where they ask for what happens anyway.
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None

    @property
    def num_new_tokens(self) -> int:
        """How many tokens an answer may have: what was asked for, up to the workers' bound."""
        wanted = self.max_completion_tokens or self.max_tokens or MAX_NEW_TOKENS
        return min(wanted, MAX_NEW_TOKENS)

    @property
    def stops(self) -> list[str]:
        """The caller's stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


def parse_chat_request(data: Any) -> ChatRequest:
    """Check a request.

    Args:
        data: Decoded JSON.

    Returns:
        The request; its last message is the user's.

    Raises:
        ApiError: 400, with the field's name.
    """
    if not isinstance(data, dict):
        raise ApiError(400, f"the body is a JSON {type(data).__name__}; expected an object")
    try:
        request = ChatRequest.model_validate(data)
    except ValidationError as error:
        raise _first_error(error) from None
    _check_encoding(request)
    _check_stops(request.stops)
    for index, message in enumerate(request.messages):
        _check_message(message, f"messages[{index}].content")
    if request.messages[-1].role != "user":
        last = len(request.messages) - 1
        raise ApiError(
            400,
            f"the last message is the {request.messages[-1].role}'s; expected the user's",
            f"messages[{last}].role",
            "invalid_value",
        )
    return request


def _first_error(error: ValidationError) -> ApiError:
    """Say the first thing that is wrong."""
    errors = error.errors(include_url=False, include_context=False)
    # Of a field that may have several types each says why not; the deepest one fits best.
    same_field = [each for each in errors if each["loc"][:1] == errors[0]["loc"][:1]]
    first = max(same_field, key=lambda each: len(each["loc"]))
    param = field_name(first["loc"])
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {param}", param)
    if first["type"] == "missing":
        return ApiError(400, f"Missing required parameter: {param!r}.", param, "missing_parameter")
    found = "" if isinstance(first["input"], dict | list) else f" (found {first['input']!r:.80})"
    return ApiError(
        400, f"Invalid value for {param!r}: {first['msg']}{found}.", param, "invalid_value"
    )


def field_name(location: tuple[int | str, ...]) -> str:
    """Write a place in a request as OpenAI does: `messages[0].content[1].image_url`.

    Names that stand for a choice among types (`str`, `list[...]`, a part's type) are left out.
    """
    name = ""
    previous: int | str = ""
    for step in location:
        if isinstance(step, int):
            name += f"[{step}]"
        elif step.isidentifier() and step not in ("str", "float", "int", "text", "image_url"):
            name += f".{step}" if name else step
        elif step == previous == "image_url" or (step == "text" and previous == "text"):
            name += f".{step}"
        previous = step
    return name


def _check_encoding(request: ChatRequest) -> None:
    """Refuse halves of surrogate pairs: JSON can hold them, UTF-8 and tokenizers cannot."""
    places = [("model", request.model), *(("stop", stop) for stop in request.stops)]
    for index, message in enumerate(request.messages):
        places += [(f"messages[{index}].content", text) for text in message.texts()]
    for place, text in places:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ApiError(400, f"{place} is not valid Unicode", place, "invalid_value") from None


def _check_stops(stops: list[str]) -> None:
    too_long = any(len(stop) > MAX_STOP_LENGTH for stop in stops)
    if len(stops) > MAX_STOPS or too_long or not all(stops):
        raise ApiError(
            400,
            f"stop is {len(stops)} text(s); expected up to {MAX_STOPS}, each with 1 to "
            f"{MAX_STOP_LENGTH} characters",
            "stop",
            "invalid_value",
        )


def _check_message(message: Message, field: str) -> None:
    if message.content is None and message.role != "assistant":
        raise ApiError(400, f"Missing required parameter: {field!r}.", field, "missing_parameter")
    if isinstance(message.content, list) and not message.content:
        raise ApiError(400, f"{field} is an empty list", field, "invalid_value")
    if message.image_urls() and message.role != "user":
        raise ApiError(
            400, f"{field}: only the user's messages may hold pictures", field, "invalid_value"
        )
    if any(DEFAULT_IMAGE_TOKEN in text for text in message.texts()):
        raise ApiError(
            400,
            f"{field} holds {DEFAULT_IMAGE_TOKEN}, which stands for a picture in a prompt: send "
            "pictures as parts of type image_url, and write the word in another way",
            field,
            "invalid_value",
        )


@dataclass
class AsyncClient:
    """A controller as the API sees it.

    Attributes:
        controller: The controller's URL.
    """

    controller: str
    _http: httpx.AsyncClient = field(init=False, repr=False)
    _templates: dict[tuple[str, str], tuple[float, Conversation]] = field(
        init=False, default_factory=dict, repr=False
    )

    def __post_init__(self) -> None:
        self._http = httpx.AsyncClient(
            headers=CLIENT_HEADERS,
            timeout=httpx.Timeout(
                READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=CONNECT_TIMEOUT_S
            ),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=64),
            trust_env=False,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _post(self, url: str, body: dict[str, Any] | None = None) -> Any:
        response = await self._http.post(url, json=body or {})
        response.raise_for_status()
        return response.json()

    async def list_models(self) -> list[str]:
        """Return the names of the models, sorted.

        Raises:
            httpx.HTTPError: The controller does not answer.
        """
        return sorted((await self._post(self.controller + "/list_models"))["models"])

    async def worker_address(self, model: str) -> str:
        """Return the address of a worker for a model, "" if there is none.

        Raises:
            httpx.HTTPError: The controller does not answer.
        """
        return (await self._post(self.controller + "/get_worker_address", {"model": model}))[
            "address"
        ]

    async def refresh(self) -> None:
        """Let the controller ask all workers again and forget those that are gone.

        Raises:
            httpx.HTTPError: The controller does not answer.
        """
        await self._post(self.controller + "/refresh_all_workers")

    async def template(self, worker: str, model: str) -> Conversation:
        """Return a fresh conversation in the template of the worker's checkpoint, else by name."""
        now = time.monotonic()
        asked_at, known = self._templates.get((worker, model), (float("-inf"), None))
        if known is None or now - asked_at > TEMPLATE_LIFETIME_S:
            known = await self._ask_template(worker, model)
            self._templates = {
                key: entry
                for key, entry in self._templates.items()
                if now - entry[0] <= TEMPLATE_LIFETIME_S
            }
            self._templates[worker, model] = (now, known)
        return known.copy()

    async def _ask_template(self, worker: str, model: str) -> Conversation:
        try:
            status = await self._post(worker + "/worker_get_status")
            return template_from_status(status, model)
        except (httpx.HTTPError, ValueError, TemplateError) as error:
            log.warning("worker %s gives no template (%s): by name", worker, error)
        return template_from_status({}, model)

    async def stream_generation(
        self, worker: str, body: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Ask a worker to generate; closing the iterator hangs up.

        Yields:
            Objects with `text`, `error_code` and further keys.

        Raises:
            httpx.HTTPError: The worker does not answer or goes away.
            ValueError: What it sends is not the protocol.
        """
        rest = b""
        async with self._http.stream(
            "POST", worker + "/worker_generate_stream", json=body
        ) as response:
            response.raise_for_status()
            async for piece in response.aiter_raw():
                *complete, rest = (rest + piece).split(DELIMITER)
                # Each object holds all text so far: of several that wait, the last one will do.
                for chunk in complete[-1:]:
                    yield json.loads(chunk)
        if rest:
            raise ValueError(f"the stream ended inside an object, after {rest[:80]!r}")


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


async def read_pictures(messages: Sequence[Message], limits: ImageLimits) -> list[str]:
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
    if len(urls) > limits.max_images:
        raise ApiError(
            400,
            f"{len(urls)} pictures were sent; expected up to {limits.max_images}",
            "messages",
            "too_many_images",
        )
    pictures = []
    for place, url in urls:
        try:
            pictures.append(await read_image(url, limits))
        except DataError as error:
            raise ApiError(400, f"{place}: {error}", place, "invalid_image") from None
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
