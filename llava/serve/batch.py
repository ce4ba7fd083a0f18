"""Several requests that one model answers at the same time, token by token.

In: requests from any thread, at any time. Out: events for each of them, in order. A request joins
with a pass over its prompt, as it would alone; from then on all rows advance by one token with one
pass. Rows do not see each other: what a request gets is what it gets alone, up to how a processor
rounds sums of another shape.

`KVRows` holds keys and values, one row for each request; `Batch` runs prompts and steps; a
`Scheduler` is the bounded queue in front, with deadlines and cancellation: `BatchScheduler` drives
a batch from one thread, `ThreadScheduler` answers each request by itself where a model cannot share
a pass.

Legend: B rows, L positions of the longest row, H heads of keys, D their width.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from llava.errors import DataError
from llava.images import to_rgb
from llava.mm_utils import process_images
from llava.serve.engine import (
    AnswerText,
    Engine,
    FeatureCache,
    GenerationRequest,
    Sampler,
    picture_key,
)

log = logging.getLogger(__name__)

# Space grows by this many positions, so that it is seldom copied.
BLOCK = 128

# As transformers, where a checkpoint does not say.
DEFAULT_TOP_K = 50
# Settings of a checkpoint that change logits, and the values that leave them off: not done here.
_OFF: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "min_p": (None, 0.0),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "bad_words_ids": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None,),
    "guidance_scale": (None, 1.0),
    "num_beams": (None, 1),
}

# Prompts that join between two steps have at most this many tokens together (one may have more):
# those who are being answered must not wait for a crowd of newcomers.
JOIN_TOKENS = 2048
CACHE_BYTES = 256 * 2**20


def rounded(length: int) -> int:
    """Return the positions that are set aside for a row of a length."""
    return -(-length // BLOCK) * BLOCK


class KVRows(Cache):
    """A cache for one step of all rows; transformers' layers call `update`.

    Args:
        max_rows: How many rows there may be.
        max_positions: How many positions all rows have together; None for any number. Rows times
            `rounded` length of the longest must not exceed it: the caller sees to that.
    """

    def __init__(self, max_rows: int, max_positions: int | None = None) -> None:
        super().__init__(layers=[])
        self._max_rows = max_rows
        self._max_positions = max_positions
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._visible = torch.empty(0, 0, dtype=torch.bool)
        self._rows = torch.empty(0, dtype=torch.long)
        self._ends = torch.empty(0, dtype=torch.long)
        self.lengths: list[int] = []

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.lengths)

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values."""
        return sum(t.element_size() * t.numel() for t in (*self._keys, *self._values))

    def join(self, prompt: DynamicCache) -> None:
        """Add a row.

        Args:
            prompt: The cache of its prompt, one row of L' positions in each layer.
        """
        assert self.num_rows < self._max_rows
        layers = [(layer.keys, layer.values) for layer in prompt.layers]
        length = int(layers[0][0].shape[2])
        self._reserve(self.num_rows + 1, length + 1, layers)
        row = self.num_rows
        for tensors, part in ((self._keys, 0), (self._values, 1)):
            for mine, given in zip(tensors, layers, strict=True):
                mine[row, :, :length] = given[part][0]
                # what the row's last owner left may not be finite
                mine[row, :, length:] = 0
        self._visible[row, :length] = True
        self._visible[row, length:] = False
        self.lengths.append(length)

    def leave(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        last = self.num_rows - 1
        if row != last:
            for tensor in (*self._keys, *self._values):
                tensor[row] = tensor[last]
            self._visible[row] = self._visible[last]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self.clear()

    def clear(self) -> None:
        """Remove all rows and give their memory back."""
        self._keys, self._values, self.lengths = [], [], []
        self._visible = torch.empty(0, 0, dtype=torch.bool)

    def begin_step(self) -> tuple[Tensor, Tensor]:
        """Make room for one position in each row.

        Returns:
            Positions [B, 1] of the new tokens, and which positions each row sees, [B, 1, 1, L].
        """
        longest = max(self.lengths) + 1
        self._reserve(self.num_rows, longest, None)
        device = self._keys[0].device
        self._rows = torch.arange(self.num_rows, device=device)
        self._ends = torch.tensor(self.lengths, device=device)
        self._visible[self._rows, self._ends] = True
        self.lengths = [length + 1 for length in self.lengths]
        return self._ends[:, None], self._visible[: self.num_rows, None, None, :longest]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the keys and values of one step, [B, H, 1, D]; return those of all positions.

        Returns:
            Two of [B, H, L, D]; beyond a row's end they hold what its mask hides.
        """
        longest = max(self.lengths)
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[self._rows, :, self._ends] = key_states[:, :, 0]
        values[self._rows, :, self._ends] = value_states[:, :, 0]
        return keys[: self.num_rows, :, :longest], values[: self.num_rows, :, :longest]

    def get_seq_length(self, layer_idx: int = 0, *_: Any) -> int:
        """Return the positions of the longest row."""
        return max(self.lengths, default=0)

    def _reserve(
        self, num_rows: int, length: int, layers: list[tuple[Tensor, Tensor]] | None
    ) -> None:
        """Make sure that so many rows of `length` positions fit."""
        rows, capacity = self._visible.shape
        if num_rows <= rows and length <= capacity:
            return
        # Of what others left behind, only what is needed now is kept: else many short rows and
        # a long one after them would together take more than there may be.
        capacity = rounded(max([length, *self.lengths]))
        rows = self._row_capacity(num_rows, capacity)
        if not self._keys:
            assert layers is not None, "the first row brings the shapes"
            self._keys = [_like(keys, rows, capacity) for keys, _ in layers]
            self._values = [_like(values, rows, capacity) for _, values in layers]
            device = layers[0][0].device
            self._visible = torch.zeros(rows, capacity, dtype=torch.bool, device=device)
            return
        used, known = self.num_rows, max(self.lengths)
        # One layer after the other: old and new space of all at once may not fit.
        for tensors in (self._keys, self._values):
            for index, tensor in enumerate(tensors):
                grown = _like(tensor, rows, capacity)
                grown[:used, :, :known] = tensor[:used, :, :known]
                tensors[index] = grown
        visible = self._visible.new_zeros(rows, capacity)
        visible[:used, :known] = self._visible[:used, :known]
        self._visible = visible

    def _row_capacity(self, num_rows: int, capacity: int) -> int:
        """Return the rows to set aside: more than there are, as far as the bound allows."""
        rows = min(self._max_rows, 1 << (num_rows - 1).bit_length())
        if self._max_positions is not None:
            rows = max(num_rows, min(rows, self._max_positions // capacity))
        return rows


def _like(tensor: Tensor, rows: int, capacity: int) -> Tensor:
    """Return zeros, because what a mask hides is still multiplied: it must be finite."""
    _, heads, _, width = tensor.shape
    return tensor.new_zeros(rows, heads, capacity, width)


def batching_blocker(engine: Engine) -> str | None:
    """Return why a model cannot answer several requests in one batch, or None."""
    model = engine.model
    if not getattr(model, "supports_packing", False):
        return "its attention has no positions"
    window = getattr(model.config, "sliding_window", None)
    if window is not None and window < engine.context_len:
        return f"its attention sees only {window} positions back"
    for name, off in _OFF.items():
        if getattr(model.generation_config, name, None) not in off:
            return f"its generation_config.json sets {name}"
    return None


@dataclass
class Prepared:
    """A request that is ready to join.

    Attributes:
        request: What is asked for.
        input_ids: [1, T] with sentinels.
        keys: Of the pictures.
        pixels: Of each picture, [tiles, 3, S, S] on the CPU; None where its features are known.
        features: Of each picture, [tiles, P, D_vision]; None where they are not known yet.
        is_tiled: Whether pictures are cut into tiles.
        image_sizes: (width, height) of each picture.
        max_new_tokens: How many tokens the answer may have.
        max_positions: Positions that prompt and answer may take together.
    """

    request: GenerationRequest
    input_ids: Tensor
    keys: list[str] = field(default_factory=list)
    pixels: list[Tensor | None] = field(default_factory=list)
    features: list[Tensor | None] = field(default_factory=list)
    is_tiled: bool = False
    image_sizes: list[tuple[int, int]] = field(default_factory=list)
    max_new_tokens: int = 0
    max_positions: int = 0


@dataclass
class Row:
    """A request in the batch.

    Attributes:
        owner: Whom the text is for.
        text: What has been generated.
        sampler: How the next token is chosen.
        num_prompt_tokens: Positions of the prompt, pictures included.
        max_positions: Positions that prompt and answer may take together.
        last_id: The last token.
    """

    owner: Any
    text: AnswerText
    sampler: Sampler
    num_prompt_tokens: int
    max_positions: int
    last_id: int = 0

    @property
    def usage(self) -> tuple[int, int]:
        """Tokens of the prompt and of the answer."""
        return self.num_prompt_tokens, self.text.num_tokens


class Batch:
    """The running requests of one model. One thread may use it, but for `prepare`.

    Args:
        engine: The model.
        max_rows: How many requests run at the same time.
        cache_bytes: Memory for features of pictures.
        max_kv_tokens: Positions of keys and values of all requests together; None for any number.
    """

    def __init__(
        self, engine: Engine, max_rows: int, cache_bytes: int, max_kv_tokens: int | None = None
    ) -> None:
        self._engine = engine
        self._max_rows = max_rows
        self._max_kv_tokens = max_kv_tokens
        self._kv = KVRows(max_rows, max_kv_tokens)
        self.features = FeatureCache(cache_bytes)
        self.rows: list[Row] = []
        top_k = getattr(engine.model.generation_config, "top_k", None)
        self._top_k = DEFAULT_TOP_K if top_k is None else int(top_k)
        if str(getattr(engine.model.config, "_attn_implementation", "")).startswith("flash"):
            log.info("requests of different lengths share a step: sdpa is used, not flash-attn")
            engine.model.set_attn_implementation("sdpa")

    @property
    def is_full(self) -> bool:
        """Whether no request can join."""
        return len(self.rows) >= self._max_rows

    def has_room(self, prepared: Prepared) -> bool:
        """Whether a request can join now and end, however long its answer becomes."""
        if self.is_full:
            return False
        if self._max_kv_tokens is None:
            return True
        longest = max([prepared.max_positions, *(row.max_positions for row in self.rows)])
        return (len(self.rows) + 1) * rounded(longest) <= self._max_kv_tokens

    @property
    def kv_bytes(self) -> int:
        """Memory of keys and values now."""
        return self._kv.num_bytes

    def prepare(self, request: GenerationRequest) -> Prepared:
        """Tokenize a prompt and prepare its pictures; any thread may do so.

        Raises:
            ContextFull: Prompt and pictures fill the context.
            DataError: Pictures were given to a model that takes none, or prompt and pictures
                fill the memory for keys and values.
        """
        engine = self._engine
        ids = engine.prompt_ids(request)
        prepared = Prepared(request, ids.unsqueeze(0))
        if request.images and not engine.is_multimodal:
            raise DataError(
                f"model {engine.name} takes no pictures, but {len(request.images)} were given"
            )
        config = engine.model.config
        prepared.is_tiled = getattr(config, "image_aspect_ratio", None) == "anyres"
        for picture in request.images:
            rgb = to_rgb(picture)
            key = picture_key(rgb)
            known, pixels = self.features.get(key), None
            if known is None:
                pixels = process_images([rgb], engine.image_processor, config)[0]
                pixels = pixels if prepared.is_tiled else pixels.unsqueeze(0)
            prepared.keys.append(key)
            prepared.pixels.append(pixels)
            prepared.features.append(known)
            prepared.image_sizes.append(rgb.size)
        num_tiles = [
            len(known if known is not None else pixels)
            for known, pixels in zip(prepared.features, prepared.pixels, strict=True)
        ]
        prepared.max_new_tokens = engine.room(request, ids, num_tiles)
        self._fit(prepared, engine.prompt_len(ids, num_tiles))
        return prepared

    def _fit(self, prepared: Prepared, prompt_len: int) -> None:
        """Bound an answer by the memory that there is, as the context bounds it."""
        if self._max_kv_tokens is not None:
            usable = self._max_kv_tokens // rounded(1) * rounded(1)
            if prompt_len >= usable:
                raise DataError(
                    f"the prompt takes {prompt_len:,} positions with its pictures, but this worker "
                    f"has memory for {usable:,} (--max-kv-tokens): ask for less"
                )
            prepared.max_new_tokens = min(prepared.max_new_tokens, usable - prompt_len)
        prepared.max_positions = prompt_len + prepared.max_new_tokens

    @torch.inference_mode()
    def join(self, prepared: Prepared, owner: Any) -> tuple[Row, str]:
        """Run a prompt and take its request into the batch, unless the first token ends it.

        Returns:
            The request's row, and the text of its first token.

        Raises:
            Exception: Whatever the model raises; the batch is as it was.
        """
        model, request = self._engine.model, prepared.request
        embeds = self._embed(prepared)
        cache = DynamicCache(config=model.config)
        output = model(
            inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        sampler = Sampler(
            request.temperature, request.top_p, self._top_k, request.seed, embeds.device
        )
        text = self._engine.answer_text(request, prepared.max_new_tokens)
        row = Row(owner, text, sampler, embeds.shape[1], prepared.max_positions)
        row.last_id = sampler.draw(output.logits[0, -1])
        piece = text.push(row.last_id)
        if text.finish_reason is None:
            self._kv.join(cache)
            self.rows.append(row)
        return row, piece

    def _embed(self, prepared: Prepared) -> Tensor:
        """Embed a prompt with its pictures: [1, L, D]."""
        model = self._engine.model
        ids = prepared.input_ids.to(model.device)
        if not prepared.keys:
            return model.embed_prompts(ids)[0]
        features = []
        for key, pixels, known in zip(
            prepared.keys, prepared.pixels, prepared.features, strict=True
        ):
            if known is None:
                # Another request may have brought the same picture in the meantime.
                known = self.features.get(key)
            if known is None:
                assert pixels is not None
                place = {"device": model.device, "dtype": model.dtype}
                known = model.get_vision_tower()(pixels.to(**place))
                self.features.put(key, known)
            features.append(known)
        given: Any = features if prepared.is_tiled else torch.cat(features)
        return model.embed_prompts(ids, image_features=given, image_sizes=prepared.image_sizes)[0]

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, str]]:
        """Advance every request by one token.

        Returns:
            Each row with its new text, perhaps "". Rows whose text is complete have left.

        Raises:
            Exception: Whatever the model raises; `clear` then.
        """
        model = self._engine.model
        ids = torch.tensor([[row.last_id] for row in self.rows], device=model.device)
        positions, visible = self._kv.begin_step()
        output = model(
            input_ids=ids,
            attention_mask=visible,
            position_ids=positions,
            past_key_values=self._kv,
            use_cache=True,
        )
        logits = output.logits[:, -1]
        greedy = logits.argmax(dim=-1).tolist()
        pieces = []
        for index, row in enumerate(self.rows):
            is_greedy = row.sampler.is_greedy
            row.last_id = greedy[index] if is_greedy else row.sampler.draw(logits[index])
            pieces.append((row, row.text.push(row.last_id)))
        for row, _ in pieces:
            if row.text.finish_reason is not None:
                self.leave(row)
        return pieces

    def leave(self, row: Row) -> None:
        """Take a request out of the batch."""
        index = next(i for i, each in enumerate(self.rows) if each is row)
        self._kv.leave(index)
        last = self.rows.pop()
        if last is not row:
            self.rows[index] = last

    def clear(self) -> list[Row]:
        """Take all requests out, whatever state a failed step left them in; return them."""
        rows, self.rows = self.rows, []
        self._kv.clear()
        return rows


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
        with contextlib.closing(self.engine.pieces(ticket.request, ticket.cancelled)) as pieces:
            for piece, finish_reason in pieces:
                if piece:
                    ticket.send(Text(piece, None))
                if finish_reason is not None:
                    return Done(finish_reason, None)
                if ticket.is_late:
                    return self._late()
        return None


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
    reason = batching_blocker(engine)
    if reason is None:
        return BatchScheduler(
            engine, max_running, max_waiting, timeout_s, on_change, max_kv_tokens=max_kv_tokens
        )
    log.info("%s answers each request by itself: %s", engine.name, reason)
    return ThreadScheduler(engine, max_running, max_waiting, timeout_s, on_change)
