"""LLaVA on Mistral: configuration, inner model and causal language model."""

from llava.model.language_model.causal_lm import get_family

_FAMILY = get_family("mistral")
LlavaMistralConfig = _FAMILY.config_class
LlavaMistralModel = _FAMILY.inner_class
LlavaMistralForCausalLM = _FAMILY.model_class
