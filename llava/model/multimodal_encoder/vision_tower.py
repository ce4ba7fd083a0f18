"""Implements vision towers: images to patch features, at one scale or several, of one tower or two.

In: [N, 3, S, S] preprocessed images. Out: [N, P, D] hidden states of the selected layer. A frozen
tower runs without gradients, in its own dtype and in evaluation mode. Any vision model that
transformers builds can be one: what differs from kind to kind is in `families`, and a kind that is
not there is measured with an image of zeros on the meta device.

Spelling of weights: current transformers has no `vision_model.` level in CLIP and SigLIP,
checkpoints have; both are read, the old one is written.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from einops import rearrange
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from llava.errors import CheckpointError, ConfigError
from llava.model.checkpoint import accept_old_level, read_config
from llava.model.multimodal_encoder.families import (
    NUM_TOKENS_KEY,
    PLACE_IT,
    REFUSED,
    Deviation,
    choices,
    deviation_of,
    family_of,
    grid_side,
    processor_side,
    resolve_tower,
    side_px,
    split_towers,
    vision_part,
)
from llava.model.multimodal_encoder.image_processor import (
    JoinedProcessor,
    load_image_processor,
    set_side,
)
from llava.model.tiles import byte_table, to_floats

log = logging.getLogger(__name__)


class _Blocks(nn.ModuleList):
    """Blocks of a vision model, of which a loop runs the first `num_run` only (None: all)."""

    num_run: int | None = None

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(list(self._modules.values())[: self.num_run])


# what the running thread wants: index of a hidden state, and where to put it
_wanted: ContextVar[tuple[int, list[Tensor]] | None] = ContextVar("wanted", default=None)


def _keep_state(index: int, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
    """Keeps the input (index 0) or the output of a block if that is the hidden state wanted."""
    wanted = _wanted.get()
    if wanted is not None and wanted[0] == index:
        if output is None:
            output = args[0] if args else kwargs["hidden_states"]
        wanted[1].append(output[0] if isinstance(output, (tuple, list)) else output)


@contextmanager
def _wanting(index: int) -> Iterator[list[Tensor]]:
    """Collects the hidden states `index` of the models that run meanwhile in this thread."""
    kept: list[Tensor] = []
    token = _wanted.set((index, kept))
    try:
        yield kept
    finally:
        _wanted.reset(token)


def instrument(model: nn.Module, name: str) -> _Blocks:
    """Makes a model's blocks stoppable and its hidden states readable; returns the blocks.

    Not by `output_hidden_states`: transformers (5.23) records a nested model's states twice once an
    outer model was asked for its own, and the index then means another layer.

    Args:
        model: A vision model of transformers.
        name: Of the tower, for messages.

    Raises:
        ConfigError: It is no sequence of `num_hidden_layers` blocks.
    """
    num_layers = getattr(model.config, "num_hidden_layers", None)
    for parent in model.modules():
        for attribute, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == num_layers:
                blocks = _Blocks(child)
                setattr(parent, attribute, blocks)
                blocks[0].register_forward_pre_hook(partial(_keep_state, 0), with_kwargs=True)
                for i, block in enumerate(blocks, 1):
                    block.register_forward_hook(partial(_keep_state, i), with_kwargs=True)
                return blocks
    raise ConfigError(
        f"vision tower {name!r}: {type(model).__name__} has no list of num_hidden_layers "
        f"({num_layers}) blocks, so it has no hidden states to select; name a vision transformer, "
        "such as google/siglip2-so400m-patch14-384"
    )


class ImageEncoder(nn.Module):
    """What all towers have in common: it runs `_features` in the right dtype and mode."""

    image_processor: Any
    # of an image; three for each tower
    num_channels = 3
    # of a published checkpoint, see `families`
    deviation: Deviation | None
    # defined by each class
    is_loaded: Any
    select_layer: Any
    select_feature: Any
    vision_tower_name: str
    num_patches_per_side: Any
    num_image_tokens: Any
    hidden_size: Any
    input_size: Any
    config: Any
    dtype: Any
    device: Any
    load_model: Any
    check_selection: Any

    @property
    def is_frozen(self) -> bool:
        """Tells whether no parameter of the tower is trained."""
        return not any(parameter.requires_grad for parameter in self.parameters())

    def train(self, mode: bool = True) -> ImageEncoder:
        """Sets training mode; a frozen tower stays in evaluation mode."""
        return super().train(mode and not self.is_frozen)

    def forward(self, images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """Encodes images.

        Args:
            images: [N, 3, S, S], or a list of [3, S, S] that are run one by one. Bytes (uint8) are
                resized images, whose values are prepared here. Towers side by side take three
                channels each.

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
        """[N, 3, S, S] in any dtype -> [N, P, D] in the tower's."""
        raise NotImplementedError

    @property
    def dummy_feature(self) -> Tensor:
        """A feature of zeros, [1, D]."""
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)

    @property
    def dummy_image(self) -> Tensor:
        """An image of zeros, [3, S, S]."""
        shape = self.num_channels, self.input_size, self.input_size
        return torch.zeros(shape, device=self.device, dtype=self.dtype)

    @property
    def num_patches(self) -> int:
        """Patches of an image (P with select feature `patch`)."""
        return self.num_patches_per_side**2


