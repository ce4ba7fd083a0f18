"""Answers several requests with one model at the same time, token by token.

In: requests from any thread, at any time. Out: events for each of them, in order. Requests that
wait together join together: one pass of the tower over their images, one over their prompts, padded
on the left; a long prompt takes several passes, between which the others advance. After that, each
pass advances all rows by one token. Rows do not see each other: a request gets the answer that it
would get alone, up to the rounding of sums of a different shape.

`KVRows` holds keys and values, one row for each request; `Batch` runs prompts and steps; a
`Scheduler` is the bounded queue in front, with deadlines and cancellation: `BatchScheduler` drives
a batch from one thread, `ThreadScheduler` answers each request by itself where a model cannot share
a pass.

Legend: B rows, L positions of the longest row, H heads of keys, D their width.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from llava.errors import DataError
from llava.model.splice import PaddedRows, pad_rows
from llava.serve.engine import (
    AnswerText,
    Engine,
    GenerationRequest,
    ImageFeatureCache,
    PreparedRequest,
    Sampler,
)
from llava.serve.protocol import BUSY, DEADLINE, STOPPING

log = logging.getLogger(__name__)

# The cache grows by this many positions at a time, so that it is seldom copied.
BLOCK = 128

# The default of transformers for checkpoints that set none.
DEFAULT_TOP_K = 50
# Settings of a checkpoint that change logits, with the values that switch them off. The batch does
# not implement them.
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

# A pass over prompts has at most this many positions, padding included, so that running requests do
# not wait for a crowd of new ones, nor for a long prompt.
JOIN_TOKENS = 2048
CACHE_BYTES = 256 * 2**20


def rounded(length: int) -> int:
    """Returns the positions that are reserved for a row of `length`."""
    return -(-length // BLOCK) * BLOCK


class KVRows(Cache):
    """A cache for one step of all rows; transformers' layers call `update`.

    Args:
        max_rows: Maximum number of rows.
        max_positions: Maximum number of positions of all rows together; None for no limit. The
            caller keeps the number of rows times the `rounded` length of the longest below it.
    """

    def __init__(self, max_rows: int, max_positions: int | None = None) -> None:
        super().__init__(layers=[])
        self.max_rows = max_rows
        self.max_positions = max_positions
        self._states: list[Tensor] = []  # of each layer: keys and values, [2, B', H, L', D]
        self._rows = self._ends = torch.empty(0, dtype=torch.long)
        self.lengths: list[int] = []

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values in bytes."""
        return sum(states.nbytes for states in self._states)

    def join(self, prompt: DynamicCache, index: int = 0, start: int = 0) -> None:
        """Adds a row.

        Args:
            prompt: A cache of prompts.
            index: Which of them joins.
            start: Where it begins; padding is before it.
        """
        assert self.num_rows < self.max_rows
        layers: Any = prompt.layers
        if not self._states:
            self._states = [
                layer.keys.new_zeros(2, 0, layer.keys.shape[1], 0, layer.keys.shape[3])
                for layer in layers
            ]
        row, length = self.num_rows, int(layers[0].keys.shape[2]) - start
        self._reserve(row + 1, length + 1)
        for states, layer in zip(self._states, layers, strict=True):
            states[0, row, :, :length] = layer.keys[index, :, start:]
            states[1, row, :, :length] = layer.values[index, :, start:]
            # The last owner of the row may have left values that are not finite.
            states[:, row, :, length:] = 0
        self.lengths.append(length)

    def leave(self, row: int) -> None:
        """Removes a row; the last one takes its place."""
        last = self.num_rows - 1
        if row != last:
            for states in self._states:
                states[:, row] = states[:, last]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self.clear()

    def clear(self) -> None:
        """Removes all rows and frees their memory."""
        self._states, self.lengths = [], []

    def begin_step(self) -> tuple[Tensor, Tensor]:
        """Makes room for one position in each row.

        Returns:
            Positions [B, 1] of the new tokens, and which positions each row sees, [B, 1, 1, L].
        """
        longest = self.get_seq_length() + 1
        self._reserve(self.num_rows, longest)
        device = self._states[0].device
        self._rows = torch.arange(self.num_rows, device=device)
        self._ends = torch.tensor(self.lengths, device=device)
        self.lengths = [length + 1 for length in self.lengths]
        visible = torch.arange(longest, device=device) <= self._ends[:, None]
        return self._ends[:, None], visible[:, None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Stores the keys and values of one step, [B, H, 1, D]; returns those of all positions.

        Returns:
            Keys and values, [B, H, L, D] each; the mask hides what lies beyond a row's end.
        """
        keys, values = self._states[layer_idx]
        keys[self._rows, :, self._ends] = key_states[:, :, 0]
        values[self._rows, :, self._ends] = value_states[:, :, 0]
        rows, longest = self.num_rows, self.get_seq_length()
        return keys[:rows, :, :longest], values[:rows, :, :longest]

    def get_seq_length(self, layer_idx: int = 0, *_: Any) -> int:
        """Returns the length of the longest row."""
        return max(self.lengths, default=0)

    def _reserve(self, num_rows: int, length: int) -> None:
        """Makes room for `num_rows` rows of `length` positions."""
        # Of all layers: memory may have run out between two of them.
        shapes = [states.shape for states in self._states]
        if all(num_rows <= shape[1] and length <= shape[3] for shape in shapes):
            return
        # Only what is needed now is kept of the space that earlier rows took: otherwise many short
        # rows followed by a long one would exceed the limit.
        capacity = rounded(max([length, *self.lengths]))
        rows = min(self.max_rows, 1 << (num_rows - 1).bit_length())
        if self.max_positions is not None:
            rows = max(num_rows, min(rows, self.max_positions // capacity))
        used, known = self.num_rows, self.get_seq_length()
        # Layer by layer: the old and new tensors of all layers at once may not fit.
        for index, states in enumerate(self._states):
            _, _, heads, _, width = states.shape
            # Zeros, because hidden values still take part in products and must be finite.
            grown = states.new_zeros(2, rows, heads, capacity, width)
            grown[:, :used, :, :known] = states[:, :used, :, :known]
            self._states[index] = grown


def batching_blocker(engine: Engine) -> str | None:
    """Returns why a model cannot answer several requests in one batch, or None."""
    model = engine.model
    if not getattr(model, "supports_packing", False):
        return "its attention has no positions"
    window = getattr(model.config, "sliding_window", None)
    if window is not None and window < engine.context_len:
        return f"its attention sees only {window} positions back"
    kinds = set(getattr(model.config, "layer_types", None) or ())
    if others := kinds - {"full_attention", "sliding_attention"}:
        return f"it has layers of {', '.join(sorted(others))}, which keep a state"
    for name, off in _OFF.items():
        if getattr(model.generation_config, name, None) not in off:
            return f"its generation_config.json sets {name}"
    return None


@dataclass(eq=False)
class Row:
    """A request in the batch, or one that is ready to join it.

    Attributes:
        prepared: The request; its images are freed once it has joined.
        owner: The receiver of the text.
        text: The answer so far.
        sampler: Chooses the next token.
        num_prompt_tokens: Positions of the prompt, including images; 0 before the request joins.
        last_id: The last token.
        joins_alone: Whether it failed together with others.
    """

    prepared: PreparedRequest
    owner: Any
    text: AnswerText
    sampler: Sampler
    num_prompt_tokens: int = 0
    last_id: int = 0
    joins_alone: bool = False

    @property
    def usage(self) -> tuple[int, int]:
        """Number of tokens of the prompt and of the answer so far."""
        return self.num_prompt_tokens, self.text.num_tokens


@dataclass(eq=False)
class Joining:
    """Requests whose prompts are being computed, B' rows.

    Attributes:
        rows: The requests.
        prompts: Embeddings [B', L, D] of the prompts, their mask and positions [B', L], padded on
            the left.
        cache: Keys and values of the first `done` positions.
        done: Positions that have been computed.
    """

    rows: list[Row]
    prompts: PaddedRows
    cache: DynamicCache
    done: int = 0


class Batch:
    """The running requests of one model. Only `prepare` may be called from several threads.

    Args:
        engine: The model.
        max_rows: Maximum number of requests that run at the same time.
        cache_bytes: Memory for image features.
        max_kv_tokens: Maximum number of cached positions of all requests together; None for no
            limit.
    """

    def __init__(
        self, engine: Engine, max_rows: int, cache_bytes: int, max_kv_tokens: int | None = None
    ) -> None:
        self._engine = engine
        self.kv = KVRows(max_rows, max_kv_tokens)
        self.features = ImageFeatureCache(cache_bytes)
        self.rows: list[Row] = []
        top_k = getattr(engine.model.generation_config, "top_k", None)
        self._top_k = DEFAULT_TOP_K if top_k is None else int(top_k)
        if str(getattr(engine.model.config, "_attn_implementation", "")).startswith("flash"):
            log.info("requests of different lengths share a step: using sdpa, not flash-attn")
            engine.model.set_attn_implementation("sdpa")

    def has_room(self, new: Sequence[Row]) -> bool:
        """Returns whether there is room for requests and their longest possible answers."""
        prepared = [row.prepared for row in (*new, *self.rows)]
        if len(prepared) > self.kv.max_rows:
            return False
        if self.kv.max_positions is None:
            return True
        longest = max(each.prompt_len + each.max_new_tokens for each in prepared)
        return len(prepared) * rounded(longest) <= self.kv.max_positions

    @staticmethod
    def may_join(rows: Sequence[Row]) -> bool:
        """Returns whether the prompts of requests fit one pass, or there is only one."""
        if any(row.joins_alone for row in rows):
            return len(rows) == 1
        num_positions = len(rows) * max(row.prepared.prompt_len for row in rows)
        return len(rows) == 1 or num_positions <= JOIN_TOKENS

    def prepare(self, request: GenerationRequest, owner: Any) -> Row:
        """Tokenizes a prompt and prepares its images. Thread-safe.

        Raises:
            ContextFull: If prompt and images fill the context.
            DataError: If the model takes no images, or prompt and images fill the memory for keys
                and values.
        """
        prepared = self._engine.prepare(request, self.features)
        if self.kv.max_positions is not None:
            usable = self.kv.max_positions // BLOCK * BLOCK
            if prepared.prompt_len >= usable:
                raise DataError(
                    f"the prompt takes {prepared.prompt_len:,} positions with its images, but this "
                    f"worker has memory for {usable:,} (--max-kv-tokens): send a shorter one"
                )
            room = usable - prepared.prompt_len
            prepared.max_new_tokens = min(prepared.max_new_tokens, room)
        device = self._engine.model.device
        sampler = Sampler(request.temperature, request.top_p, self._top_k, request.seed, device)
        return Row(prepared, owner, self._engine.answer_text(prepared), sampler)

    @torch.inference_mode()
    def begin_join(self, rows: Sequence[Row]) -> Joining:
        """Embeds prompts with their images, for `join`.

        Raises:
            Exception: Whatever the model raises; the batch is then unchanged.
        """
        self._encode([row.prepared for row in rows])
        embeds = [self._embed(row.prepared) for row in rows]
        for row, each in zip(rows, embeds, strict=True):
            row.num_prompt_tokens = len(each)
        prompts = pad_rows(embeds, [each.new_empty(len(each)) for each in embeds], "left")
        return Joining(list(rows), prompts, DynamicCache(config=self._engine.model.config))

    @torch.inference_mode()
    def join(self, joining: Joining) -> list[tuple[Row, str | Exception]]:
        """Runs the next positions of prompts; after the last, adds the requests to the batch.

        Returns:
            Each row with the text of its first token, or with the reason why it alone could not be
            added; empty while positions remain. Rows whose answer is complete have not been added.

        Raises:
            Exception: Whatever the model raises; the batch is then unchanged.
        """
        prompts, start = joining.prompts, joining.done
        num_rows, length = prompts.attention_mask.shape
        end = min(length, start + max(1, JOIN_TOKENS // num_rows))
        is_padded = not bool(prompts.attention_mask.all())
        output = self._engine.model(
            inputs_embeds=prompts.embeds[:, start:end],
            attention_mask=prompts.attention_mask[:, :end].long() if is_padded else None,
            position_ids=prompts.position_ids[:, start:end],
            past_key_values=joining.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        joining.done = end
        if end < length:
            return []
        logits, found = output.logits[:, -1], []
        for index, row in enumerate(joining.rows):
            row.prepared.images.clear()
            text: str | Exception
            try:
                ((_, text),) = self._draw([row], logits[index : index + 1])
                if row.text.finish_reason is None:
                    self.kv.join(joining.cache, index, length - row.num_prompt_tokens)
                    self.rows.append(row)
            except Exception as error:
                text = error
            found.append((row, text))
        return found

    def _encode(self, requests: Sequence[PreparedRequest]) -> None:
        """Runs the tower once on all images of requests that have not been encoded."""
        images = [each for request in requests for each in request.images if not each.is_encoded]
        # Another request with the same image may have run in the meantime.
        found: dict[str, Any] = {each.key: self.features.get(each.key) for each in images}
        new = {each.key: each.tiles for each in images if found[each.key] is None}
        if new:
            model = self._engine.model
            pixels = torch.cat(list(new.values())).to(device=model.device, dtype=model.dtype)
            encoded = model.get_vision_tower()(pixels).split([len(tiles) for tiles in new.values()])
            for key, features in zip(new, encoded, strict=True):
                found[key] = features.clone()  # the others may be forgotten before it
                self.features.put(key, found[key])
        for image in images:
            image.tiles, image.is_encoded = found[image.key], True

    def _embed(self, prepared: PreparedRequest) -> Tensor:
        """Embeds a prompt with its encoded images: [L, D]."""
        model = self._engine.model
        embeds: Tensor
        ids = prepared.input_ids.to(model.device)
        if not prepared.images:
            ((embeds,), _) = model.embed_prompts(ids)
            return embeds
        features = [image.tiles for image in prepared.images]
        given: Any = features if self._engine.is_tiled else torch.cat(features)
        sizes = [image.size for image in prepared.images]
        ((embeds,), _) = model.embed_prompts(ids, image_features=given, image_sizes=sizes)
        return embeds

    def _draw(self, rows: Sequence[Row], logits: Tensor) -> list[tuple[Row, str]]:
        """Draws the next token of each row from logits [B, V]; returns the rows and new texts."""
        greedy = logits.argmax(dim=-1).tolist()
        texts = []
        for index, row in enumerate(rows):
            is_greedy = row.sampler.is_greedy
            row.last_id = greedy[index] if is_greedy else row.sampler.draw(logits[index])
            texts.append((row, row.text.push(row.last_id)))
        return texts

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, str]]:
        """Advances every request by one token.

        Returns:
            Each row with its new text, which may be "". Rows whose answer is complete have left.

        Raises:
            Exception: Whatever the model raises; call `clear` then.
        """
        model = self._engine.model
        ids = torch.tensor([[row.last_id] for row in self.rows], device=model.device)
        positions, visible = self.kv.begin_step()
        output = model(
            input_ids=ids,
            attention_mask=visible,
            position_ids=positions,
            past_key_values=self.kv,
            use_cache=True,
        )
        texts = self._draw(self.rows, output.logits[:, -1])
        for row, _ in texts:
            if row.text.finish_reason is not None:
                self.leave(row)
        return texts

    @torch.inference_mode()  # tensors made in this mode may only be changed in it
    def leave(self, row: Row) -> None:
        """Removes a request; the last one takes its place."""
        index = self.rows.index(row)
        self.kv.leave(index)
        self.rows[index] = self.rows[-1]
        self.rows.pop()

    def clear(self) -> list[Row]:
        """Removes and returns all requests, whatever state a failed step left them in."""
        rows, self.rows = self.rows, []
        self.kv.clear()
        return rows


class Unanswered(Exception):
    """The worker could not answer a request, for no fault of the request.

    Args:
        kind: `BUSY`, `STOPPING` or `DEADLINE` of `llava.serve.protocol`.
        message: The cause.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Event:
    """New text of an answer, its end, or the failure of its request.

    Attributes:
        text: New text.
        usage: Tokens of the prompt and of the answer so far; None if they are not counted.
        finish_reason: `stop` or `length` at the end of the answer, else None.
        error: The cause of a failure, else None.
    """

    text: str = ""
    usage: tuple[int, int] | None = None
    finish_reason: str | None = None
    error: Exception | None = None

    @property
    def is_last(self) -> bool:
        """Whether this is the last event of its request."""
        return self.finish_reason is not None or self.error is not None

    def details(self) -> dict[str, Any]:
        """Returns what is known of `usage` and `finish_reason`, as the protocol writes them."""
        names = ("prompt_tokens", "completion_tokens")
        usage = None if self.usage is None else dict(zip(names, self.usage, strict=True))
        known = {"usage": usage, "finish_reason": self.finish_reason}
        return {key: value for key, value in known.items() if value is not None}


@dataclass(eq=False)
class Ticket:
    """A submitted request.

    Attributes:
        request: The request.
        sink: Called with each event.
        cancelled: Set when nobody waits for the answer any more.
        started: `time.monotonic()` when the request arrived.
    """

    request: GenerationRequest
    sink: Callable[[Event], None]
    cancelled: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class Scheduler(ABC):
    """A bounded queue of requests, with deadlines and cancellation.

    Attributes:
        engine: The model.
        max_running: Maximum number of requests that are answered at the same time.
        max_waiting: Maximum number of requests that wait for their turn.
        timeout_s: Maximum time of a request, including waiting; None for no limit.
        on_change: Called when the number of requests changes.
        num_requests: Number of requests that are running or waiting.
    """

    engine: Engine
    max_running: int
    max_waiting: int
    timeout_s: float | None = None
    on_change: Callable[[], None] = lambda: None
    num_requests: int = field(default=0, init=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False)
    _is_stopping: bool = field(default=False, init=False)
    _is_closed: bool = field(default=False, init=False)

    def submit(self, ticket: Ticket) -> None:
        """Queues a request, whose sink then gets its events.

        Raises:
            Unanswered: If the queue is full, or the worker is about to stop.
            ContextFull: If prompt and images fill the context.
            DataError: If the model cannot take the request.
        """
        with self._changed:
            if self._is_stopping:
                raise Unanswered(STOPPING, "the worker is about to stop and takes no new requests")
            if self.num_requests >= self.max_running + self.max_waiting:
                raise Unanswered(
                    BUSY,
                    f"{self.max_running} requests are being answered and {self.max_waiting} wait: "
                    "the queue is full, try again later",
                )
            self.num_requests += 1
        self.on_change()
        try:
            self._enqueue(ticket)
        except BaseException:
            self._forget()
            raise

    def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and waits for the others; returns whether all were answered."""
        with self._changed:
            self._is_stopping = True
            return self._changed.wait_for(lambda: self.num_requests == 0, timeout_s)

    def close(self) -> None:
        """Stops the scheduler; requests that still run fail."""
        with self._changed:
            self._is_stopping = self._is_closed = True
            self._changed.notify_all()

    def _send(self, ticket: Ticket, event: Event) -> None:
        """Passes an event to its reader, and forgets the request after the last one."""
        try:
            ticket.sink(event)
        except Exception:  # the reader is gone
            ticket.cancelled.set()
        if event.is_last:
            self._forget()

    def _forget(self) -> None:
        with self._changed:
            self.num_requests -= 1
            self._changed.notify_all()
        self.on_change()

    def _is_over(self, ticket: Ticket) -> bool:
        """Returns whether a request was cancelled or has taken too long."""
        is_late = self.timeout_s is not None and time.monotonic() > ticket.started + self.timeout_s
        return is_late or ticket.cancelled.is_set()

    def _too_late(self) -> Unanswered:
        return Unanswered(DEADLINE, f"the answer took longer than {self.timeout_s or 0:g} s")

    @abstractmethod
    def _enqueue(self, ticket: Ticket) -> None:
        """Takes a request that has already been counted."""


@dataclass(eq=False)
class ThreadScheduler(Scheduler):
    """Answers each request with the model's own `generate`, in a thread."""

    def __post_init__(self) -> None:
        self._places = threading.Semaphore(self.max_running)

    def _enqueue(self, ticket: Ticket) -> None:
        threading.Thread(target=self._run, args=(ticket,), name="answer", daemon=True).start()

    def _run(self, ticket: Ticket) -> None:
        with self._places:
            try:
                event = self._answer(ticket)
            except Exception as error:
                event = Event(error=error)
            self._send(ticket, event)

    def _answer(self, ticket: Ticket) -> Event:
        """Answers one request and returns its last event."""
        reason = None
        if not self._is_over(ticket):
            reason = self.engine.answer(
                ticket.request,
                lambda text: self._send(ticket, Event(text)),
                lambda: self._is_over(ticket),
            )
        return Event(error=self._too_late()) if reason is None else Event(finish_reason=reason)


@dataclass(eq=False)
class BatchScheduler(Scheduler):
    """Answers requests in one batch, which they join and leave while it runs.

    Attributes:
        cache_bytes: Memory for image features.
        max_kv_tokens: Maximum number of cached positions of all running requests; None for no
            limit. A request waits until there is room for its longest possible answer.
    """

    cache_bytes: int = CACHE_BYTES
    max_kv_tokens: int | None = None

    def __post_init__(self) -> None:
        self.batch = Batch(self.engine, self.max_running, self.cache_bytes, self.max_kv_tokens)
        self._waiting: deque[Row] = deque()
        self._joining: Joining | None = None
        self._thread = threading.Thread(target=self._run, name="batch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops the scheduler; requests that still run fail."""
        super().close()
        self._thread.join()

    def _enqueue(self, ticket: Ticket) -> None:
        row = self.batch.prepare(ticket.request, ticket)
        with self._changed:
            if self._is_closed:  # meanwhile: nobody would take the request from the queue
                raise self._stopped()
            self._waiting.append(row)
            self._changed.notify_all()

    def _stopped(self) -> Unanswered:
        return Unanswered(STOPPING, "the worker stopped")

    def _run(self) -> None:
        while not self._is_closed:
            self._drop_ended()
            self._admit()
            self._step()
            with self._changed:
                self._changed.wait_for(
                    lambda: self._waiting or self._joining or self.batch.rows or self._is_closed
                )
        joining = self._joining.rows if self._joining else []
        self._fail([*self._waiting, *joining, *self.batch.clear()], self._stopped())

    def _drop_ended(self) -> None:
        """Drops requests that were cancelled or have taken too long."""
        with self._changed:
            ended = [row for row in (*self.batch.rows, *self._waiting) if self._is_over(row.owner)]
            for row in ended:
                if row in self._waiting:
                    self._waiting.remove(row)
                else:
                    self.batch.leave(row)
        self._fail(ended, self._too_late())

    def _admit(self) -> None:
        """Runs one pass over prompts: the rest of those that join now, or those that wait."""
        rows = self._joining.rows if self._joining else self._next_rows()
        if not rows:
            return
        try:
            self._joining = self._joining or self.batch.begin_join(rows)
            joined = self.batch.join(self._joining)
        except Exception as error:
            self._joining = None
            if len(rows) == 1:
                self._fail(rows, error)
                return
            # It may be the fault of one of them.
            for row in rows:
                row.joins_alone = True
            with self._changed:
                self._waiting.extendleft(reversed(rows))
        else:
            self._joining = None if joined else self._joining
            for row, text in joined:
                if isinstance(text, Exception):
                    self._fail([row], text)
                else:
                    self._hand_over(row, text)

    def _next_rows(self) -> list[Row]:
        """Takes the waiting requests that join next, in order, while there is room."""
        rows: list[Row] = []
        with self._changed:
            # In order: a long request would wait for ever if short ones overtook it.
            while self._waiting:
                more = [*rows, self._waiting[0]]
                if not (self.batch.may_join(more) and self.batch.has_room(more)):
                    break
                rows.append(self._waiting.popleft())
        return rows

    def _step(self) -> None:
        try:
            texts = self.batch.step() if self.batch.rows else []
        except Exception as error:
            self._fail(self.batch.clear(), error)
        else:
            for row, text in texts:
                self._hand_over(row, text)

    def _hand_over(self, row: Row, text: str) -> None:
        event = Event(text, row.usage, row.text.finish_reason)
        if text or event.is_last:
            self._send(row.owner, event)

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        for row in rows:
            self._send(row.owner, Event(usage=row.usage, error=error))


def build_scheduler(
    engine: Engine,
    max_running: int,
    max_waiting: int,
    timeout_s: float | None = None,
    on_change: Callable[[], None] = lambda: None,
    max_kv_tokens: int | None = None,
) -> Scheduler:
    """Returns the scheduler that fits a model; arguments as for `BatchScheduler`."""
    blocker = batching_blocker(engine)
    if blocker is not None:
        log.info("%s answers each request by itself: %s", engine.name, blocker)
        return ThreadScheduler(engine, max_running, max_waiting, timeout_s, on_change)
    return BatchScheduler(
        engine, max_running, max_waiting, timeout_s, on_change, max_kv_tokens=max_kv_tokens
    )
