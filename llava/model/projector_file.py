"""Read the projector file of the first training stage, `mm_projector.bin`.

In: a file of tensors (torch pickle or safetensors) whose keys hold `mm_projector.`, perhaps with
`model.embed_tokens.weight` beside them. Out: the projector's state dict. Writing it is
`llava.train.checkpoint`.
"""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from llava.errors import CheckpointError

PROJECTOR_FILE = "mm_projector.bin"


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a file of named tensors onto the CPU.

    Raises:
        CheckpointError: there is no such file, or it is cut short or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise CheckpointError(f"{path}: not readable, perhaps cut short: {error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: holds something else than tensors: {error}") from error


def projector_weights(tensors: dict[str, Tensor], where: str | Path) -> dict[str, Tensor]:
    """Pick the projector's weights and drop everything before and with `mm_projector.`.

    Raises:
        CheckpointError: there are none.
    """
    key = "mm_projector."
    weights = {name.split(key, 1)[1]: value for name, value in tensors.items() if key in name}
    if not weights:
        raise CheckpointError(
            f"{where}: expected keys with {key!r}, found {sorted(tensors)[:5]} ..."
        )
    return weights


def load_projector(projector: nn.Module, path: str | Path) -> None:
    """Load a projector file into `projector`, whose dtype and device stay.

    Raises:
        CheckpointError: names or shapes differ, or the file is unreadable.
    """
    load_weights(projector, projector_weights(read_tensors(path), path), path)


def load_weights(projector: nn.Module, weights: dict[str, Tensor], where: str | Path) -> None:
    """Copy `weights` into `projector`.

    Raises:
        CheckpointError: names or shapes differ.
    """
    found = {name: tuple(value.shape) for name, value in weights.items()}
    expected = {name: _full_shape(value) for name, value in projector.named_parameters()}
    if found != expected:
        raise CheckpointError(
            f"{where}: the projector does not fit.\n  found    {found}\n  expected {expected}\n"
            "Check mm_projector_type, the vision tower and the language model's size."
        )
    parameters = dict(projector.named_parameters())
    with gathered(list(parameters.values())), torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


def _full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """The shape before ZeRO-3 partitioned the parameter."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def gathered(parameters: list[nn.Parameter]) -> contextlib.AbstractContextManager[None]:
    """Gather parameters that ZeRO-3 partitioned, to write them; otherwise do nothing."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)
