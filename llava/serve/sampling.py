"""Chooses the next token of one request, with a random generator of its own.

In: a row of logits. Out: a token id. The same request with the same seed gives the same tokens,
whoever else is in the batch. Temperature, top-k and top-p act as in transformers.
"""

from __future__ import annotations

import torch
from torch import Tensor

GREEDY_BELOW = 0.001


class Sampler:
    """Temperature, top-k and top-p of one request.

    Args:
        temperature: 0.001 and below means greedy.
        top_p: Share of the probability that is drawn from.
        top_k: Tokens that are drawn from; 0 for all.
        seed: Of the random numbers; None for another one each time.
        device: Where the logits are.
    """

    def __init__(
        self,
        temperature: float,
        top_p: float,
        top_k: int,
        seed: int | None,
        device: torch.device,
    ) -> None:
        self.is_greedy = temperature <= GREEDY_BELOW
        self._temperature = temperature
        self._top_p = top_p
        self._top_k = top_k
        self._generator: torch.Generator | None = None
        if not self.is_greedy:
            self._generator = torch.Generator(device=device)
            if seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(seed)

    def probabilities(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is drawn from.

        Args:
            logits: [V].

        Returns:
            Probabilities [K], descending, 0 where top-p cuts off; and their token ids [K].
        """
        num_kept = min(self._top_k or len(logits), len(logits))
        values, ids = torch.topk(logits.float() / self._temperature, num_kept)
        chances = torch.softmax(values, dim=0)
        before = chances.cumsum(dim=0) - chances  # of all that are more probable
        outside = before >= self._top_p
        outside[0] = False
        chances = chances.masked_fill(outside, 0.0)
        return chances / chances.sum(), ids

    def draw(self, logits: Tensor) -> int:
        """Return the next token for logits [V]."""
        if self.is_greedy:
            return int(logits.argmax())
        chances, ids = self.probabilities(logits)
        return int(ids[torch.multinomial(chances, 1, generator=self._generator)])
