"""Implements forward, generation, loading and saving of the multimodal language models.

`LlavaCausalLM` is mixed in before a `...ForCausalLM` class of transformers; the head, and what a
family does to the logits besides, stay those of that class. `get_family` makes the classes of any
family that `llava.model.families` lists, and `model_class_of` finds that of a `config.json`. In:
token ids with image sentinels, and images (or cached features of the frozen tower). Out: the loss
over supervised positions, logits, or new tokens.

Batches may be packed: samples lie one after the other in a single row, without padding. For that
`packed_sdpa` is registered with transformers: torch's SDPA once per sample, so that cost grows with
the sum of squared lengths and no [L, L] mask is ever built. Without those borders (generation,
padded batches) it is transformers' `sdpa`. flash-attention takes the same borders itself;
`eager` and `sdpa` find them by positions that begin again, and build a mask.

Legend: B rows, T tokens, L spliced positions, N images, P features of an image, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers import initialization as init
from transformers.cache_utils import DynamicLayer
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING,
)

from llava.constants import IGNORE_INDEX
from llava.errors import CheckpointError, ConfigError, DataError
from llava.model.checkpoint import (
    add_rope_theta,
    carries_tower,
    context_limit,
    read_config,
    with_old_level,
)
from llava.model.families import (
    PREFIX,
    checked_families,
    class_names,
    family_of_class,
    find_family,
    has_text_part,
    model_type_of,
    text_part_names,
)
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel
from llava.model.loss import causal_lm_loss, has_liger
from llava.model.multimodal_encoder.families import refuse_foreign
from llava.model.splice import pad_rows

log = logging.getLogger(__name__)

PACKED_SDPA = "packed_sdpa"
FLASH_ATTENTION = "flash_attention_2"


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sample of a packed row.

    Args:
        module: The attention layer.
        query: [1, H, L, D].
        key: [1, H_kv, L, D]; H is a multiple of H_kv.
        value: As `key`.
        attention_mask: Used only without `cu_seq_lens_q`.
        dropout: Probability.
        scaling: Of the scores; 1/sqrt(D) if left out.
        cu_seq_lens_q: [num_samples + 1] int32, where samples begin, and L. None: not packed.
        sliding_window: How many positions back a position sees; None for all.
        **kwargs: For transformers' `sdpa`.

    Returns:
        [1, L, H, D], and None for the weights.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask,
            dropout=dropout, scaling=scaling, sliding_window=sliding_window, **kwargs,
        )  # fmt: skip
    lengths = cu_seq_lens_q.diff().tolist()
    shares_keys = key.shape[1] != query.shape[1]
    outputs = [
        F.scaled_dot_product_attention(
            q, k, v,
            attn_mask=_window_mask(q.shape[2], sliding_window, q.device),
            dropout_p=dropout,
            is_causal=sliding_window is None or q.shape[2] <= sliding_window,
            scale=scaling,
            enable_gqa=shares_keys,
        )
        for q, k, v in zip(
            query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True
        )
    ]  # fmt: skip
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _window_mask(length: int, sliding_window: int | None, device: torch.device) -> Tensor | None:
    """[length, length] bool, or None where the window holds all of the sample."""
    if sliding_window is None or length <= sliding_window:
        return None
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    return (distance >= 0) & (distance < sliding_window)


def _packed_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """No mask for a whole row without padding; else that of `sdpa`."""
    is_whole_row = kwargs.get("q_length") == kwargs.get("kv_length") and not kwargs.get("q_offset")
    if attention_mask is None and is_whole_row:
        return None  # `is_causal` and, in a packed row, the borders are enough
    return sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


def _block_mask(cu_seq_lens: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """[1, 1, L, L], 0 where a position sees another (earlier, of its sample), else the minimum."""
    lengths = cu_seq_lens.diff()
    samples = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    is_seen = (samples[:, None] == samples[None, :]).tril()
    if window is not None:
        is_seen = is_seen.triu(1 - window)
    mask = torch.zeros(is_seen.shape, dtype=dtype, device=lengths.device)
    return mask.masked_fill(~is_seen, torch.finfo(dtype).min)[None, None]


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, _packed_mask)


def choose_attention(model_class: Any, wanted: str | None, packing: bool) -> str | None:
    """Returns the attention implementation for a family; None leaves it to transformers.

    A family whose attention SDPA cannot compute (soft-capped, or with sinks) keeps its own.
    flash-attention has to be able to compute the family's, and takes the borders of packed samples
    as lengths, not as a mask.

    Args:
        model_class: A multimodal causal language model.
        wanted: What the entry point asks for, perhaps nothing.
        packing: Whether samples share rows.
    """
    masks_borders = packing and model_class.packs_by_mask
    if wanted == FLASH_ATTENTION and (masks_borders or not model_class._supports_flash_attn):
        log.info("attention: not flash-attn, which cannot compute that of %s", model_class.__name__)
        wanted = "sdpa"
    if wanted not in (None, "sdpa"):
        return wanted
    if not model_class._supports_sdpa:
        return None
    if packing and model_class._supports_attention_backend and not masks_borders:
        return PACKED_SDPA
    return wanted


Images = Tensor | list[Tensor] | None
_TEXT_INPUTS = ("input_ids", "position_ids", "attention_mask", "past_key_values", "inputs_embeds")


class LlavaConfigMixin:
    """The part of a multimodal configuration that no language model changes."""

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Writes `config.json`, with RoPE's settings for transformers 4 as well."""
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        add_rope_theta(save_directory)


