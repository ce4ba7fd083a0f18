"""Who is answered when: a bounded queue in front of a model, deadlines, cancellation, the end.

In: requests from any thread. Out: events for each of them, in order, from the scheduler's thread.
`ThreadScheduler` gives each a thread of its own; what answers several with one pass a token is in
`llava.serve.batch_scheduler`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from llava.serve.engine import Engine, GenerationRequest
from llava.serve.streaming import generated_ids

log = logging.getLogger(__name__)


class Refused(Exception):
    """A request was not taken: the queue is full, or the worker leaves."""


class Busy(Refused):
    """The queue is full."""


class Stopping(Refused):
    """The worker finishes what it has and takes nothing new."""


class DeadlineExceeded(Exception):
    """A request took too long."""


@dataclass(frozen=True)
class Text:
    """New text of an answer; `usage` is tokens of the prompt and of the answer so far."""

    text: str
    usage: tuple[int, int] | None


@dataclass(frozen=True)
class Done:
    """The answer is complete; `finish_reason` is `stop` or `length`."""

    finish_reason: str
    usage: tuple[int, int] | None


@dataclass(frozen=True)
class Failed:
    """There will be no more of the answer."""

    error: BaseException


Event = Text | Done | Failed


@dataclass(eq=False)
class Ticket:
    """One request on its way.

    Attributes:
        request: What is asked for.
        sink: Takes the events.
        deadline: `time.monotonic()` after which it is given up; None for never.
        cancelled: Set when nobody waits for the answer.
        prepared: What the scheduler makes of the request before it is queued.
    """

    request: GenerationRequest
    sink: Callable[[Event], None]
    deadline: float | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    prepared: Any = None

    def cancel(self) -> None:
        """End it: nobody waits for the answer."""
        self.cancelled.set()

    def send(self, event: Event) -> None:
        """Hand an event over; a reader that is gone ends the request."""
        try:
            self.sink(event)
        except Exception:
            self.cancel()

    @property
    def is_late(self) -> bool:
        """Whether its time is over."""
        return self.deadline is not None and time.monotonic() > self.deadline


class Scheduler(ABC):
    """What both schedulers share.

    Args:
        engine: The model.
        max_running: Requests that are answered at the same time.
        max_waiting: Requests that may wait beyond those.
        timeout_s: How long a request may take, waiting included; None for any time.
        on_change: Called when the number of requests changes.
    """

    def __init__(
        self,
        engine: Engine,
        max_running: int,
        max_waiting: int,
        timeout_s: float | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine = engine
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.timeout_s = timeout_s
        self._on_change = on_change
        self._changed = threading.Condition()
        self._num_requests = 0
        self._is_stopping = False
        self._is_closed = False

    @property
    def num_requests(self) -> int:
        """How many requests are answered or wait."""
        return self._num_requests

    @property
    def is_stopping(self) -> bool:
        """Whether nothing new is taken."""
        return self._is_stopping

    def ticket(self, request: GenerationRequest, sink: Callable[[Event], None]) -> Ticket:
        """Return a ticket, whose time begins now."""
        deadline = None if self.timeout_s is None else time.monotonic() + self.timeout_s
        return Ticket(request, sink, deadline)

    def submit(self, ticket: Ticket) -> None:
        """Queue a request; its events come to its sink, the last one is `Done` or `Failed`.

        Raises:
            Busy: The queue is full.
            Stopping: The worker leaves.
            ContextFull: Prompt and pictures fill the context.
            DataError: The model cannot take the request.
        """
        with self._changed:
            if self._is_stopping:
                raise Stopping("the worker is about to stop and takes no new requests")
            if self._num_requests >= self.max_running + self.max_waiting:
                raise Busy(
                    f"{self.max_running} requests are being answered and {self.max_waiting} wait: "
                    "the queue is full, try again later"
                )
            self._num_requests += 1
        self._on_change()
        try:
            self._prepare(ticket)
        except BaseException:
            self._forget()
            raise
        self._enqueue(ticket)

    def stream(
        self, request: GenerationRequest, cancel: threading.Event | None = None
    ) -> Iterator[Event]:
        """Answer a request; closing the iterator cancels it.

        Raises:
            Refused: As for `submit`, and what else it raises.
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        ticket = self.ticket(request, events.put)
        if cancel is not None:
            ticket.cancelled = cancel
        self.submit(ticket)
        try:
            while True:
                event = events.get()
                yield event
                if not isinstance(event, Text):
                    return
        finally:
            ticket.cancel()

    def drain(self, timeout_s: float) -> bool:
        """Take nothing new and wait until all is answered; whether it was."""
        with self._changed:
            self._is_stopping = True
            return self._changed.wait_for(lambda: self._num_requests == 0, timeout_s)

    def close(self) -> None:
        """End the scheduler; what still runs fails."""
        with self._changed:
            self._is_stopping = self._is_closed = True
            self._changed.notify_all()

    def _finish(self, ticket: Ticket, event: Event | None) -> None:
        """Send the last event and forget a request."""
        if event is not None:
            ticket.send(event)
        self._forget()

    def _forget(self) -> None:
        with self._changed:
            self._num_requests -= 1
            self._changed.notify_all()
        self._on_change()

    def _late(self) -> Failed:
        return Failed(DeadlineExceeded(f"the answer took longer than {self.timeout_s:g} s"))

    def _prepare(self, ticket: Ticket) -> None:  # noqa: B027
        """Do in the caller's thread what needs no model; nothing by default."""

    @abstractmethod
    def _enqueue(self, ticket: Ticket) -> None:
        """Take a counted request."""


class ThreadScheduler(Scheduler):
    """Answers each request by the model's own `generate`, in a thread."""

    def __init__(
        self,
        engine: Engine,
        max_running: int,
        max_waiting: int,
        timeout_s: float | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(engine, max_running, max_waiting, timeout_s, on_change)
        self._waiting: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        for number in range(max_running):
            name = f"answer-{number}"
            threading.Thread(target=self._run, name=name, daemon=True).start()

    def close(self) -> None:
        """End the threads once their requests are answered."""
        super().close()
        for _ in range(self.max_running):
            self._waiting.put(None)

    def _enqueue(self, ticket: Ticket) -> None:
        self._waiting.put(ticket)

    def _run(self) -> None:
        while (ticket := self._waiting.get()) is not None:
            event: Event | None
            try:
                event = self._answer(ticket)
            except Exception as error:
                event = Failed(error)
            self._finish(ticket, event)

    def _answer(self, ticket: Ticket) -> Event | None:
        """Answer one request; return its last event, None when nobody waits for it."""
        if ticket.cancelled.is_set():
            return None
        if ticket.is_late:
            return self._late()
        arguments = self.engine.prepare(ticket.request)
        text = self.engine.answer_text(ticket.request, arguments["max_new_tokens"])
        for ids in generated_ids(self.engine.model, arguments, ticket.cancelled):
            for token_id in ids:
                if text.finish_reason is None and (piece := text.push(token_id)):
                    ticket.send(Text(piece, None))
            if text.finish_reason is not None:
                break
            if ticket.is_late:
                return self._late()
        if tail := text.flush():
            ticket.send(Text(tail, None))
        return Done(text.finish_reason or "stop", None)
