"""LLaVA on Mistral: configuration, inner model and causal language model."""

from __future__ import annotations

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MistralModel,
)

from llava.model.language_model.causal_lm import LlavaCausalLM, LlavaConfigMixin
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


class LlavaMistralConfig(LlavaConfigMixin, MistralConfig):
    """Mistral's configuration; the multimodal keys are in `llava.model.checkpoint`."""

    model_type = "llava_mistral"


class LlavaMistralModel(LlavaMetaModel, MistralModel):
    """Mistral's layers with vision tower and projector."""

    config_class = LlavaMistralConfig


class LlavaMistralForCausalLM(LlavaCausalLM, MistralForCausalLM, LlavaMetaForCausalLM):
    """Mistral with images; see `LlavaCausalLM` for `forward` and `generate`."""

    config_class = LlavaMistralConfig

    def __init__(self, config: LlavaMistralConfig, materialize_tower: bool = False):
        # past Mistral's own __init__, which would build a text-only model first
        super(MistralForCausalLM, self).__init__(config)
        self.model = LlavaMistralModel(config, materialize_tower=materialize_tower)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


AutoConfig.register("llava_mistral", LlavaMistralConfig, exist_ok=True)
AutoModelForCausalLM.register(LlavaMistralConfig, LlavaMistralForCausalLM, exist_ok=True)