class LlavaCausalLM(LlavaMetaForCausalLM):
    """The part of a multimodal causal language model that no language model changes."""

    # of the language model that this is mixed into
    config_class: Any
    base_model_prefix: str
    get_input_embeddings: Any

    # its inner model with tower and projector
    inner_class: Any
    # why samples cannot share a row; None if they can
    cannot_pack: str | None = None
    # the borders of samples have to be in a mask, because its own masks do not look at positions
    packs_by_mask = False
    # the Trainer passes num_items_in_batch only if this is set
    accepts_loss_kwargs = True
    # the loss by Liger's kernel, where it can run
    liger_loss = True
    _is_head_plain: bool | None = None
    # buffers of old checkpoints, which are computed now
    _keys_to_ignore_on_load_unexpected = [
        r"vision_tower\..*position_ids",
        r"rotary_emb\.inv_freq",
    ]

    def __init__(self, config: Any, materialize_tower: bool = False) -> None:
        super().__init__(config)  # type: ignore[misc]
        inner = self.inner_class.adopt(self.get_model(), materialize_tower)
        setattr(self, self.base_model_prefix, inner)
        self.post_init()  # type: ignore[attr-defined]

    @property
    def supports_packing(self) -> bool:
        """Whether positions can begin again within a row."""
        return self.cannot_pack is None

    def get_model(self) -> Any:
        """Returns the inner model."""
        return getattr(self, self.base_model_prefix)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        images: Images = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        return_dict: bool | None = None,
        image_features: Images = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        packing: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Runs the model on a batch.

        Args:
            input_ids: [B, T] with image sentinels.
            attention_mask: [B, T], 1 on real positions.
            position_ids: [B, T].
            past_key_values: Cache of earlier positions.
            inputs_embeds: [B, L, D], in place of `input_ids` and images.
            labels: [B, T], not shifted, IGNORE_INDEX where nothing is learnt.
            use_cache: Return the cache.
            output_attentions: Return the attentions.
            output_hidden_states: Return all hidden states.
            images: [N, 3, S, S], [N, tiles, 3, S, S] or a list of those.
            image_sizes: (width, height) of each image in pixels.
            return_dict: False returns a tuple.
            image_features: [N, P, D_vision], the tower's output, in place of `images`.
            logits_to_keep: How many last positions get logits (0: all), or their indices.
            num_items_in_batch: Supervised tokens of the whole optimiser step.
            packing: Run the samples as one row without padding; see `_packed_inputs`.
            **kwargs: For the language model.

        Returns:
            `loss` with labels; see `_router_loss`. `logits` [B, L, V], but None in training
            mode with labels: the loss needs them for supervised positions only.

        Raises:
            DataError: Image sentinels and images do not match.
        """
        vision = (images, image_sizes, image_features)
        if packing:
            inputs, labels = self._packed_inputs(input_ids, attention_mask, labels, *vision)
        else:
            text = (input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels)
            inputs, labels = self._padded_inputs(text, vision, use_cache)
        kwargs |= self._recorded(labels, output_attentions, output_hidden_states)
        outputs = self.get_model()(**inputs, **kwargs)
        result = self._loss_and_logits(outputs, labels, logits_to_keep, num_items_in_batch)
        if labels is not None and kwargs.get("output_router_logits"):
            result.loss += self._router_loss(outputs, inputs, labels, num_items_in_batch)
        return result.to_tuple() if return_dict is False else result

    def _padded_inputs(
        self, text: tuple[Any, ...], vision: tuple[Any, ...], use_cache: bool | None
    ) -> tuple[dict[str, Any], Tensor | None]:
        """Returns the inner model's inputs for a padded batch, and its labels [B, L]."""
        *first, inputs_embeds, labels = text
        if inputs_embeds is None:
            text = self.prepare_inputs_labels_for_multimodal(*first, labels, *vision)
        *values, labels = text
        return {**dict(zip(_TEXT_INPUTS, values, strict=True)), "use_cache": use_cache}, labels

    def _packed_inputs(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        *vision: Any,
    ) -> tuple[dict[str, Any], Tensor]:
        """Returns the inner model's inputs for a packed batch, and its labels [1, L].

        The samples lie one after the other as a single row, each attending to itself only; logits
        and hidden states are then [1, L, ...], L the sum of the samples' lengths.

        Raises:
            ConfigError: The language model would mix the samples.
        """
        assert input_ids is not None and labels is not None, "packing is for training"
        if self.cannot_pack is not None:
            raise ConfigError(
                f"--packing: {type(self).__name__} cannot be packed, because {self.cannot_pack}; "
                "leave the flag out."
            )
        rows = self.pack_inputs(input_ids, attention_mask, labels, *vision)
        # no mask and no cache: they would hide the borders from transformers; the borders have
        # flash-attention's names
        inputs = {
            "inputs_embeds": rows.embeds,
            "position_ids": rows.position_ids,
            "use_cache": False,
            "cu_seq_lens_q": rows.cu_seq_lens,
            "cu_seq_lens_k": rows.cu_seq_lens,
            "max_length_q": rows.max_length,
            "max_length_k": rows.max_length,
        }
        if self.packs_by_mask:
            inputs["attention_mask"] = self._border_masks(rows.cu_seq_lens, rows.embeds.dtype)
        return inputs, rows.labels

    def _border_masks(self, cu_seq_lens: Tensor, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """Returns the mask of a packed row, or one for each kind of layer."""
        windows: dict[str, int | None] = {"full_attention": None}
        if "sliding_attention" in (getattr(self.config, "layer_types", None) or ()):
            windows["sliding_attention"] = self.config.sliding_window
        masks = {kind: _block_mask(cu_seq_lens, size, dtype) for kind, size in windows.items()}
        return masks if len(masks) > 1 else masks["full_attention"]

    def _loss_and_logits(
        self,
        outputs: Any,
        labels: Tensor | None,
        logits_to_keep: int | Tensor,
        num_items_in_batch: Tensor | int | None,
    ) -> CausalLMOutputWithPast:
        """Returns the inner model's outputs with loss and logits; see `forward`."""
        loss = logits = None
        hidden = outputs.last_hidden_state
        if labels is not None:
            loss = causal_lm_loss(
                hidden, labels, self.get_output_embeddings(), num_items_in_batch,
                use_liger=self.liger_loss and has_liger() and self._has_plain_head(hidden),
                logits_of=self.logits_of,
            )  # fmt: skip
        if labels is None or not self.training:
            kept = slice(-logits_to_keep or None, None)
            kept = kept if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.logits_of(hidden[:, kept])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=getattr(outputs, "past_key_values", None),
            hidden_states=outputs.hidden_states,
            attentions=getattr(outputs, "attentions", None),
        )

    def _recorded(
        self, labels: Tensor | None, attentions: bool | None, hidden_states: bool | None
    ) -> dict[str, bool]:
        """Returns keywords of the inner model: what it returns besides its last hidden states.

        Those of routers are needed in training, if the configuration asks for their loss.
        """
        asked = getattr(self.config, "output_router_logits", None)  # None: no such loss
        balances = asked and self.training and labels is not None
        states = {
            "attentions": attentions,
            "hidden_states": hidden_states,
            "router_logits": None if asked is None else balances,
        }
        return {f"output_{name}": value for name, value in states.items() if value is not None}

    def _router_loss(
        self,
        outputs: Any,
        inputs: dict[str, Any],
        labels: Tensor,
        num_items_in_batch: Tensor | int | None,
    ) -> Tensor | float:
        """Returns the weighted load-balancing loss, as transformers' own class computes it.

        Its share in an optimizer step is that of the batch's supervised positions, so that the mean
        over ranks and accumulated micro-batches has the weight that the configuration says.

        Args:
            outputs: Of the inner model, with router logits.
            inputs: Of the inner model; their mask is not of positions where samples share a row.
            labels: [B, L].
            num_items_in_batch: As for `forward`.
        """
        if not getattr(outputs, "router_logits", None):
            return 0.0  # no layer has experts
        first = outputs.last_hidden_state[:, :1]
        mask = None if "cu_seq_lens_q" in inputs else inputs["attention_mask"]
        loss = self._own_forward(
            first, outputs.router_logits, attention_mask=mask, output_router_logits=True
        ).aux_loss
        loss = loss * self.config.router_aux_loss_coef
        if num_items_in_batch is None:
            return loss
        return loss * (labels[:, 1:] != IGNORE_INDEX).sum() / num_items_in_batch

    def logits_of(self, hidden: Tensor) -> Tensor:
        """Runs what follows the inner model, as transformers' own class does it.

        That is the head, and what a family does besides: scaling (Cohere, Granite), soft-capping
        (Gemma 2), further layers.

        Args:
            hidden: [B, L, D] last hidden states.

        Returns:
            [B, L, V].
        """
        return self._own_forward(hidden).logits

    def _own_forward(self, hidden: Tensor, router_logits: Any = None, **kwargs: Any) -> Any:
        """Runs the `forward` of transformers' class as if the inner model had returned `hidden`."""
        forward = super(LlavaCausalLM, type(self)).forward  # type: ignore[misc]
        head = _HeadOnly(self, _Outputs(hidden, router_logits))
        return forward(head, inputs_embeds=hidden, use_cache=False, return_dict=True, **kwargs)

    @torch.no_grad()
    def _has_plain_head(self, hidden: Tensor) -> bool:
        """Tells whether the logits are the head's product and nothing else, as Liger's are."""
        if self._is_head_plain is None:
            one, head = hidden[:1, :1].detach(), self.get_output_embeddings()
            self._is_head_plain = torch.equal(self.logits_of(one), head(one))
        return self._is_head_plain

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        images: Images = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        image_features: Images = None,
        prefix_lengths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generates answers; the result holds only new tokens, without the prompt.

        Args:
            inputs: [B, T] prompts with image sentinels.
            images: As for `forward`.
            image_sizes: As for `forward`.
            image_features: As for `forward`.
            prefix_lengths: Of each row, the positions from its start that the rows beside it may
                have, too (a template and an image); they are computed once for rows next to each
                other. The answers are the same.
            **kwargs: For transformers' `generate`; `attention_mask` [B, T] marks the padding of a
                batch, on either side.

        Returns:
            What transformers returns for embeddings: [B, new tokens], or a dict-like output.

        Raises:
            DataError: Images do not match the sentinels, or a prompt exceeds the context.
            NotImplementedError: `inputs_embeds` was given.
        """
        kwargs.pop("position_ids", None)
        attention_mask = kwargs.pop("attention_mask", None)
        inputs = kwargs.pop("input_ids", None) if inputs is None else inputs
        if "inputs_embeds" in kwargs:
            raise NotImplementedError("`inputs_embeds` is not supported; pass token ids")
        if inputs is None:
            raise DataError("generate() needs `inputs`, the prompt's token ids")
        embeds, mask = self.embed_prompts(
            inputs, attention_mask, images, image_sizes, image_features
        )
        num_positions, limit = int(mask.sum(dim=1).max()), context_limit(self.config)
        if limit is not None and num_positions >= limit:
            raise DataError(
                f"the prompt takes {num_positions} positions (images included), but the model's "
                f"context is {limit}: shorten the text or send fewer images"
            )
        if prefix_lengths and min(prefix_lengths) and self._can_share_prefixes():
            embeds, mask, kwargs["past_key_values"] = self._share_prefixes(
                embeds, mask, prefix_lengths
            )
        return super().generate(inputs_embeds=embeds, attention_mask=mask, **kwargs)

    def _can_share_prefixes(self) -> bool:
        """Tells whether padding within a row changes nothing.

        It does where a layer counts what lies between two positions: in a window, a recurrent state
        or ALiBi's distances.
        """
        config = self.config  # type: ignore[attr-defined]
        layers = DynamicCache(config=config).layers
        # GPT-Neo's windows are in no layer of the cache
        return (
            self.supports_packing
            and all(type(layer) is DynamicLayer for layer in layers)
            and not getattr(config, "window_size", None)
        )

    def _share_prefixes(
        self, embeds: Tensor, mask: Tensor, lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor, DynamicCache | None]:
        """Computes keys and values of equal beginnings of neighbouring rows once.

        Args:
            embeds: [B, L, D], padded on the left.
            mask: [B, L].
            lengths: Positions of each row's beginning, fewer than the row has.

        Returns:
            Embeddings [B, L', D], their mask [B, L'], and the cache of their first positions: each
            row is padding, beginning, padding, rest. Without a cache they are as they were, because
            no two beginnings are equal.
        """
        rows = [row[kept] for row, kept in zip(embeds, mask.bool(), strict=True)]
        prefixes: list[Tensor] = []
        owners: list[int] = []
        for row, length in zip(rows, lengths, strict=True):
            if not prefixes or not torch.equal(prefixes[-1], row[:length]):
                prefixes.append(row[:length])
            owners.append(len(prefixes) - 1)
        if len(prefixes) == len(rows):
            return embeds, mask, None
        rests = [row[length:] for row, length in zip(rows, lengths, strict=True)]
        head, tail = (
            pad_rows(some, [mask.new_zeros(len(row)) for row in some], "left")
            for some in (prefixes, rests)
        )
        cache = DynamicCache(config=self.config)  # type: ignore[attr-defined]
        self.get_model()(
            inputs_embeds=head.embeds,
            attention_mask=head.attention_mask.long(),
            position_ids=head.position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        owner = torch.tensor(owners, device=embeds.device)
        cache.reorder_cache(owner)
        embeds = torch.cat([head.embeds[owner], tail.embeds], dim=1)
        mask = torch.cat([head.attention_mask[owner], tail.attention_mask], dim=1).long()
        return embeds, mask, cache

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Returns the inputs of a step, as transformers' class does.

        Not every class names `inputs_embeds`, by which `generate` knows that it takes embeddings.
        """
        return super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )

    def embed_prompts(
        self,
        inputs: Tensor,
        attention_mask: Tensor | None = None,
        images: Images = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        image_features: Images = None,
    ) -> tuple[Tensor, Tensor]:
        """Embeds prompts with their images, ready for generation.

        Args:
            inputs: [B, T] prompts with image sentinels.
            attention_mask: [B, T], or None (all real).
            images: As for `forward`.
            image_sizes: As for `forward`.
            image_features: As for `forward`.

        Returns:
            Embeddings [B, L, D] and their mask [B, L]; padding is on the left.

        Raises:
            DataError: Images do not match the sentinels.
        """
        features = self._image_sequences(inputs, None, images, image_sizes, image_features)
        if features is None:
            mask = torch.ones_like(inputs) if attention_mask is None else attention_mask.long()
            return self.get_input_embeddings()(inputs), mask
        # new tokens go to the right of a row, so its padding must be on the left
        spliced = self._spliced_rows(inputs, attention_mask, None, features, None)
        rows = pad_rows(*spliced, "left")
        return rows.embeds, rows.attention_mask.long()

    def _init_weights(self, module: Any) -> None:
        """Initialises what a checkpoint does not hold."""
        super()._init_weights(module)
        if isinstance(module, LlavaMetaModel) and hasattr(module, "image_newline"):
            init.normal_(module.image_newline, std=module.config.hidden_size**-0.5)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a checkpoint, with the vision tower's weights if it carries them.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
                Of a composite model, the language model is loaded.
            *args: For transformers.
            **kwargs: For transformers; `output_loading_info=True` also returns what was missing.

        Raises:
            CheckpointError: The checkpoint carries only a part of the tower.
        """
        with_info = kwargs.pop("output_loading_info", False)
        tower_inside = carries_tower(pretrained_model_name_or_path)
        is_composite = has_text_part(read_config(pretrained_model_name_or_path) or {})
        if is_composite:
            kwargs["key_mapping"] = text_part_names(cls.base_model_prefix)
        model, info = super().from_pretrained(
            pretrained_model_name_or_path,
            *args,
            **kwargs,
            materialize_tower=tower_inside,
            output_loading_info=True,
        )
        if is_composite:
            model._weight_conversions = None  # by which a model is saved with the names it had
        missing = sorted(key for key in info["missing_keys"] if "vision_tower." in key)
        if missing:
            raise CheckpointError(
                f"{pretrained_model_name_or_path}: {len(missing)} of the vision tower's weights "
                f"are missing, e.g. {missing[:3]}; the checkpoint does not fit its mm_vision_tower"
            )
        if (tower := model.get_vision_tower()) is not None:
            tower.requires_grad_(False)
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the model; the tower's weights get the spelling that all readers know."""
        weights = kwargs.pop("state_dict", None)
        weights = self.state_dict() if weights is None else weights
        if (tower := self.get_vision_tower()) is not None and tower.old_level:
            weights = with_old_level(weights)
        super().save_pretrained(  # type: ignore[misc]
            save_directory, *args, state_dict=weights, **kwargs
        )


