"""Implements the CLIP vision tower: images to patch features, at one scale or at several.

In: [N, 3, S, S] preprocessed images. Out: [N, P, D] hidden states of the selected layer. A frozen
tower runs without gradients, in its own dtype and in evaluation mode. Spelling of weights: current
transformers has no `vision_model.` level, checkpoints have; both are read, the old one is written.

At several scales (S2, "scaling on scales", Shi et al. 2024) an image comes at the largest scale.
It is shrunk to each scale and cut into squares of the smallest, which is what the tower was trained
on; the squares' features are laid out as one map, averaged down to the smallest scale's grid, and
the scales are put side by side: as many patches as the plain tower gives, each `num_scales` times
as wide.

Legend: N images, S side in pixels, P patches (plus 1 with `cls_patch`), D tower's hidden size;
with S2 also L largest side, n squares along a side, p patches along a square's side.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from llava.errors import CheckpointError, ConfigError
from llava.model.checkpoint import read_config
from llava.model.tiles import byte_table, to_floats

log = logging.getLogger(__name__)

_OLD_LEVEL = "vision_model."
_NEW_KEY = re.compile(rf"(vision_tower\.vision_tower\.)(?!{re.escape(_OLD_LEVEL)})")


class CLIPVisionTower(nn.Module):
    """A CLIP vision model that returns the hidden states of one layer.

    Args:
        vision_tower: Folder or Hub id of the CLIP model.
        args: Has `mm_vision_select_layer`, perhaps `mm_vision_select_feature` and
            `unfreeze_mm_vision_tower`.
        delay_load: Read the configuration only; `load_model` loads the weights.
    """

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False):
        super().__init__()
        self.is_loaded = False
        self.vision_tower_name = vision_tower
        self.select_layer: int = args.mm_vision_select_layer
        self.select_feature: str = getattr(args, "mm_vision_select_feature", "patch")
        if self.select_feature not in ("patch", "cls_patch"):
            raise ConfigError(
                f"Unexpected select feature: {self.select_feature!r}. Choices: patch, cls_patch"
            )
        kind = (read_config(vision_tower) or {}).get("model_type")
        if kind not in (None, "clip", "clip_vision_model"):
            # transformers would begin with random weights
            raise ConfigError(
                f"vision tower {vision_tower!r} is a {kind!r} model; only CLIP models are supported"
            )
        self.register_load_state_dict_pre_hook(_accept_old_level)
        if not delay_load or getattr(args, "unfreeze_mm_vision_tower", False):
            self.load_model()
        else:
            self.cfg_only: CLIPVisionConfig = self._read(CLIPVisionConfig)

    def load_model(self, device_map: Any = None, dtype: torch.dtype | None = None) -> None:
        """Loads weights and image processor; a second call does nothing.

        Inside `from_pretrained` of the whole model (parameters on the meta device) only the shape
        is built: its weights come from the model's own checkpoint.

        Args:
            device_map: As for `from_pretrained`.
            dtype: Of the weights; float32 if None.

        Raises:
            CheckpointError: The tower cannot be read, or its weights are missing or of another
                shape.
        """
        if self.is_loaded:
            log.info("vision tower %s is loaded already", self.vision_tower_name)
            return
        # the PIL backend, for the same pixels on every machine: torchvision's differs a little
        self.image_processor = self._read(CLIPImageProcessorPil)
        if torch.get_default_device().type == "meta":
            self.vision_tower = CLIPVisionModel(self._read(CLIPVisionConfig))
        else:
            # mismatches are not ignored: the error below names them
            self.vision_tower, info = self._read(
                CLIPVisionModel,
                device_map=device_map,
                dtype=dtype or torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
            gaps = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
            if gaps:
                raise CheckpointError(
                    f"vision tower {self.vision_tower_name!r}: {len(gaps)} weights are missing or "
                    f"of another shape, e.g. {sorted(gaps)[:3]}; its files are incomplete or its "
                    "config.json is another model's"
                )
        self.vision_tower.requires_grad_(False).eval()
        self.is_loaded = True
        # for datasets, which are given the processor and not the tower
        self.image_processor.num_image_tokens = self.num_image_tokens

    def _read(self, kind: Any, **kwargs: Any) -> Any:
        try:
            return kind.from_pretrained(self.vision_tower_name, **kwargs)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"vision tower {self.vision_tower_name!r}: cannot read its {kind.__name__}: {error}"
            ) from error

    @property
    def is_frozen(self) -> bool:
        """Tells whether no parameter of the tower is trained."""
        return not any(parameter.requires_grad for parameter in self.parameters())

    def train(self, mode: bool = True) -> CLIPVisionTower:
        """Sets training mode; a frozen tower stays in evaluation mode."""
        return super().train(mode and not self.is_frozen)

    def feature_select(self, image_forward_outs: Any) -> Tensor:
        """Takes the selected layer from a CLIP output with `hidden_states`: [N, P, D]."""
        return self._select(image_forward_outs.hidden_states[self.select_layer])

    def _select(self, hidden: Tensor) -> Tensor:
        """Drops the class token, unless it is selected: [N, 1 + P, D] -> [N, P, D]."""
        return hidden[:, 1:] if self.select_feature == "patch" else hidden

    def forward(self, images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """Encodes images.

        Args:
            images: [N, 3, S, S], or a list of [3, S, S] that are run one by one. Bytes (uint8) are
                resized images, whose values are prepared here.

        Returns:
            [N, P, D] in the dtype of the images (for bytes the tower's), or a list of [1, P, D].
        """
        if isinstance(images, list):
            return [self._encode(image.unsqueeze(0)) for image in images]
        return self._encode(images)

    def _encode(self, images: Tensor) -> Tensor:
        dtype = images.dtype
        images = images.to(device=self.device)
        if dtype == torch.uint8:
            dtype = self.dtype
            images = to_floats(images, self._byte_table(images.device))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            return self._features(images).to(dtype)

    def _byte_table(self, device: torch.device) -> Tensor:
        # no buffer: checkpoints do not have it
        table: Tensor | None = self.__dict__.get("_table")
        if table is None or table.device != device:
            table = self.__dict__["_table"] = byte_table(self.image_processor).to(device)
        return table

    def _features(self, images: Tensor) -> Tensor:
        """[N, 3, S, S] in any dtype -> [N, P, D] in the tower's, of CLIP's `select_layer`.

        The layers after it are not run. Not by `output_hidden_states`: transformers (5.23) records
        a nested model's states twice once an outer model was asked for its own, and the index then
        means another layer.
        """
        layers = self.vision_tower.encoder.layers
        states = len(layers) + 1  # the first is the embeddings'
        if not -states <= self.select_layer < states:
            raise ConfigError(
                f"mm_vision_select_layer {self.select_layer}: the tower has {states} hidden "
                f"states, choose from {-states} to {states - 1}"
            )
        embeddings = self.vision_tower.embeddings(images.to(dtype=self.dtype))
        hidden = self.vision_tower.pre_layrnorm(embeddings)
        for layer in layers[: self.select_layer % states]:
            hidden = layer(hidden, attention_mask=None)
        return self._select(hidden)

    @property
    def dummy_feature(self) -> Tensor:
        """A feature of zeros, [1, D]."""
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)

    @property
    def dummy_image(self) -> Tensor:
        """An image of zeros, [3, S, S]."""
        side = self.input_size
        return torch.zeros(3, side, side, device=self.device, dtype=self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.vision_tower.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.vision_tower.device

    @property
    def config(self) -> CLIPVisionConfig:
        """The tower's configuration, loaded or not."""
        return self.vision_tower.config if self.is_loaded else self.cfg_only

    @property
    def input_size(self) -> int:
        """S, the side of the images that `forward` takes, in pixels."""
        return self.config.image_size

    @property
    def hidden_size(self) -> int:
        """D, the size of a feature."""
        return self.config.hidden_size

    @property
    def num_patches_per_side(self) -> int:
        """Patches along one side of an image."""
        return self.config.image_size // self.config.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of an image (P with select feature `patch`)."""
        return self.num_patches_per_side**2

    @property
    def num_image_tokens(self) -> int:
        """Positions of an image in the language model: P."""
        return self.num_patches + (self.select_feature == "cls_patch")


def save_tower(tower: CLIPVisionModel, folder: str | Path) -> None:
    """Writes a CLIP model as a folder whose keys have the level `vision_model.`.

    Transformers 4 and vLLM know no other spelling: there, keys without it leave the tower with
    random weights, or are refused.
    """
    weights = {_OLD_LEVEL + key: value for key, value in tower.state_dict().items()}
    tower.save_pretrained(folder, state_dict=weights)


def with_old_level(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Spells the tower's weights as checkpoints do: `...vision_tower.vision_model.*`.

    Args:
        state_dict: Of a whole model; keys of other modules and keys already so spelt stay.
    """
    return {_NEW_KEY.sub(rf"\1{_OLD_LEVEL}", key): value for key, value in state_dict.items()}


def _accept_old_level(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Lets `load_state_dict` read the old spelling (a resumed training run uses it)."""
    old = f"{prefix}vision_tower.{_OLD_LEVEL}"
    for key in [key for key in state_dict if key.startswith(old)]:
        value = state_dict.pop(key)
        if not key.endswith("embeddings.position_ids"):
            state_dict[f"{prefix}vision_tower.{key.removeprefix(old)}"] = value


DEFAULT_SCALES = "336,672,1008"


class CLIPVisionTowerS2(CLIPVisionTower):
    """A CLIP vision model that looks at an image at several scales.

    Args:
        vision_tower: Folder or Hub id of the CLIP model.
        args: As for `CLIPVisionTower`, perhaps with `s2_scales`: sides in pixels, a comma list.
        delay_load: Read the configuration only; `load_model` loads the weights.

    Raises:
        ConfigError: The scales do not fit the tower.
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
                f"{vision_tower} takes images of {self.config.image_size} pixels"
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
        """L, the side of the images that `forward` takes."""
        return self.s2_image_size

    @property
    def hidden_size(self) -> int:
        """The size of a feature: D for each scale."""
        return self.config.hidden_size * len(self.s2_scales)

    def load_model(self, device_map: Any = None, dtype: torch.dtype | None = None) -> None:
        """Loads weights and image processor, which then makes images of the largest scale."""
        super().load_model(device_map=device_map, dtype=dtype)
        side = self.s2_image_size
        self.image_processor.size["shortest_edge"] = side
        for name in ("height", "width"):
            self.image_processor.crop_size[name] = side

    def _features(self, images: Tensor) -> Tensor:
        """[N, 3, L, L] -> [N, P, scales * D], the smallest scale first."""
        return torch.cat([self._at_scale(images, scale) for scale in self.s2_scales], dim=-1)

    def _at_scale(self, images: Tensor, scale: int) -> Tensor:
        """[N, 3, L, L] -> [N, P, D]."""
        num = scale // self.s2_split_size
        if images.shape[-1] != scale:
            # in float32: bicubic weights lose too much in 16 bits
            images = F.interpolate(images.float(), size=(scale, scale), mode="bicubic")
        squares = rearrange(images, "n c (i h) (j w) -> (n i j) c h w", i=num, j=num)
        features = super()._features(squares)
        if num == 1:
            return features
        patches = self.num_patches_per_side
        maps = rearrange(features, "(n i j) (h w) d -> n d (i h) (j w)", i=num, j=num, h=patches)
        pooled = F.interpolate(maps.float(), size=(patches, patches), mode="area")
        return rearrange(pooled, "n d h w -> n (h w) d").to(features.dtype)


def parse_scales(text: Any) -> tuple[int, ...]:
    """Reads and sorts `s2_scales`: "672,336" -> (336, 672).

    Raises:
        ConfigError: No list of sides, or a side is no multiple of the smallest.
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
