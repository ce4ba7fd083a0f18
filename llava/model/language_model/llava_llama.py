"""LLaVA on Llama: configuration, inner model and causal language model."""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from llava.model.language_model.causal_lm import LlavaCausalLM, LlavaConfigMixin, register
from llava.model.llava_arch import LlavaMetaModel


class LlavaConfig(LlavaConfigMixin, LlamaConfig):
    """Llama's configuration; the multimodal keys are in `llava.model.checkpoint`."""

    model_type = "llava_llama"


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    """Llama's layers with vision tower and projector."""

    config_class = LlavaConfig


class LlavaLlamaForCausalLM(LlavaCausalLM, LlamaForCausalLM):
    """Llama with images; see `LlavaCausalLM` for `forward` and `generate`."""

    config_class = LlavaConfig
    inner_class = LlavaLlamaModel


register(LlavaLlamaForCausalLM)
