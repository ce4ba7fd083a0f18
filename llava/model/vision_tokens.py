"""The special tokens around images, for checkpoints that use them (most since v1.0 do not).

In: a model, its tokenizer and the flags `mm_use_im_patch_token` and `mm_use_im_start_end`. Out:
both with the new tokens, whose embedding rows are the mean of the old rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
)
from llava.errors import CheckpointError
from llava.model.projector_file import gathered, read_tensors


def add_image_tokens(tokenizer: Any, patch: bool, start_end: bool) -> int:
    """Add `<im_patch>` and/or `<im_start>`, `<im_end>`; return how many were new.

    The start and end tokens come last: readers of a projector file take the last two rows.
    """
    num_new = 0
    if patch:
        num_new += tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
    if start_end:
        tokens = [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN]
        num_new += tokenizer.add_tokens(tokens, special_tokens=True)
    return num_new


def resize_to_tokenizer(model: Any, num_rows: int) -> None:
    """Resize both embedding tables to `num_rows`; new rows are the mean of the old ones."""
    # not the weight's shape, which is empty under ZeRO-3
    num_old = model.get_input_embeddings().num_embeddings
    if num_rows == num_old:
        return
    model.resize_token_embeddings(num_rows, mean_resizing=False)
    if num_rows < num_old:
        return
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        with gathered([table.weight]), torch.no_grad():
            if table.weight.numel():  # under ZeRO-3 the first rank writes for all
                table.weight[num_old:] = table.weight[:num_old].mean(dim=0, keepdim=True)


def initialize(model: Any, model_args: Any, tokenizer: Any) -> None:
    """Add the tokens that `model_args` asks for, and set what of the embeddings is trained.

    Args:
        model: a multimodal causal language model.
        model_args: `mm_use_im_patch_token`, `mm_use_im_start_end`, `tune_mm_mlp_adapter`,
            `pretrain_mm_mlp_adapter`.
        tokenizer: gets the new tokens.

    Raises:
        CheckpointError: `pretrain_mm_mlp_adapter` has embeddings of another shape.
    """
    patch, start_end = model_args.mm_use_im_patch_token, model_args.mm_use_im_start_end
    if patch:
        add_image_tokens(tokenizer, patch=True, start_end=False)
        resize_to_tokenizer(model, len(tokenizer))
    num_new = add_image_tokens(tokenizer, patch=False, start_end=start_end)
    resize_to_tokenizer(model, len(tokenizer))
    if not (patch or start_end):
        return
    if model_args.tune_mm_mlp_adapter:
        # in this order: MPT has one table for both
        model.get_output_embeddings().requires_grad_(False)
        model.get_input_embeddings().requires_grad_(start_end)
    if start_end and model_args.pretrain_mm_mlp_adapter and num_new:
        path = model_args.pretrain_mm_mlp_adapter
        copy_token_rows(model, read_tensors(path), num_new, path)


def copy_token_rows(model: Any, tensors: dict[str, Tensor], num_new: int, where: Any) -> None:
    """Copy the rows of the new tokens from a projector file, if it holds embeddings.

    Args:
        model: its input embeddings [V, D] already have the new rows, at the end.
        tensors: the file's content; `model.embed_tokens.weight` is [V, D] or [2, D].
        num_new: the tokens that were added; must be 2.
        where: the file, for messages.

    Raises:
        CheckpointError: another shape or number.
    """
    rows = next((v for k, v in tensors.items() if k.endswith("embed_tokens.weight")), None)
    table = model.get_input_embeddings()
    if rows is None:
        return
    whole, pair = (table.num_embeddings, table.embedding_dim), (2, table.embedding_dim)
    if num_new != 2 or tuple(rows.shape) not in (whole, pair):
        raise CheckpointError(
            f"{where}: embeddings of shape {tuple(rows.shape)} for {num_new} new token(s), "
            f"expected 2 new tokens and {whole} or {pair}"
        )
    with gathered([table.weight]), torch.no_grad():
        if table.weight.numel():
            table.weight[-2:] = rows[-2:].to(table.weight)
