"""The multimodal keys of `config.json`, read in one place with their documented defaults.

In: a model configuration, where every such key may be absent (old checkpoints). Out: a frozen
`MultimodalConfig`. Who writes the keys: `LlavaMetaModel.initialize_vision_modules` and `train()`.
The keys stay out of `LlavaConfig` itself, because an absent `mm_vision_tower` means "no tower".
"""

from __future__ import annotations

import dataclasses
from typing import Any

PATCH_MERGE_TYPES = ("flat", "spatial", "spatial_unpad")


@dataclasses.dataclass(frozen=True)
class MultimodalConfig:
    """The multimodal part of a model's configuration; field names are the keys of `config.json`."""

    mm_vision_tower: str | None = None
    mm_projector_type: str = "linear"
    mm_patch_merge_type: str = "flat"
    mm_use_im_start_end: bool = False
    mm_use_im_patch_token: bool = True
    tune_mm_mlp_adapter: bool = False
    unfreeze_mm_vision_tower: bool = False
    image_aspect_ratio: str = "square"
    image_grid_pinpoints: Any = None
    tokenizer_padding_side: str = "right"
    tokenizer_model_max_length: int | None = None
    max_sequence_length: int | None = None

    @classmethod
    def from_config(cls, config: Any) -> MultimodalConfig:
        """Read the keys that `config` has; the others keep their defaults."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(config, name) for name in names if hasattr(config, name)})

    @property
    def has_image_newline(self) -> bool:
        """Whether the model owns an `image_newline` parameter."""
        return "unpad" in (self.mm_patch_merge_type or "")
