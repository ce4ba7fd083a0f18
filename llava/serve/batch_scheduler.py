"""Answers several requests of one model with one pass a token; they join and leave while it runs.

In: tickets (`llava.serve.scheduler`). Out: their events. One thread drives the batch; prompts are
tokenized and pictures prepared in the threads of those who ask.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

import torch

from llava.serve.batch import Batch, Row, why_not
from llava.serve.engine import Engine
from llava.serve.scheduler import (
    Done,
    Failed,
    Scheduler,
    Stopping,
    Text,
    ThreadScheduler,
    Ticket,
)

log = logging.getLogger(__name__)

# Prompts that join between two steps have at most this many tokens together (one may have more):
# those who are being answered must not wait for a crowd of newcomers.
JOIN_TOKENS = 2048
CACHE_BYTES = 256 * 2**20


class BatchScheduler(Scheduler):
    """Answers requests in one batch, which they join and leave while it runs.

    Args:
        engine: The model.
        max_running: Rows of the batch.
        max_waiting: As for `Scheduler`.
        timeout_s: As for `Scheduler`.
        on_change: As for `Scheduler`.
        cache_bytes: Memory for features of pictures.
        max_kv_tokens: Positions of keys and values of all that run; None for any number. Requests
            wait until there is room for the longest answer that they may get.
    """

    def __init__(
        self,
        engine: Engine,
        max_running: int,
        max_waiting: int,
        timeout_s: float | None = None,
        on_change: Callable[[], None] = lambda: None,
        cache_bytes: int = CACHE_BYTES,
        max_kv_tokens: int | None = None,
    ) -> None:
        super().__init__(engine, max_running, max_waiting, timeout_s, on_change)
        self.batch = Batch(engine, max_running, cache_bytes, max_kv_tokens)
        self._waiting: deque[Ticket] = deque()
        self._thread = threading.Thread(target=self._run, name="batch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the scheduler; what still runs fails."""
        super().close()
        self._thread.join()

    def _prepare(self, ticket: Ticket) -> None:
        ticket.prepared = self.batch.prepare(ticket.request)

    def _enqueue(self, ticket: Ticket) -> None:
        with self._changed:
            self._waiting.append(ticket)
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self.batch.rows or self._is_closed)
                if self._is_closed:
                    break
            self._drop_ended()
            self._admit()
            if self.batch.rows:
                self._step()
        error = Failed(Stopping("the worker stopped"))
        for ticket in [*self._waiting, *(row.owner for row in self.batch.clear())]:
            self._finish(ticket, error)
        self._waiting.clear()

    def _drop_ended(self) -> None:
        """Let go of requests that nobody waits for, or that took too long."""
        for row in list(self.batch.rows):
            if row.owner.cancelled.is_set() or row.owner.is_late:
                self.batch.leave(row)
                self._give_up(row.owner)
        with self._changed:
            ended = [t for t in self._waiting if t.cancelled.is_set() or t.is_late]
            for ticket in ended:
                self._waiting.remove(ticket)
        for ticket in ended:
            self._give_up(ticket)

    def _give_up(self, ticket: Ticket) -> None:
        self._finish(ticket, None if ticket.cancelled.is_set() else self._late())

    def _admit(self) -> None:
        """Let those who wait join, as far as there is room."""
        num_tokens = 0
        while num_tokens < JOIN_TOKENS:
            with self._changed:
                # In order: a long request would wait for ever if short ones went past it.
                if not self._waiting or not self.batch.has_room(self._waiting[0].prepared):
                    return
                ticket = self._waiting.popleft()
            try:
                row, piece = self.batch.join(ticket.prepared, ticket)
            except Exception as error:
                self._free_memory(error)
                self._finish(ticket, Failed(error))
                continue
            ticket.prepared = None
            num_tokens += row.num_prompt_tokens
            self._hand_over(row, piece)

    def _step(self) -> None:
        try:
            pieces = self.batch.step()
        except Exception as error:
            rows = self.batch.clear()
            self._free_memory(error)
            for row in rows:
                self._finish(row.owner, Failed(error))
            return
        for row, piece in pieces:
            self._hand_over(row, piece)

    def _hand_over(self, row: Row, piece: str) -> None:
        if piece:
            row.owner.send(Text(piece, row.usage))
        if row.text.finish_reason is not None:
            self._finish(row.owner, Done(row.text.finish_reason, row.usage))

    def _free_memory(self, error: Exception) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()


def build_scheduler(
    engine: Engine,
    max_running: int,
    max_waiting: int,
    timeout_s: float | None = None,
    on_change: Callable[[], None] = lambda: None,
    max_kv_tokens: int | None = None,
) -> Scheduler:
    """Return the scheduler that fits a model; arguments as for `BatchScheduler`."""
    reason = why_not(engine)
    if reason is None:
        return BatchScheduler(
            engine, max_running, max_waiting, timeout_s, on_change, max_kv_tokens=max_kv_tokens
        )
    log.info("%s answers each request by itself: %s", engine.name, reason)
    return ThreadScheduler(engine, max_running, max_waiting, timeout_s, on_change)
