"""The vision tower at several scales (S2, "scaling on scales", Shi et al. 2024).

In: pictures at the largest scale. A picture is shrunk to each scale and cut into squares of the
smallest, which is what the tower was trained on; the squares' features are laid out as one map,
averaged down to the smallest scale's grid, and the scales are put side by side. Out: as many
patches as the plain tower gives, each `num_scales` times as wide.

Legend: N images, L largest side, S smallest side (pixels), n squares along a side, p patches along
a square's side, P = p * p, D tower's hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llava.errors import ConfigError
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower

DEFAULT_SCALES = "336,672,1008"


class CLIPVisionTowerS2(CLIPVisionTower):
    """A CLIP vision model that looks at a picture at several scales.

    Args:
        vision_tower: folder or Hub id of the CLIP model.
        args: as for `CLIPVisionTower`, perhaps with `s2_scales`: sides in pixels, a comma list.
        delay_load: read the configuration only; `load_model` loads the weights.

    Raises:
        ConfigError: the scales do not fit the tower.
    """

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False):
        # before the base class, which may load the model and with it the processor's sizes
        self.s2_scales = parse_scales(getattr(args, "s2_scales", DEFAULT_SCALES))
        super().__init__(vision_tower, args, delay_load)
        if self.select_feature != "patch":
            raise ConfigError(
                "s2 needs mm_vision_select_feature 'patch': CLS has no place in a map"
            )
        if self.s2_split_size != self.config.image_size:
            raise ConfigError(
                f"s2_scales {self.s2_scales}: the smallest is {self.s2_split_size}, but the tower "
                f"{vision_tower} takes pictures of {self.config.image_size} pixels"
            )

    @property
    def s2_split_size(self) -> int:
        """S, the smallest scale in pixels."""
        return self.s2_scales[0]

    @property
    def s2_image_size(self) -> int:
        """L, the largest scale in pixels."""
        return self.s2_scales[-1]

    @property
    def input_size(self) -> int:
        """L, the side of the pictures that `forward` takes."""
        return self.s2_image_size

    @property
    def hidden_size(self) -> int:
        """The size of a feature: D for each scale."""
        return self.config.hidden_size * len(self.s2_scales)

    def load_model(self, device_map: Any = None, dtype: torch.dtype | None = None) -> None:
        """Load weights and image processor, which then makes pictures of the largest scale."""
        super().load_model(device_map=device_map, dtype=dtype)
        side = self.s2_image_size
        self.image_processor.size["shortest_edge"] = side
        self.image_processor.crop_size["height"] = side
        self.image_processor.crop_size["width"] = side

    def _features(self, images: Tensor) -> Tensor:
        """[N, 3, L, L] -> [N, P, scales * D], the smallest scale first."""
        return torch.cat([self._at_scale(images, scale) for scale in self.s2_scales], dim=-1)

    def _at_scale(self, images: Tensor, scale: int) -> Tensor:
        """[N, 3, L, L] -> [N, P, D]."""
        split, num = self.s2_split_size, scale // self.s2_split_size
        if images.shape[-1] != scale:
            # in float32: bicubic weights lose too much in 16 bits
            images = F.interpolate(images.float(), size=(scale, scale), mode="bicubic")
        squares = images.unflatten(3, (num, split)).unflatten(2, (num, split))
        # [N, 3, n, S, n, S] -> [N * n * n, 3, S, S]
        squares = squares.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        features = super()._features(squares)
        if num == 1:
            return features
        patches = self.num_patches_per_side
        # [N, n, n, p, p, D] -> [N, D, n * p, n * p]
        maps = features.reshape(-1, num, num, patches, patches, features.shape[-1])
        maps = maps.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        pooled = F.interpolate(maps.float(), size=(patches, patches), mode="area")
        return pooled.flatten(2).transpose(1, 2).to(features.dtype)


def parse_scales(text: Any) -> tuple[int, ...]:
    """Read `s2_scales` and sort it: "672,336" -> (336, 672).

    Raises:
        ConfigError: no list of sides, or a side is no multiple of the smallest.
    """
    try:
        scales = tuple(sorted({int(part) for part in str(text).split(",")}))
    except ValueError:
        raise ConfigError(
            f"s2_scales is {text!r}; expected sides in pixels, such as {DEFAULT_SCALES!r}"
        ) from None
    if scales[0] < 1 or any(scale % scales[0] for scale in scales):
        raise ConfigError(
            f"s2_scales is {text!r}; each side must be a multiple of the smallest, {scales[0]}"
        )
    return scales
