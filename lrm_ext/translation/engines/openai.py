"""Engine `openai`: any service that speaks OpenAI's chat protocol, vLLM and SGLang included.

Role: makes the requests and keeps the accounts. How they are sent and what becomes of answers is in
`asking.py`; what the model is told, in `chat.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llava.errors import ConfigError, ExhaustedError, RejectedError, ServiceError
from lrm_ext.corpus.store import ENGLISH
from lrm_ext.languages.registry import list_languages
from lrm_ext.translation.cache import Keys
from lrm_ext.translation.engines.base import (
    BudgetError,
    EngineError,
    EngineSpec,
    Ledger,
    OptionValue,
    Reply,
    Segment,
    Usage,
)
from lrm_ext.translation.engines.chat import PROMPT_VERSION, messages

if TYPE_CHECKING:
    from llava.chat_service import ChatReply, ChatService

log = logging.getLogger(__name__)

_NAME = "openai"
_HOSTED = "https://api.openai.com/v1"
_CHARACTERS_PER_TOKEN = 3  # on the safe side, for estimates only
_JSON_MODES = ("json_object", "json_schema", "none")
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "translations": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"id": {"type": "integer"}, "text": {"type": "string"}},
                "required": ["id", "text"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["translations"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class OpenAIOptions:
    """Options of the engine.

    Attributes:
        model: Name of the model, as the service knows it; left out: the only one that it has.
        base_url: Address of the service.
        key_variable: Environment variable that holds the key; it may be unset for a local service.
        style: More rules for the model, such as "Address the reader formally."
        temperature: 0 for the likeliest answer; -1 leaves it to the service.
        json: How JSON is asked for: json_object, json_schema, or none.
        segments_per_request: Segments that are asked for at once.
        concurrency: Requests under way at once.
        timeout_s: Longest wait for one answer.
        max_tries: Tries for one request.
        first_wait_s: Without effect, for commands that set it: the wait before the second try is
            half a second, doubles, and is what the service asks for where it says so.
        requests_per_minute: Rate limit.
        tokens_per_minute: Rate limit.
        usd_per_million_input: Price of tokens sent.
        usd_per_million_output: Price of tokens received.
        batch: Use the service's batch mode: cheaper, and answers within a day. The prices are those
            of batch mode then; a small rest is asked directly all the same.
        batch_rows: Rows that are asked about at once in batch mode.
        batch_requests: Most requests in one job of batch mode.
        batch_fewest: Fewer segments than these are asked directly.
        poll_s: Time between two looks at a job of batch mode.
        budget_usd: Stop before more is spent, counting all runs with this cache.
        budget_tokens: Stop before more tokens are used, counting all runs with this cache.
    """

    model: str = ""
    base_url: str = _HOSTED
    key_variable: str = "OPENAI_API_KEY"
    style: str | None = None
    temperature: float = 0.0
    json: str = "json_object"
    segments_per_request: int = 8
    concurrency: int = 16
    timeout_s: float = 120.0
    max_tries: int = 6
    first_wait_s: float = 1.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    usd_per_million_input: float | None = None
    usd_per_million_output: float | None = None
    batch: bool = False
    batch_rows: int = 50_000
    batch_requests: int = 10_000
    batch_fewest: int = 100
    poll_s: float = 30.0
    budget_usd: float | None = None
    budget_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.json not in _JSON_MODES:
            raise ConfigError(f"json is {self.json!r}, expected one of {', '.join(_JSON_MODES)}.")
        counts = ("segments_per_request", "concurrency", "max_tries", "timeout_s")
        for name in (*counts, "batch_rows", "batch_requests", "batch_fewest", "poll_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected more than 0.")
        prices = (self.usd_per_million_input, self.usd_per_million_output)
        if self.budget_usd is not None and None in prices:
            raise ConfigError(
                "budget_usd needs prices: set usd_per_million_input and usd_per_million_output, "
                "0 if one is free."
            )


class OpenAIEngine:
    """Asks a chat model."""

    name = _NAME
    context = "native"
    mask_styles: tuple[str, ...] = ("angle", "tag", "word")
    is_table = False
    is_sentence_level = False

    def __init__(self, options: OpenAIOptions, source: str, target: str, ledger: Ledger) -> None:
        self._options = options
        self._source, self._target = source, target
        self._ledger = ledger
        self._spent = Usage()
        self._pending = Usage()
        self._service = _service(options)
        self.version = options.model
        self.rows_ahead = options.batch_rows if options.batch else 0
        self.options: Mapping[str, OptionValue] = {
            "prompt": PROMPT_VERSION,
            "style": options.style,
            "temperature": options.temperature,
        }

    def translate(self, segments: Sequence[Segment]) -> Iterator[Reply]:
        """Translate a batch; see `Engine.translate`."""
        self._spent, self._pending = self._ledger.spent(self.name), Usage()
        options = self._options
        if os.environ.get(options.key_variable) is None and "api.openai.com" in options.base_url:
            raise EngineError(f"the environment has no {options.key_variable}; set it to the key.")
        from lrm_ext.translation.engines.asking import ask
        from lrm_ext.translation.engines.jobs import Plan, ask_in_jobs

        size, concurrency = options.segments_per_request, options.concurrency
        if not options.batch:
            yield from ask(self, self._service, segments, size, concurrency)
            return
        keys = Keys(self, self._source, self._target)
        plan = Plan(
            scope=f"batch {options.base_url.rstrip('/')} {self._target} {keys.name}",
            target=self._target,
            segments_per_request=size,
            requests_per_job=options.batch_requests,
            fewest=options.batch_fewest,
            poll_s=options.poll_s,
            concurrency=concurrency,
        )
        yield from ask_in_jobs(self, self._service, self._ledger, keys, segments, plan)

    def close(self) -> None:
        """Nothing stays open between batches."""

    def body(self, segments: Sequence[Segment]) -> dict[str, Any]:
        """The request that asks for some segments."""
        options = self._options
        body: dict[str, Any] = {
            "model": options.model,
            "messages": messages(segments, self._source, self._target, options.style),
        }
        if options.temperature >= 0:
            body["temperature"] = options.temperature
        if options.json == "json_object":
            body["response_format"] = {"type": "json_object"}
        elif options.json == "json_schema":
            schema = {"name": "translations", "strict": True, "schema": _SCHEMA}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def usage_of(self, reply: ChatReply) -> Usage:
        """What a reply cost."""
        sent, received = reply.num_input_tokens, reply.num_output_tokens
        return Usage(1, sent, received, self._price(sent, received))

    def estimate(self, body: Mapping[str, Any]) -> Usage:
        """About what a request will cost; the answer is taken to be as long as the segments."""
        rules, asked = (len(m["content"]) // _CHARACTERS_PER_TOKEN for m in body["messages"])
        return Usage(1, rules + asked, asked, self._price(rules + asked, asked))

    def reserve(self, estimate: Usage) -> None:
        """Set money aside for a request.

        Raises:
            BudgetError: With it, more would be spent than is allowed.
        """
        options = self._options
        total = self._spent + self._pending + estimate
        tokens = total.input_tokens + total.output_tokens
        budgets = (
            {f"{options.budget_tokens:,} tokens": tokens > options.budget_tokens}
            if options.budget_tokens is not None
            else {}
        )
        if options.budget_usd is not None:
            budgets[f"{options.budget_usd:g} USD"] = total.usd > options.budget_usd
        for budget, is_spent in budgets.items():
            if is_spent:
                raise BudgetError(
                    f"the budget of {budget} is spent: {self._told()}. What was answered is in the "
                    "cache; run again with a larger budget to go on."
                )
        self.hold(estimate)

    def hold(self, estimate: Usage) -> None:
        """Set money aside that is spent already."""
        self._pending += estimate

    def settle(self, estimate: Usage, usage: Usage) -> None:
        """Replace an estimate by what it came to."""
        self._pending += Usage(
            -estimate.requests, -estimate.input_tokens, -estimate.output_tokens, -estimate.usd
        )
        self._spent += usage

    def _told(self) -> str:
        used = self._spent
        return (
            f"{used.requests:,} requests used {used.input_tokens + used.output_tokens:,} tokens, "
            f"{used.usd:.4f} USD, in all runs with this cache"
        )

    def _price(self, sent: int, received: int) -> float:
        per_input = self._options.usd_per_million_input or 0.0
        per_output = self._options.usd_per_million_output or 0.0
        return (sent * per_input + received * per_output) / 1e6


def _build(options: OpenAIOptions, source: str, target: str, ledger: Ledger) -> OpenAIEngine:
    if not options.model:
        options = replace(options, model=_only_model(options))
        log.info("%s has one model, %s", options.base_url, options.model)
    return OpenAIEngine(options, source, target, ledger)


def _only_model(options: OpenAIOptions) -> str:
    """Ask the service which model it has.

    Raises:
        ConfigError: The service is OpenAI's own, or it has none or several.
        EngineError: It does not say.
    """
    if options.base_url == _HOSTED:
        raise ConfigError(
            f"engine {_NAME!r} needs --model NAME, and --base-url unless it is {_HOSTED}."
        )

    async def ask() -> list[str]:
        async with _service(options) as service:
            return await service.models()

    try:
        names = asyncio.run(ask())
    except (ServiceError, ExhaustedError, RejectedError) as error:
        raise EngineError(
            f"{options.base_url} does not say which model it has ({error}); name it with "
            "--model NAME."
        ) from error
    if len(names) != 1:
        raise ConfigError(
            f"{options.base_url} has {len(names)} models, expected one; choose with --model "
            f"NAME: {', '.join(names[:10]) or 'it has none'}{', ...' if names[10:] else ''}"
        )
    return names[0]


def _service(options: OpenAIOptions) -> ChatService:
    from llava.chat_service import ChatService, Limits

    limits = Limits(
        timeout_s=options.timeout_s,
        max_tries=options.max_tries,
        requests_per_minute=options.requests_per_minute,
        tokens_per_minute=options.tokens_per_minute,
    )
    return ChatService(options.base_url, os.environ.get(options.key_variable), limits)


SPEC = EngineSpec(
    name=_NAME,
    summary="any chat model behind OpenAI's protocol: vLLM, SGLang, hosted ones",
    licence="the model's (EuroLLM: Apache-2.0), or the provider's terms",
    cost="GPU time, or by the token",
    options=OpenAIOptions,
    build=_build,
    languages=lambda: tuple(lang for lang in list_languages() if lang != ENGLISH),
    uses_service=True,
)