class VisionTower(ImageEncoder):
    """A vision model that returns the hidden states of one layer.

    Args:
        vision_tower: Folder or Hub id of the model, or of a model with a vision part.
        args: Has `mm_vision_select_layer`, perhaps `mm_vision_select_feature` and
            `unfreeze_mm_vision_tower`. The configuration of a published checkpoint decides by
            `model_type` and `architectures` how its code treated its tower (see `families`).
        delay_load: Read the configuration only; `load_model` loads the weights.

    Raises:
        ConfigError: The model cannot be a tower, or the layer or the feature is unknown.
    """

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False):
        super().__init__()
        self.is_loaded = False
        self.vision_tower_name = vision_tower
        self.select_layer: int = args.mm_vision_select_layer
        self.select_feature: str = getattr(args, "mm_vision_select_feature", "patch")
        written = read_config(vision_tower) or {}
        model_type = vision_part(written).get("model_type", written.get("model_type"))
        if model_type in REFUSED:
            raise ConfigError(
                f"vision tower {vision_tower!r} is a {model_type!r} model: {REFUSED[model_type]}"
            )
        # a folder of CLIP's weights may say nothing at all
        self.family = family_of(model_type or "clip_vision_model")
        self.deviation = deviation_of(args, self.family)
        self.cfg_only = self._vision_config()
        # first: a model without hidden states needs no image processor to be refused
        self.check_selection()
        self._side = self._image_side()
        self._num_prefix = self._measure() if self.family is None else self._known_prefix()
        self._check_num_tokens(getattr(args, NUM_TOKENS_KEY, None))
        if self.family is not None and self.family.old_level:
            self.register_load_state_dict_pre_hook(accept_old_level)
        if not delay_load or getattr(args, "unfreeze_mm_vision_tower", False):
            self.load_model()

    def _vision_config(self) -> Any:
        """Reads the configuration, of a whole model its vision part, as transformers' object."""
        if self.family is not None and "clip" in self.family.model_types:
            config = self._read(transformers.CLIPVisionConfig)
        else:
            config = self._read(AutoConfig, trust_remote_code=False)
            config = getattr(config, "vision_config", None) or config
        if self.deviation is not None and self.deviation.num_cut_layers:
            config.num_hidden_layers -= self.deviation.num_cut_layers
            config.vision_use_head = False
        return config

    @property
    def _model_class(self) -> Any:
        """The class of transformers for the configuration."""
        kind = type(self.cfg_only)
        # some vision parts are not in the table of `AutoModel`
        named = getattr(transformers, kind.__name__.removesuffix("Config") + "Model", None)
        found = MODEL_MAPPING.get(kind, None) or named
        if found is None:
            raise ConfigError(
                f"vision tower {self.vision_tower_name!r}: transformers has no model for "
                f"{kind.__name__}; {choices()}"
            )
        return found

    def _image_side(self) -> int:
        """Returns the side of an image in pixels, as the processor makes it or the model needs."""
        where = f"vision tower {self.vision_tower_name!r}: image_size"
        configured = side_px(getattr(self.cfg_only, "image_size", None), where)
        if configured is not None and self.family is not None and not self.family.any_size:
            return configured
        kind = "" if self.family is None else self.family.processor
        try:
            return processor_side(load_image_processor(self.vision_tower_name, kind))
        except ConfigError as error:
            raise ConfigError(f"vision tower {self.vision_tower_name!r}: {error}") from error

    def _known_prefix(self) -> int:
        """Returns the number of positions before the patches."""
        assert self.family is not None
        registers = self.family.num_registers(self.cfg_only.to_dict())
        return self.family.num_class_tokens + registers

    def _measure(self) -> int:
        """Runs a tower of an unknown kind on the meta device; returns its positions before patches.

        Raises:
            ConfigError: Its hidden states are no sequence of a few positions and a square of
                patches.
        """
        name, side = self.vision_tower_name, self._side
        with torch.device("meta"), torch.no_grad():
            try:
                model = self._model_class(self.cfg_only).eval()
                instrument(model, name)
                with _wanting(1) as kept:
                    model(pixel_values=torch.zeros(1, 3, side, side, dtype=model.dtype))
            except ConfigError:
                raise
            except Exception as error:  # whatever a model raises that is no tower
                raise ConfigError(
                    f"vision tower {name!r}: a {self.cfg_only.model_type!r} model cannot encode "
                    f"images of {side} pixels ({type(error).__name__}: {error}); {choices()}"
                ) from error
        shape = tuple(kept[0].shape) if kept else ()
        num_positions = shape[1] if len(shape) == 3 else 0
        num_patches = grid_side(side, self._patch_size, num_positions) ** 2
        if num_patches < 1 or not num_patches <= num_positions < num_patches + side:
            raise ConfigError(
                f"vision tower {name!r}: the hidden states of a {self.cfg_only.model_type!r} model "
                f"have the shape {shape}; expected [1, {num_patches} patches and perhaps a few "
                f"positions before them, D] for images of {side} pixels; {choices()}"
            )
        return num_positions - num_patches

    @property
    def _patch_size(self) -> int | None:
        where = f"vision tower {self.vision_tower_name!r}: patch_size"
        return side_px(getattr(self.cfg_only, "patch_size", None), where)

    def check_selection(self) -> None:
        """Checks `select_layer` and `select_feature`.

        Raises:
            ConfigError: One of them is unknown.
        """
        if self.select_feature not in ("patch", "cls_patch"):
            raise ConfigError(
                f"Unexpected select feature: {self.select_feature!r}. Choices: patch, cls_patch"
            )
        states = self._num_states
        if not -states <= self.select_layer < states:
            raise ConfigError(
                f"mm_vision_select_layer {self.select_layer}: the tower has {states} hidden "
                f"states, choose from {-states} to {states - 1}"
            )

    def _check_num_tokens(self, recorded: int | None) -> None:
        if recorded is not None and recorded != self.num_image_tokens:
            raise ConfigError(
                f"vision tower {self.vision_tower_name!r} gives {self.num_image_tokens} tokens an "
                f"image, but the model was trained with {recorded} ({NUM_TOKENS_KEY} in its "
                "config.json): restore the tower's config.json and preprocessor_config.json"
            )

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
            ConfigError: Its image processor makes images of another size than it takes.
        """
        if self.is_loaded:
            log.info("vision tower %s is loaded already", self.vision_tower_name)
            return
        kind = "" if self.family is None else self.family.processor
        # the PIL backend, for the same pixels on every machine: torchvision's differs a little
        self.image_processor = load_image_processor(self.vision_tower_name, kind)
        if (side := processor_side(self.image_processor)) != self._side:
            raise ConfigError(
                f"vision tower {self.vision_tower_name!r} takes images of {self._side} pixels, but "
                f"its preprocessor_config.json makes them {side}: correct the size there"
            )
        if torch.get_default_device().type == "meta":
            self.vision_tower = self._model_class(self.cfg_only)
        else:
            self.vision_tower = self._weights(device_map, dtype or torch.float32)
        # in a tuple, so that the blocks are no submodules twice
        self._blocks = (instrument(self.vision_tower, self.vision_tower_name),)
        self.vision_tower.requires_grad_(False).eval()
        self.is_loaded = True
        # for datasets, which are given the processor and not the tower
        self.image_processor.num_image_tokens = self.num_image_tokens

    def _weights(self, device_map: Any, dtype: torch.dtype) -> Any:
        """Loads the model with its weights."""
        # mismatches are not ignored: the error below names them
        model, info = self._read(
            self._model_class,
            config=self.cfg_only,
            device_map=device_map,
            dtype=dtype,
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
        return model

    def _read(self, kind: Any, **kwargs: Any) -> Any:
        try:
            return kind.from_pretrained(self.vision_tower_name, **kwargs)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"vision tower {self.vision_tower_name!r}: cannot read its {kind.__name__}: {error}"
                f"\n{PLACE_IT}" + (f"\n{choices()}" if kind is AutoConfig else "")
            ) from error

    def feature_select(self, image_forward_outs: Any) -> Tensor:
        """Takes the selected layer from an output with `hidden_states`: [N, P, D]."""
        return self._select(image_forward_outs.hidden_states[self.state_index])

    def _select(self, hidden: Tensor) -> Tensor:
        """Drops registers, and the class token unless it is selected: [N, ..., D] -> [N, P, D]."""
        patches = hidden[:, self._num_prefix + self._num_dropped :]
        if not self._num_kept:
            return patches
        if self._num_kept == self._num_prefix:
            return hidden
        return torch.cat([hidden[:, : self._num_kept], patches], dim=1)

    @property
    def _num_kept(self) -> int:
        """Positions before the patches that are kept; registers never are."""
        if self.select_feature != "cls_patch":
            return 0
        return self._num_prefix if self.family is None else self.family.num_class_tokens

    @property
    def _num_dropped(self) -> int:
        """Patches at the beginning that a published checkpoint's code drops."""
        is_patch = self.select_feature == "patch"
        return self.deviation.num_dropped if self.deviation is not None and is_patch else 0

    @property
    def _num_states(self) -> int:
        """Number of hidden states; the first is the embeddings'."""
        num_layers = getattr(self.cfg_only, "num_hidden_layers", None)
        if num_layers is None:
            raise ConfigError(
                f"vision tower {self.vision_tower_name!r}: a {self.cfg_only.model_type!r} model "
                f"has no num_hidden_layers, so it has no hidden states to select; {choices()}"
            )
        return int(num_layers) + 1

    @property
    def state_index(self) -> int:
        """Index of the selected hidden state, from 0; so many layers run."""
        cuts = self.deviation is not None and self.deviation.num_cut_layers > 0
        return self._num_states - 1 if cuts else self.select_layer % self._num_states

    def _features(self, images: Tensor) -> Tensor:
        """[N, 3, S, S] in any dtype -> [N, P, D] in the tower's, of `select_layer`.

        The layers after it are not run.
        """
        self.check_selection()
        index = self.state_index
        self._blocks[0].num_run = max(index, 1)
        with _wanting(index) as kept:
            self.vision_tower(pixel_values=images.to(dtype=self.dtype))
        return self._select(kept[0])

    @property
    def num_left_out(self) -> int:
        """Positions of the selected hidden state that are left out of the features."""
        return self._num_prefix - self._num_kept + self._num_dropped

    @property
    def num_before_patches(self) -> int:
        """Positions of a hidden state before the patches: class token and registers."""
        return self._num_prefix

    @property
    def old_level(self) -> str:
        """The level that checkpoints write in the names of the tower's weights, or ""."""
        return "" if self.family is None else self.family.old_level

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.vision_tower.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.vision_tower.device

    @property
    def config(self) -> Any:
        """The tower's configuration, loaded or not."""
        return self.vision_tower.config if self.is_loaded else self.cfg_only

    @property
    def input_size(self) -> int:
        """S, the side of the images that `forward` takes, in pixels."""
        return self._side

    @property
    def hidden_size(self) -> int:
        """D, the size of a feature."""
        return int(self.config.hidden_size)

    @property
    def num_patches_per_side(self) -> int:
        """Patches along one side of an image."""
        return self._side // self._patch_size

    @property
    def num_image_tokens(self) -> int:
        """Positions of an image in the language model: P."""
        return self.num_patches - self._num_dropped + self._num_kept


