"""The one client of services that speak OpenAI's chat protocol, hosted ones and your own.

In: requests as the protocol has them. Out: replies. The `openai` package sends them, tries again
what may pass (time-outs, cut connections, 408, 409, 429, 5xx) and obeys Retry-After. This module
paces requests, tells whose fault an error is, and reads replies. The caller decides what a request
says and what happens with its reply.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import openai

from llava.errors import ConfigError, ExhaustedError, RejectedError, ServiceError
from llava.eval.records import without_thinking

log = logging.getLogger(__name__)

KEY_VARIABLE = "OPENAI_API_KEY"
BASE_VARIABLE = "OPENAI_API_BASE"
MAX_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens")
HOSTED = "https://api.openai.com/v1"
_FATAL = {
    401: "the key is refused",
    402: "the account has no money left",
    403: "access is refused",
    404: "no such model or address",
}
# A refusal because of the content or length: this request will never be accepted, others may be.
_OWN_FAULT = re.compile(
    r"content[ _-]?(filter|policy|management)|moderation|flagged|safety"
    r"|context[ _-]?(length|window)|maximum context",
    re.IGNORECASE,
)
_TOO_MUCH = re.compile(r"too (long|large|many)|maximum (length|size)", re.IGNORECASE)
# A field that a service does not accept: it will refuse it in every request.
_BAD_FIELD = re.compile(
    r"(unknown|unrecogni[sz]ed|unexpected|unsupported|extra)\b.{0,40}\b(parameter|field|argument|key)"
    r"|\b(parameter|field|argument|key)\b.{0,60}(unknown|not supported|not permitted|unsupported)"
    r"|extra (inputs|fields) (are )?not permitted|extra_forbidden",
    re.IGNORECASE | re.DOTALL,
)
_MAX_REFUSED = 20  # refused requests, before the first answer, after which we give up
_MAY_PASS = (408, 409, 425, 429)
# Fields that all requests share: a service that refuses one refuses them all.
_SETTINGS = ("model", *MAX_TOKENS_FIELDS, "temperature", "response_format")
# Estimated tokens of the current request, for the hook that paces its tries.
_num_tokens: ContextVar[int] = ContextVar("num_tokens", default=0)
_NO_KEY = "none"  # the package requires a key; a service that needs none ignores it


class NotFoundError(ServiceError):
    """Raised when the service does not have what is asked for."""


@dataclass(frozen=True)
class ServiceLimits:
    """Limits on how a service is asked.

    Attributes:
        timeout_s: Longest wait for one answer.
        max_tries: Tries for one request.
        requests_per_minute: None: no limit.
        tokens_per_minute: None: no limit.
    """

    timeout_s: float = 120.0
    max_tries: int = 6
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


@dataclass(frozen=True)
class Dialect:
    """The fields of a request that a service takes.

    Attributes:
        max_tokens_field: What it calls the longest answer: one of `MAX_TOKENS_FIELDS`.
        takes_temperature: Whether a temperature may be sent.
    """

    max_tokens_field: str = MAX_TOKENS_FIELDS[0]
    takes_temperature: bool = True

    def adapt(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a request with `max_tokens` and `temperature` as the service takes it."""
        names = {"max_tokens": self.max_tokens_field}
        dropped = () if self.takes_temperature else ("temperature",)
        return {names.get(key, key): value for key, value in body.items() if key not in dropped}

    def after(self, fault: str, sent: Mapping[str, Any]) -> Dialect | None:
        """Returns the dialect to try next.

        Args:
            fault: What the service says is wrong.
            sent: The request.

        Returns:
            None if the fault is another.
        """
        if "temperature" in sent and re.search(r"\btemperature\b", fault):
            return replace(self, takes_temperature=False)
        if "max_tokens" in sent and re.search(r"\bmax_tokens\b", fault):
            return replace(self, max_tokens_field=MAX_TOKENS_FIELDS[1])
        return None


@dataclass(frozen=True)
class ChatReply:
    """A model's reply.

    Attributes:
        text: Its answer, without what it thought before.
        refusal: Why it refuses to answer; None if it does not.
        is_cut: Whether the answer reached the length limit.
        num_input_tokens: Tokens sent, as the service counts them; 0 if it does not say.
        num_output_tokens: Tokens received.
    """

    text: str
    refusal: str | None
    is_cut: bool
    num_input_tokens: int
    num_output_tokens: int


