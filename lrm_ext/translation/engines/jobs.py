"""Batch mode of a chat service: requests in a file, a job that works on it, answers in a file.

Input: segments. Output: replies when a job is done, hours later perhaps. A job is noted in the
ledger before it is made, with a tag that the service keeps: a run that was killed at any moment
finds its jobs again, waits for them, and asks nothing a second time. What a job leaves open is
given to another job, or, if it is little, asked directly.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, Protocol, TypeVar

from lrm_ext.translation.cache import Answer, Keys
from lrm_ext.translation.engines.asking import ChatEngine, ask, content_of
from lrm_ext.translation.engines.base import (
    BudgetError,
    Engine,
    EngineError,
    ExhaustedError,
    Ledger,
    Outcome,
    RejectedError,
    Reply,
    Segment,
    Usage,
)
from lrm_ext.translation.engines.chat import read_answer
from lrm_ext.translation.engines.service import NotFoundError, Service

log = logging.getLogger(__name__)

_DONE = ("completed", "expired", "cancelled")
_MAX_ROUNDS = 3  # jobs in which a segment may come to nothing before it is asked directly
_T = TypeVar("_T")


class JobEngine(ChatEngine, Engine, Protocol):
    """What this file needs of an engine."""

    def hold(self, estimate: Usage) -> None:
        """Set money aside that is spent already."""
        ...


@dataclass(frozen=True)
class Plan:
    """How jobs are made.

    Attributes:
        scope: What the engine's jobs for these settings and this language are called in the ledger.
        target: Code of the language.
        segments_per_request: Segments that are asked for at once.
        requests_per_job: Most requests in a job.
        fewest: Fewer segments are asked directly.
        poll_s: Time between two looks at a job.
        concurrency: Of direct requests.
    """

    scope: str
    target: str
    segments_per_request: int
    requests_per_job: int
    fewest: int
    poll_s: float
    concurrency: int


@dataclass(frozen=True)
class Job:
    """A job as the ledger knows it.

    Attributes:
        tag: Our name for it; the service keeps it as metadata.
        id: The service's name for it; None if we were cut off before we heard it.
        requests: The cache keys of each request's segments.
        estimate: What it may cost.
    """

    tag: str
    id: str | None
    requests: tuple[tuple[bytes, ...], ...]
    estimate: Usage

    def dump(self) -> str:
        """Write it as JSON."""
        requests = [[key.hex() for key in keys] for keys in self.requests]
        return json.dumps({"id": self.id, "requests": requests, "estimate": astuple(self.estimate)})

    @classmethod
    def load(cls, tag: str, text: str) -> Job:
        """Read it back."""
        data = json.loads(text)
        requests = tuple(tuple(map(bytes.fromhex, keys)) for keys in data["requests"])
        return cls(tag, data["id"], requests, Usage(*data["estimate"]))


def ask_in_jobs(
    engine: JobEngine,
    make_service: Callable[[], Service],
    ledger: Ledger,
    keys: Keys,
    segments: Sequence[Segment],
    plan: Plan,
) -> Iterator[Reply]:
    """Have segments translated by jobs of a chat service.

    Args:
        engine: Makes requests and keeps the accounts.
        make_service: Connects to the service.
        ledger: Knows the jobs of earlier runs.
        keys: Names segments.
        segments: What to translate.
        plan: How jobs are made.

    Raises:
        EngineError: The service cannot be used, a job failed, or the budget is spent; jobs under
            way are found again by the next run.
    """
    working = _Working(engine, make_service(), ledger, keys, segments, plan)
    try:
        yield from working.replies()
    finally:
        working.close()
    open_segments = sorted(working.open.values())
    if open_segments and working.fault is None:
        asked = [segments[i] for i in open_segments]
        size, concurrency = plan.segments_per_request, plan.concurrency
        for reply in ask(engine, make_service(), asked, size, concurrency):
            moved = (replace(o, index=open_segments[o.index]) for o in reply.outcomes)
            yield Reply(tuple(moved), reply.usage)
    if working.fault is not None:
        raise working.fault


class _Working:
    def __init__(
        self,
        engine: JobEngine,
        service: Service,
        ledger: Ledger,
        keys: Keys,
        segments: Sequence[Segment],
        plan: Plan,
    ) -> None:
        self.open = {keys.key(segment): i for i, segment in enumerate(segments)}
        self.fault: BudgetError | None = None
        self._engine = engine
        self._service = service
        self._ledger = ledger
        self._segments = segments
        self._plan = plan
        self._loop = asyncio.new_event_loop()

    def replies(self) -> Iterator[Reply]:
        """Wait for old jobs, and make new ones while much is open."""
        jobs = self._old_jobs()
        for _ in range(_MAX_ROUNDS):
            taken = {key for job in jobs for keys in job.requests for key in keys}
            free = [key for key in self.open if key not in taken]
            if len(free) >= self._plan.fewest:
                jobs += self._new_jobs(free)
            yield from self._wait_for(jobs)
            if self.fault is not None or len(self.open) < self._plan.fewest:
                return
            jobs = []

    def close(self) -> None:
        """Close connections."""
        self._loop.run_until_complete(self._service.close())
        self._loop.close()

    def _old_jobs(self) -> list[Job]:
        jobs: list[Job] = []
        for name, text in self._ledger.notes(self._engine.name).items():
            scope, _, tag = name.rpartition(" ")
            if scope != self._plan.scope:
                continue
            job = Job.load(tag, text)
            if job.id is None:
                job = replace(job, id=self._find(tag))
                self._note(job, job.id is not None)
            if job.id is not None:
                log.info("job %s of an earlier run is waited for", job.id)
                self._engine.hold(job.estimate)
                jobs.append(job)
        return jobs

    def _new_jobs(self, free: Sequence[bytes]) -> list[Job]:
        """Make jobs of what the budget allows."""
        size = self._plan.segments_per_request
        jobs: list[Job] = []
        lines: list[str] = []
        requests: list[tuple[bytes, ...]] = []
        estimate = Usage()
        for start in range(0, len(free), size):
            asked = tuple(free[start : start + size])
            body = self._engine.body([self._segments[self.open[key]] for key in asked])
            cost = self._engine.estimate(body)
            try:
                self._engine.reserve(cost)
            except BudgetError as error:
                self.fault = error
                break
            line = {"custom_id": str(len(lines)), "method": "POST", "url": "/v1/chat/completions"}
            lines.append(json.dumps({**line, "body": body}, ensure_ascii=False))
            requests.append(asked)
            estimate += cost
            if len(lines) == self._plan.requests_per_job:
                jobs.append(self._make(lines, requests, estimate))
                lines, requests, estimate = [], [], Usage()
        if lines:
            jobs.append(self._make(lines, requests, estimate))
        return jobs

    def _make(
        self, lines: Sequence[str], requests: Sequence[tuple[bytes, ...]], estimate: Usage
    ) -> Job:
        data = ("\n".join(lines) + "\n").encode()
        uploaded = self._do(self._service.upload("/files", {"purpose": "batch"}, data))
        job = Job(uuid.uuid4().hex, None, tuple(requests), estimate)
        self._note(job)
        body = {
            "input_file_id": uploaded["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"lrm_job": job.tag},
        }
        try:
            made = self._do(self._service.post("/batches", body, 0, max_tries=1))["id"]
        except EngineError:
            # the answer may be what was lost, not the request
            made = self._find(job.tag) or self._do(self._service.post("/batches", body, 0))["id"]
        job = replace(job, id=made)
        self._note(job)
        log.info("job %s: %d requests", job.id, len(requests))
        return job

    def _wait_for(self, jobs: Sequence[Job]) -> Iterator[Reply]:
        waiting = list(jobs)
        while waiting:
            for job in tuple(waiting):
                try:
                    state = self._do(self._service.get(f"/batches/{job.id}"))
                except NotFoundError:
                    log.warning("the service has forgotten job %s; it is asked again", job.id)
                    state = {"status": "expired"}
                if state.get("status") == "failed":
                    self._note(job, False)
                    raise EngineError(f"job {job.id} failed: {json.dumps(state.get('errors'))}")
                if state.get("status") not in _DONE:
                    continue
                waiting.remove(job)
                yield from self._collect(job, state)
                self._note(job, False)  # now what it brought is in the cache
            if waiting:
                time.sleep(self._plan.poll_s)

    def _collect(self, job: Job, state: Mapping[str, Any]) -> Iterator[Reply]:
        usage = Usage()
        answers: dict[bytes, Answer] = {}
        name = state.get("output_file_id")
        for line in self._do(self._service.get_lines(f"/files/{name}/content")) if name else ():
            asked = job.requests[int(line["custom_id"])]
            response = line.get("response") or {}
            if response.get("status_code") == 200 and isinstance(response.get("body"), dict):
                usage += self._engine.usage_of(response["body"])
                answers.update(_read(asked, response["body"]))
        self._engine.settle(job.estimate, usage)
        # killed between the two commits, we have read this job before
        known = self._ledger.get_many(list(answers))
        fresh = {key: answer for key, answer in answers.items() if key not in known}
        usage = usage if fresh or not answers else Usage()
        ours = [key for key in fresh if key in self.open]
        others = {key: answer for key, answer in fresh.items() if key not in self.open}
        if others:
            self._ledger.put(others, self._engine, self._plan.target, Usage() if ours else usage)
        if ours or not others:
            yield Reply(tuple(Outcome(self.open[key], *fresh[key]) for key in ours), usage)
        for key in ours:
            del self.open[key]
        log.info("job %s: %d answers, %d segments are open", job.id, len(fresh), len(self.open))

    def _find(self, tag: str) -> str | None:
        """The service's name for a job that has our tag."""
        after = ""
        while True:
            page = self._do(self._service.get(f"/batches?limit=100{after}"))
            jobs = page.get("data") or []
            for job in jobs:
                if (job.get("metadata") or {}).get("lrm_job") == tag:
                    return str(job["id"])
            if not jobs or not page.get("has_more"):
                return None
            after = f"&after={jobs[-1]['id']}"

    def _note(self, job: Job, is_open: bool = True) -> None:
        name = f"{self._plan.scope} {job.tag}"
        self._ledger.note(self._engine.name, name, job.dump() if is_open else None)

    def _do(self, request: Coroutine[Any, Any, _T]) -> _T:
        try:
            return self._loop.run_until_complete(request)
        except (ExhaustedError, RejectedError) as error:
            raise EngineError(
                f"the service does not do what batch mode needs: {error}. Jobs under way are kept; "
                "run again to go on."
            ) from error


def _read(asked: Sequence[bytes], body: Mapping[str, Any]) -> dict[bytes, Answer]:
    """The answers to one request."""
    content, refusal = content_of(body)
    if refusal:
        return {asked[0]: Answer(None, f"refused: {refusal}")} if len(asked) == 1 else {}
    found = read_answer(content, len(asked))
    return {asked[position]: Answer(text, None) for position, text in found.items()}
