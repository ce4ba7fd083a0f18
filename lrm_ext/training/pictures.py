"""Opens a training picture and shapes it for the vision tower.

Input: a path. Output: [3, S, S], the same as LLaVA's dataset and inference make of it.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from llava.errors import ConfigError, DataError
from llava.image_file import open_image
from llava.mm_utils import process_images

ASPECT_RATIOS = ("square", "pad")


class PictureLoader:
    """Opens pictures for one image processor.

    Args:
        processor: The vision tower's image processor.
        aspect_ratio: `pad` (to a square) or `square` (cut out the middle).

    Raises:
        ConfigError: Another aspect ratio.
    """

    def __init__(self, processor: Any, aspect_ratio: str) -> None:
        if aspect_ratio not in ASPECT_RATIOS:
            raise ConfigError(
                f"--image_aspect_ratio is {aspect_ratio!r}; training on a mixture knows: "
                f"{', '.join(ASPECT_RATIOS)}"
            )
        self.processor = processor
        self.aspect_ratio = aspect_ratio

    def __call__(self, path: Path) -> Tensor:
        """Return [3, S, S].

        Raises:
            DataError: The picture is missing or cannot be read.
        """
        try:
            image = open_image(path)
        except DataError as error:
            if path.exists():
                raise
            raise DataError(
                f"{error}. Unpack or copy the corpus' pictures, or give --image_folder."
            ) from error
        settings = SimpleNamespace(image_aspect_ratio=self.aspect_ratio)
        pixels: Tensor = process_images([image], self.processor, settings)[0]
        return pixels