def is_completion(data: Any) -> bool:
    """Tells whether JSON is a chat completion."""
    choices = data.get("choices") if isinstance(data, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return isinstance(first, dict) and isinstance(first.get("message"), dict)


def read_reply(data: Mapping[str, Any]) -> ChatReply:
    """Reads a chat completion; see `is_completion`."""
    choice = data["choices"][0]
    message, reason = choice["message"], choice.get("finish_reason")
    refusal = message.get("refusal") or ("content filter" if reason == "content_filter" else None)
    usage = data.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    sent, received = (counts.get(key) for key in ("prompt_tokens", "completion_tokens"))
    content = message.get("content") or ""
    if isinstance(content, list):  # thoughts are parts without `text`
        texts = (part.get("text") for part in content if isinstance(part, dict))
        content = "".join(text for text in texts if isinstance(text, str))
    return ChatReply(
        text=without_thinking(str(content)),
        refusal=str(refusal) if refusal else None,
        is_cut=reason == "length",
        num_input_tokens=sent if isinstance(sent, int) else 0,
        num_output_tokens=received if isinstance(received, int) else 0,
    )


class ChatService:
    """A service behind an address.

    It is connected between `connect` and `aclose`; what it has learned and counted stays.

    Args:
        url: The address, up to and with `/v1`.
        key: Sent as a bearer token; None for none.
        limits: How it may be asked.
        dialect: How it is asked at first; what it does not take is found out from its errors.

    Attributes:
        dialect: How it is asked.
        num_answered: Requests that were answered.
        client: The `openai` client, for files, batches and models; use it inside `plain_errors`.
    """

    client: openai.AsyncOpenAI

    def __init__(
        self,
        url: str,
        key: str | None,
        limits: ServiceLimits | None = None,
        dialect: Dialect | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.dialect = dialect or Dialect()
        self.num_answered = 0
        self._num_refused = 0
        self._is_tried = False
        self._key = key
        self._limits = limits or ServiceLimits()
        self._free_at = 0.0

    def connect(self) -> ChatService:
        """Makes the client, whose connections are opened when they are needed; returns itself."""
        self._first = asyncio.Lock()
        hooks: dict[str, list[Any]] = {"request": [self._take_turn], "response": [_judge_response]}
        self.client = openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self._key or _NO_KEY,
            timeout=self._limits.timeout_s,
            max_retries=self._limits.max_tries - 1,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks=hooks),
        )
        return self

    async def aclose(self) -> None:
        """Closes connections."""
        await self.client.close()

    async def ask(self, body: Mapping[str, Any], num_tokens: int = 0) -> ChatReply:
        """Sends a request and returns the reply, after retries where needed.

        Args:
            body: The request.
            num_tokens: About how many tokens it costs, for the rate limit.

        Raises:
            ServiceError: The service cannot be used at all.
            RejectedError: It refuses this request.
            ExhaustedError: It did not answer in `max_tries` tries.
        """
        _num_tokens.set(num_tokens)
        with self.plain_errors():
            # the first request is sent alone, so that the dialect is detected only once
            async with self._first:
                if not self._is_tried:
                    try:
                        return await self._ask(body)
                    finally:
                        self._is_tried = True
            return await self._ask(body)

    async def _ask(self, body: Mapping[str, Any]) -> ChatReply:
        """Sends a request in the service's dialect, and in another one if it does not take that."""
        begun = dialect = self.dialect
        while True:
            sent = dialect.adapt(body)
            try:
                response = await self.client.chat.completions.with_raw_response.create(**sent)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                fault = error.param or error.response.text
                other = None if _is_own_fault(error) else dialect.after(fault, sent)
                if other is None:
                    raise
                dialect = other
            else:
                if dialect != begun:
                    self.speak(dialect)
                self.num_answered += 1
                return read_reply(response.http_response.json())

    def speak(self, dialect: Dialect) -> None:
        """Asks in another dialect from now on."""
        if dialect != self.dialect:
            log.warning(
                "%s is asked with %s%s from now on: it takes nothing else",
                self.url,
                dialect.max_tokens_field,
                "" if dialect.takes_temperature else " and without temperature",
            )
        self.dialect = dialect

    async def models(self) -> list[str]:
        """Returns the names of the service's models; raises as `ask` does."""
        with self.plain_errors():
            return [model.id async for model in self.client.models.list()]

    @contextmanager
    def plain_errors(self) -> Iterator[None]:
        """Turns the package's errors into ours; raises as `ask` does."""
        try:
            yield
        except openai.APIStatusError as error:
            raise self._error(error) from error
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            text = f"{type(cause).__name__} {cause}".strip()
            raise ExhaustedError(f"{text} ({self._limits.max_tries} tries)") from error
        except openai.OpenAIError as error:
            raise ServiceError(f"{self.url}: {error}") from error

    async def _take_turn(self, request: Any) -> None:
        """Waits so that requests and tokens are spread evenly."""
        now = time.monotonic()
        start = max(now, self._free_at)
        per_request, per_token = self._limits.requests_per_minute, self._limits.tokens_per_minute
        self._free_at = start + max(
            60 / per_request if per_request else 0.0,
            60 * _num_tokens.get() / per_token if per_token else 0.0,
        )
        await asyncio.sleep(start - now)

    def _error(self, error: openai.APIStatusError) -> Exception:
        status, response = error.status_code, error.response
        kind = response.headers.get("content-type", "no content type")
        fault = response.extensions.get("fault", f"HTTP {status}:")
        fault = f"{fault} {kind}, {response.text[:200]!r}"
        is_final = _is_own_fault(error)
        status = 402 if _is_out_of_money(response) else status
        if status in _FATAL and not (status == 403 and is_final):
            text = f"{self.url}: {_FATAL[status]}: {fault}"
            return NotFoundError(text) if status == 404 else ServiceError(text)
        if status in _MAY_PASS or status >= 500:
            return ExhaustedError(f"{fault} ({self._limits.max_tries} tries)")
        if not is_final and not self.num_answered:
            self._num_refused += 1
            if _is_about_settings(error) or _BAD_FIELD.search(response.text):
                return ServiceError(
                    f"{self.url}: the first request is not accepted, nor will others be: {fault}; "
                    "change the option that it is about"
                )
            if self._num_refused == _MAX_REFUSED:
                return ServiceError(
                    f"{self.url}: the first {_MAX_REFUSED} requests are not accepted: {fault}"
                )
        return RejectedError(fault, is_final)


