"""From the events of a request to the bytes of its stream, errors and their causes included.

`Mailbox` carries events from the thread that generates to the loop that answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from llava.errors import UserError
from llava.serve.batch import Busy, DeadlineExceeded, Done, Event, Failed, Stopping, Text
from llava.serve.engine import ContextFull
from llava.serve.protocol import (
    BUSY,
    DEADLINE,
    GENERATION_FAILED,
    INVALID_REQUEST,
    STOPPING,
    TOO_LONG_MESSAGE,
    encode_chunk,
    encode_error,
)

log = logging.getLogger(__name__)


class Mailbox:
    """Hands events from other threads to queues of the running event loop.

    A loop is woken once for all that has come, not for each event: with a full batch, waking it for
    each row would take longer than a small model's step.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[tuple[asyncio.Queue[Event], Event]] = deque()
        self._is_woken = False

    def put(self, events: asyncio.Queue[Event], event: Event) -> None:
        """Hand an event over, from any thread.

        Raises:
            RuntimeError: The loop has been closed.
        """
        self._arrived.append((events, event))
        # Two threads may both wake it, which does no harm; that neither does cannot happen.
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_woken = False  # before looking: what comes from now on wakes the loop again
        while self._arrived:
            events, event = self._arrived.popleft()
            events.put_nowait(event)


class StreamEncoder:
    """Turns events of one request into the bytes of its stream.

    With `details` in the request, which LLaVA's clients never send, each object also has the tokens
    so far, and one more at the end says why the answer ended.
    """

    def __init__(self, params: dict[str, Any]) -> None:
        self._text = str(params.get("prompt", ""))
        self._has_details = params.get("details") is True
        self._is_empty = True
        self.is_complete = False

    def encode(self, events: Sequence[Event]) -> bytes:
        """Encode events that came together; "" where they change nothing."""
        wire = b""
        new = "".join(event.text for event in events if isinstance(event, Text))
        last = events[-1]
        if new:
            self._is_empty = False
            self._text += new
        is_end = isinstance(last, Done) and (self._has_details or self._is_empty)
        if new or is_end:  # an empty answer is an answer
            wire += encode_chunk(self._text, **self._details(events))
        if isinstance(last, Failed):
            wire += self._error(last.error)
        self.is_complete = not isinstance(last, Text)
        return wire

    def _details(self, events: Sequence[Event]) -> dict[str, Any]:
        if not self._has_details:
            return {}
        last = next(event for event in reversed(events) if not isinstance(event, Failed))
        details: dict[str, Any] = {}
        if last.usage is not None:
            details["usage"] = dict(
                zip(("prompt_tokens", "completion_tokens"), last.usage, strict=True)
            )
        if isinstance(last, Done):
            details["finish_reason"] = last.finish_reason
        return details

    def _error(self, error: BaseException) -> bytes:
        """Encode a failure; its cause is told where it is the caller's, else it is in the log."""
        if isinstance(error, ContextFull):
            return encode_chunk(self._text + TOO_LONG_MESSAGE)
        for known, kind in ((Busy, BUSY), (Stopping, STOPPING), (DeadlineExceeded, DEADLINE)):
            if isinstance(error, known):
                log.warning("%s", error)
                return encode_error(GENERATION_FAILED, str(error), kind)
        if isinstance(error, UserError):
            log.error("refused a request: %s", error)
            return encode_error(GENERATION_FAILED, str(error), INVALID_REQUEST)
        log.error("the generation failed", exc_info=error)
        if isinstance(error, torch.OutOfMemoryError):
            return encode_error(GENERATION_FAILED, "the worker ran out of memory")
        reason = f"the generation failed ({type(error).__name__}); see the worker's log"
        return encode_error(GENERATION_FAILED, reason)
