"""Builds the projector from the tower's features to the embeddings, and reads its file.

In: `mm_projector_type`, `mm_hidden_size` and `hidden_size` of a configuration. Out: a module
[..., mm_hidden_size] -> [..., hidden_size], whose parameter names are part of the checkpoint
format (`weight`, `bias`; `0.*`, `2.*`, ...). The file of the first training stage,
`mm_projector.bin`, holds tensors (torch pickle or safetensors) whose keys contain `mm_projector.`,
perhaps with `model.embed_tokens.weight` and `model.image_newline` beside them; `llava.train` writes
it.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llava.errors import CheckpointError, ConfigError
from llava.model.checkpoint import UNREADABLE

log = logging.getLogger(__name__)


class IdentityMap(nn.Module):
    """A projector that leaves the features as they are."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Returns `x`."""
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
        """Adds the block's output to its normalised input, [..., channels]."""
        x = self.pre_norm(x)
        return x + self.proj(x)


def build_vision_projector(config: Any, delay_load: bool = False, **kwargs: Any) -> nn.Module:
    """Builds the projector that `config.mm_projector_type` names (absent: `linear`).

    Args:
        config: Has `mm_hidden_size`, `hidden_size` and perhaps `mm_projector_type`.
        delay_load: Accepted for callers of LLaVA; a projector has nothing to delay.
        **kwargs: Accepted and not used, as above.

    Raises:
        ConfigError: The type is unknown, or `identity` for different sizes.
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


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Reads a file of named tensors onto the CPU.

    Raises:
        CheckpointError: There is no such file, or it is cut short or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(
            f"{path}: not readable; it is cut short, or holds something else than tensors: {error}"
        ) from error


def projector_weights(tensors: dict[str, Tensor], where: str | Path) -> dict[str, Tensor]:
    """Picks the projector's weights and drops the prefix up to `mm_projector.`.

    Raises:
        CheckpointError: There are none.
    """
    key = "mm_projector."
    weights = {name.split(key, 1)[1]: value for name, value in tensors.items() if key in name}
    if not weights:
        raise CheckpointError(
            f"{where}: expected keys with {key!r}, found {sorted(tensors)[:5]} ..."
        )
    return weights


def load_adapter(model: Any, path: str | Path) -> dict[str, Tensor]:
    """Loads a projector file into a model, whose dtype and device stay.

    The file also holds the newline of tiles, if the model that was trained had one. LLaVA's files
    do not; a newline then keeps its value.

    Args:
        model: An inner model with `mm_projector`, perhaps with `image_newline`.
        path: The file.

    Returns:
        All tensors of the file.

    Raises:
        CheckpointError: Names or shapes differ, or the file is unreadable.
    """
    tensors = read_tensors(path)
    load_weights(model.mm_projector, projector_weights(tensors, path), path)
    newline = getattr(model, "image_newline", None)
    found = next((value for name, value in tensors.items() if "image_newline" in name), None)
    if newline is not None and found is None:
        log.warning("%s holds no image_newline: it begins with random values", path)
    elif newline is not None:
        load_weights(nn.ParameterDict({"image_newline": newline}), {"image_newline": found}, path)
    return tensors


def load_weights(projector: nn.Module, weights: dict[str, Tensor], where: str | Path) -> None:
    """Copies `weights` into `projector`.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    found = {name: tuple(value.shape) for name, value in weights.items()}
    expected = {name: _full_shape(value) for name, value in projector.named_parameters()}
    if found != expected:
        raise CheckpointError(
            f"{where}: the projector does not fit.\n  found    {found}\n  expected {expected}\n"
            "Check mm_projector_type, the vision tower and the language model's size."
        )
    parameters = dict(projector.named_parameters())
    with gathered(parameters.values(), modify=True), torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


def _full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Returns the shape before ZeRO-3 partitioned the parameter."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def gathered(
    params: Iterable[Tensor], modify: bool = False
) -> contextlib.AbstractContextManager[Any]:
    """Gathers parameters that ZeRO-3 partitioned, in a `with` block; a no-op without ZeRO-3.

    Args:
        params: Parameters.
        modify: Keep what the first rank writes into them.
    """
    found = list(params)
    if not any(hasattr(param, "ds_id") for param in found):
        return contextlib.nullcontext()
    from deepspeed import zero

    return zero.GatheredParameters(found, modifier_rank=0 if modify else None)
