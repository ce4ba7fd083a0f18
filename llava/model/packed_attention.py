"""Attention over samples that lie one after the other in a single row, without padding.

In: queries, keys and values of a packed row, and where its samples begin. Out: what attention
within each sample gives. Registered with transformers as `packed_sdpa`: torch's SDPA once per
sample, so that cost grows with the sum of squared lengths and no [L, L] mask is ever built.
Without those borders (generation, padded batches) it is transformers' `sdpa`. flash-attention
takes the same borders by itself; `eager` and `sdpa` find them by positions that begin again, and
build a mask.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

PACKED_SDPA = "packed_sdpa"


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sample of a packed row.

    Args:
        module: The attention layer.
        query: [1, H, L, D].
        key: [1, H_kv, L, D]; H is a multiple of H_kv.
        value: As `key`.
        attention_mask: Used only without `cu_seq_lens_q`.
        dropout: Probability.
        scaling: Of the scores; 1/sqrt(D) if left out.
        cu_seq_lens_q: [num_samples + 1] int32, where samples begin, and L. None: not packed.
        sliding_window: How many positions back a position sees; None for all.
        **kwargs: For transformers' `sdpa`.

    Returns:
        [1, L, H, D], and None for the weights.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask,
            dropout=dropout, scaling=scaling, sliding_window=sliding_window, **kwargs,
        )  # fmt: skip
    lengths = cu_seq_lens_q.diff().tolist()
    shares_keys = key.shape[1] != query.shape[1]
    outputs = [
        F.scaled_dot_product_attention(
            q, k, v,
            attn_mask=_window_mask(q.shape[2], sliding_window, q.device),
            dropout_p=dropout,
            is_causal=sliding_window is None or q.shape[2] <= sliding_window,
            scale=scaling,
            enable_gqa=shares_keys,
        )
        for q, k, v in zip(
            query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True
        )
    ]  # fmt: skip
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _window_mask(length: int, sliding_window: int | None, device: torch.device) -> Tensor | None:
    """[length, length] bool, or None where the window holds all of the sample."""
    if sliding_window is None or length <= sliding_window:
        return None
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    return (distance >= 0) & (distance < sliding_window)


def _packed_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """No mask for a whole row without padding; else that of `sdpa`."""
    is_whole_row = kwargs.get("q_length") == kwargs.get("kv_length") and not kwargs.get("q_offset")
    if attention_mask is None and is_whole_row:
        return None  # `is_causal` and, if it is packed, the borders say it all
    return sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, _packed_mask)
