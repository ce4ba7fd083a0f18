"""Makes the delta of a model to its base.

Usage: python -m llava.model.make_delta --base-model-path BASE --target-model-path TARGET
       --delta-path FOLDER [--hub-repo-id OWNER/NAME]

A delta is a model whose weights are target minus base, so that weights under a licence need not be
given away. `apply_delta` and `consolidate` share the loading and the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from llava.errors import CheckpointError, flag, make_parser, run_script
from llava.model.checkpoint import check_complete, kind_of, read_config
from llava.model.language_model.causal_lm import model_class_of
from llava.model.multimodal_encoder.families import portable_tower
from llava.model.tokenizer import load_tokenizer

# tables that grow by the rows of added tokens
_RESIZED = ("model.embed_tokens.weight", "transformer.wte.weight", "lm_head.weight")
# what a language model cannot hold: copied into the delta as it is
_NOT_IN_BASE = tuple(
    f"{inner}.{part}"
    for inner in ("model", "transformer")
    for part in ("mm_projector.", "vision_tower.", "image_newline")
)


def load_for_delta(name_or_path: str, dtype: torch.dtype) -> Any:
    """Loads a whole model, multimodal or not, on the CPU.

    Raises:
        CheckpointError: It is missing, incomplete, or no whole model.
    """
    if kind_of(name_or_path) != "full":
        raise CheckpointError(f"{name_or_path}: expected a whole model")
    if Path(name_or_path).is_dir():
        check_complete(Path(name_or_path))
    model_class = model_class_of(read_config(name_or_path) or {}, name_or_path)
    model = (model_class or AutoModelForCausalLM).from_pretrained(name_or_path, dtype=dtype)
    if hasattr(model.config, "mm_vision_tower"):
        # it will be saved elsewhere
        model.config.mm_vision_tower = portable_tower(model.config.mm_vision_tower, name_or_path)
    return model


def add_base(model: Any, base: Any, sign: int) -> None:
    """Adds `sign` times the weights of `base` to those of `model`, in place.

    The embedding tables may have more rows than the base's; only the common block changes.

    Args:
        model: Target (sign -1, becomes the delta) or delta (sign +1, becomes the target).
        base: The language model.
        sign: -1 or +1.

    Raises:
        CheckpointError: A weight that the base must have is missing or of another shape.
    """
    base_weights = base.state_dict()
    changed = set()
    for name, weight in model.state_dict().items():
        if weight.data_ptr() in changed:
            continue  # a head that is tied to the embeddings
        changed.add(weight.data_ptr())
        if name not in base_weights:
            if name.startswith(_NOT_IN_BASE):
                continue
            raise CheckpointError(f"{name}: not in the base model, and no multimodal weight")
        other = base_weights[name].to(weight)
        if weight.shape == other.shape:
            weight.add_(other, alpha=sign)
        elif name in _RESIZED:
            rows, columns = (min(a, b) for a, b in zip(weight.shape, other.shape, strict=True))
            weight[:rows, :columns].add_(other[:rows, :columns], alpha=sign)
        else:
            raise CheckpointError(
                f"{name}: {tuple(weight.shape)}, but {tuple(other.shape)} in the base model"
            )


def make_delta(
    base_model_path: str, target_model_path: str, delta_path: str, hub_repo_id: str | None = None
) -> None:
    """Writes target minus base, in float16, with the target's tokenizer.

    Args:
        base_model_path: The language model.
        target_model_path: The multimodal model that was trained from it.
        delta_path: Folder to write.
        hub_repo_id: Also upload to this Hub repository.

    Raises:
        CheckpointError: A model is missing or incomplete, or they do not belong together.
    """
    base = load_for_delta(base_model_path, torch.float16)
    target = load_for_delta(target_model_path, torch.float16)
    add_base(target, base, sign=-1)
    upload = {"push_to_hub": True, "repo_id": hub_repo_id} if hub_repo_id else {}
    target.save_pretrained(delta_path, **upload)
    load_tokenizer(target_model_path).save_pretrained(delta_path, **upload)


FLAGS = (
    flag("--base-model-path", required=True),
    flag("--target-model-path", required=True),
    flag("--delta-path", required=True),
)
"""The flags that `apply_delta` has, too."""


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and runs the script."""
    run_script(
        lambda args: make_delta(**vars(args)),
        make_parser(
            "Make the delta of a model to its base.", *FLAGS, flag("--hub-repo-id", default=None)
        ),
        argv,
    )


if __name__ == "__main__":
    main()
