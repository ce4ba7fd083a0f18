"""Computes the next-token loss, with logits for supervised positions only.

In: hidden states and unshifted labels. Out: a scalar. A batch of 32 x 2048 with a vocabulary of
32,000 never holds its full logits; large selections go through `lm_head` in chunks whose logits
are computed again in the backward pass. Hooks see the loss of each token, and whether the likeliest
token was right, from logits that are computed anyway; nothing of that enters the graph.

Legend: B rows, L positions, D hidden, V vocabulary, N supervised positions.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llava.constants import IGNORE_INDEX

# 2**26 float32 logits are 256 MiB
MAX_CHUNK_LOGITS = 2**26


def causal_lm_loss(
    hidden_states: Tensor,
    labels: Tensor,
    lm_head: nn.Linear,
    num_items_in_batch: Tensor | int | None = None,
    max_chunk_logits: int = MAX_CHUNK_LOGITS,
    use_liger: bool = False,
    logits_of: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Cross entropy of the next token, over supervised positions.

    Args:
        hidden_states: [B, L, D] last hidden states.
        labels: [B, L] long, not shifted, IGNORE_INDEX where nothing is learnt.
        lm_head: D -> V; called as a module, so that ZeRO-3 gathers its weight.
        num_items_in_batch: Supervised tokens of the whole optimiser step (over accumulation and
            ranks); None takes those of this batch.
        max_chunk_logits: N * V beyond which the loss is computed in chunks.
        use_liger: Compute it with Liger's fused kernel, which holds no logits at all; only right if
            `logits_of` does no more than `lm_head`.
        logits_of: [1, N, D] -> [1, N, V], where more than `lm_head` makes the logits; it calls
            `lm_head`.

    Returns:
        Sum of token losses / `num_items_in_batch`, float32. A batch with no supervised position
        gives 0 with its graph kept, so that no rank waits for a gradient that never comes.
    """
    head = lm_head if logits_of is None else partial(_flat, logits_of)
    targets = labels[:, 1:].reshape(-1)
    supervised = (targets != IGNORE_INDEX).nonzero().flatten()
    if len(supervised) == 0:
        return 0.0 * head(hidden_states[:1, -1]).float().sum()
    selected = hidden_states[:, :-1].flatten(0, 1)[supervised]
    if use_liger and not _is_partitioned(lm_head):
        total = _liger_loss(selected, targets[supervised], lm_head)
        if has_token_loss_hook():
            _report_chunks(selected.detach(), targets[supervised], lm_head, max_chunk_logits)
    else:
        # ranks would gather a partitioned weight a different number of times, and hang
        size = None if _is_partitioned(lm_head) else max_chunk_logits // lm_head.weight.shape[0]
        total = _summed_loss(selected, targets[supervised], head, size)
    count = len(supervised) if num_items_in_batch is None else num_items_in_batch
    return total / (count.to(total.device) if isinstance(count, Tensor) else count)


def _flat(logits_of: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """Applies `logits_of` to hidden states without a batch dimension, [N, D] -> [N, V]."""
    return logits_of(hidden[None])[0]


def _summed_loss(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], max_rows: int | None
) -> Tensor:
    """Sums the token losses of hidden [N, D] against targets [N], `max_rows` at a time."""
    # the backward pass, outside of any hook, has to compute a chunk the same way
    is_hooked = has_token_loss_hook()

    def chunk_loss(chunk: Tensor, chunk_targets: Tensor) -> Tensor:
        return _token_losses(head(chunk).float(), chunk_targets, is_hooked)

    if max_rows is None or len(hidden) <= max_rows:
        return chunk_loss(hidden, targets)
    size = max(max_rows, 1)
    pieces = zip(hidden.split(size), targets.split(size), strict=True)
    losses = [checkpoint(chunk_loss, h, t, use_reentrant=False) for h, t in pieces]
    return torch.stack(losses).sum()


def _token_losses(logits: Tensor, targets: Tensor, is_hooked: bool) -> Tensor:
    """Sums the cross entropies of logits [N, V]; hooks see the tokens.

    The gradient is the same with and without hooks, bit for bit: a sum's addends are seen before
    they are added, and the only further pass over the logits looks for the largest.
    """
    if not is_hooked:
        return F.cross_entropy(logits, targets, reduction="sum")
    log_probabilities = F.log_softmax(logits, dim=1)
    losses = F.nll_loss(log_probabilities, targets, reduction="none")
    _call_hooks(losses, log_probabilities.detach().amax(dim=1) == -losses.detach())
    return losses.sum()


@lru_cache(maxsize=1)
def has_liger() -> bool:
    """Tells whether Liger's kernels can run: they need a GPU or Triton's interpreter."""
    can_run = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
    return can_run and importlib.util.find_spec("liger_kernel") is not None


def _liger_loss(hidden: Tensor, targets: Tensor, lm_head: nn.Module) -> Tensor:
    """As `_summed_loss`; its gradients are computed in the forward pass, chunk by chunk."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    # other reductions than "sum" have had wrong gradients
    return liger_fused_linear_cross_entropy(
        hidden, lm_head.weight, targets, bias=lm_head.bias, reduction="sum"
    )


def _report_chunks(
    hidden: Tensor, targets: Tensor, lm_head: nn.Module, max_chunk_logits: int
) -> None:
    """Computes the logits, which Liger does not keep, once more for the hooks."""
    size = max(max_chunk_logits // lm_head.weight.shape[0], 1)
    with torch.no_grad():
        for chunk, chunk_targets in zip(hidden.split(size), targets.split(size), strict=True):
            _token_losses(lm_head(chunk).float(), chunk_targets, is_hooked=True)


def _is_partitioned(lm_head: nn.Module) -> bool:
    """Tells whether only a call of the module gives the weight (ZeRO-3, FSDP2, adapters, bits)."""
    if type(lm_head) is not nn.Linear:
        return True
    return hasattr(lm_head.weight, "ds_id") or hasattr(lm_head.weight, "device_mesh")


# token losses [N] float32, and [N] bool, on the model's device
TokenLossHook = Callable[[Tensor, Tensor], None]

_hooks: list[TokenLossHook] = []


@contextmanager
def token_loss_hook(hook: TokenLossHook) -> Iterator[None]:
    """Lets `hook` see the tokens of all losses that are computed inside.

    The forward pass belongs inside and the backward pass does not: it may compute chunks again.
    """
    _hooks.append(hook)
    try:
        yield
    finally:
        _hooks.remove(hook)


def has_token_loss_hook() -> bool:
    """Tells whether a hook is registered."""
    return bool(_hooks)


def _call_hooks(losses: Tensor, is_right: Tensor) -> None:
    """Calls the hooks.

    Args:
        losses: [N] float32 of supervised positions.
        is_right: [N] bool, whether no other token was likelier than the target.
    """
    for hook in _hooks:
        hook(losses.detach(), is_right)