def service_of_environment(limits: ServiceLimits, dialect: Dialect | None = None) -> ChatService:
    """Returns OpenAI's service, or the one that `OPENAI_API_BASE` names.

    Raises:
        ConfigError: `OPENAI_API_KEY` is not set.
    """
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        raise ConfigError(f"{KEY_VARIABLE} is not set; it is needed to ask OpenAI's models")
    return ChatService(os.environ.get(BASE_VARIABLE, HOSTED), key, limits, dialect)


def ask_each(
    service: ChatService,
    bodies: Sequence[Mapping[str, Any]],
    concurrency: int,
    keep: Callable[[int, ChatReply | RejectedError | ExhaustedError], None],
) -> None:
    """Sends requests, several at once, and hands on what becomes of each as soon as it is known.

    After an error nothing new is asked, and what is under way is waited for and handed on: it is
    paid.

    Args:
        service: The service.
        bodies: The requests.
        concurrency: Requests under way at once.
        keep: Called with the position of a request, and its reply or why there is none; it may
            raise to end everything.

    Raises:
        ServiceError: The service cannot be used at all.
    """
    work = iter(enumerate(bodies))
    faults: list[Exception] = []

    async def worker() -> None:
        for position, body in work:
            if faults:
                return
            outcome: ChatReply | RejectedError | ExhaustedError
            try:
                try:
                    outcome = await service.ask(body)
                except (RejectedError, ExhaustedError) as error:
                    outcome = error
                keep(position, outcome)
            except Exception as error:
                faults.append(error)

    async def all_workers() -> None:
        async with aclosing(service.connect()):
            await asyncio.gather(*(worker() for _ in range(min(concurrency, len(bodies)))))

    asyncio.run(all_workers())
    if faults:
        raise faults[0]


async def _judge_response(response: Any) -> None:
    """Makes the package retry what only looks like an answer, and not what will fail again.

    The package decides by the status and the header `x-should-retry`. A proxy's page with status
    200 becomes a bad gateway (502).
    """
    await response.aread()
    if response.status_code == 200 and (fault := _fault_of(response)):
        response.extensions["fault"] = fault
        response.status_code = 502
    elif response.status_code == 429 and _is_out_of_money(response):
        response.headers["x-should-retry"] = "false"


def _fault_of(response: Any) -> str | None:
    """Returns what is wrong with the content of an answer with status 200, or None."""
    path = response.request.url.path
    try:
        if path.endswith("/content"):
            lines = read_json_lines(response.text)
            return None if all(isinstance(line, dict) for line in lines) else "no JSON Lines but"
        data = response.json()
    except ValueError:
        return "no JSON but"
    if path.endswith("/chat/completions") and not is_completion(data):
        return "expected a chat completion, found"
    return None if isinstance(data, dict) else "no JSON object but"


def read_json_lines(text: str) -> list[Any]:
    """Reads a file of JSON Lines, such as a batch brings; raises ValueError if it is none."""
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _is_about_settings(error: openai.APIStatusError) -> bool:
    """Tells whether an error names a field that all requests share."""
    return (error.param or "").partition(".")[0] in _SETTINGS


def _is_own_fault(error: openai.APIStatusError) -> bool:
    """Tells whether a request is refused for its content or length."""
    text = f"{error.code} {error.response.text}"
    if error.status_code == 413 or _OWN_FAULT.search(text):
        return True
    # a length limit that is too large is too large for every request
    return bool(_TOO_MUCH.search(text)) and not _is_about_settings(error)


def _is_out_of_money(response: Any) -> bool:
    return "insufficient_quota" in response.text[:2000]
