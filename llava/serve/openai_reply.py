"""One reply of the API while it grows: whole, as server-sent events, and as a line of the log.

In: pieces of answers. Out: JSON in OpenAI's shape. The log's line has sizes and times, no contents.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from llava.serve.openai_chat import Piece
from llava.serve.openai_schema import ChatRequest


class Reply:
    """What is known of a request and its answers."""

    def __init__(self) -> None:
        self.id = "chatcmpl-" + uuid.uuid4().hex
        self.started = time.monotonic()
        self.created = int(time.time())
        self.status = 200
        self.error: str | None = None
        self.client = ""
        self.model = ""
        self.num_choices = 1
        self.num_pictures = 0
        self.streams = False
        self.is_closed = False
        self.first_text_s: float | None = None
        self._include_usage = False
        self._texts: dict[int, list[str]] = {}
        self._reasons: dict[int, str] = {}
        self._usages: dict[int, tuple[int, int]] = {}

    def begin(self, chat: ChatRequest) -> None:
        """Take note of what was asked for."""
        self.model = chat.model
        self.num_choices = chat.n or 1
        self.streams = bool(chat.stream)
        options = chat.stream_options
        self._include_usage = bool(options and options.include_usage)
        self._texts = {choice: [] for choice in range(self.num_choices)}

    def add(self, piece: Piece) -> None:
        """Add a piece to its answer."""
        if piece.text and self.first_text_s is None:
            self.first_text_s = time.monotonic() - self.started
        if not self.streams:
            self._texts[piece.choice].append(piece.text)
        if piece.finish_reason is not None:
            self._reasons[piece.choice] = piece.finish_reason
        if piece.usage is not None:
            self._usages[piece.choice] = piece.usage

    @property
    def usage(self) -> tuple[int, int] | None:
        """Tokens of the prompt, counted once, and of all answers; None if a worker does not say."""
        if not self._usages or len(self._usages) < self.num_choices:
            return None
        prompts, answers = zip(*self._usages.values(), strict=True)
        return max(prompts), sum(answers)

    def _usage_json(self) -> dict[str, int] | None:
        if self.usage is None:
            return None
        prompt, completion = self.usage
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def completion(self) -> dict[str, Any]:
        """Return the whole reply."""
        choices = [
            {
                "index": choice,
                "message": {"role": "assistant", "content": "".join(texts), "refusal": None},
                "logprobs": None,
                "finish_reason": self._reasons.get(choice, "stop"),
            }
            for choice, texts in self._texts.items()
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage_json()}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _event(self, choices: list[dict[str, Any]], **extra: Any) -> bytes:
        body = {**self._head("chat.completion.chunk"), "choices": choices, **extra}
        if self._include_usage:
            body.setdefault("usage", None)
        return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"

    def _delta(self, choice: int, delta: dict[str, str], reason: str | None = None) -> bytes:
        return self._event(
            [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}]
        )

    def opening(self) -> Iterator[bytes]:
        """Yield the events that say who speaks."""
        for choice in range(self.num_choices):
            yield self._delta(choice, {"role": "assistant", "content": ""})

    def events(self, piece: Piece) -> Iterator[bytes]:
        """Add a piece; yield its events."""
        self.add(piece)
        if piece.text:
            yield self._delta(piece.choice, {"content": piece.text})
        if piece.finish_reason is not None:
            yield self._delta(piece.choice, {}, piece.finish_reason)

    def closing(self) -> Iterator[bytes]:
        """Yield the usage, where it was asked for, and the end."""
        if self._include_usage:
            yield self._event([], usage=self._usage_json())
        self.is_closed = True
        yield b"data: [DONE]\n\n"

    def record(self, seconds: float) -> dict[str, Any]:
        """Return the line of the log."""
        first = None if self.first_text_s is None else round(self.first_text_s, 3)
        return {
            "id": self.id,
            "status": self.status,
            "error": self.error,
            "client": self.client,
            "model": self.model[:80],
            "stream": self.streams,
            "choices": self.num_choices,
            "pictures": self.num_pictures,
            "tokens": self.usage,
            "first_text_s": first,
            "seconds": round(seconds, 3),
        }
