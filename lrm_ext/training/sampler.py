"""The order of a mixture's samples: the mixture's own, with batches of like length.

Input: the lengths of samples, by index. Output: indices that count on over epochs. Inside a window
of batches samples are sorted by length and cut into batches, whose order is shuffled; so padding is
small and the mixture's order stays. A pure function of (seed, epoch, lengths): the same with any
number of workers, and a resumed run skips to its place without tokenising what it skips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler


class LengthWindowSampler(Sampler[int]):
    """Indices of a mixture in batches of like length.

    Args:
        num_samples: Samples an epoch.
        batch_size: Samples that all ranks take in one micro-step.
        length: Length of the sample of an index, in tokens.
        window: Batches that are sorted together; 0 keeps the mixture's order.
        seed: Decides the order of the batches in a window.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        length: Callable[[int], int],
        window: int = 64,
        seed: int = 0,
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.window = window
        self.seed = seed
        self.epoch = 0
        self._length = length
        self._num_skipped: dict[int, int] = {}

    def __len__(self) -> int:
        """Samples an epoch."""
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def expect_skip(self, epoch: int, num_samples: int) -> None:
        """Announce that the first samples of an epoch will be thrown away.

        Windows that lie before them wholly are then yielded unsorted, which costs nothing.
        """
        self._num_skipped = {epoch: num_samples}

    def __iter__(self) -> Iterator[int]:
        size = self.window * self.batch_size or self.num_samples
        num_skipped = self._num_skipped.pop(self.epoch, 0)
        first = self.epoch * self.num_samples
        for start in range(0, self.num_samples, size):
            end = min(start + size, self.num_samples)
            indices = range(first + start, first + end)
            if self.window == 0 or end <= num_skipped:
                yield from indices
            else:
                yield from self._sorted_window(indices, start // size)

    def _sorted_window(self, indices: range, number: int) -> Iterator[int]:
        """Sort a window by length, cut it into batches, shuffle those; a short one stays last."""
        by_length = sorted(indices, key=self._length)
        num_whole = len(by_length) // self.batch_size
        cut = num_whole * self.batch_size
        rng = np.random.default_rng([self.seed, self.epoch, number])
        # the rest is taken from the whole range of lengths, not from its longest
        rest = rng.choice(len(by_length), len(by_length) - cut, replace=False)
        left_out = set(rest.tolist())
        whole = [index for i, index in enumerate(by_length) if i not in left_out]
        for batch in rng.permutation(num_whole).tolist():
            yield from whole[batch * self.batch_size : (batch + 1) * self.batch_size]
        yield from (by_length[i] for i in sorted(left_out))
