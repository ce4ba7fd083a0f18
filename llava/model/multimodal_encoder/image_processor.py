"""Reads the image processor of a vision tower, always with its Pillow backend.

In: a tower's folder or Hub id. Out: an image processor that gives the same pixels on every machine
(torchvision's backends differ a little), its side in pixels, or several processors joined for
towers side by side.

Legend: S side of an image in pixels, k number of towers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from llava.errors import CheckpointError, ConfigError
from llava.model.checkpoint import read_config
from llava.model.multimodal_encoder.families import processor_side

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def load_image_processor(tower: str, kind: str = "") -> Any:
    """Reads a tower's image processor.

    Args:
        tower: Folder or Hub id.
        kind: Class of transformers; by default the Pillow backend of the one that the tower names.

    Raises:
        CheckpointError: It cannot be read.
        ConfigError: It has no Pillow backend.
    """
    processor_class = getattr(transformers, kind or _named_class(tower), None)
    if processor_class is None:
        raise ConfigError(
            f"vision tower {tower!r}: transformers has no {kind or _named_class(tower)}, and only "
            "Pillow backends are used; name another image_processor_type in its "
            f"{PROCESSOR_FILES[0]}, such as ViTImageProcessor"
        )
    try:
        return processor_class.from_pretrained(tower)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"vision tower {tower!r}: cannot read its {processor_class.__name__}: {error}"
        ) from error


def _named_class(tower: str) -> str:
    """Returns the name of the Pillow backend of the processor that a tower names."""
    first, second = (read_config(tower, name) or {} for name in PROCESSOR_FILES)
    settings = first or second.get("image_processor") or {}
    named = settings.get("image_processor_type")
    if named is None:
        raise CheckpointError(
            f"vision tower {tower!r}: no image_processor_type in its {PROCESSOR_FILES[0]}: copy "
            "the file from the model's repository"
        )
    return str(named).removesuffix("Pil").removesuffix("Fast") + "Pil"


def set_side(processor: Any, side: int) -> None:
    """Makes a processor give images of `side` x `side` pixels."""
    size = processor.size
    if size.get("shortest_edge") is not None:
        size["shortest_edge"] = side
    else:
        size["height"] = size["width"] = side
    if getattr(processor, "crop_size", None) is not None:
        processor.crop_size["height"] = processor.crop_size["width"] = side


class JoinedProcessor:
    """The image processors of several towers: [3 k, S, S], three channels for each tower.

    S is the largest side; an image of a smaller one lies in the upper left corner, and zeros fill
    the rest.

    Args:
        processors: Those of the towers, in their order.
    """

    def __init__(self, processors: Sequence[Any]) -> None:
        self.processors = tuple(processors)
        side = max(processor_side(processor) for processor in processors)
        self.crop_size = self.size = {"height": side, "width": side}
        # squares are filled up with the first tower's mean colour
        self.image_mean = self.processors[0].image_mean

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> Any:
        """Prepares images for all towers: `pixel_values` [N, 3 k, S, S]."""
        parts = [
            processor.preprocess(images, return_tensors="pt", **kwargs)["pixel_values"]
            for processor in self.processors
        ]
        sides = [max(part.shape[extent] for part in parts) for extent in (-2, -1)]
        return {"pixel_values": torch.cat([_fill_up(part, *sides) for part in parts], dim=1)}

    __call__ = preprocess

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings of all processors."""
        return {"processors": [processor.to_dict() for processor in self.processors]}


def _fill_up(pixels: Tensor, height: int, width: int) -> Tensor:
    return F.pad(pixels, (0, width - pixels.shape[-1], 0, height - pixels.shape[-2]))
