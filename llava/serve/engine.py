"""A loaded model that turns a request into a stream of text.

The command line and the worker share it. In: a prompt with `<image>` placeholders, images and
sampling settings. Out: pieces of text as they are generated. This module knows neither HTTP nor
templates.

On the way from the model to the reader, `Sampler` chooses ids, `IncrementalDecoder` holds back
unfinished characters, `StopFilter` holds back text that may begin a stop string, and `AnswerText`
finds the end.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IMAGE_TOKEN_INDEX,
)
from llava.errors import ConfigError, DataError
from llava.images import to_rgb
from llava.mm_utils import get_model_name_from_path, process_images, tokenizer_image_token
from llava.model.tiles import Tiling, is_tiled, prepare_image
from llava.serve.check import check_model_path
from llava.serve.protocol import text_before_stop

log = logging.getLogger(__name__)

GREEDY_BELOW = 0.001

# Tokenizers decode the bytes of an unfinished character to this.
REPLACEMENT_CHARACTER = "\ufffd"

DEFAULT_CONTEXT_LEN = 2048


class Sampler:
    """Draws the tokens of one request with temperature, top-k and top-p.

    Args:
        temperature: 0.001 and below means greedy.
        top_p: Share of the probability mass to draw from.
        top_k: Number of tokens to draw from; 0 for all.
        seed: Seed of the random numbers; None for a new one each time.
        device: Device of the logits.
    """

    def __init__(
        self,
        temperature: float,
        top_p: float,
        top_k: int,
        seed: int | None,
        device: torch.device,
    ) -> None:
        self.is_greedy = temperature <= GREEDY_BELOW
        self._temperature = temperature
        self._top_p = top_p
        self._top_k = top_k
        self._generator = torch.Generator(device=device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def probabilities(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the distribution to draw from.

        Args:
            logits: [V].

        Returns:
            Probabilities [K], descending and 0 beyond top-p, and their token ids [K].
        """
        num_kept = min(self._top_k or len(logits), len(logits))
        values, ids = torch.topk(logits.float() / self._temperature, num_kept)
        chances = torch.softmax(values, dim=0)
        before = chances.cumsum(dim=0) - chances  # sum of all that are more probable
        outside = before >= self._top_p
        outside[0] = False
        chances = chances.masked_fill(outside, 0.0)
        return chances / chances.sum(), ids

    def draw(self, logits: Tensor) -> int:
        """Returns the next token for logits [V]."""
        if self.is_greedy:
            return int(logits.argmax())
        chances, ids = self.probabilities(logits)
        return int(ids[torch.multinomial(chances, 1, generator=self._generator)])


def image_key(image: Image.Image) -> str:
    """Returns a hash of an image's mode, size and pixels."""
    head = f"{image.mode} {image.width} {image.height} ".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()


class ImageFeatureCache:
    """A bounded map from images to features, in memory. All methods are thread-safe.

    Args:
        max_bytes: Memory of all features; 0 remembers nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0

    def get(self, key: str) -> Tensor | None:
        """Returns the features of an image, or None."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: str, features: Tensor) -> None:
        """Remembers features; those that were used least recently go to make room."""
        with self._lock:
            if key in self._entries or features.nbytes > self._max_bytes:
                return
            self._entries[key] = features
            self.num_bytes += features.nbytes
            while self.num_bytes > self._max_bytes:
                self.num_bytes -= self._entries.popitem(last=False)[1].nbytes


