"""The projector from the vision tower's features to the language model's embeddings.

In: `mm_projector_type`, `mm_hidden_size` and `hidden_size` of a configuration. Out: a module
[..., mm_hidden_size] -> [..., hidden_size], whose parameter names are part of the checkpoint
format (`weight`, `bias`; `0.*`, `2.*`, ...).
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from llava.errors import ConfigError


class IdentityMap(nn.Module):
    """A projector that leaves the features as they are."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return `x`."""
        return x

    @property
    def config(self) -> dict[str, str]:
        """The configuration that makes this projector again."""
        return {"mm_projector_type": "identity"}


class SimpleResBlock(nn.Module):
    """A pre-norm residual block of two linear layers, channels -> channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.pre_norm = nn.LayerNorm(channels)
        self.proj = nn.Sequential(
            nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's output to its normalised input, [..., channels]."""
        x = self.pre_norm(x)
        return x + self.proj(x)


def build_vision_projector(config: Any, delay_load: bool = False, **kwargs: Any) -> nn.Module:
    """Build the projector that `config.mm_projector_type` names (absent: `linear`).

    Args:
        config: has `mm_hidden_size`, `hidden_size` and perhaps `mm_projector_type`.
        delay_load: accepted for callers of LLaVA; a projector has nothing to delay.
        **kwargs: accepted and not used, as above.

    Raises:
        ConfigError: the type is unknown, or `identity` for different sizes.
    """
    projector_type = getattr(config, "mm_projector_type", "linear")
    if projector_type == "linear":
        return nn.Linear(config.mm_hidden_size, config.hidden_size)
    if projector_type == "identity":
        if config.mm_hidden_size != config.hidden_size:
            raise ConfigError(
                f"mm_projector_type identity needs equal sizes: the tower's features have "
                f"{config.mm_hidden_size}, the language model's embeddings {config.hidden_size}"
            )
        return IdentityMap()
    depth = re.fullmatch(r"mlp(\d+)x_gelu", projector_type)
    if depth is None or int(depth[1]) < 1:
        raise ConfigError(
            f"Unknown projector type: {projector_type!r}. Choices: linear, mlpNx_gelu (N layers, "
            "e.g. mlp2x_gelu), identity"
        )
    layers: list[nn.Module] = [nn.Linear(config.mm_hidden_size, config.hidden_size)]
    for _ in range(int(depth[1]) - 1):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return nn.Sequential(*layers)
