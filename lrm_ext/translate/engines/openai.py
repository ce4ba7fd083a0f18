"""Engine `openai`: any service that speaks OpenAI's chat protocol, including vLLM and SGLang.

A chat model receives JSON with an id for each segment and answers in JSON; remarks, refusals, and
unknown or duplicate ids are not translations. `metered.py` sends requests and counts their cost;
batch mode is in `batch_api.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from llava.errors import ConfigError, ExhaustedError, RejectedError, ServiceError
from lrm_ext.corpus.store import ENGLISH
from lrm_ext.languages.registry import get_language, list_languages
from lrm_ext.translate.cache import Cache
from lrm_ext.translate.engines.base import (
    AtLeastOne,
    EngineError,
    EngineSpec,
    Outcome,
    Positive,
    Reply,
    TextSegment,
    Usage,
)
from lrm_ext.translate.engines.metered import Budget, PaidEngine, Work

if TYPE_CHECKING:
    from llava.chat_service import ChatReply, ChatService

log = logging.getLogger(__name__)

_NAME = "openai"
_HOSTED = "https://api.openai.com/v1"
_MAX_USELESS = 3  # useless answers to one segment before the engine gives up
_CHARACTERS_PER_TOKEN = 3  # deliberately low; for estimates only
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
        model: The service's name for the model; by default its only model.
        base_url: Address of the service.
        key_variable: Environment variable that holds the key; may be unset for a local service.
        style: Additional rules for the model, such as "Address the reader formally."
        temperature: 0 for the likeliest answer; -1 for the service's default.
        json: How to request JSON: json_object, json_schema, or none.
        segments_per_request: Segments in one request.
        concurrency: Requests under way at once.
        timeout_s: Time limit of one request.
        max_tries: Attempts per request.
        first_wait_s: No effect; accepted for older commands. The wait before the second attempt is
            half a second and doubles, unless the service asks for another wait.
        requests_per_minute: Rate limit.
        tokens_per_minute: Rate limit.
        usd_per_million_input: Price of tokens sent.
        usd_per_million_output: Price of tokens received.
        batch: Use the service's batch mode, which is cheaper and answers within a day. Prices are
            then those of batch mode, although a small remainder is asked for directly.
        batch_rows: Rows to ask for at once in batch mode.
        batch_requests: Most requests in one job of batch mode.
        batch_fewest: Fewer segments than this are asked for directly.
        poll_s: Time between two checks of a job of batch mode.
        budget_usd: Stop before more is spent, counting all runs with this cache.
        budget_tokens: Stop before more tokens are used, counting all runs with this cache.
    """

    model: str = ""
    base_url: str = _HOSTED
    key_variable: str = "OPENAI_API_KEY"
    style: str | None = None
    temperature: float = 0.0
    json: Literal["json_object", "json_schema", "none"] = "json_object"
    segments_per_request: AtLeastOne = 8
    concurrency: AtLeastOne = 16
    timeout_s: Positive = 120.0
    max_tries: AtLeastOne = 6
    first_wait_s: float = 1.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    usd_per_million_input: float | None = None
    usd_per_million_output: float | None = None
    batch: bool = False
    batch_rows: AtLeastOne = 50_000
    batch_requests: AtLeastOne = 10_000
    batch_fewest: AtLeastOne = 100
    poll_s: Positive = 30.0
    budget_usd: float | None = None
    budget_tokens: int | None = None

    def __post_init__(self) -> None:
        prices = (self.usd_per_million_input, self.usd_per_million_output)
        if self.budget_usd is not None and None in prices:
            raise ConfigError(
                "budget_usd needs prices: set usd_per_million_input and usd_per_million_output, "
                "0 if one is free."
            )


