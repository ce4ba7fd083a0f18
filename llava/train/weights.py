"""Collect what is to be saved of a model, and write the projector file.

Input: named parameters, perhaps partitioned by ZeRO-3. Output: CPU tensors by name, and
`mm_projector.bin`. Collecting is a collective operation: under ZeRO-3 every rank must call it, the
writer alone writes. Reading is `llava.model.multimodal_projector.builder`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llava.model.builder import NON_LORA_FILE
from llava.model.multimodal_projector.builder import (
    PROJECTOR_FILE,
    load_projector,
    projector_weights,
    read_tensors,
)

__all__ = ["NON_LORA_FILE", "PROJECTOR_FILE", "load_projector", "projector_weights"]

log = logging.getLogger(__name__)

NamedParameters = Iterable[tuple[str, nn.Parameter]]

PROJECTOR_KEYS = ("mm_projector", "vision_resampler")
EMBEDDING_KEYS = ("embed_tokens", "embed_in")


def maybe_zero_3(param: Tensor, ignore_status: bool = False, name: str | None = None) -> Tensor:
    """Copy a parameter to the CPU; one that ZeRO-3 partitioned is gathered first.

    Args:
        param: A parameter, of any shape.
        ignore_status: Say nothing if the parameter is in use while it is gathered.
        name: Its name, for messages.
    """
    if not hasattr(param, "ds_id"):
        return param.detach().cpu().clone()
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    if param.ds_status != ZeroParamStatus.NOT_AVAILABLE and not ignore_status:
        log.warning("%s is gathered while it is in use (%s)", name, param.ds_status)
    with gathered([param]):
        return param.data.detach().cpu().clone()


def gathered(
    params: Sequence[Tensor], modify: bool = False
) -> contextlib.AbstractContextManager[Any]:
    """Make parameters that ZeRO-3 partitioned whole for a while; without ZeRO-3 do nothing.

    Args:
        params: Parameters.
        modify: Keep what the first rank writes into them.
    """
    if not any(hasattr(param, "ds_id") for param in params):
        return contextlib.nullcontext()
    from deepspeed import zero

    return zero.GatheredParameters(list(params), modifier_rank=0 if modify else None)


def get_peft_state_maybe_zero_3(named_params: NamedParameters, bias: str) -> dict[str, Tensor]:
    """Collect LoRA's weights.

    Args:
        named_params: All parameters of the peft model.
        bias: `none`, `all` (every bias, too) or `lora_only` (the biases of adapted layers, too).

    Raises:
        NotImplementedError: another value of `bias`.
    """
    params = dict(named_params)
    lora = [name for name in params if "lora_" in name]
    if bias == "none":
        chosen = set(lora)
    elif bias == "all":
        chosen = {*lora, *(name for name in params if "bias" in name)}
    elif bias == "lora_only":
        # the adapted layer itself is called base_layer in current peft
        layers = {name.split("lora_")[0] for name in lora}
        biases = {f"{layer}{inner}bias" for layer in layers for inner in ("", "base_layer.")}
        chosen = {*lora, *(biases & params.keys())}
    else:
        raise NotImplementedError(f"bias={bias!r}; choose from: none, all, lora_only")
    return {n: maybe_zero_3(p, ignore_status=True) for n, p in params.items() if n in chosen}


def get_peft_state_non_lora_maybe_zero_3(
    named_params: NamedParameters, require_grad_only: bool = True
) -> dict[str, Tensor]:
    """Collect what LoRA training changes besides the adapters, e.g. the projector."""
    return {
        name: maybe_zero_3(param, ignore_status=True)
        for name, param in named_params
        if "lora_" not in name and (param.requires_grad or not require_grad_only)
    }


def get_mm_adapter_state_maybe_zero_3(
    named_params: NamedParameters, keys_to_match: Iterable[str]
) -> dict[str, Tensor]:
    """Collect the parameters whose names contain one of `keys_to_match`."""
    keys = tuple(keys_to_match)
    return {
        name: maybe_zero_3(param, ignore_status=True)
        for name, param in named_params
        if any(key in name for key in keys)
    }


def save_projector(
    model: nn.Module, path: Path, with_embeddings: bool = False, is_writer: bool = True
) -> None:
    """Write the projector's weights, in the dtype in which they are trained.

    Args:
        model: A model with a projector.
        path: The file, or the folder that gets `mm_projector.bin`.
        with_embeddings: Write the input embeddings, too (for `<im_start>` and `<im_end>`).
        is_writer: Whether this process writes; all processes must call.
    """
    keys = (*PROJECTOR_KEYS, *(EMBEDDING_KEYS if with_embeddings else ()))
    state = get_mm_adapter_state_maybe_zero_3(model.named_parameters(), keys)
    if is_writer:
        path = path / PROJECTOR_FILE if path.is_dir() else path
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path)


def save_non_lora(model: nn.Module, folder: Path, is_writer: bool = True) -> None:
    """Write what LoRA training changes besides the adapters, and the base's configuration."""
    state = get_peft_state_non_lora_maybe_zero_3(model.named_parameters())
    if is_writer:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / NON_LORA_FILE)
        config: Any = model.config
        config.save_pretrained(folder)


def load_adapter_state(model: Any, folder: Path) -> None:
    """Load the projector, and embeddings if they were saved, from a first stage's checkpoint.

    Raises:
        CheckpointError: the file is missing, cut short or does not fit.
    """
    tensors = read_tensors(folder / PROJECTOR_FILE)
    load_projector(model.get_model().mm_projector, folder / PROJECTOR_FILE)
    rows = next((t for n, t in tensors.items() if any(key in n for key in EMBEDDING_KEYS)), None)
    if rows is not None:
        weight = model.get_input_embeddings().weight
        with gathered([weight], modify=True), torch.no_grad():
            weight.copy_(rows)


def load_non_lora(model: nn.Module, folder: Path) -> None:
    """Load what `save_non_lora` wrote, into a model with the same adapters.

    Raises:
        CheckpointError: the file is missing or cut short.
    """
    model.load_state_dict(read_tensors(folder / NON_LORA_FILE), strict=False)
