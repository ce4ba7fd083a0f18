"""Makes a language model multimodal by two mixins, for the inner model and for the whole.

`LlavaMetaModel` owns vision tower, projector and `image_newline`; `LlavaMetaForCausalLM` turns
token ids and images into embeddings. The language models themselves are in `language_model/`;
the splice and the anyres layout are in `llava.model.splice`.

Legend: B rows, T tokens, L spliced positions, N images, P features of an image, D hidden.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import ConfigError, DataError
from llava.model.checkpoint import PATCH_MERGE_TYPES, MultimodalConfig
from llava.model.multimodal_encoder.families import NUM_TOKENS_KEY, resolve_tower
from llava.model.multimodal_encoder.vision_tower import (
    ImageEncoder,
    build_vision_tower,
    notes_tokens,
)
from llava.model.multimodal_projector.builder import build_vision_projector, load_adapter
from llava.model.splice import (
    PackedRows,
    merge_flat,
    merge_frames,
    merge_single,
    merge_spatial,
    pack_rows,
    pad_rows,
    splice_rows,
    strip_padding,
    truncate_rows,
    unpad_image,
)
from llava.model.tiles import VIDEO_LAYOUT, Tiling, is_tiled

__all__ = ["LlavaMetaForCausalLM", "LlavaMetaModel", "unpad_image"]
from llava.model.tokenizer import initialize_vision_tokens

log = logging.getLogger(__name__)
# settings of a training that a checkpoint's configuration keeps
_RECORDED = (
    "mm_projector_type",
    "mm_vision_select_layer",
    "mm_vision_select_feature",
    "mm_patch_merge_type",
)


class LlavaMetaModel:
    """Mixin of the inner model (`LlamaModel`, ...): vision tower and projector.

    They are built when the configuration names a tower. The tower's weights are loaded later
    (`initialize_vision_modules` or the builder), unless `materialize_tower` is set, because the
    checkpoint that is being loaded carries them.
    """

    # of the language model that this is mixed into
    config: Any

    def __init__(self, config: Any, materialize_tower: bool = False):
        super().__init__(config)
        self._build_vision(materialize_tower)

    @classmethod
    def adopt(cls, inner: Any, materialize_tower: bool = False) -> Any:
        """Makes this model of one without vision, whose layers it takes over.

        Args:
            inner: The inner model that a causal language model of transformers built.
            materialize_tower: As for the class.
        """
        model: Any = cls.__new__(cls)
        # transformers keeps a record of each class whose __init__ has run
        PreTrainedModel.__init__(model, inner.config)
        vars(model).update(vars(inner))
        model._build_vision(materialize_tower)
        return model

    def _initialize_weights(self, module: Any, is_custom_code: bool = False) -> None:
        # transformers leaves out modules without weights of their own if the class is not its own,
        # but an inner model may compute buffers of its layers (Falcon-H1)
        super()._initialize_weights(  # type: ignore[misc]
            module, is_custom_code and module is not self
        )

    def _build_vision(self, materialize_tower: bool) -> None:
        settings = MultimodalConfig.from_config(self.config)
        if settings.mm_vision_tower is not None:
            # the checkpoint must carry a tower that was trained: a gap is then an error
            delay_load = not (materialize_tower or settings.tunes_tower)
            self.vision_tower = build_vision_tower(self.config, delay_load=delay_load)
            self._build_projector()

    def _build_projector(self) -> None:
        config = self.config
        self.mm_projector = build_vision_projector(config)
        self._add_newline()

    def _add_newline(self) -> None:
        settings, size = MultimodalConfig.from_config(self.config), self.config.hidden_size
        if settings.has_image_newline and not hasattr(self, "image_newline"):
            self.image_newline = nn.Parameter(torch.randn(size) / size**0.5)

    def get_vision_tower(self) -> ImageEncoder | None:
        """The vision tower, or None; FSDP hides it in a list of one."""
        vision_tower = getattr(self, "vision_tower", None)
        return vision_tower[0] if isinstance(vision_tower, list) else vision_tower

    def initialize_vision_modules(self, model_args: Any, fsdp: Sequence[Any] | None = None) -> None:
        """Gives the model its tower and projector for training, and records them in the config.

        Args:
            model_args: `vision_tower`, `mm_vision_select_layer`, `mm_vision_select_feature`,
                `mm_projector_type`, `mm_patch_merge_type`, `pretrain_mm_mlp_adapter`, perhaps `s2`
                and `s2_scales`.
            fsdp: Non-empty under FSDP; the tower is then hidden from the module tree.

        Raises:
            CheckpointError: `pretrain_mm_mlp_adapter` does not fit the projector.
            ConfigError: `s2` for a checkpoint that was trained without it.
        """
        config = self.config
        tower = self._set_up_tower(model_args, hide=bool(fsdp))
        config.update({"use_mm_proj": True, "mm_hidden_size": tower.hidden_size})
        config.update({key: getattr(model_args, key) for key in _RECORDED})
        if notes_tokens(tower):
            config.update({NUM_TOKENS_KEY: tower.num_image_tokens})
        elif hasattr(config, NUM_TOKENS_KEY):
            delattr(config, NUM_TOKENS_KEY)  # of another tower before
        if getattr(self, "mm_projector", None) is None:
            self._build_projector()
        self._add_newline()  # of a checkpoint that had none
        # LoRA froze a projector that existed before
        self.mm_projector.requires_grad_(True)
        if model_args.pretrain_mm_mlp_adapter is not None:
            load_adapter(self, model_args.pretrain_mm_mlp_adapter)

    def _set_up_tower(self, model_args: Any, hide: bool) -> ImageEncoder:
        """Loads the tower that `model_args` names; one that a checkpoint carried is kept."""
        tower = self.get_vision_tower()
        if getattr(model_args, "s2", False) and not getattr(self.config, "s2", False):
            if tower is not None:
                raise ConfigError("--s2: the checkpoint's projector was trained without it")
            self.config.s2, self.config.s2_scales = True, model_args.s2_scales
        wanted = resolve_tower(model_args.vision_tower, self.config.name_or_path)
        if tower is not None and tower.is_loaded and tower.vision_tower_name != wanted:
            log.warning(
                "the checkpoint carries the weights of vision tower %s; %s is not loaded",
                tower.vision_tower_name,
                wanted,
            )
        elif tower is None or tower.vision_tower_name != wanted:
            keys = ("name_or_path", "s2", "s2_scales")
            ours = {key: getattr(self.config, key) for key in keys if getattr(self.config, key, "")}
            tower = build_vision_tower(SimpleNamespace(**{**vars(model_args), **ours}))
            self.config.mm_vision_tower = model_args.vision_tower
        tower.load_model()
        tower.select_layer = model_args.mm_vision_select_layer
        tower.select_feature = model_args.mm_vision_select_feature
        tower.check_selection()
        tower.image_processor.num_image_tokens = tower.num_image_tokens
        if hide:  # a module of that name, of a checkpoint, cannot become a list
            self._modules.pop("vision_tower", None)
        self.vision_tower = [tower] if hide else tower
        return tower


class LlavaMetaForCausalLM(ABC):
    """Mixin of the whole model (`LlamaForCausalLM`, ...): ids and images to embeddings."""

    # of the language model that this is mixed into
    config: Any
    training: bool
    get_input_embeddings: Any

    _truncation_reported = False

    @property
    def _settings(self) -> MultimodalConfig:
        return MultimodalConfig.from_config(self.config)

    @abstractmethod
    def get_model(self) -> LlavaMetaModel:
        """Returns the inner model, which owns tower, projector and embeddings."""

    def get_vision_tower(self) -> ImageEncoder | None:
        """Returns the vision tower, or None for a text-only model."""
        return self.get_model().get_vision_tower()

    def encode_images(self, images: Tensor) -> Tensor:
        """Runs tower and projector: [N, 3, S, S] -> [N, P, D]."""
        return self.project_features(self.get_vision_tower()(images))

    def project_features(self, features: Tensor) -> Tensor:
        """Runs the projector on outputs of the tower, in its own dtype and on its device.

        Args:
            features: [N, P, D_vision], e.g. cached outputs of the frozen tower.

        Returns:
            [N, P, D].
        """
        projector = self.get_model().mm_projector
        weight = next(projector.parameters(), self.get_input_embeddings().weight)
        return projector(features.to(device=weight.device, dtype=weight.dtype))

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        past_key_values: Any,
        labels: Tensor | None,
        images: Tensor | list[Tensor] | None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        image_features: Tensor | list[Tensor] | None = None,
    ) -> tuple[Any, Tensor | None, Tensor | None, Any, Tensor | None, Tensor | None]:
        """Replaces the image sentinels of a batch by image features.

        Args:
            input_ids: [B, T] with sentinels.
            position_ids: [B, T] or None; made new if not None.
            attention_mask: [B, T] or None (all real).
            past_key_values: Returned as it is.
            labels: [B, T], not shifted, or None.
            images: [N, 3, S, S], [N, tiles, 3, S, S] or a list; row-major over the sentinels, one
                dummy image for each row without a sentinel. [1, frames, 3, S, S] is a video.
            image_sizes: (width, height) of each image in pixels; `spatial` merges need it.
            image_features: [N, P, D_vision] (or a list) outputs of the tower, in place of images.

        Returns:
            (None, position_ids, attention_mask, past_key_values, inputs_embeds [B, L, D], labels
            [B, L]), with None where None was given; but a mask is always returned when rows were
            padded. Without anything to splice the arguments are returned, inputs_embeds None.

        Raises:
            DataError: Sentinels and images do not match.
        """
        features = self._image_sequences(input_ids, labels, images, image_sizes, image_features)
        if features is None:
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        settings = self._settings
        spliced = self._spliced_rows(
            input_ids, attention_mask, labels, features, settings.tokenizer_model_max_length
        )
        rows = pad_rows(*spliced, settings.tokenizer_padding_side)
        mask = None
        if attention_mask is not None:
            mask = rows.attention_mask.to(attention_mask.dtype)
        elif not rows.attention_mask.all():
            mask = rows.attention_mask
        positions = None if position_ids is None else rows.position_ids
        new_labels = None if labels is None else rows.labels
        return None, positions, mask, past_key_values, rows.embeds, new_labels

    def pack_inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor,
        images: Tensor | list[Tensor] | None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        image_features: Tensor | list[Tensor] | None = None,
    ) -> PackedRows:
        """As `prepare_inputs_labels_for_multimodal`, but the rows lie one after the other.

        Args:
            input_ids: [B, T] with sentinels.
            attention_mask: [B, T] or None (all real).
            labels: [B, T], not shifted.
            images: As there.
            image_sizes: As there.
            image_features: As there.

        Raises:
            DataError: Sentinels and images do not match.
        """
        features = self._image_sequences(input_ids, labels, images, image_sizes, image_features)
        max_length = self._settings.tokenizer_model_max_length
        rows = self._spliced_rows(input_ids, attention_mask, labels, features, max_length)
        return pack_rows(*rows)

    def _spliced_rows(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        features: Sequence[Tensor] | None,
        max_length: int | None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns embeddings [L_b, D] and labels [L_b] of each row of a batch [B, T]."""
        if labels is None:
            labels = torch.full_like(input_ids, IGNORE_INDEX)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ids, row_labels = strip_padding(input_ids, mask.bool(), labels)
        embed = self.get_input_embeddings()
        if features is None:
            embeds = list(embed(torch.cat(ids)).split([len(row) for row in ids]))
        else:
            embeds, row_labels = splice_rows(ids, row_labels, features, embed)
        embeds, row_labels, num_cut = truncate_rows(embeds, row_labels, max_length)
        if num_cut:
            # the data layer counts what it drops; here one warning per run is enough
            level = logging.DEBUG if self._truncation_reported else logging.WARNING
            self._truncation_reported = True
            text = "%d position(s) of a batch of %d rows cut off at tokenizer_model_max_length %d"
            log.log(level, text, num_cut, len(ids), max_length)
        return embeds, row_labels

    def _image_sequences(
        self,
        input_ids: Tensor,
        labels: Tensor | None,
        images: Tensor | list[Tensor] | None,
        image_sizes: Sequence[tuple[int, int]] | None,
        image_features: Tensor | list[Tensor] | None,
    ) -> list[Tensor] | None:
        """Returns one [P_i, D] sequence per image slot, or None if there is nothing to splice."""
        given = images if image_features is None else image_features
        if given is None:
            return self._dummy_sequences(input_ids, labels)
        if getattr(self.get_model(), "mm_projector", None) is None:
            _refuse_sentinels(input_ids, "the model has no vision tower (text only)")
            return None
        if input_ids.shape[1] == 1 and not (input_ids == IMAGE_TOKEN_INDEX).any():
            return None  # a decoding step: its images are in the cache
        settings = self._settings
        if settings.tune_mm_mlp_adapter and settings.mm_use_im_start_end:
            raise NotImplementedError("tune_mm_mlp_adapter together with mm_use_im_start_end")
        encode = self.encode_images if image_features is None else self.project_features
        entry_ndim = 3 if image_features is None else 2  # [3, S, S] or [P, D_vision]
        if isinstance(given, Tensor) and given.ndim == entry_ndim + 1:
            return list(encode(given))
        tiled = [entry.reshape(-1, *entry.shape[-entry_ndim:]) for entry in given]
        features = encode(torch.cat(tiled)).split([len(entry) for entry in tiled])
        return [
            self._merge_frames(features[i])
            if entry.ndim == entry_ndim + 2
            else self._merge_tiles(features[i], image_sizes, i)
            for i, entry in enumerate(given)
        ]

    def _merge_frames(self, features: Tensor) -> Tensor:
        """Lays out the frames of a video: [frames, P, D] -> [frames * P', D].

        Raises:
            ConfigError: The checkpoint was trained with another layout, or without videos.
        """
        settings = self._settings
        found = {key: getattr(settings, key) for key in VIDEO_LAYOUT}
        if found != VIDEO_LAYOUT:
            raise ConfigError(
                f"a video was given, but config.json has {found}, expected {VIDEO_LAYOUT}, as "
                "models have that this code trained with --video_frames"
            )
        return merge_frames(features, settings.mm_spatial_pool_stride or 1)

    def _dummy_sequences(self, input_ids: Tensor, labels: Tensor | None) -> list[Tensor] | None:
        """Returns a dummy image per row for a text-only training batch, else None.

        Tower and projector then run on every rank, whatever its rows hold.
        """
        if input_ids.shape[1] > 1:
            _refuse_sentinels(input_ids, "no image was given")
        projector, vision_tower = getattr(self.get_model(), "mm_projector", None), None
        is_trained = False
        if projector is not None:
            vision_tower = self.get_vision_tower()
            modules = [each for each in (projector, vision_tower) if each is not None]
            is_trained = any(p.requires_grad for each in modules for p in each.parameters())
        if not (self.training and labels is not None and is_trained):
            return None
        if vision_tower is not None and vision_tower.is_loaded:
            dummy = self.encode_images(vision_tower.dummy_image.unsqueeze(0))
        else:
            dummy = self.project_features(torch.zeros(1, 1, self.config.mm_hidden_size))
        newline = self.get_model().image_newline if self._settings.has_image_newline else None
        return [merge_single(dummy, newline)] * len(input_ids)

    def _merge_tiles(
        self, features: Tensor, image_sizes: Sequence[tuple[int, int]] | None, index: int
    ) -> Tensor:
        """Lays out the tiles of image `index`: [tiles, P, D] -> [N, D]."""
        settings = self._settings
        if settings.mm_patch_merge_type not in PATCH_MERGE_TYPES:
            raise ConfigError(
                f"Unexpected mm_patch_merge_type: {settings.mm_patch_merge_type!r}. "
                f"Choices: {', '.join(PATCH_MERGE_TYPES)}"
            )
        if settings.mm_patch_merge_type == "flat":
            return merge_flat(features)
        newline = self.get_model().image_newline if settings.has_image_newline else None
        if len(features) == 1:
            return merge_single(features, newline)
        if not is_tiled(settings.image_aspect_ratio):
            raise NotImplementedError(
                f"several tiles with image_aspect_ratio {settings.image_aspect_ratio!r}; "
                "the spatial merge types need 'anyres' or 'anyres_max_N'"
            )
        if image_sizes is None or index >= len(image_sizes):
            raise DataError(
                "the spatial merge types need image_sizes, (width, height) per image; found "
                f"{image_sizes}, which lacks image {index + 1}"
            )
        tiling = Tiling.of(settings, self.get_vision_tower().input_size, features.shape[1])
        if len(features) != tiling.num_tiles(image_sizes[index]):
            columns, rows = tiling.grid(image_sizes[index])
            raise ConfigError(
                f"image {index + 1} has {len(features) - 1} tiles, expected {columns} x {rows}: "
                f"image_grid_pinpoints {settings.image_grid_pinpoints} must be multiples of "
                f"{tiling.side_px}, the tower's side, and those that the images were prepared with"
            )
        return merge_spatial(features, tiling, image_sizes[index], newline)

    def initialize_vision_tokenizer(self, model_args: Any, tokenizer: Any) -> None:
        """Adds the special image tokens that `model_args` asks for (see `llava.model.tokenizer`).

        Args:
            model_args: `mm_use_im_patch_token`, `mm_use_im_start_end`, `tune_mm_mlp_adapter`,
                `pretrain_mm_mlp_adapter`.
            tokenizer: Gets the new tokens.
        """
        initialize_vision_tokens(self, model_args, tokenizer)


def _refuse_sentinels(input_ids: Tensor, reason: str) -> None:
    """Raises `DataError` if ids that should be text hold sentinels.

    Raises:
        DataError: `input_ids` [B, T] hold sentinels.
    """
    count = int((input_ids == IMAGE_TOKEN_INDEX).sum())
    if count:
        raise DataError(
            f"the prompt holds {count} <image> placeholder(s) and 0 image(s): {reason}. "
            "Pass one image per placeholder, or remove the placeholders."
        )