class OpenAIEngine(PaidEngine):
    """Asks a chat model.

    Attributes:
        settings: All options.
        service: The service, connected while requests are under way.
        source: Code of the language to translate from.
        target: Code of the language to translate into.
    """

    name = _NAME
    context = "native"

    def __init__(self, options: OpenAIOptions, source: str, target: str, ledger: Cache) -> None:
        account = Budget(options.budget_tokens, options.budget_usd, "tokens")
        super().__init__(ledger, account, options.concurrency)
        self.settings = options
        self.source, self.target = source, target
        self.service = _service(options)
        self.version = options.model
        self.rows_ahead = options.batch_rows if options.batch else 0
        self.options = {
            "prompt": PROMPT_VERSION,
            "style": options.style,
            "temperature": options.temperature,
        }

    def translate(self, segments: Sequence[TextSegment]) -> Iterator[Reply]:
        """Translates a batch; see `TranslationEngine.translate`."""
        options = self.settings
        self.account.open(self.ledger.spent(self.name))
        if os.environ.get(options.key_variable) is None and "api.openai.com" in options.base_url:
            raise EngineError(f"the environment has no {options.key_variable}; set it to the key.")
        rest: Sequence[int] = range(len(segments))
        if options.batch:
            from lrm_ext.translate.engines.batch_api import ask_in_jobs

            rest = yield from ask_in_jobs(self, segments)
        size = options.segments_per_request
        requests = (tuple(rest[i : i + size]) for i in range(0, len(rest), size))
        self.service.connect()
        yield from self.ask(segments, requests)

    def body(self, segments: Sequence[TextSegment]) -> dict[str, Any]:
        """Returns the request for some segments."""
        options = self.settings
        body: dict[str, Any] = {
            "model": options.model,
            "messages": messages(segments, self.source, self.target, options.style),
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
        """Returns the cost of a reply."""
        return self._cost(reply.num_input_tokens, reply.num_output_tokens)

    def estimate(self, segments: Sequence[TextSegment]) -> Usage:
        """Estimates the cost of a request; the answer is assumed to be as long as the segments."""
        told = self.body(segments)["messages"]
        rules, asked = (len(m["content"]) // _CHARACTERS_PER_TOKEN for m in told)
        return self._cost(rules + asked, asked)

    async def send(self, segments: Sequence[TextSegment]) -> ChatReply:
        """See `PaidEngine`."""
        cost = self.estimate(segments)
        return await self.service.ask(self.body(segments), cost.input_tokens + cost.output_tokens)

    def read(self, work: Work, answer: ChatReply) -> tuple[list[Outcome], tuple[int, ...], Usage]:
        """See `PaidEngine`."""
        indices, refusal = work.indices, answer.refusal
        found = {} if refusal else read_answer(answer.text, len(indices))
        outcomes = [Outcome(indices[k], text) for k, text in found.items()]
        rest = tuple(i for k, i in enumerate(indices) if k not in found)
        if len(indices) == 1 and rest and (refusal or work.num_useless + 1 >= _MAX_USELESS):
            error = f"refused: {refusal}" if refusal else f"useless answer: {answer.text[:100]!r}"
            outcomes, rest = [Outcome(rest[0], None, error)], ()
        return outcomes, rest, self.usage_of(answer)

    async def disconnect(self) -> None:
        """See `PaidEngine`."""
        await self.service.close()

    def _cost(self, sent: int, received: int) -> Usage:
        per_input = self.settings.usd_per_million_input or 0.0
        per_output = self.settings.usd_per_million_output or 0.0
        return Usage(1, sent, received, (sent * per_input + received * per_output) / 1e6)


def _build(options: OpenAIOptions, source: str, target: str, ledger: Cache) -> OpenAIEngine:
    if not options.model:
        options = replace(options, model=_only_model(options))
        log.info("%s has one model, %s", options.base_url, options.model)
    return OpenAIEngine(options, source, target, ledger)


def _only_model(options: OpenAIOptions) -> str:
    """Returns the name of the service's only model.

    Raises:
        ConfigError: The service is OpenAI's own, or does not have exactly one model.
        EngineError: The service does not list its models.
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
    from llava.chat_service import ChatService, ServiceLimits

    limits = ServiceLimits(
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


_RULES = """\
You translate training data of a vision-language model from {source} into {target}.
You get JSON: {{"segments": [{{"id": 1, "text": "..."}}, ...]}}.
Answer with JSON only: {{"translations": [{{"id": 1, "text": "..."}}, ...]}}, one for every id.
Rules:
- Translate "text". Never answer it, never add remarks, quotation marks or explanations.
- Placeholders such as ⟦0⟧ or [[1]] stand for parts that must not change: keep each exactly once.
- Keep numbers, option letters and punctuation style as they are.
- "context", if there is one, is the question that the text answers. Do not translate it, but use
  it to choose sense, gender, case and number.
- "terms", if there are any, say how to translate these words; inflect them as needed.
- Use the standard written language and script ({script}) of {target}."""
PROMPT_VERSION = hashlib.sha256(_RULES.encode()).hexdigest()[:8]
_OPENING = re.compile(r"[{\[]")


def messages(
    segments: Sequence[TextSegment], source: str, target: str, style: str | None = None
) -> list[dict[str, str]]:
    """Returns the conversation that asks for translations.

    Args:
        segments: What to translate; their ids are 1, 2, ...
        source: Code of their language.
        target: Code of the language to translate into.
        style: Additional rules, such as the form of address.
    """
    into = get_language(target)
    rules = _RULES.format(source=get_language(source).name, target=into.name, script=into.script)
    if style:
        rules += f"\n- {style}"
    asked = [
        {"id": number, "text": s.text}
        | ({"context": s.context} if s.context else {})
        | ({"terms": dict(s.terms)} if s.terms else {})
        for number, s in enumerate(segments, start=1)
    ]
    return [
        {"role": "system", "content": rules},
        {"role": "user", "content": json.dumps({"segments": asked}, ensure_ascii=False)},
    ]


def read_answer(content: str, num_segments: int) -> dict[int, str]:
    """Returns the translations in a model's answer, by position.

    Args:
        content: The model's answer.
        num_segments: How many segments were in the request.

    Returns:
        The usable translations; empty if the answer is not the requested JSON.

    Example:
        >>> read_answer('{"translations": [{"id": 2, "text": "pas"}]}', 2)
        {1: 'pas'}
    """
    found: dict[int, set[str]] = {}
    for raw in _find_items(content):
        try:
            item = msgspec.convert(raw, _Item, strict=False)
        except msgspec.ValidationError:
            continue
        if 1 <= item.id <= num_segments and item.text.strip():
            found.setdefault(item.id - 1, set()).add(item.text)
    return {position: texts.pop() for position, texts in found.items() if len(texts) == 1}


class _Item(msgspec.Struct):
    """One translation in a model's answer."""

    id: int
    text: str


def _find_items(content: str) -> list[Any]:
    """Returns the last list of translations in a model's answer, ignoring everything around it.

    Models put JSON in fences, after a line of prose, or after a draft of it.
    """
    items: list[Any] = []
    decoder = json.JSONDecoder()
    start = 0
    while opening := _OPENING.search(content, start):
        try:
            data, start = decoder.raw_decode(content, opening.start())
        except (ValueError, RecursionError):
            start = opening.end()
            continue
        found = data.get("translations") if isinstance(data, dict) else data
        if isinstance(found, list) and any(isinstance(item, dict) for item in found):
            items = found
    return items
