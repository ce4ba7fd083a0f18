"""Engine `openai`: any service that speaks OpenAI's chat protocol, including vLLM and SGLang.

A chat model receives JSON with an id for each segment and answers in JSON; remarks, refusals, and
unknown or duplicate ids are not translations. `metered.py` sends requests and counts their cost.

In batch mode a service receives one file of requests and returns one file of answers, perhaps hours
later. A job is noted in the ledger before it is created, with a tag that the service keeps: a run
that was killed at any moment finds its jobs again, waits for them, and asks nothing twice. Segments
that a job leaves open go into another job or, if they are few, are asked for directly.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Coroutine, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from llava.errors import ConfigError, ExhaustedError, RejectedError, ServiceError
from lrm_ext.corpus.store import ENGLISH
from lrm_ext.languages.registry import get_language, list_languages
from lrm_ext.translate.cache import Cache, CachedAnswer, Keys
from lrm_ext.translate.engines.base import (
    AtLeastOne,
    BudgetError,
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
    from openai import AsyncOpenAI

    from llava.chat_service import ChatReply, ChatService

log = logging.getLogger(__name__)

_NAME = "openai"
_HOSTED = "https://api.openai.com/v1"
_TAG = "lrm_job"  # the key of our tag in a job's metadata
_DONE = ("completed", "expired", "cancelled")
_MAX_ROUNDS = 3  # jobs in which a segment may come to nothing before it is asked directly
_MAX_USELESS = 3  # useless answers to one segment before the engine gives up
_CHARACTERS_PER_TOKEN = 3  # deliberately low; for estimates only
_T = TypeVar("_T")
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
        await self.service.aclose()

    def _cost(self, sent: int, received: int) -> Usage:
        per_input = self.settings.usd_per_million_input or 0.0
        per_output = self.settings.usd_per_million_output or 0.0
        return Usage(1, sent, received, (sent * per_input + received * per_output) / 1e6)


@dataclass(frozen=True)
class BatchJob:
    """A job as the ledger stores it.

    Attributes:
        tag: Our name for it, which the service keeps as metadata.
        id: The service's name for it; None if its answer never arrived.
        requests: The cache keys of each request's segments.
        estimate: What it may cost.
    """

    tag: str
    id: str | None
    requests: tuple[tuple[bytes, ...], ...]
    estimate: Usage

    def dump(self) -> str:
        """Returns the job as JSON."""
        requests = [[key.hex() for key in keys] for keys in self.requests]
        return json.dumps({"id": self.id, "requests": requests, "estimate": astuple(self.estimate)})

    @classmethod
    def load(cls, tag: str, text: str) -> BatchJob:
        """Reads what `dump` returned."""
        data = json.loads(text)
        requests = tuple(tuple(map(bytes.fromhex, keys)) for keys in data["requests"])
        return cls(tag, data["id"], requests, Usage(*data["estimate"]))


def ask_in_jobs(
    engine: OpenAIEngine, segments: Sequence[TextSegment]
) -> Generator[Reply, None, list[int]]:
    """Yields the replies of jobs of a chat service.

    Args:
        engine: Makes requests and counts their cost.
        segments: What to translate.

    Returns:
        Positions of the segments that are left to ask for directly.

    Raises:
        EngineError: The service cannot be used, a job failed, or the budget is spent. The next
            run finds jobs under way again.
    """
    with closing(_Working(engine, segments)) as working:
        yield from working.replies()
        return sorted(working.open.values())


class _Working:
    def __init__(self, engine: OpenAIEngine, segments: Sequence[TextSegment]) -> None:
        keys = Keys(engine, engine.source, engine.target)
        self.open = {keys.key(segment): i for i, segment in enumerate(segments)}
        self._engine, self._segments = engine, segments
        self._service, self._settings = engine.service, engine.settings
        # prefix of the ledger's names of jobs with these settings and this language
        address = engine.settings.base_url.rstrip("/")
        self._scope = f"batch {address} {engine.target} {keys.name}"
        self._loop = asyncio.new_event_loop()
        self._service.connect()

    def replies(self) -> Iterator[Reply]:
        """Waits for the jobs of earlier runs, and makes new ones while many segments are open."""
        jobs = self._old_jobs()
        for _ in range(_MAX_ROUNDS):
            taken = {key for job in jobs for keys in job.requests for key in keys}
            free = [key for key in self.open if key not in taken]
            fault = None
            if len(free) >= self._settings.batch_fewest:
                requests, fault = self._affordable(free)
                most = self._settings.batch_requests
                parts = (requests[i : i + most] for i in range(0, len(requests), most))
                jobs += map(self._make, parts)
            yield from self._wait_for(jobs)
            if fault is not None:
                raise fault
            if len(self.open) < self._settings.batch_fewest:
                return
            jobs = []

    def close(self) -> None:
        """Closes connections."""
        self._loop.run_until_complete(self._service.aclose())
        self._loop.close()

    def _old_jobs(self) -> list[BatchJob]:
        jobs: list[BatchJob] = []
        for name, text in self._engine.ledger.notes(self._engine.name).items():
            scope, _, tag = name.rpartition(" ")
            if scope != self._scope:
                continue
            job = BatchJob.load(tag, text)
            if job.id is None:
                job = replace(job, id=self._find(tag))
                self._note(job, job.id is not None)
            if job.id is not None:
                log.info("job %s of an earlier run is waited for", job.id)
                self._engine.account.hold(job.estimate)
                jobs.append(job)
        return jobs

    def _affordable(
        self, free: Sequence[bytes]
    ) -> tuple[list[tuple[bytes, ...]], BudgetError | None]:
        """Returns requests for as many segments as the budget allows, and why not for all."""
        size = self._settings.segments_per_request
        requests: list[tuple[bytes, ...]] = []
        for start in range(0, len(free), size):
            keys = tuple(free[start : start + size])
            try:
                self._engine.account.reserve(self._engine.estimate(self._segments_of(keys)))
            except BudgetError as error:
                return requests, error
            requests.append(keys)
        return requests, None

    def _make(self, requests: Sequence[tuple[bytes, ...]]) -> BatchJob:
        asked = list(map(self._segments_of, requests))
        estimate = sum(map(self._engine.estimate, asked), Usage())
        lines: list[str] = []
        for number, segments in enumerate(asked):
            body = self._service.dialect.adapt(self._engine.body(segments))
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions"}
            lines.append(json.dumps({**line, "body": body}, ensure_ascii=False) + "\n")
        client = self._service.client
        file = ("requests.jsonl", "".join(lines).encode(), "application/jsonl")
        uploaded = self._do(client.files.create(file=file, purpose="batch"))
        job = BatchJob(uuid.uuid4().hex, None, tuple(requests), estimate)
        self._note(job)

        def make(client: AsyncOpenAI) -> str:
            made = client.batches.create(
                input_file_id=uploaded.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={_TAG: job.tag},
            )
            return self._do(made).id

        try:
            job_id = make(client.with_options(max_retries=0))
        except EngineError:
            # the answer may be what was lost, not the request
            job_id = self._find(job.tag) or make(client)
        job = replace(job, id=job_id)
        self._note(job)
        log.info("job %s: %d requests", job.id, len(requests))
        return job

    def _segments_of(self, keys: Sequence[bytes]) -> list[TextSegment]:
        return [self._segments[self.open[key]] for key in keys]

    def _wait_for(self, jobs: Sequence[BatchJob]) -> Iterator[Reply]:
        waiting = list(jobs)
        while waiting:
            for job in tuple(waiting):
                status, files = self._look_at(job)
                if status not in _DONE:
                    continue
                waiting.remove(job)
                yield from self._collect(job, files)
                self._note(job, False)  # its answers are in the cache by now
            if waiting:
                time.sleep(self._settings.poll_s)

    def _look_at(self, job: BatchJob) -> tuple[str, tuple[str | None, ...]]:
        """Returns a job's status, and the names of the files of its answers and errors."""
        from llava.chat_service import NotFoundError

        assert job.id is not None, "only jobs that the service knows are waited for"
        try:
            state = self._do(self._service.client.batches.retrieve(job.id))
        except NotFoundError:
            log.warning("the service has forgotten job %s; its segments are open again", job.id)
            return "expired", ()
        if state.status == "failed":
            self._note(job, False)
            raise EngineError(f"job {job.id} failed: {json.dumps(state.to_dict().get('errors'))}")
        return state.status, (state.output_file_id, state.error_file_id)

    def _collect(self, job: BatchJob, files: Sequence[str | None]) -> Iterator[Reply]:
        from llava.chat_service import is_completion, read_json_lines, read_reply

        usage = Usage()
        answers: dict[bytes, CachedAnswer] = {}
        texts = [self._do(self._service.client.files.content(file)).text for file in files if file]
        for line in (line for text in texts for line in read_json_lines(text)):
            asked = job.requests[int(line["custom_id"])]
            response = line.get("response") or {}
            if response.get("status_code") == 200 and is_completion(response.get("body")):
                reply = read_reply(response["body"])
                usage += self._engine.usage_of(reply)
                outcomes, _, _ = self._engine.read(Work(tuple(range(len(asked)))), reply)
                answers.update((asked[o.index], CachedAnswer(o.text, o.error)) for o in outcomes)
            else:
                self._learn(response.get("body"))
        self._engine.account.settle(job.estimate, usage)
        # a run that was killed between the two commits has read this job before
        known = self._engine.ledger.get_many(list(answers))
        fresh = {key: answer for key, answer in answers.items() if key not in known}
        usage = usage if fresh or not answers else Usage()
        ours = [key for key in fresh if key in self.open]
        others = {key: answer for key, answer in fresh.items() if key not in self.open}
        if others:
            self._engine.ledger.put(
                others, self._engine, self._engine.target, Usage() if ours else usage
            )
        if ours or not others:
            yield Reply(tuple(Outcome(self.open[key], *fresh[key]) for key in ours), usage)
        for key in ours:
            del self.open[key]
        log.info("job %s: %d answers, %d segments are open", job.id, len(fresh), len(self.open))

    def _learn(self, body: Any) -> None:
        """Learns from an error which fields the service rejects, for the next job."""
        error = body.get("error") if isinstance(body, dict) else None
        fault = str((error.get("param") if isinstance(error, dict) else None) or error)
        sent = self._service.dialect.adapt(self._engine.body([]))
        if dialect := self._service.dialect.after(fault, sent):
            self._service.speak(dialect)

    def _find(self, tag: str) -> str | None:
        """Returns the service's name for the job with our tag."""

        async def find() -> str | None:
            async for job in self._service.client.batches.list(limit=100):
                if (job.metadata or {}).get(_TAG) == tag:
                    return job.id
            return None

        return self._do(find())

    def _note(self, job: BatchJob, is_open: bool = True) -> None:
        name = f"{self._scope} {job.tag}"
        self._engine.ledger.note(self._engine.name, name, job.dump() if is_open else None)

    def _do(self, request: Coroutine[Any, Any, _T]) -> _T:
        from llava.chat_service import NotFoundError

        try:
            with self._service.plain_errors():
                return self._loop.run_until_complete(request)
        except NotFoundError:
            raise
        except (ExhaustedError, RejectedError, ServiceError) as error:
            raise EngineError(
                f"the service does not do what batch mode needs: {error}. Jobs under way are kept; "
                "run again to go on."
            ) from error


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
        async with aclosing(_service(options).connect()) as service:
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
