"""The model: vision tower, projector, splice and language model, and how checkpoints are loaded.

The classes of any family (`LlavaQwen3ForCausalLM`, ...) are made on first use, so that importing a
sub-module costs nothing and a missing dependency shows itself with its own error.
"""

from typing import Any

__all__ = [
    "LlavaConfig",
    "LlavaLlamaForCausalLM",
    "LlavaMistralConfig",
    "LlavaMistralForCausalLM",
    "LlavaMptConfig",
    "LlavaMptForCausalLM",
]


def __getattr__(name: str) -> Any:
    """Makes a public class on first use (PEP 562)."""
    if not name.startswith("Llava"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from llava.model.language_model import causal_lm

    return getattr(causal_lm, name)
