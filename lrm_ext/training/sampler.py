"""The order of a mixture's samples: which of them make an optimizer step, and how a step is dealt.

Input: the lengths of samples, by index. Output: indices that count on over epochs. What a step
learns from is a pure function of (seed, epoch, step, samples a step); ranks, micro-batches and
workers only deal it out. So a run may go on with another number of ranks, as long as a step takes
as many samples, and sees no sample twice and none too few.

An epoch's last step is filled up with repeats that are not learnt from (`~index`), for all ranks
must take part in it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

Length = Callable[[int], int]


class LengthWindowSampler(Sampler[int]):
    """Indices of a mixture, in steps of like length, for batches that are padded.

    Inside a window samples are sorted by length and cut into steps, whose order is shuffled; so
    padding is small and the mixture's order stays, window by window.

    Args:
        num_samples: Samples an epoch.
        step_size: Samples that all ranks learn from in one optimizer step.
        length: Length of the sample of an index, in tokens.
        window: Steps that are sorted together; 0 keeps the mixture's order.
        seed: Decides the order of the steps in a window.
    """

    def __init__(
        self, num_samples: int, step_size: int, length: Length, window: int = 64, seed: int = 0
    ) -> None:
        self.num_samples, self.step_size, self._length = num_samples, step_size, length
        self.window, self._sorts = window or 1, window > 0
        self.seed, self.epoch = seed, 0
        self._num_skipped: dict[int, int] = {}

    def __len__(self) -> int:
        """Indices an epoch, with those that fill up its last step."""
        return -(-self.num_samples // self.step_size) * self.step_size

    def identity(self) -> dict[str, Any]:
        """What decides which samples make a step, for checkpoints."""
        return {"sorted steps": self.window if self._sorts else 0}

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def expect_skip(self, epoch: int, num_samples: int) -> None:
        """Announce that the first indices of an epoch will be thrown away.

        Windows that lie before them wholly are then yielded unplanned, which costs nothing.
        """
        self._num_skipped = {epoch: num_samples}

    def __iter__(self) -> Iterator[int]:
        size = self.window * self.step_size
        num_skipped = self._num_skipped.pop(self.epoch, 0)
        first = self.epoch * self.num_samples
        for number, start in enumerate(range(0, self.num_samples, size)):
            end = min(start + size, self.num_samples)
            if end - start == size and end <= num_skipped:
                yield from range(first + start, first + end)
                continue
            for step in self._plan(range(first + start, first + end), number):
                # repeats make a short step whole; the shortest sample costs the least
                missing = self.step_size - len(step)
                fill = [~min(step, key=self._length)] * missing if missing else []
                yield from self._deal([*step, *fill])

    def _plan(self, indices: range, number: int) -> Iterator[Sequence[int]]:
        """Cut window `number` into steps; only the last step of an epoch may be short."""
        if not self._sorts:
            yield indices
            return
        by_length = sorted(indices, key=self._length)
        num_whole, num_rest = divmod(len(by_length), self.step_size)
        rng = np.random.default_rng([self.seed, self.epoch, number])
        # the rest is taken from the whole range of lengths, not from its longest
        rest = set(rng.choice(len(by_length), num_rest, replace=False).tolist())
        whole = [index for i, index in enumerate(by_length) if i not in rest]
        for step in rng.permutation(num_whole).tolist():
            yield whole[step * self.step_size : (step + 1) * self.step_size]
        if rest:
            yield [by_length[i] for i in sorted(rest)]

    def _deal(self, step: list[int]) -> list[int]:
        """The order in which a step is cut into micro-batches and those are dealt to ranks.

        Neighbours are of like length already, and go to the ranks of one micro-step.
        """
        return step


class PackedSampler(LengthWindowSampler):
    """Steps that are dealt so that all micro-batches have as many tokens.

    For samples that are packed: nothing is padded, so like lengths need not come together, and
    what matters is that no rank waits for another. Steps are the mixture's own; where a rank has
    few samples in a micro-batch they cannot be dealt evenly, and a window, whose steps are of like
    length each, helps.

    Args:
        num_samples: Samples an epoch.
        step_size: Samples that all ranks learn from in one optimizer step.
        length: Length of the sample of an index, in tokens.
        batch_size: Samples of one rank in one micro-batch; a divisor of `step_size`.
        window: Steps that are sorted together; 0 keeps the mixture's order.
        seed: Decides the order of the steps in a window.
    """

    def __init__(
        self,
        num_samples: int,
        step_size: int,
        length: Length,
        batch_size: int,
        window: int = 0,
        seed: int = 0,
    ) -> None:
        assert step_size % batch_size == 0
        super().__init__(num_samples, step_size, length, window, seed)
        self.batch_size = batch_size

    def _deal(self, step: list[int]) -> list[int]:
        """Longest first, each to the micro-batch with the fewest tokens that has room."""
        batches: list[list[int]] = [[] for _ in range(len(step) // self.batch_size)]
        lightest = [(0, number) for number in range(len(batches))]
        lengths = {index: self._length(max(index, ~index)) for index in step}
        for index in sorted(step, key=lambda index: (-lengths[index], index)):
            tokens, number = heapq.heappop(lightest)
            batches[number].append(index)
            if len(batches[number]) < self.batch_size:
                heapq.heappush(lightest, (tokens + lengths[index], number))
        return [index for batch in batches for index in batch]
