"""Mixtures: row, language and instruction as a pure function of (spec, epoch, index)."""

from typing import TYPE_CHECKING, Any

from lrm_ext.mixture.order import Draw, Mixture
from lrm_ext.mixture.spec import MixtureSpec

if TYPE_CHECKING:
    from lrm_ext.mixture.sampler import LanguageMixSampler

__all__ = ["Draw", "LanguageMixSampler", "Mixture", "MixtureSpec"]


def __getattr__(name: str) -> Any:
    # the sampler imports torch, which takes seconds
    if name == "LanguageMixSampler":
        from lrm_ext.mixture.sampler import LanguageMixSampler

        return LanguageMixSampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