class IncrementalDecoder:
    """Decodes a growing list of ids, piece by piece.

    Each piece is decoded together with the piece before it, because tokenizers drop a leading space
    and because a character may take several tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []  # ids of the previous piece
        self._pending: list[int] = []

    def push(self, ids: list[int], is_end: bool = False) -> str:
        """Adds ids and returns the text that they complete.

        It is "" if a character is unfinished; at the end, such a character is replaced.
        """
        self._pending += ids
        text = self._decode(self._shown + self._pending)[len(self._decode(self._shown)) :]
        if text.endswith(REPLACEMENT_CHARACTER) and not is_end:
            return ""
        self._shown, self._pending = self._pending, []
        return text

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


class StopFilter:
    """Passes text through up to the first stop string, which may come in several pieces."""

    def __init__(self, stop: str | Sequence[str] | None) -> None:
        self._stops = [text for text in ([stop] if isinstance(stop, str) else stop or []) if text]
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Adds text; returns what is certainly before a stop string."""
        if self.stopped:
            return ""
        text = self._held + text
        certain, self.stopped = text_before_stop(text, self._stops)
        self._held = "" if self.stopped else text[len(certain) :]
        return certain

    def flush(self) -> str:
        """Returns text that looked like the beginning of a stop string but was not."""
        held, self._held = self._held, ""
        return held


