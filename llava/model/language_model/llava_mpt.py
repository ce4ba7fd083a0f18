"""LLaVA on MPT: not supported yet; importing a class of it says so.

Its upstream implementation does not run (LLAVA_CONTRACT section 12), and no released checkpoint
of the v1.5 or v1.6 series uses it.
"""

from __future__ import annotations

from typing import Any

_NAMES = ("LlavaMptConfig", "LlavaMptModel", "LlavaMptForCausalLM")


def __getattr__(name: str) -> Any:
    """Refuse the MPT classes with an explanation (PEP 562).

    Raises:
        ImportError: for the names that this module will have.
        AttributeError: for any other.
    """
    if name in _NAMES:
        raise ImportError(f"{name}: MPT is not supported yet; use llava_llama or llava_mistral")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
