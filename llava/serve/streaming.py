"""From token ids that a generating thread produces to text that a reader may show.

In: a model and the arguments of `generate`. Out: ids as they come (`generated_ids`), text without
unfinished characters (`IncrementalDecoder`), text up to a stop string (`StopFilter`), and all of
that together with the end of an answer (`AnswerText`). transformers' own text streamer blocks its
reader for ever when the generation fails; this one raises.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

# A tokenizer decodes the bytes of an unfinished character to this.
REPLACEMENT_CHARACTER = "\ufffd"


class IncrementalDecoder:
    """Decode a growing list of ids, piece by piece.

    Each piece is decoded together with the one before it, because a tokenizer drops a leading space
    and because one character may take several tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context_start = 0
        self._num_emitted = 0

    def push(self, ids: list[int]) -> str:
        """Add ids and return the text that they complete, "" if a character is unfinished."""
        self._ids.extend(ids)
        text = self._new_text()
        if text.endswith(REPLACEMENT_CHARACTER):
            return ""
        self._context_start, self._num_emitted = self._num_emitted, len(self._ids)
        return text

    def flush(self) -> str:
        """Return what was held back, with a replacement character for a cut one."""
        text = self._new_text()
        self._context_start = self._num_emitted = len(self._ids)
        return text

    def _new_text(self) -> str:
        shown = self._decode(self._ids[self._context_start : self._num_emitted])
        return self._decode(self._ids[self._context_start :])[len(shown) :]

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        return self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


class StopFilter:
    """Pass text through up to the first of some stop strings, which may come in several pieces."""

    def __init__(self, stop: str | Sequence[str] | None) -> None:
        self._stops = [stop] if isinstance(stop, str) else list(stop or [])
        self._stops = [text for text in self._stops if text]
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Add text; return what is certainly before a stop string."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        num_held = max((self._num_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    @staticmethod
    def _num_begun(text: str, stop: str) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)

    def flush(self) -> str:
        """Return text that looked like the beginning of a stop string and was not."""
        held, self._held = self._held, ""
        return held


class AnswerText:
    """Text and end of one answer, from the ids as they come.

    Args:
        tokenizer: The model's.
        stop: Text that ends the answer and is cut from it.
        stop_id: The id of `stop` where it is one token: decoding would hide a special one.
        end_ids: Ids that end an answer.
        max_new_tokens: How many ids there may be.

    Attributes:
        num_tokens: Ids so far.
        finish_reason: `stop` or `length` once the answer is complete, else None.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: str | None,
        stop_id: int | None,
        end_ids: frozenset[int],
        max_new_tokens: int,
    ) -> None:
        self._decoder = IncrementalDecoder(tokenizer)
        self._stop_filter = StopFilter(stop)
        self._end_ids = end_ids if stop_id is None else end_ids | {stop_id}
        self._max_new_tokens = max_new_tokens
        self.num_tokens = 0
        self.finish_reason: str | None = None

    def push(self, token_id: int) -> str:
        """Add an id; return the text that is certain now, with all that was held at the end."""
        self.num_tokens += 1
        piece = ""
        if token_id in self._end_ids:
            self.finish_reason = "stop"
        else:
            piece = self._stop_filter.push(self._decoder.push([token_id]))
            if self._stop_filter.stopped:
                self.finish_reason = "stop"
            elif self.num_tokens >= self._max_new_tokens:
                self.finish_reason = "length"
        return piece + self.flush() if self.finish_reason else piece

    def flush(self) -> str:
        """Return what was held back: of a cut character, and of what might have been a stop."""
        return self._stop_filter.push(self._decoder.flush()) + self._stop_filter.flush()


class CancelCriteria(StoppingCriteria):
    """End the generation of every row once an event is set."""

    def __init__(self, cancel: threading.Event) -> None:
        self._cancel = cancel

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor | None, **kwargs: Any
    ) -> torch.Tensor:
        """Return one bool a row, shape [B]."""
        return torch.full(
            (input_ids.shape[0],), self._cancel.is_set(), dtype=torch.bool, device=input_ids.device
        )


class _End:
    """Marks the end of a generation and carries its error."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _QueueStreamer(BaseStreamer):
    """Hands ids from the generating thread to a queue; `generate` puts the prompt first."""

    def __init__(self, ids: queue.SimpleQueue[list[int] | _End]) -> None:
        self._ids = ids
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Take the ids of one step."""
        if self._is_prompt:
            self._is_prompt = False
            return
        self._ids.put(value.reshape(-1).tolist())

    def end(self) -> None:
        """Do nothing: the thread itself marks the end, with or without an error."""


def generated_ids(
    model: Any, arguments: dict[str, Any], cancel: threading.Event
) -> Iterator[list[int]]:
    """Run `model.generate` in a thread and yield new ids as they come.

    Args:
        model: A model whose `generate` takes `streamer` and `stopping_criteria`.
        arguments: Its other keyword arguments, for one row.
        cancel: Ends the generation after the current token; set when the reader leaves.

    Yields:
        The ids of each step, usually one.

    Raises:
        Exception: What `generate` raised, as soon as it did.
    """
    ids: queue.SimpleQueue[list[int] | _End] = queue.SimpleQueue()

    def run() -> None:
        error: BaseException | None = None
        try:
            with torch.inference_mode():
                model.generate(
                    **arguments,
                    streamer=_QueueStreamer(ids),
                    stopping_criteria=StoppingCriteriaList([CancelCriteria(cancel)]),
                )
        except BaseException as caught:
            error = caught
        ids.put(_End(error))

    thread = threading.Thread(target=run, name="generate", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ids.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        cancel.set()
        thread.join()