class AnswerText:
    """Turns the ids of one answer into text and finds its end.

    Args:
        tokenizer: The model's tokenizer.
        stop: Text that ends the answer and is cut from it.
        end_ids: Ids that end an answer.
        max_new_tokens: Maximum number of ids.

    Attributes:
        num_tokens: Number of ids so far.
        finish_reason: `stop` or `length` once the answer is complete, else None.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: str | None,
        end_ids: Collection[int],
        max_new_tokens: int,
    ) -> None:
        self._decoder = IncrementalDecoder(tokenizer)
        self._stop_filter = StopFilter(stop)
        self._end_ids = end_ids
        self._max_new_tokens = max_new_tokens
        self.num_tokens = 0
        self.finish_reason: str | None = None

    def push(self, token_id: int) -> str:
        """Adds an id; returns the text that is final now."""
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
        """Returns all text that was held back."""
        return (
            self._stop_filter.push(self._decoder.push([], is_end=True)) + self._stop_filter.flush()
        )


class _Ended(Exception):
    """Ends `generate`, which has no other way out between two tokens."""


class _TokenStreamer(BaseStreamer):
    """Passes each token on as `generate` draws it."""

    def __init__(self, take: Callable[[int], None]) -> None:
        self._take = take
        self._is_prompt = True

    def put(self, value: Tensor) -> None:
        """Takes the ids of one step; `generate` puts the prompt first."""
        if not self._is_prompt:
            for token_id in value.reshape(-1).tolist():
                self._take(token_id)
        self._is_prompt = False

    def end(self) -> None:
        """Does nothing: `generate` returns."""


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt with images and sampling settings.

    Attributes:
        prompt: The whole text in its template, with one `<image>` for each image.
        images: The images, in the order of the placeholders.
        temperature: 0.001 and below means greedy.
        top_p: Nucleus sampling; ignored when greedy.
        max_new_tokens: Upper bound; the context may leave room for fewer.
        stop: Text that ends the answer and is cut from it.
        seed: Seed of the sampling for requests in a batch; None for a new one each time.
    """

    prompt: str
    images: tuple[Image.Image, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    stop: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise DataError(f"temperature is {self.temperature}; expected a number from 0 upwards")
        if not 0 <= self.top_p <= 1:
            raise DataError(f"top_p is {self.top_p}; expected a number from 0 to 1")
        if self.max_new_tokens < 1:
            raise DataError(f"max_new_tokens is {self.max_new_tokens}; expected 1 or more")
        placeholders = self.prompt.count(DEFAULT_IMAGE_TOKEN)
        if placeholders != len(self.images):
            raise DataError(
                f"{len(self.images)} images were given, but the prompt has {placeholders} "
                f"{DEFAULT_IMAGE_TOKEN} placeholders; give one image for each placeholder"
            )


class ContextFull(Exception):
    """The prompt leaves no room for a single new token."""


@dataclass
class PreparedImage:
    """An image of a request, ready for the vision tower.

    Attributes:
        key: Key of its features in the cache.
        size: (width, height).
        tiles: Pixels [tiles, 3, S, S] on the CPU, or features [tiles, P, D_vision]. An image that
            is not cut has one tile.
        is_encoded: Whether `tiles` are features.
    """

    key: str
    size: tuple[int, int]
    tiles: Tensor
    is_encoded: bool


@dataclass
class PreparedRequest:
    """A request that has been tokenized and checked against the context.

    Attributes:
        request: The request.
        input_ids: [1, T] with one sentinel for each image.
        images: The images, in the order of the sentinels.
        prompt_len: Number of positions of prompt and images, or a few more.
        max_new_tokens: Maximum number of tokens of the answer.
    """

    request: GenerationRequest
    input_ids: Tensor
    images: list[PreparedImage]
    prompt_len: int
    max_new_tokens: int


@dataclass
class Engine:
    """A model with everything that it needs to answer.

    Attributes:
        tokenizer: The model's tokenizer.
        model: A LLaVA model, or a text model if `image_processor` is None.
        image_processor: The vision tower's processor.
        name: The model's name for users.
    """

    tokenizer: Any
    model: Any
    image_processor: Any
    name: str

    @property
    def context_len(self) -> int:
        """Number of positions that the model can attend to."""
        return int(getattr(self.model.config, "max_position_embeddings", DEFAULT_CONTEXT_LEN))

    @property
    def is_multimodal(self) -> bool:
        """Whether the model takes images."""
        return self.image_processor is not None

    @property
    def is_tiled(self) -> bool:
        """Whether images are cut into tiles."""
        return is_tiled(getattr(self.model.config, "image_aspect_ratio", None))

    def prepare(
        self, request: GenerationRequest, known: ImageFeatureCache | None = None
    ) -> PreparedRequest:
        """Tokenizes a prompt and prepares its images. Thread-safe.

        Args:
            request: The request.
            known: Features that need not be computed again.

        Raises:
            ContextFull: If prompt and images fill the context.
            DataError: If the model takes no images.
        """
        if request.images and not self.is_multimodal:
            raise DataError(
                f"model {self.name} takes no images, but {len(request.images)} were given"
            )
        prompt = request.prompt
        if getattr(self.model.config, "mm_use_im_start_end", False):
            wrapped = DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
            prompt = prompt.replace(DEFAULT_IMAGE_TOKEN, wrapped)
        ids = tokenizer_image_token(prompt, self.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
        is_alone = len(request.images) == 1
        images = [self._prepare_image(image, known, is_alone) for image in request.images]
        prompt_len = int((ids != IMAGE_TOKEN_INDEX).sum())
        sizes = [image.size if is_alone else None for image in images]
        prompt_len += sum(map(self._num_image_tokens, sizes))
        room = self.context_len - prompt_len
        if room < 1:
            raise ContextFull
        max_new_tokens = min(request.max_new_tokens, room)
        return PreparedRequest(request, ids.unsqueeze(0), images, prompt_len, max_new_tokens)

    def _prepare_image(
        self, image: Image.Image, known: ImageFeatureCache | None, is_alone: bool
    ) -> PreparedImage:
        """Prepares an image; only one that is alone in its prompt is cut into tiles."""
        rgb = to_rgb(image)
        is_square = self.is_tiled and not is_alone
        key = "" if known is None else image_key(rgb) + ("-square" if is_square else "")
        features = None if known is None else known.get(key)
        if features is not None:
            return PreparedImage(key, rgb.size, features, is_encoded=True)
        if is_square:
            pixels = prepare_image(rgb, self.image_processor, "pad")
        else:
            pixels = process_images([rgb], self.image_processor, self.model.config)[0]
        tiles = pixels if pixels.ndim == 4 else pixels.unsqueeze(0)
        return PreparedImage(key, rgb.size, tiles, is_encoded=False)

    def _num_image_tokens(self, size: tuple[int, int] | None) -> int:
        """Returns the positions of an image of (width, height) pixels, or of a square."""
        tower = self.model.get_vision_tower()
        if not self.is_tiled:
            return int(tower.num_image_tokens)
        tiling = Tiling.of(self.model.config, tower.input_size, tower.num_image_tokens)
        return tiling.num_positions(size)

    def answer(
        self,
        request: GenerationRequest,
        receive: Callable[[str], None],
        is_over: Callable[[], bool] = lambda: False,
    ) -> str | None:
        """Generates an answer in this thread and passes its text on as it becomes final.

        Unfinished characters are held back, and so is text that may turn out to be the beginning of
        the stop string.

        Args:
            request: The request.
            receive: Called with pieces whose concatenation is the answer.
            is_over: Asked after each token whether nobody needs the rest.

        Returns:
            `stop` or `length`, or None for an answer that was given up.

        Raises:
            ContextFull: If the prompt leaves no room.
            Exception: Whatever `model.generate` raises.
        """
        prepared = self.prepare(request)
        text = self.answer_text(prepared)

        def take(token_id: int) -> None:
            if piece := text.push(token_id):
                receive(piece)
            if text.finish_reason is not None or is_over():
                raise _Ended

        try:
            with torch.inference_mode():
                self.model.generate(**self._arguments(prepared), streamer=_TokenStreamer(take))
        except _Ended:
            return text.finish_reason
        if rest := text.flush():
            receive(rest)
        return "stop"

    def _arguments(self, prepared: PreparedRequest) -> dict[str, Any]:
        """Builds the arguments of `model.generate`."""
        request, model = prepared.request, self.model
        arguments: dict[str, Any] = {
            "inputs": prepared.input_ids.to(model.device),
            "max_new_tokens": prepared.max_new_tokens,
            "use_cache": True,
            "do_sample": request.temperature > GREEDY_BELOW,
        }
        if arguments["do_sample"]:
            arguments |= {"temperature": request.temperature, "top_p": request.top_p}
        if prepared.images:
            place = {"device": model.device, "dtype": model.dtype}
            pixels = [image.tiles.to(**place) for image in prepared.images]
            arguments["images"] = pixels if self.is_tiled else torch.cat(pixels)
            arguments["image_sizes"] = [image.size for image in prepared.images]
        return arguments

    def answer_text(self, prepared: PreparedRequest) -> AnswerText:
        """Returns an empty answer, to which ids are added."""
        config = getattr(self.model, "generation_config", None)
        end = getattr(config, "eos_token_id", None)
        end_ids = {end} if isinstance(end, int) else set(end or ())
        stop = prepared.request.stop
        if stop:
            # Decoding hides special tokens, so a stop string that is one would never be found.
            stop_id = self.tokenizer.convert_tokens_to_ids(stop)
            if stop_id != self.tokenizer.unk_token_id:
                end_ids.add(stop_id)
        return AnswerText(self.tokenizer, stop, end_ids, prepared.max_new_tokens)


def pick_device(requested: str) -> str:
    """Returns the requested device, or the CPU if there is no CUDA device."""
    if requested.startswith("cuda") and not torch.cuda.is_available():
        log.warning("no CUDA device was found: running on the CPU")
        return "cpu"
    return requested


def load_engine(
    model_path: str,
    model_base: str | None = None,
    model_name: str | None = None,
    *,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device: str = "cuda",
    use_flash_attn: bool = False,
) -> Engine:
    """Loads a checkpoint for answering.

    Args:
        model_path: Folder or Hub name.
        model_base: Base model of a LoRA or projector-only checkpoint.
        model_name: Name for users; by default LLaVA derives it from the path.
        load_8bit: Quantise to 8 bits (needs bitsandbytes).
        load_4bit: Quantise to 4 bits (needs bitsandbytes).
        device: Device to run on; the CPU replaces a missing CUDA device.
        use_flash_attn: Use flash-attention 2.

    Returns:
        The engine.

    Raises:
        CheckpointError: If the folder is missing or incomplete.
        ConfigError: If both quantisations are asked for.
    """
    from llava.model.builder import load_pretrained_model

    if load_8bit and load_4bit:
        raise ConfigError("--load-8bit and --load-4bit exclude each other: give one of them")
    check_model_path(model_path)
    name = model_name or get_model_name_from_path(str(Path(model_path).expanduser()))
    tokenizer, model, image_processor, _ = load_pretrained_model(
        model_path,
        model_base,
        name,
        load_8bit,
        load_4bit,
        device=pick_device(device),
        use_flash_attn=use_flash_attn,
    )
    model.eval()
    return Engine(tokenizer, model, image_processor, name)
