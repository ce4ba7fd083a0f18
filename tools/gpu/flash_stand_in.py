"""Stands in for flash-attention where there is no GPU: its functions' signatures, computed by SDPA.

The functions refuse what the kernels would refuse (dtype, borders, lengths, sizes of heads), so
that a CPU shows whether this project, through transformers, calls them rightly. The signatures are
those of flash-attn 2.8, as its README documents them.

Legend: B samples, T positions of all samples, H heads, D size of a head.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_HEAD_SIZE = 256
# arguments of the calls since the stand-in was installed
calls: list[dict[str, Any]] = []


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """Computes attention within each sample; q is [T, H, D], the result as well."""
    calls.append({**locals()})
    _check(q, k, v)
    for borders, longest, rows in (
        (cu_seqlens_q, max_seqlen_q, q),
        (cu_seqlens_k, max_seqlen_k, k),
    ):
        assert borders.dtype == torch.int32, f"borders are {borders.dtype}, expected int32"
        assert borders.device == q.device and borders.is_contiguous() and borders.ndim == 1
        assert type(longest) is int, f"the longest length is {longest!r}, expected an int"
        assert borders[0] == 0 and borders[-1] == len(rows), "the borders do not span all positions"
        assert borders.diff().max() <= longest, "a sample is longer than the longest length"
    assert window_size == (-1, -1) and not softcap and alibi_slopes is None, "not in the stand-in"
    pieces = zip(
        q.split(cu_seqlens_q.diff().tolist()),
        k.split(cu_seqlens_k.diff().tolist()),
        v.split(cu_seqlens_k.diff().tolist()),
        strict=True,
    )
    return torch.cat(
        [flash_attn_func(a[None], b[None], c[None], dropout_p, softmax_scale, causal)[0]
         for a, b, c in pieces]
    )  # fmt: skip


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """Computes attention; q is [B, T, H, D], the result as well."""
    _check(q, k, v)
    mask = None
    if causal:  # the last query sees the last key, as in the kernels
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
        mask = mask.tril(k.shape[1] - q.shape[1])
    queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))
    found = F.scaled_dot_product_attention(
        queries, keys, values, mask, dropout_p, scale=softmax_scale, enable_gqa=True
    )
    return found.transpose(1, 2)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Refuses what the kernels refuse."""
    for x in (q, k, v):
        assert x.dtype in (torch.float16, torch.bfloat16), f"{x.dtype}, expected fp16 or bf16"
        assert x.dtype == q.dtype and x.device == q.device and x.stride(-1) == 1
    assert q.shape[-1] <= MAX_HEAD_SIZE and q.shape[-2] % k.shape[-2] == 0


@contextmanager
def installed() -> Iterator[list[dict[str, Any]]]:
    """Lets transformers find the stand-in as flash-attn; gives the arguments of its calls."""
    utils: Any = importlib.import_module("transformers.modeling_flash_attention_utils")
    modeling_utils: Any = importlib.import_module("transformers.modeling_utils")
    module, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
    module.__dict__.update(
        flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func,
        flash_attn_with_kvcache=flash_attn_func, bert_padding=padding, __version__="2.8.3",
    )  # fmt: skip
    padding.__dict__.update(pad_input=utils._pad_input, unpad_input=utils._unpad_input)
    known = modeling_utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]
    calls.clear()
    with ExitStack() as stack:
        names = {"flash_attn": module, "flash_attn.bert_padding": padding}
        stack.enter_context(patch.dict(sys.modules, names))
        stack.enter_context(patch.object(utils, "is_flash_attn_2_available", lambda: True))
        stack.enter_context(patch.object(utils, "_loaded_implementation", None))
        stack.enter_context(patch.dict(known, {"general_availability_check": lambda: True}))
        yield calls