def notes_tokens(tower: ImageEncoder) -> bool:
    """Tells whether a checkpoint notes its number of image tokens, which marks it as a new one.

    CLIP's keep LLaVA's `config.json`, and published ones that deviate keep deviating.
    """
    return tower.deviation is None and getattr(tower, "family", None) is not family_of("clip")


DEFAULT_SCALES = "336,672,1008"


class VisionTowerS2(VisionTower):
    """A vision model that looks at an image at several scales.

    Args:
        vision_tower: As for `VisionTower`.
        args: As for `VisionTower`, perhaps with `s2_scales`: sides in pixels, a comma list.
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
        if self.s2_split_size != self._side:
            raise ConfigError(
                f"s2_scales {self.s2_scales}: the smallest is {self.s2_split_size}, but the tower "
                f"{vision_tower} takes images of {self._side} pixels: give --s2_scales "
                f"{','.join(str(n * self._side) for n in (1, 2, 3))}"
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
        return int(self.config.hidden_size) * len(self.s2_scales)

    def load_model(self, device_map: Any = None, dtype: torch.dtype | None = None) -> None:
        """Loads weights and image processor, which then makes images of the largest scale."""
        super().load_model(device_map=device_map, dtype=dtype)
        set_side(self.image_processor, self.s2_image_size)

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


class VisionTowers(ImageEncoder):
    """Towers side by side: their features of the same image, patch by patch, are concatenated.

    Args:
        towers: At least two, with the same number of positions an image.

    Raises:
        ConfigError: Their numbers of positions differ.
    """

    old_level = ""  # no published checkpoint has two

    def __init__(self, towers: Sequence[VisionTower]):
        super().__init__()
        self.towers = nn.ModuleList(towers)
        self.vision_tower_name = "+".join(tower.vision_tower_name for tower in towers)
        self.num_channels = 3 * len(towers)
        self.deviation = next((each.deviation for each in towers if each.deviation), None)
        self.check_selection()
        if self.is_loaded:
            self._join_processors()

    def load_model(self, device_map: Any = None, dtype: torch.dtype | None = None) -> None:
        """Loads weights and image processors of all towers (see `VisionTower.load_model`)."""
        for tower in self.towers:
            tower.load_model(device_map=device_map, dtype=dtype)
        self._join_processors()

    def _join_processors(self) -> None:
        self.image_processor = JoinedProcessor([tower.image_processor for tower in self.towers])
        self.image_processor.num_image_tokens = self.num_image_tokens

    def check_selection(self) -> None:
        """Checks layer and feature of each tower, and that their positions match.

        Raises:
            ConfigError: They do not.
        """
        for tower in self.towers:
            tower.check_selection()
        if len({tower.num_image_tokens for tower in self.towers}) > 1:
            found = "\n  ".join(
                f"{tower.vision_tower_name}: {tower.num_image_tokens} tokens "
                f"({tower.input_size} pixels, {tower.num_patches_per_side} patches a side)"
                for tower in self.towers
            )
            raise ConfigError(
                f"--vision_tower a+b needs towers with the same number of tokens an image; found:\n"
                f"  {found}\nChoose other sizes. DINOv2 and DINOv3 take any size: set `crop_size` "
                "or `size` in their preprocessor_config.json to patches a side x patch size. "
                "--mm_vision_select_feature patch leaves out the class token"
            )

    def _features(self, images: Tensor) -> Tensor:
        """[N, 3 k, S, S] -> [N, P, D], D the sum over the k towers."""
        sides = [tower.input_size for tower in self.towers]
        parts = zip(self.towers, images.split(3, dim=1), sides, strict=True)
        return torch.cat([tower._features(part[..., :s, :s]) for tower, part, s in parts], dim=-1)

    @property
    def is_loaded(self) -> bool:
        """Tells whether the weights are loaded."""
        return all(tower.is_loaded for tower in self.towers)

    @property
    def select_layer(self) -> int:
        """Index into the hidden states, the same for all towers."""
        return self.towers[0].select_layer

    @select_layer.setter
    def select_layer(self, value: int) -> None:
        for tower in self.towers:
            tower.select_layer = value

    @property
    def select_feature(self) -> str:
        """`patch` or `cls_patch`, the same for all towers."""
        return self.towers[0].select_feature

    @select_feature.setter
    def select_feature(self, value: str) -> None:
        for tower in self.towers:
            tower.select_feature = value

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.towers[0].dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.towers[0].device

    @property
    def config(self) -> Any:
        """The first tower's configuration."""
        return self.towers[0].config

    @property
    def input_size(self) -> int:
        """S, the side of the largest image that a tower takes, in pixels."""
        return max(tower.input_size for tower in self.towers)

    @property
    def hidden_size(self) -> int:
        """The size of a feature: the sum over the towers."""
        return sum(tower.hidden_size for tower in self.towers)

    @property
    def num_patches_per_side(self) -> int:
        """Patches along one side of an image."""
        return self.towers[0].num_patches_per_side

    @property
    def num_image_tokens(self) -> int:
        """Positions of an image in the language model: P."""
        return self.towers[0].num_image_tokens


