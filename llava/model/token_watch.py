"""Lets somebody see the loss of each token, from logits that training computes anyway.

In: what the loss computed for a chunk of supervised positions anyway. Out: token losses and whether
the likeliest token was right, handed to whoever watches. Nothing enters the graph. Positions come
in the order of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


def report_tokens(losses: Tensor, is_right: Tensor) -> None:
    """Show tokens to those who watch.

    Args:
        losses: [N] float32 of supervised positions.
        is_right: [N] bool, whether no other token was likelier than the target.
    """
    for watcher in _watchers:
        watcher(losses.detach(), is_right)
