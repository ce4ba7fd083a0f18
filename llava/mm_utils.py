"""Prepares images and prompts for the model.

Role: what LLaVA's users import as `llava.mm_utils`. Input: PIL images, prompt text. Output:
pixel tensors, token ids. Non-goals: labels (`llava.data`), what the tower does with the pixels.
"""

from __future__ import annotations

import ast
import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria

from llava.constants import IMAGE_TOKEN_INDEX
from llava.data.tokenize import encode_prompt
from llava.errors import ConfigError
from llava.images import central_part, to_rgb
from llava.images import expand2square as expand2square

Size = tuple[int, int]


def select_best_resolution(original_size: Size, possible_resolutions: Sequence[Size]) -> Size:
    """Chooses the grid resolution that keeps most of an image.

    Args:
        original_size: (width, height) in pixels.
        possible_resolutions: Candidates, (width, height) in pixels.

    Returns:
        The candidate with the most effective pixels; among equals the least wasted, then the first.
    """
    width, height = original_size

    def merit(candidate: Size) -> tuple[int, int]:
        scale = min(candidate[0] / width, candidate[1] / height)
        shown = int(width * scale) * int(height * scale)
        effective = min(shown, width * height)
        return effective, effective - candidate[0] * candidate[1]

    return max(possible_resolutions, key=merit)


def resize_and_pad_image(image: Image.Image, target_resolution: Size) -> Image.Image:
    """Fits an image into `target_resolution` (width, height), centred on black."""
    width, height = image.size
    target_width, target_height = target_resolution
    scale_x, scale_y = target_width / width, target_height / height
    if scale_x < scale_y:
        size = (target_width, min(math.ceil(height * scale_x), target_height))
    else:
        size = (min(math.ceil(width * scale_y), target_width), target_height)
    canvas = Image.new("RGB", target_resolution, (0, 0, 0))
    corner = ((target_width - size[0]) // 2, (target_height - size[1]) // 2)
    canvas.paste(image.resize(size), corner)
    return canvas


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Cuts an image into squares of `patch_size` pixels, row by row."""
    return [
        image.crop((x, y, x + patch_size, y + patch_size))
        for y in range(0, image.height, patch_size)
        for x in range(0, image.width, patch_size)
    ]


def read_pinpoints(grid_pinpoints: str | Sequence[Sequence[int]]) -> list[Size]:
    """Reads the list, or its text.

    Raises:
        ConfigError: It is no list of pairs of whole numbers above 0.
    """
    try:
        given = (
            ast.literal_eval(grid_pinpoints) if isinstance(grid_pinpoints, str) else grid_pinpoints
        )
        pairs = [(int(width), int(height)) for width, height in given]
    except (ValueError, TypeError, SyntaxError):
        pairs = []
    if not pairs or min(min(pair) for pair in pairs) < 1:
        raise ConfigError(
            f"image_grid_pinpoints is {grid_pinpoints!r}; expected a list of [width, height] in "
            "pixels, such as [[336, 672], [672, 336]]"
        )
    return pairs


def get_anyres_image_grid_shape(
    image_size: Size, grid_pinpoints: str | Sequence[Sequence[int]], patch_size: int
) -> Size:
    """Returns the number of (columns, rows) of tiles that an image is cut into.

    Args:
        image_size: (width, height) in pixels.
        grid_pinpoints: Allowed resolutions, a list or its text.
        patch_size: Side of a tile in pixels.
    """
    width, height = select_best_resolution(image_size, read_pinpoints(grid_pinpoints))
    return width // patch_size, height // patch_size


def process_anyres_image(
    image: Image.Image, processor: Any, grid_pinpoints: str | Sequence[Sequence[int]]
) -> Tensor:
    """Prepares an image as an overview and its tiles.

    Returns:
        `[1 + tiles, 3, S, S]`; index 0 is the whole image, squeezed to a square.
    """
    resolution = select_best_resolution(image.size, read_pinpoints(grid_pinpoints))
    padded = resize_and_pad_image(image, resolution)
    side = processor.size["shortest_edge"]
    tiles = [image.resize((side, side)), *divide_to_patches(padded, processor.crop_size["height"])]
    return torch.stack([_preprocess(processor, tile) for tile in tiles])


def _preprocess(processor: Any, image: Image.Image) -> Tensor:
    return processor.preprocess(image, return_tensors="pt")["pixel_values"][0]


def load_image_from_base64(image: str | bytes) -> Image.Image:
    """Opens an image that came as base64 text."""
    return Image.open(io.BytesIO(base64.b64decode(image)))


def process_images(
    images: Sequence[Image.Image], image_processor: Any, model_cfg: Any
) -> Tensor | list[Tensor]:
    """Prepares images as the model's configuration asks for.

    Args:
        images: Images; whatever is not RGB is converted (`llava.images.to_rgb`).
        image_processor: The tower's.
        model_cfg: `image_aspect_ratio` is `pad`, `anyres` (with `image_grid_pinpoints`) or
            anything else for CLIP's own resize and crop.

    Returns:
        `[N, 3, S, S]`, `[N, 1 + tiles, 3, S, S]`, or a list where the numbers of tiles differ.

    Raises:
        ConfigError: `anyres` without `image_grid_pinpoints`.
    """
    images = [to_rgb(image) for image in images]
    ratio = getattr(model_cfg, "image_aspect_ratio", None)
    if ratio == "pad":
        colour = tuple(int(255 * mean) for mean in image_processor.image_mean)
        prepared = [_preprocess(image_processor, expand2square(i, colour)) for i in images]
    elif ratio == "anyres":
        pinpoints = getattr(model_cfg, "image_grid_pinpoints", None)
        if not pinpoints:
            raise ConfigError(
                "image_aspect_ratio is 'anyres', but image_grid_pinpoints is missing: give the "
                "list of [width, height] that images may be cut to, in config.json"
            )
        prepared = [process_anyres_image(i, image_processor, pinpoints) for i in images]
    else:
        crops = [central_part(image) for image in images]
        return image_processor(crops, return_tensors="pt")["pixel_values"]
    is_even = all(tensor.shape == prepared[0].shape for tensor in prepared)
    return torch.stack(prepared) if is_even else prepared


def tokenizer_image_token(
    prompt: str,
    tokenizer: Any,
    image_token_index: int = IMAGE_TOKEN_INDEX,
    return_tensors: str | None = None,
) -> list[int] | Tensor:
    """Tokenizes a prompt, with one sentinel for each `<image>`.

    Args:
        prompt: The whole prompt. Text before and after a placeholder is tokenized apart.
        tokenizer: A transformers tokenizer.
        image_token_index: The sentinel.
        return_tensors: None for a list, `pt` for a LongTensor `[T]`.

    Raises:
        ValueError: Another kind of tensor was asked for.
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f"Unsupported tensor type: {return_tensors}; use 'pt' or None")
    ids = encode_prompt(prompt, tokenizer, image_token_index)
    return torch.tensor(ids, dtype=torch.long) if return_tensors else ids


