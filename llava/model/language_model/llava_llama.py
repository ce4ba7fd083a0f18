"""LLaVA on Llama: configuration, inner model and causal language model."""

from llava.model.language_model.causal_lm import get_family

_FAMILY = get_family("llama")
LlavaConfig = _FAMILY.config_class
LlavaLlamaModel = _FAMILY.inner_class
LlavaLlamaForCausalLM = _FAMILY.model_class
