"""What may stand in a request to `/v1/chat/completions`, and how an error is said.

In: decoded JSON. Out: a checked `ChatRequest`, or an `ApiError` that names the field, in the shape
that clients of OpenAI's API expect. What OpenAI refuses is refused (unknown fields, wrong types,
numbers out of bounds); what it takes but no model here can do is refused by name, not ignored. A
field that says nothing (null, an empty list or object) is accepted under any name: clients send
back whole replies, and every service adds fields of its own to them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from llava.constants import DEFAULT_IMAGE_TOKEN

# What LLaVA's workers generate at most.
MAX_NEW_TOKENS = 1024
MAX_CHOICES = 8
MAX_STOPS = 4
MAX_STOP_LENGTH = 256
MAX_MESSAGES = 512


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
    for field, text in places:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ApiError(400, f"{field} is not valid Unicode", field, "invalid_value") from None


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
