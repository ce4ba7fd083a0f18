"""Opens a training picture, turned upright, and shapes it for the vision tower.

Input: a path. Output: [3, S, S]; as bytes where the tower can make the same floats of them as
LLaVA's dataset and inference do, else those floats.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from llava.errors import ConfigError, DataError
from llava.image_bytes import keeps_bytes, preprocess_bytes
from llava.image_file import open_image
from llava.image_fit import central_part, expand2square
from llava.mm_utils import process_images

ASPECT_RATIOS = ("square", "pad")
# with draft mode a picture still has so many times the pixels that the tower takes along a side
DRAFT_MARGIN = 2


class PictureLoader:
    """Opens pictures for one image processor.

    Args:
        processor: The vision tower's image processor.
        aspect_ratio: `pad` (to a square) or `square` (cut out the middle).
        uses_draft: Decode large JPEG files at a half, a quarter or an eighth, where at least twice
            the tower's side is left. Other pixels, though few levels apart, so off by default.

    Raises:
        ConfigError: Another aspect ratio.
    """

    def __init__(self, processor: Any, aspect_ratio: str, uses_draft: bool = False) -> None:
        if aspect_ratio not in ASPECT_RATIOS:
            raise ConfigError(
                f"--image_aspect_ratio is {aspect_ratio!r}; training on a mixture knows: "
                f"{', '.join(ASPECT_RATIOS)}"
            )
        self.processor = processor
        self.aspect_ratio = aspect_ratio
        self.uses_draft = uses_draft
        self.gives_bytes = keeps_bytes(processor)

    @property
    def empty(self) -> Tensor:
        """What stands for the picture of a sample without one: zeros, [3, S, S]."""
        size = self.processor.crop_size
        dtype = torch.uint8 if self.gives_bytes else torch.float32
        return torch.zeros(3, size["height"], size["width"], dtype=dtype)

    def __call__(self, path: Path) -> Tensor:
        """Return [3, S, S].

        Raises:
            DataError: The picture is missing or cannot be read.
        """
        side = self.processor.crop_size["height"]
        try:
            image = open_image(path, least_side=DRAFT_MARGIN * side if self.uses_draft else None)
        except DataError as error:
            if path.exists():
                raise
            raise DataError(
                f"{error}. Unpack or copy the corpus' pictures, or give --image_folder."
            ) from error
        if not self.gives_bytes:
            settings = SimpleNamespace(image_aspect_ratio=self.aspect_ratio)
            pixels: Tensor = process_images([image], self.processor, settings)[0]
            return pixels
        if self.aspect_ratio == "pad":
            color = tuple(int(255 * mean) for mean in self.processor.image_mean)
            image = expand2square(image, color)
        else:
            image = central_part(image)
        return preprocess_bytes(image, self.processor)