def get_model_name_from_path(model_path: str) -> str:
    """Returns the name of a model: its folder's, after the parent's for a `checkpoint-` folder."""
    parts = model_path.strip("/").split("/")
    if parts[-1].startswith("checkpoint-") and len(parts) > 1:
        return f"{parts[-2]}_{parts[-1]}"
    return parts[-1]


def preprocess_bytes(image: Image.Image, processor: Any) -> Tensor:
    """Resizes and crops an image as the processor does, but leaves the values unscaled.

    Returns:
        [3, S, S] uint8.
    """
    pixels: Tensor = processor.preprocess(
        image, return_tensors="pt", do_rescale=False, do_normalize=False
    )["pixel_values"][0]
    return pixels


def byte_table(processor: Any) -> Tensor:
    """Returns what the processor makes of each byte: [3, 256] float32."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    pixels: Tensor = processor.preprocess(
        Image.fromarray(ramp), return_tensors="pt", do_resize=False, do_center_crop=False
    )["pixel_values"][0]
    return pixels[:, 0].float()


def to_floats(pixels: Tensor, table: Tensor) -> Tensor:
    """Converts bytes to what the processor would have given.

    Args:
        pixels: [..., 3, S, S] uint8.
        table: [3, 256], on the same device.

    Returns:
        [..., 3, S, S] float32.
    """
    flat = table.flatten()
    # channel c begins at 256 c
    starts = 256 * torch.arange(3, device=pixels.device).view(3, 1, 1)
    return flat[pixels.to(torch.int64) + starts]


def keeps_bytes(processor: Any) -> bool:
    """Tests whether a processor's images can be sent as bytes without changing a bit."""
    values = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    try:
        pixels = preprocess_bytes(image, processor)
        expected = processor.preprocess(image, return_tensors="pt")["pixel_values"][0]
        return pixels.dtype == torch.uint8 and torch.equal(
            to_floats(pixels, byte_table(processor)), expected
        )
    except (TypeError, ValueError, KeyError, RuntimeError):  # a processor without these switches
        return False


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops a sequence at the first keyword that it generates.

    Args:
        keywords: Texts to stop at.
        tokenizer: A transformers tokenizer.
        input_ids: `[B, T]`, the prompt; only its length is used.
    """

    def __init__(self, keywords: Sequence[str], tokenizer: Any, input_ids: Tensor) -> None:
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self.start_len = input_ids.shape[1]
        self.keyword_ids = []
        for keyword in self.keywords:
            ids = tokenizer(keyword).input_ids
            has_bos = len(ids) > 1 and ids[0] == tokenizer.bos_token_id
            self.keyword_ids.append(torch.tensor(ids[has_bos:]))
        self.max_keyword_len = max((len(ids) for ids in self.keyword_ids), default=0)

    def call_for_batch(self, output_ids: Tensor, scores: Any, **kwargs: Any) -> bool:
        """Tells whether the first row of `output_ids` `[1, T]` ends with a keyword."""
        row = output_ids[0].cpu()
        if any(torch.equal(row[-len(ids) :], ids) for ids in self.keyword_ids):
            return True
        num_tail = min(len(row) - self.start_len, self.max_keyword_len)
        # Generation from embeddings returns no prompt, so there may be less than `start_len`.
        num_tail = num_tail if num_tail > 0 else min(len(row), self.max_keyword_len)
        tail = self.tokenizer.decode(row[-num_tail:], skip_special_tokens=True) if num_tail else ""
        return any(keyword in tail for keyword in self.keywords)

    def __call__(self, output_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Returns a bool tensor `[B]`: which rows are done."""
        done = [self.call_for_batch(row[None], scores) for row in output_ids]
        return torch.tensor(done, dtype=torch.bool, device=output_ids.device)
