"""The model: vision tower, projector, splice and language model, and how checkpoints are loaded.

The classes are imported on first use, so that importing a sub-module costs nothing and a missing
dependency shows itself with its own error.
"""

from importlib import import_module
from typing import Any

_CLASSES = {
    "LlavaConfig": "llava_llama",
    "LlavaLlamaForCausalLM": "llava_llama",
    "LlavaMistralConfig": "llava_mistral",
    "LlavaMistralForCausalLM": "llava_mistral",
    "LlavaMptConfig": "llava_mpt",
    "LlavaMptForCausalLM": "llava_mpt",
}

__all__ = [*_CLASSES]


def __getattr__(name: str) -> Any:
    """Imports a public class on first use (PEP 562)."""
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.language_model.{_CLASSES[name]}"), name)
