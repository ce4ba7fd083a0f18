"""Mixtures: row, language and instruction as a pure function of (spec, epoch, index)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrm_ext.mixture.order import Draw, Mixture
    from lrm_ext.mixture.sampler import LanguageMixSampler
    from lrm_ext.mixture.spec import MixtureSpec

__all__ = ["Draw", "LanguageMixSampler", "Mixture", "MixtureSpec"]

_FILES = {"Draw": "order", "LanguageMixSampler": "sampler", "Mixture": "order"}


def __getattr__(name: str) -> Any:
    # loaded when they are used: every `lrm` command imports this package, and torch takes seconds
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_FILES.get(name, 'spec')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
