"""LLaVA on MPT: configuration, inner model and causal language model.

The language model is transformers' own MPT. It has no position embeddings (ALiBi), so
`position_ids` mean nothing to it; its embedding table is `wte`, and its head is tied to it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, MptConfig, MptForCausalLM, MptModel

from llava.model.language_model.causal_lm import LlavaCausalLM
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


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
        """Embed token ids: [...] -> [..., D]."""
        return self.wte(x)


class LlavaMptForCausalLM(LlavaCausalLM, MptForCausalLM, LlavaMetaForCausalLM):
    """MPT with images; see `LlavaCausalLM` for `forward` and `generate`."""

    config_class = LlavaMptConfig
    # its attention knows distances, not positions
    supports_packing = False

    def __init__(self, config: LlavaMptConfig, materialize_tower: bool = False):
        # past MPT's own __init__, which would build a text-only model first
        super(MptForCausalLM, self).__init__(config)
        self.transformer = LlavaMptModel(config, materialize_tower=materialize_tower)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_model(self) -> Any:
        """Return the inner model."""
        return self.transformer


AutoConfig.register("llava_mpt", LlavaMptConfig, exist_ok=True)
AutoModelForCausalLM.register(LlavaMptConfig, LlavaMptForCausalLM, exist_ok=True)
