"""Lets somebody see the loss of each token, from logits that training computes anyway.

In: logits and targets of a chunk of supervised positions, reported by the loss. Out: token losses
and whether the likeliest token was right, handed to whoever watches. Nothing is computed unless
somebody does, and nothing enters the graph. Positions come in the order of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# token losses [N] float32, and [N] bool, on the model's device
Watcher = Callable[[Tensor, Tensor], None]

_watchers: list[Watcher] = []


@contextmanager
def watch_tokens(watcher: Watcher) -> Iterator[None]:
    """Let `watcher` see the tokens of all losses that are computed inside.

    The forward pass belongs inside and the backward pass does not: it may compute chunks again.
    """
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def is_watched() -> bool:
    """Whether anybody wants to see token losses."""
    return bool(_watchers)


def report_tokens(logits: Tensor, targets: Tensor) -> None:
    """Show logits to those who watch.

    Args:
        logits: [N, V] of supervised positions.
        targets: [N] long.
    """
    if not _watchers:
        return
    with torch.no_grad():
        chosen = logits.detach().float()
        wanted = chosen.gather(1, targets.unsqueeze(1)).squeeze(1)
        losses = chosen.logsumexp(dim=1) - wanted
        is_right = chosen.argmax(dim=1) == targets
    for watcher in _watchers:
        watcher(losses, is_right)
