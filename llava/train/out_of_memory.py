"""Explains running out of memory: which batch it was, and what to lower.

Input: an exception and the batch of that moment. Output: a `UserError`, or nothing if the exception
is another one.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from llava.errors import UserError

_CPU_MESSAGE = re.compile(r"DefaultCPUAllocator: (can't|not enough)|std::bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _CPU_MESSAGE.search(str(error)) is not None


def describe_batch(inputs: dict[str, Any], num_image_positions: int = 0) -> str:
    """Say how large a batch is.

    Args:
        inputs: As the collator makes it.
        num_image_positions: Positions that a picture takes in the model.
    """
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    lengths = [ids.shape[1]] * len(ids) if mask is None else mask.sum(1).tolist()
    images = inputs.get("images", inputs.get("image_features"))
    pictures = 0 if images is None else _count(images)
    text = (
        f"{len(ids)} samples of {min(lengths):,} to {max(lengths):,} tokens, {sum(lengths):,} in "
        f"all ({ids.numel():,} with padding)"
    )
    if pictures:
        text += f", and {pictures} pictures of {num_image_positions:,} positions each"
    return text


def out_of_memory(error: BaseException, batch: str, args: Any, step: int) -> UserError:
    """The message for a user.

    Args:
        error: What was raised.
        batch: From `describe_batch`.
        args: Training arguments.
        step: The optimizer step, from 1.
    """
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    size, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
    advice = []
    if size > 1:
        advice.append(
            f"--per_device_train_batch_size {size // 2} --gradient_accumulation_steps {steps * 2} "
            "learns from as many samples a step with half the activations"
        )
    if not args.activation_checkpointing:
        advice.append("--activation_checkpointing True computes activations again, not kept")
    if not args.packing:
        advice.append("--packing True leaves the padding out")
    advice.append(f"--model_max_length is {args.model_max_length}")
    if not args.deepspeed and not args.fsdp and args.world_size > 1:
        advice.append("--deepspeed scripts/zero3.json shares weights and states between the GPUs")
    return UserError(
        f"out of memory in step {step}, with {batch}: {first_line}\nWhat helps: "
        + "; ".join(advice)
        + ". The same command goes on from the last whole checkpoint."
    )


def _count(images: Tensor | list[Tensor]) -> int:
    """Pictures, or their tiles, of a batch."""
    if isinstance(images, Tensor):
        # [N, 3, S, S] and [N, P, D], or [N, tiles, ...]
        return len(images) if images.ndim in (3, 4) else images.shape[0] * images.shape[1]
    return sum(len(image) if image.ndim > 3 else 1 for image in images)
