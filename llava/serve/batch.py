"""Several requests that one model answers at the same time, token by token.

In: requests, at any time. Out: for each step the new text of each. A request joins with a pass over
its prompt, as it would alone; from then on all rows advance by one token with one pass. Rows do not
see each other: what a request gets is what it gets alone, up to how a processor rounds sums of
another shape. Threads, queues and deadlines are in `llava.serve.scheduler`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from llava.errors import DataError
from llava.images import to_rgb
from llava.mm_utils import process_images
from llava.serve.engine import Engine, GenerationRequest
from llava.serve.feature_cache import FeatureCache, picture_key
from llava.serve.kv_rows import KVRows, rounded
from llava.serve.sampling import Sampler
from llava.serve.streaming import AnswerText

log = logging.getLogger(__name__)

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


def why_not(engine: Engine) -> str | None:
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
