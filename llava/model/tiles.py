"""Cuts images into tiles, and carries pixels as bytes that lose nothing.

Input: PIL images, sizes in pixels, the tower's image processor. Output: sizes, images, pixel
tensors. Non-goals: prompts (`llava.data`), what the tower does with the pixels.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava.errors import ConfigError
from llava.model.multimodal_encoder.families import processor_side

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


def num_channels(processor: Any) -> int:
    """Returns the channels of an image processor's output: three for each tower."""
    return 3 * len(getattr(processor, "processors", (processor,)))


def preprocess_tile(image: Image.Image, processor: Any) -> Tensor:
    """Prepares a square that is cut already, without losing a margin to a centre crop.

    Returns:
        [3, S, S].
    """
    options = {}
    if getattr(processor, "size", {}).get("shortest_edge") is not None:
        options["size"] = {"shortest_edge": processor_side(processor)}
    pixels: Tensor = processor.preprocess(image, return_tensors="pt", **options)["pixel_values"][0]
    return pixels


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
        pixels: [..., C, S, S] uint8.
        table: [C, 256], on the same device.

    Returns:
        [..., C, S, S] float32.
    """
    flat = table.flatten()
    # channel c begins at 256 c
    starts = 256 * torch.arange(len(table), device=pixels.device).view(-1, 1, 1)
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
