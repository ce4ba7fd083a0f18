"""Pictures as bytes on their way to the vision tower: a quarter of what floats take.

Role: resizing gives bytes anyway, and what a processor does after that (rescale, normalise) looks
at one byte at a time. So a table of 256 values a channel, made by the processor itself, does the
same on the device, bit for bit. Input: a processor of the PIL backend. Output: [3, S, S] uint8, or
floats of them. Non-goals: opening and fitting pictures (`image_file.py`, `image_fit.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def preprocess_bytes(image: Image.Image, processor: Any) -> Tensor:
    """Resize and crop a picture as the processor does, without what it does to values.

    Returns:
        [3, S, S] uint8.
    """
    pixels: Tensor = processor.preprocess(
        image, return_tensors="pt", do_rescale=False, do_normalize=False
    )["pixel_values"][0]
    return pixels


def byte_table(processor: Any) -> Tensor:
    """What the processor makes of each byte: [3, 256] float32."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    pixels: Tensor = processor.preprocess(
        Image.fromarray(ramp), return_tensors="pt", do_resize=False, do_center_crop=False
    )["pixel_values"][0]
    return pixels[:, 0].float()


def to_floats(pixels: Tensor, table: Tensor) -> Tensor:
    """Look bytes up: what the processor would have given.

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
    """Tell whether a processor's pictures can travel as bytes with no bit changed: by trying."""
    values = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    try:
        pixels = preprocess_bytes(image, processor)
        expected = processor.preprocess(image, return_tensors="pt")["pixel_values"][0]
        return pixels.dtype == torch.uint8 and torch.equal(
            to_floats(pixels, byte_table(processor)), expected
        )
    except (TypeError, ValueError, KeyError, RuntimeError):  # a processor that knows no such switch
        return False