class _HeadOnly:
    """Stands in for a model whose own `forward` is to run on hidden states that exist already.

    Its inner model returns them; all else is the model's.
    """

    def __init__(self, model: Any, outputs: _Outputs):
        self._model = model
        setattr(self, model.base_model_prefix, _InnerDone(model.get_model(), outputs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _InnerDone:
    """Stands in for an inner model that has run."""

    def __init__(self, inner: Any, outputs: _Outputs):
        self._inner, self._outputs = inner, outputs

    def __call__(self, *args: Any, **kwargs: Any) -> _Outputs:
        return self._outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Outputs:
    """Outputs of an inner model: hidden states, perhaps of routers; None for everything else."""

    def __init__(self, hidden: Tensor, router_logits: Any):
        self.last_hidden_state, self.router_logits = hidden, router_logits

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


# LLaVA's public modules, which a pickle names
_PUBLIC = ("llama", "mistral", "mpt")
# attributes that LLaVA's code, and ours, expects and the language model has under another name
_ATTRIBUTE_MAPS = {"mpt": {"max_position_embeddings": "max_seq_len"}}
# where the inner model is, if `base_model_prefix` is wrong
_INNER_NAMES = {"llama4_text": "model"}
_INNER_METHODS = {"mpt": {"embed_tokens": lambda self, x: self.wte(x)}}


@dataclass(frozen=True)
class Family:
    """The classes of a kind of language model, with images.

    Attributes:
        name: Its `model_type` in transformers.
        config_class: Its configuration; the multimodal keys are in `llava.model.checkpoint`.
        inner_class: Its layers with vision tower and projector.
        model_class: The causal language model, a `LlavaCausalLM`.
    """

    name: str
    config_class: Any
    inner_class: Any
    model_class: Any


@cache
def get_family(name: str) -> Family:
    """Makes the classes of a family, and makes them known to transformers' `Auto` classes.

    Args:
        name: As transformers spells it.

    Raises:
        KeyError: Transformers has no causal language model of this name.
    """
    base, checked = CONFIG_MAPPING[name], checked_families().get(name, {})
    module = f"llava.model.language_model.llava_{name}" if name in _PUBLIC else __name__
    config_name, inner_name, model_name = class_names(name)

    def make(class_name: str, mixin: type, base: Any, doc: str, **attributes: Any) -> Any:
        named = {"__module__": module, "__doc__": doc}
        return type(class_name, (mixin, base), {**named, **attributes})

    config_class = make(
        config_name, LlavaConfigMixin, base,
        f"Configuration of {name}; the multimodal keys are in `llava.model.checkpoint`.",
        model_type=model_type_of(name),
        attribute_map={**base.attribute_map, **_ATTRIBUTE_MAPS.get(name, {})},
    )  # fmt: skip
    inner_class = make(
        inner_name, LlavaMetaModel, MODEL_MAPPING[base],
        f"Layers of {name} with vision tower and projector.",
        config_class=config_class, **_INNER_METHODS.get(name, {}),
    )  # fmt: skip
    causal = MODEL_FOR_CAUSAL_LM_MAPPING[base]
    model_class = make(
        model_name, LlavaCausalLM, causal,
        f"{name} with images; see `LlavaCausalLM` for `forward` and `generate`.",
        config_class=config_class, inner_class=inner_class,
        base_model_prefix=_INNER_NAMES.get(name, causal.base_model_prefix),
        cannot_pack=checked.get("packing"), packs_by_mask="mask" in checked,
    )  # fmt: skip
    # how transformers converts the weights of a checkpoint, such as one tensor for each expert
    bases = (MODEL_MAPPING[base].__name__, causal.__name__)
    renamed = {name: config_class.model_type, bases[0]: inner_name, bases[1]: model_name}
    for theirs, ours in renamed.items():
        if (conversions := get_checkpoint_conversion_mapping(theirs)) is not None:
            register_checkpoint_conversion_mapping(ours, conversions, overwrite=True)
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
    return Family(name, config_class, inner_class, model_class)


def __getattr__(name: str) -> Any:
    """Makes a class by its name on first use (PEP 562), as pickles and imports ask for it."""
    family = family_of_class(name)
    if family is None or family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = get_family(family)
    classes = (made.config_class, made.inner_class, made.model_class)
    return classes[class_names(family).index(name)]


def model_class_of(config: dict[str, Any], where: str, model_name: str = "") -> Any:
    """Returns the multimodal class for a configuration, or None for a text-only model.

    Args:
        config: Content of `config.json`.
        where: Its place, for messages.
        model_name: What to go by where the type is `llava` and no architecture is written.

    Raises:
        ConfigError: A format that is not supported.
    """
    refuse_foreign(config, where)
    model_type = str(config.get("model_type"))
    has_tower = "mm_vision_tower" in config
    # only a type such as `llava_mistral` says it: forks write also the language model's own, or
    # `llava`, beside a class that does
    is_decisive = model_type.startswith(PREFIX)
    architecture = (config.get("architectures") or [None])[0]
    family = None if is_decisive else family_of_class(architecture)
    if model_type in ("llava", "llava_next") and not has_tower and family is None:
        raise ConfigError(
            f"{where} is in the format of transformers' own {model_type!r} model, not in LLaVA's "
            "(no mm_vision_tower in config.json): load it with transformers, or convert it with "
            "`lrm import hf`"
        )
    if not has_tower and not is_decisive and family is None:
        return None
    if family is None and model_type == "llava":
        family = _family_of(model_name)
    return get_family(find_family(family or model_type, where)).model_class


def _family_of(model_name: str) -> str:
    """Returns the language model of a checkpoint that says only that it is LLaVA's."""
    family = next((part for part in ("mpt", "mistral") if part in model_name.lower()), "llama")
    log.warning("%s: config.json names no language model, taking %s", model_name, family)
    return family
