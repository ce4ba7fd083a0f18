"""LLaVA on Mistral: configuration, inner model and causal language model."""

from __future__ import annotations

from transformers import MistralConfig, MistralForCausalLM, MistralModel

from llava.model.language_model.causal_lm import LlavaCausalLM, LlavaConfigMixin, register
from llava.model.llava_arch import LlavaMetaModel


class LlavaMistralConfig(LlavaConfigMixin, MistralConfig):
    """Mistral's configuration; the multimodal keys are in `llava.model.checkpoint`."""

    model_type = "llava_mistral"


class LlavaMistralModel(LlavaMetaModel, MistralModel):
    """Mistral's layers with vision tower and projector."""

    config_class = LlavaMistralConfig


class LlavaMistralForCausalLM(LlavaCausalLM, MistralForCausalLM):
    """Mistral with images; see `LlavaCausalLM` for `forward` and `generate`."""

    config_class = LlavaMistralConfig
    inner_class = LlavaMistralModel


register(LlavaMistralForCausalLM)
