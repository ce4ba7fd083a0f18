"""Loss and its gradients: supervised positions only, in chunks, against logits for all positions.

Usage: python tools/bench/loss.py [--repeats 3] [--json FILE]

Hidden states and labels are random; a quarter of the positions is supervised. "peer" is the plain
method of transformers: float32 logits for every position, shifted, and torch's cross entropy over
them. "ours" is `llava.model.loss`. Each side runs in its own process on one core; milliseconds are
processor time, a median; memory is the peak growth of the process. Equal means that loss and
gradients differ by less than 1e-6.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from _sides import MemoryMeter, apart, entry, finish, parser_of, seconds
from torch import Tensor, nn

from llava.constants import IGNORE_INDEX
from llava.model.loss import MAX_CHUNK_LOGITS, causal_lm_loss

SUPERVISED_SHARE = 0.25


class Case(NamedTuple):
    """One size of the problem."""

    name: str
    batch_size: int
    length: int
    hidden_size: int
    vocab_size: int
    max_chunk_logits: int = MAX_CHUNK_LOGITS


CASES = (
    Case("4,000 tokens", 32, 128, 192, 4000),
    Case("32,000 tokens", 4, 512, 256, 32_000),
    Case("32,000 tokens, chunks of 128", 4, 512, 256, 32_000, 128 * 32_000),
    Case("128,256 tokens", 1, 512, 256, 128_256),
)


class Measured(NamedTuple):
    """The measurements and results of one side."""

    seconds: float
    growth_mib: float
    loss: float
    gradients: list[np.ndarray]


def main() -> None:
    """Measures every case on both sides."""
    parser = parser_of(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    for case in CASES:
        ours, peer = (apart(run, case, name, arguments.repeats) for name in ("ours", "peer"))
        growth = [
            apart(run, case, name, 0, for_memory=True).growth_mib for name in ("ours", "peer")
        ]
        difference = max(
            abs(ours.loss - peer.loss) / peer.loss,
            *(np.abs(a - b).max() for a, b in zip(ours.gradients, peer.gradients, strict=True)),
        )
        name = f"{case.name}, {case.batch_size} x {case.length} positions"
        is_equal = bool(difference < 1e-6)
        found.append(
            entry(f"loss: {name}", ours.seconds * 1e3, peer.seconds * 1e3, "ms", is_equal, True)
        )
        found.append(entry(f"loss, memory: {name}", *growth, "MiB", is_equal, True))
    finish(found, arguments.json)


def run(case: Case, side: str, repeats: int) -> Measured:
    """Measures one side."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch_size, case.length)
    hidden = torch.randn(*shape, case.hidden_size, generator=generator, requires_grad=True)
    labels = torch.randint(0, case.vocab_size, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) > SUPERVISED_SHARE] = IGNORE_INDEX
    head = nn.Linear(case.hidden_size, case.vocab_size, bias=False)
    nn.init.normal_(head.weight, std=0.02, generator=generator)

    def step() -> tuple[Tensor, tuple[Tensor, ...]]:
        if side == "ours":
            loss = causal_lm_loss(hidden, labels, head, max_chunk_logits=case.max_chunk_logits)
        else:
            loss = plain_loss(hidden, labels, head)
        return loss.detach(), torch.autograd.grad(loss, [hidden, head.weight])

    meter = MemoryMeter()
    loss, gradients = step()
    growth = meter.growth_mib()
    taken = seconds(step, repeats) if repeats else 0.0
    return Measured(taken, growth, loss.item(), [gradient.numpy() for gradient in gradients])


def plain_loss(hidden: Tensor, labels: Tensor, head: nn.Linear) -> Tensor:
    """Computes the loss as transformers' `ForCausalLMLoss` does."""
    logits = head(hidden).float()
    targets = F.pad(labels, (0, 1), value=IGNORE_INDEX)[..., 1:].contiguous()
    return F.cross_entropy(
        logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=IGNORE_INDEX
    )


if __name__ == "__main__":
    main()
