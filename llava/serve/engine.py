"""One loaded model and how it turns a request into a stream of text.

Command line and worker share it. In: a prompt with `<image>` placeholders, pictures and sampling
settings. Out: pieces of text as they are generated. A failing generation raises in the reader at
once; a reader that stops reading cancels the generation. No HTTP and no templates here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IMAGE_TOKEN_INDEX,
)
from llava.errors import ConfigError, DataError
from llava.images import to_rgb
from llava.mm_utils import get_model_name_from_path, process_images, tokenizer_image_token
from llava.serve.model_path import check_model_path
from llava.serve.sampling import GREEDY_BELOW
from llava.serve.streaming import AnswerText, generated_ids

log = logging.getLogger(__name__)

DEFAULT_CONTEXT_LEN = 2048


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate.

    Attributes:
        prompt: The whole templated text, one `<image>` for each picture.
        images: The pictures, in the order of the placeholders.
        temperature: 0.001 and below means greedy.
        top_p: Nucleus sampling; ignored when greedy.
        max_new_tokens: Upper bound; the context may allow less.
        stop: Text that ends the answer and is cut from it.
        seed: Of the sampling, where requests run in a batch; None for another one each time.
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
                f"{len(self.images)} pictures were given, but the prompt has {placeholders} "
                f"{DEFAULT_IMAGE_TOKEN} placeholders; give one picture for each placeholder"
            )


class ContextFull(Exception):
    """The prompt leaves no room for a single new token."""


@dataclass
class Engine:
    """A model with all that it needs to answer.

    Attributes:
        tokenizer: The model's tokenizer.
        model: A LLaVA model, or a text model when `image_processor` is None.
        image_processor: The vision tower's processor.
        name: The model's name as shown to users.
    """

    tokenizer: Any
    model: Any
    image_processor: Any
    name: str
    _stop_ids: dict[str, int | None] = field(default_factory=dict, repr=False)

    @property
    def context_len(self) -> int:
        """Positions that the model can attend to."""
        return int(getattr(self.model.config, "max_position_embeddings", DEFAULT_CONTEXT_LEN))

    @property
    def is_multimodal(self) -> bool:
        """Whether the model takes pictures."""
        return self.image_processor is not None

    @torch.inference_mode()
    def prepare(self, request: GenerationRequest) -> dict[str, Any]:
        """Build the arguments of `model.generate` for a request.

        Returns:
            Keyword arguments: `inputs` of shape [1, T] with one sentinel for each picture, `images`
            of shape [N, 3, S, S] (or a list for tiled pictures) in the model's dtype, and the
            sampling settings.

        Raises:
            ContextFull: Prompt and pictures fill the context.
            DataError: Pictures were given to a model that takes none.
        """
        images, image_sizes = self._prepare_images(request.images)
        input_ids = self.prompt_ids(request)
        num_tiles = [
            len(image) if image.ndim == 4 else 1 for image in (() if images is None else images)
        ]
        max_new_tokens = self.room(request, input_ids, num_tiles)
        arguments: dict[str, Any] = {
            "inputs": input_ids.unsqueeze(0).to(self.model.device),
            "max_new_tokens": max_new_tokens,
            "use_cache": True,
            "do_sample": request.temperature > GREEDY_BELOW,
        }
        if arguments["do_sample"]:
            arguments |= {"temperature": request.temperature, "top_p": request.top_p}
        if images is not None:
            arguments |= {"images": images, "image_sizes": image_sizes}
        return arguments

    def stream(
        self, request: GenerationRequest, cancel: threading.Event | None = None
    ) -> Iterator[str]:
        """Generate, yielding text as it becomes final.

        Bytes of an unfinished character are held back, and so is text that may turn out to be the
        beginning of the stop string. Closing the iterator cancels the generation.

        Args:
            request: What to generate.
            cancel: Set it from anywhere to end the generation after the current token.

        Yields:
            Pieces whose concatenation is the answer.

        Raises:
            ContextFull: The prompt leaves no room.
            Exception: Whatever `model.generate` raised, unchanged.
        """
        cancel = cancel or threading.Event()
        arguments = self.prepare(request)
        text = self.answer_text(request, arguments["max_new_tokens"])
        try:
            for ids in generated_ids(self.model, arguments, cancel):
                for token_id in ids:
                    if text.finish_reason is None and (piece := text.push(token_id)):
                        yield piece
                if text.finish_reason is not None:
                    break
            if tail := text.flush():
                yield tail
        finally:
            cancel.set()

    def answer_text(self, request: GenerationRequest, max_new_tokens: int) -> AnswerText:
        """Return what turns the ids of an answer into text and finds its end."""
        return AnswerText(
            self.tokenizer, request.stop, self._stop_id(request.stop), self.end_ids, max_new_tokens
        )

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end an answer, as the checkpoint says."""
        config = getattr(self.model, "generation_config", None)
        end = getattr(config, "eos_token_id", None)
        if end is None:
            return frozenset()
        return frozenset([end] if isinstance(end, int) else end)

    def prompt_ids(self, request: GenerationRequest) -> torch.Tensor:
        """Return the ids [T] of a prompt, with one sentinel for each picture."""
        prompt = request.prompt
        if getattr(self.model.config, "mm_use_im_start_end", False):
            wrapped = DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
            prompt = prompt.replace(DEFAULT_IMAGE_TOKEN, wrapped)
        return tokenizer_image_token(prompt, self.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")

    def room(
        self, request: GenerationRequest, input_ids: torch.Tensor, num_tiles: Sequence[int]
    ) -> int:
        """Return how many tokens the answer may have.

        Args:
            request: What is asked for.
            input_ids: [T], with sentinels.
            num_tiles: Of each picture; 1 for one that is not cut.

        Raises:
            ContextFull: Prompt and pictures fill the context.
        """
        room = self.context_len - self.prompt_len(input_ids, num_tiles)
        if room < 1:
            raise ContextFull
        return min(request.max_new_tokens, room)

    def prompt_len(self, input_ids: torch.Tensor, num_tiles: Sequence[int]) -> int:
        """Return how many positions a prompt takes, or a few more; arguments as for `room`."""
        num_text = int((input_ids != IMAGE_TOKEN_INDEX).sum())
        return num_text + self._num_image_tokens(num_tiles)

    def _stop_id(self, stop: str | None) -> int | None:
        """Return the id of a stop string that is one token: decoding would hide a special one."""
        if not stop:
            return None
        if stop not in self._stop_ids:
            token_id = self.tokenizer.convert_tokens_to_ids(stop)
            known = isinstance(token_id, int) and token_id != self.tokenizer.unk_token_id
            self._stop_ids[stop] = token_id if known else None
        return self._stop_ids[stop]

    def _prepare_images(self, pictures: tuple[Image.Image, ...]) -> tuple[Any, Any]:
        if not pictures:
            return None, None
        if not self.is_multimodal:
            raise DataError(f"model {self.name} takes no pictures, but {len(pictures)} were given")
        rgb = [to_rgb(picture) for picture in pictures]
        images = process_images(rgb, self.image_processor, self.model.config)
        place = {"device": self.model.device, "dtype": self.model.dtype}
        if isinstance(images, list):
            images = [image.to(**place) for image in images]
        else:
            images = images.to(**place)
        return images, [picture.size for picture in rgb]

    def _num_image_tokens(self, num_tiles: Sequence[int]) -> int:
        """Positions that the pictures take; an upper bound for pictures cut into tiles."""
        if not num_tiles:
            return 0
        tower = self.model.get_vision_tower()
        num_tokens = 0
        for number in num_tiles:
            num_tokens += number * tower.num_image_tokens
            if number > 1:  # a newline token ends each row of patches
                num_tokens += number * tower.num_patches_per_side
        return num_tokens


def pick_device(requested: str) -> str:
    """Return the device to use: the one asked for, or the CPU where there is no CUDA."""
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
    """Load a checkpoint for answering.

    Args:
        model_path: Folder or Hub name.
        model_base: The base model of a LoRA or projector-only checkpoint.
        model_name: Name to show; by default LLaVA's rule on the path.
        load_8bit: Quantise to 8 bits (needs bitsandbytes).
        load_4bit: Quantise to 4 bits (needs bitsandbytes).
        device: Where to run; the CPU replaces a missing CUDA device.
        use_flash_attn: Use flash-attention 2.

    Returns:
        The engine.

    Raises:
        CheckpointError: The folder is missing or incomplete.
        ConfigError: Both quantisations were asked for.
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
