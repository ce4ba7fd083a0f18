"""LLaVA on MPT: configuration, inner model and causal language model."""

from llava.model.language_model.causal_lm import get_family

_FAMILY = get_family("mpt")
LlavaMptConfig = _FAMILY.config_class
LlavaMptModel = _FAMILY.inner_class
LlavaMptForCausalLM = _FAMILY.model_class
