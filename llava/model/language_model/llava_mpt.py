"""LLaVA on MPT: configuration, inner model and causal language model.

The language model is transformers' own MPT. It has no position embeddings (ALiBi), so
`position_ids` mean nothing to it; its embedding table is `wte`, and its head is tied to it.
"""

from __future__ import annotations

from torch import Tensor
from transformers import MptConfig, MptForCausalLM, MptModel

from llava.model.language_model.causal_lm import LlavaCausalLM, register
from llava.model.llava_arch import LlavaMetaModel


class LlavaMptConfig(MptConfig):
    """MPT's configuration; the multimodal keys are in `llava.model.checkpoint`.

    `hidden_size` is MPT's `d_model`, `max_position_embeddings` its `max_seq_len`.
    """

    model_type = "llava_mpt"
    attribute_map = {**MptConfig.attribute_map, "max_position_embeddings": "max_seq_len"}


class LlavaMptModel(LlavaMetaModel, MptModel):
    """MPT's blocks with vision tower and projector."""

    config_class = LlavaMptConfig

    def embed_tokens(self, x: Tensor) -> Tensor:
        """Embeds token ids: [...] -> [..., D]."""
        return self.wte(x)


class LlavaMptForCausalLM(LlavaCausalLM, MptForCausalLM):
    """MPT with images; see `LlavaCausalLM` for `forward` and `generate`."""

    config_class = LlavaMptConfig
    inner_class = LlavaMptModel
    # its attention knows distances, not positions
    supports_packing = False


register(LlavaMptForCausalLM)
