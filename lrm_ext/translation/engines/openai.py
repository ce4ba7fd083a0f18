"""Engine `openai`: any service that speaks OpenAI's chat protocol, vLLM and SGLang included.

A chat model gets JSON with an id per segment and answers in JSON; remarks, refusals, unknown or
doubled ids are not translations. Several requests are under way at once, in a thread of its own;
who was answered asks for more when the answer is kept. Parts of a batch that were not answered are
asked for again; a request that gets no useful answer is halved until the segment at fault is alone.
After an error nothing new is asked, and what is under way is waited for: it is paid. Batch mode is
in `batch_api.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import queue
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from llava.errors import ConfigError, ExhaustedError, RejectedError, ServiceError
from lrm_ext.corpus.layout import ENGLISH
from lrm_ext.languages.registry import get_language, list_languages
from lrm_ext.translation.cache import Keys
from lrm_ext.translation.engines.base import (
    BudgetError,
    EngineError,
    EngineSpec,
    Ledger,
    OptionValue,
    Outcome,
    Reply,
    Segment,
    Usage,
)

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
        from lrm_ext.translation.engines.batch_api import Plan, ask_in_jobs

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
        )
        rest = yield from ask_in_jobs(self, self._service, self._ledger, keys, segments, plan)
        for reply in ask(self, self._service, [segments[i] for i in rest], size, concurrency):
            moved = (replace(o, index=rest[o.index]) for o in reply.outcomes)
            yield Reply(tuple(moved), reply.usage)

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

    def read(self, content: str, num_segments: int) -> dict[int, str]:
        """Translations in an answer, by position."""
        return read_answer(content, num_segments)

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


# Requests in a row that nobody answers before the service is taken to be down.
_MAX_SILENT = 3
_MAX_USELESS = 3  # useless answers to one segment before it is given up


class _Work(NamedTuple):
    indices: tuple[int, ...]
    num_useless: int = 0


class _Handed(NamedTuple):
    """A reply, and what its worker waits for before it asks for more."""

    reply: Reply
    is_kept: asyncio.Future[None]


def ask(
    engine: OpenAIEngine,
    service: ChatService,
    segments: Sequence[Segment],
    size: int,
    concurrency: int,
) -> Iterator[Reply]:
    """Have segments translated by a chat service.

    Args:
        engine: Makes requests and keeps the accounts.
        service: Where they go; it is connected meanwhile.
        segments: What to translate.
        size: Segments in a request.
        concurrency: Requests under way at once.

    Raises:
        EngineError: The service cannot be used, or the budget is spent; after all that was under
            way has been handed on.
    """
    asking = _Asking(engine, service, segments, size, concurrency)
    thread = threading.Thread(target=asking.run, name="translate", daemon=True)
    thread.start()
    try:
        while (handed := asking.replies.get()) is not None:
            if isinstance(handed, BaseException):
                raise handed
            yield handed.reply
            # who takes the next one has kept this one
            asking.go_on(handed)
    finally:
        asking.stop()
        thread.join()


class _Asking:
    def __init__(
        self,
        engine: OpenAIEngine,
        service: ChatService,
        segments: Sequence[Segment],
        size: int,
        concurrency: int,
    ) -> None:
        self.replies: queue.Queue[_Handed | BaseException | None] = queue.Queue()
        self._engine = engine
        self._service = service
        self._segments = segments
        numbers = range(len(segments))
        self._work = deque(
            _Work(tuple(numbers[start : start + size])) for start in range(0, len(segments), size)
        )
        self._concurrency = min(concurrency, len(self._work))
        self._num_under_way = 0
        self._num_silent = 0
        self._fault: Exception | None = None
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._all())

    def run(self) -> None:
        """Work until all is answered; what comes last is None or an error."""
        try:
            self._loop.run_until_complete(self._task)
            self.replies.put(self._fault)
        except BaseException as error:
            self.replies.put(error)
        finally:
            self._loop.close()

    def stop(self) -> None:
        """Give up what is under way; nothing happens if all is done."""
        self._in_loop(self._task.cancel)

    def go_on(self, handed: _Handed) -> None:
        """Let the worker ask for more: what it was answered cannot be lost any more."""
        self._in_loop(handed.is_kept.set_result, None)

    def _in_loop(self, do: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(do, *arguments)
        except RuntimeError:  # the loop is closed: all is done
            pass

    async def _hand_on(self, *outcomes: Outcome, usage: Usage | None = None) -> None:
        """Wait until a reply is kept, so that a kill loses no more than what is under way."""
        is_kept = self._loop.create_future()
        self.replies.put(_Handed(Reply(outcomes, usage or Usage()), is_kept))
        await is_kept

    async def _all(self) -> None:
        async with self._service:
            await asyncio.gather(*(self._worker() for _ in range(self._concurrency)))

    async def _worker(self) -> None:
        while self._work and self._fault is None:
            work = self._work.popleft()
            body = self._engine.body([self._segments[i] for i in work.indices])
            estimate = self._engine.estimate(body)
            try:
                self._engine.reserve(estimate)
            except BudgetError as error:
                # what is under way may come cheaper than thought, and leave room for this
                self._work.appendleft(work)
                if self._num_under_way == 0:
                    self._fault = error
                return
            self._num_under_way += 1
            usage = Usage()
            try:
                usage = await self._request(work, body, estimate)
            except EngineError as error:
                self._fault = error
            except ServiceError as error:
                self._fault = EngineError(str(error))
            finally:
                self._num_under_way -= 1
                self._engine.settle(estimate, usage)

    async def _request(self, work: _Work, body: Mapping[str, Any], estimate: Usage) -> Usage:
        num_tokens = estimate.input_tokens + estimate.output_tokens
        try:
            reply = await self._service.ask(body, num_tokens)
        except RejectedError as error:
            await self._halve(work, f"refused: {error}", error.is_final)
        except ExhaustedError as error:
            self._num_silent += 1
            limit = max(_MAX_SILENT, self._concurrency)
            if not self._service.num_answered or self._num_silent >= limit:
                raise EngineError(
                    f"the service does not answer: {error}. What was answered before is in the "
                    "cache; run again to go on."
                ) from error
            await self._halve(work, f"no answer: {error}")
        else:
            self._num_silent = 0
            usage = self._engine.usage_of(reply)
            await self._read(work, reply, usage)
            return usage
        return Usage()

    async def _read(self, work: _Work, reply: ChatReply, usage: Usage) -> None:
        """Hand on what was answered, and ask again for the rest."""
        content, refusal = reply.text, reply.refusal
        found = {} if refusal else read_answer(content, len(work.indices))
        outcomes = [Outcome(work.indices[k], text) for k, text in found.items()]
        rest = tuple(i for k, i in enumerate(work.indices) if k not in found)
        if len(rest) == 1 and not found and (refusal or work.num_useless + 1 >= _MAX_USELESS):
            error = f"refused: {refusal}" if refusal else f"useless answer: {content[:100]!r}"
            outcomes.append(Outcome(rest[0], None, error))
            rest = ()
        if found and rest:
            self._work.append(_Work(rest, work.num_useless))
        elif len(rest) > 1:
            self._cut(rest, work.num_useless)
        elif rest:
            self._work.append(_Work(rest, work.num_useless + 1))
        await self._hand_on(*outcomes, usage=usage)

    async def _halve(self, work: _Work, fault: str, is_final: bool = False) -> None:
        """Find the segment at fault; by itself it fails, for good or until another run."""
        if len(work.indices) > 1:
            self._cut(work.indices, work.num_useless)
        else:
            await self._hand_on(Outcome(work.indices[0], None, fault, is_final))

    def _cut(self, indices: tuple[int, ...], num_useless: int) -> None:
        middle = len(indices) // 2
        self._work.append(_Work(indices[:middle], num_useless))
        self._work.append(_Work(indices[middle:], num_useless))
