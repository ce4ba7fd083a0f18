"""Engine `openai`: any service that speaks OpenAI's chat protocol, vLLM and SGLang included.

A chat model gets JSON with an id per segment and answers in JSON; remarks, refusals, unknown or
doubled ids are not translations. How requests are sent and paid for is in `metered.py`, batch mode
in `batch_api.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llava.errors import ConfigError, ExhaustedError, RejectedError, ServiceError
from lrm_ext.corpus.store import ENGLISH
from lrm_ext.languages.registry import get_language, list_languages
from lrm_ext.translate.cache import Cache
from lrm_ext.translate.engines.base import (
    EngineError,
    EngineSpec,
    OptionValue,
    Outcome,
    Reply,
    Segment,
    Usage,
)
from lrm_ext.translate.engines.metered import Budget, Work, ask

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
    """Asks a chat model.

    Attributes:
        settings: All its options.
        service: Where requests go; it is connected while it is asked.
        ledger: Knows what earlier runs have cost, and their jobs.
        target: Code of the language to translate into.
    """

    name = _NAME
    context = "native"
    mask_styles: tuple[str, ...] = ("angle", "tag", "word")
    is_table = False
    is_sentence_level = False

    def __init__(self, options: OpenAIOptions, source: str, target: str, ledger: Cache) -> None:
        self.settings = options
        self.source, self.target = source, target
        self.ledger = ledger
        self.account = Budget(options.budget_tokens, options.budget_usd, "tokens")
        self.is_answered = False
        self.service = _service(options)
        self.version = options.model
        self.rows_ahead = options.batch_rows if options.batch else 0
        self.options: Mapping[str, OptionValue] = {
            "prompt": PROMPT_VERSION,
            "style": options.style,
            "temperature": options.temperature,
        }

    def translate(self, segments: Sequence[Segment]) -> Iterator[Reply]:
        """Translate a batch; see `Engine.translate`."""
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
        yield from ask(self, segments, requests, options.concurrency)

    def close(self) -> None:
        """Nothing stays open between batches."""

    def body(self, segments: Sequence[Segment]) -> dict[str, Any]:
        """The request that asks for some segments."""
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
        """What a reply cost."""
        return self._cost(reply.num_input_tokens, reply.num_output_tokens)

    def estimate(self, segments: Sequence[Segment]) -> Usage:
        """About what a request will cost; the answer is taken to be as long as the segments."""
        told = self.body(segments)["messages"]
        rules, asked = (len(m["content"]) // _CHARACTERS_PER_TOKEN for m in told)
        return self._cost(rules + asked, asked)

    async def send(self, segments: Sequence[Segment]) -> ChatReply:
        """See `PaidEngine`."""
        estimate = self.estimate(segments)
        num_tokens = estimate.input_tokens + estimate.output_tokens
        return await self.service.ask(self.body(segments), num_tokens)

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
    segments: Sequence[Segment], source: str, target: str, style: str | None = None
) -> list[dict[str, str]]:
    """The conversation that asks for translations.

    Args:
        segments: They get the ids 1, 2, ...
        source: Code of their language.
        target: Code of the language to translate into.
        style: More rules, such as the form of address.
    """
    into = get_language(target)
    rules = _RULES.format(source=get_language(source).name, target=into.name, script=into.script)
    if style:
        rules += f"\n- {style}"
    asked = [_asked(number, segment) for number, segment in enumerate(segments, start=1)]
    return [
        {"role": "system", "content": rules},
        {"role": "user", "content": json.dumps({"segments": asked}, ensure_ascii=False)},
    ]


def read_answer(content: str, num_segments: int) -> dict[int, str]:
    """Translations in a model's answer, by position.

    Args:
        content: What the model said.
        num_segments: How many segments it was asked about.

    Returns:
        What can be used; empty if it is not the JSON that was asked for.

    Example:
        >>> read_answer('{"translations": [{"id": 2, "text": "pas"}]}', 2)
        {1: 'pas'}
    """
    items = _find_items(content)
    found: dict[int, str] = {}
    doubled: set[int] = set()
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            continue
        try:
            position = int(item["id"]) - 1
        except (KeyError, TypeError, ValueError):
            continue
        if not 0 <= position < num_segments or not item["text"].strip():
            continue
        if found.setdefault(position, item["text"]) != item["text"]:
            doubled.add(position)
    return {position: text for position, text in found.items() if position not in doubled}


def _find_items(content: str) -> list[Any]:
    """The list of translations in a model's answer, whatever stands around it; the last of several.

    Models put JSON into fences, behind a line of prose, or behind a draft of it.
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


def _asked(number: int, segment: Segment) -> dict[str, object]:
    asked: dict[str, object] = {"id": number, "text": segment.text}
    if segment.context:
        asked["context"] = segment.context
    if segment.terms:
        asked["terms"] = dict(segment.terms)
    return asked


_MAX_USELESS = 3  # useless answers to one segment before it is given up
