"""Translates in the batch mode of a chat service: one file of requests, one file of answers.

Replies arrive when a job is done, perhaps hours later. A job is noted in the ledger before it is
created, with a tag that the service keeps: a run that was killed at any moment finds its jobs
again, waits for them, and asks nothing twice. Segments that a job leaves open go into another job
or, if they are few, are asked for directly.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Coroutine, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from llava.chat_service import (
    NotFoundError,
    is_completion,
    read_json_lines,
    read_reply,
)
from llava.errors import ExhaustedError, RejectedError, ServiceError
from lrm_ext.translate.cache import CachedAnswer, Keys
from lrm_ext.translate.engines.base import (
    BudgetError,
    EngineError,
    Outcome,
    Reply,
    TextSegment,
    Usage,
)
from lrm_ext.translate.engines.metered import Work

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from lrm_ext.translate.engines.openai import OpenAIEngine

log = logging.getLogger(__name__)

_TAG = "lrm_job"  # the key of our tag in a job's metadata
_DONE = ("completed", "expired", "cancelled")
_MAX_ROUNDS = 3  # jobs in which a segment may come to nothing before it is asked directly
_T = TypeVar("_T")


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
    if working.fault is not None:
        raise working.fault
    return sorted(working.open.values())


class _Working:
    def __init__(self, engine: OpenAIEngine, segments: Sequence[TextSegment]) -> None:
        keys = Keys(engine, engine.source, engine.target)
        self.open = {keys.key(segment): i for i, segment in enumerate(segments)}
        self.fault: BudgetError | None = None
        self._engine = engine
        self._service = engine.service
        self._ledger = engine.ledger
        self._segments = segments
        self._settings = engine.settings
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
            if len(free) >= self._settings.batch_fewest:
                jobs += self._new_jobs(free)
            yield from self._wait_for(jobs)
            if self.fault is not None or len(self.open) < self._settings.batch_fewest:
                return
            jobs = []

    def close(self) -> None:
        """Closes connections."""
        self._loop.run_until_complete(self._service.close())
        self._loop.close()

    def _old_jobs(self) -> list[BatchJob]:
        jobs: list[BatchJob] = []
        for name, text in self._ledger.notes(self._engine.name).items():
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

    def _new_jobs(self, free: Sequence[bytes]) -> list[BatchJob]:
        """Makes jobs for as many segments as the budget allows."""
        size, most = self._settings.segments_per_request, self._settings.batch_requests
        requests: list[tuple[bytes, ...]] = []
        for start in range(0, len(free), size):
            keys = tuple(free[start : start + size])
            try:
                self._engine.account.reserve(self._engine.estimate(self._segments_of(keys)))
            except BudgetError as error:
                self.fault = error
                break
            requests.append(keys)
        return [self._make(requests[i : i + most]) for i in range(0, len(requests), most)]

    def _make(self, requests: Sequence[tuple[bytes, ...]]) -> BatchJob:
        lines: list[str] = []
        estimate = Usage()
        for number, segments in enumerate(map(self._segments_of, requests)):
            body = self._service.dialect.adapt(self._engine.body(segments))
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions"}
            lines.append(json.dumps({**line, "body": body}, ensure_ascii=False) + "\n")
            estimate += self._engine.estimate(segments)
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
        known = self._ledger.get_many(list(answers))
        fresh = {key: answer for key, answer in answers.items() if key not in known}
        usage = usage if fresh or not answers else Usage()
        ours = [key for key in fresh if key in self.open]
        others = {key: answer for key, answer in fresh.items() if key not in self.open}
        if others:
            self._ledger.put(others, self._engine, self._engine.target, Usage() if ours else usage)
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
        self._ledger.note(self._engine.name, name, job.dump() if is_open else None)

    def _do(self, request: Coroutine[Any, Any, _T]) -> _T:
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