def build_vision_tower(vision_tower_cfg: Any, **kwargs: Any) -> ImageEncoder:
    """Builds the tower that `vision_tower_cfg` names.

    Args:
        vision_tower_cfg: A model configuration (`mm_vision_tower`) or model arguments
            (`vision_tower`), with `mm_vision_select_layer`; `s2` asks for several scales.
        **kwargs: For `VisionTower`, e.g. `delay_load`.

    Raises:
        ConfigError: No tower of that name, `s2_scales` that do not fit it, or towers side by side
            whose numbers of tokens differ.
    """
    name = getattr(vision_tower_cfg, "mm_vision_tower", None) or getattr(
        vision_tower_cfg, "vision_tower", None
    )
    checkpoint = getattr(vision_tower_cfg, "name_or_path", None) or None
    s2 = getattr(vision_tower_cfg, "s2", False)
    kind = VisionTowerS2 if s2 else VisionTower
    parts = split_towers(name or "", checkpoint)
    if len(parts) > 1 and s2:
        raise ConfigError(
            f"--s2 cuts the images of one tower, not of {name}: leave one of them out"
        )
    towers = [
        kind(resolve_tower(part, checkpoint), args=vision_tower_cfg, **kwargs) for part in parts
    ]
    return VisionTowers(towers) if len(towers) > 1 else towers[0]
