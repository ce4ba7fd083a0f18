"""LLaVA on Llama: configuration, inner model and causal language model."""

from __future__ import annotations

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)

from llava.model.language_model.causal_lm import LlavaCausalLM, LlavaConfigMixin
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


class LlavaConfig(LlavaConfigMixin, LlamaConfig):
    """Llama's configuration; the multimodal keys are in `llava.model.checkpoint`."""

    model_type = "llava_llama"


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    """Llama's layers with vision tower and projector."""

    config_class = LlavaConfig


class LlavaLlamaForCausalLM(LlavaCausalLM, LlamaForCausalLM, LlavaMetaForCausalLM):
    """Llama with images; see `LlavaCausalLM` for `forward` and `generate`."""

    config_class = LlavaConfig

    def __init__(self, config: LlavaConfig, materialize_tower: bool = False):
        # past Llama's own __init__, which would build a text-only model first
        super(LlamaForCausalLM, self).__init__(config)
        self.model = LlavaLlamaModel(config, materialize_tower=materialize_tower)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


AutoConfig.register("llava_llama", LlavaConfig, exist_ok=True)
AutoModelForCausalLM.register(LlavaConfig, LlavaLlamaForCausalLM, exist_ok=True)
