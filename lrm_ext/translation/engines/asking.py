"""One batch under way at a chat service: several requests at once, in a thread of its own.

Input: segments and the engine that asks for them. Output: replies in a queue as they come; who was
answered asks for more when the answer is kept. Parts of a batch that were not answered are asked
for again; a request that gets no useful answer is halved until the segment at fault is alone. After
an error nothing new is asked, and what is under way is waited for: it is paid.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from llava.chat_service import ChatReply, ChatService
from llava.errors import ExhaustedError, RejectedError, ServiceError
from lrm_ext.translation.engines.base import (
    BudgetError,
    EngineError,
    Outcome,
    Reply,
    Segment,
    Usage,
)
from lrm_ext.translation.engines.chat import read_answer

# Requests in a row that nobody answers before the service is taken to be down.
_MAX_SILENT = 3
_MAX_USELESS = 3  # useless answers to one segment before it is given up


class ChatEngine(Protocol):
    """What this file needs of an engine."""

    def body(self, segments: Sequence[Segment]) -> dict[str, Any]:
        """The request that asks for some segments."""
        ...

    def estimate(self, body: Mapping[str, Any]) -> Usage:
        """About what a request will cost."""
        ...

    def usage_of(self, reply: ChatReply) -> Usage:
        """What a reply cost."""
        ...

    def reserve(self, estimate: Usage) -> None:
        """Set money aside, or raise `BudgetError`."""
        ...

    def settle(self, estimate: Usage, usage: Usage) -> None:
        """Replace an estimate by what it came to."""
        ...


class _Work(NamedTuple):
    indices: tuple[int, ...]
    num_useless: int = 0


class _Handed(NamedTuple):
    """A reply, and what its worker waits for before it asks for more."""

    reply: Reply
    is_kept: asyncio.Future[None]


def ask(
    engine: ChatEngine,
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
        engine: ChatEngine,
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
