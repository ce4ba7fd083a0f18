"""The order of a mixture's samples, from optimizer steps to micro-batches of ranks.

Input: the lengths of samples, by index. Output: indices that continue over epochs. The samples of a
step are a pure function of (seed, epoch, step, samples per step), however they are distributed over
ranks, micro-batches and workers. So a run may resume with another number of ranks, as long as a
step takes as many samples, and still sees every sample of an epoch exactly once.

The last step of an epoch is filled up with repeats without labels (`~index`), because all ranks
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
    """Yields indices of a mixture in steps of similar length, for padded batches.

    Samples of a window are sorted by length and split into steps in random order. So there is
    little padding, and the mixture's order holds from window to window.

    Args:
        num_samples: Samples per epoch.
        step_size: Samples per optimizer step, over all ranks.
        length: Returns the length of an index's sample in tokens.
        window: Steps that are sorted together; 0 keeps the mixture's order.
        seed: Seed of the order of steps in a window.
    """

    def __init__(
        self, num_samples: int, step_size: int, length: Length, window: int = 64, seed: int = 0
    ) -> None:
        self.num_samples, self.step_size, self._length = num_samples, step_size, length
        self.window, self._sorts = window or 1, window > 0
        self.seed, self.epoch = seed, 0
        self._num_skipped: dict[int, int] = {}

    def __len__(self) -> int:
        """Indices per epoch, with those that fill up its last step."""
        return -(-self.num_samples // self.step_size) * self.step_size

    def identity(self) -> dict[str, Any]:
        """Returns what determines the samples of a step, for checkpoints."""
        return {"sorted steps": self.window if self._sorts else 0}

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""
        self.epoch = epoch

    def expect_skip(self, epoch: int, num_samples: int) -> None:
        """Announces that the first indices of an epoch will be discarded.

        Windows that contain no others are then yielded without planning, which is fast.
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
                # repeats of the shortest sample, the cheapest one, complete a short step
                missing = self.step_size - len(step)
                fill = [~min(step, key=self._length)] * missing if missing else []
                yield from self._deal([*step, *fill])

    def _plan(self, indices: range, number: int) -> Iterator[Sequence[int]]:
        """Splits window `number` into steps; only the last step of an epoch may be short."""
        if not self._sorts:
            yield indices
            return
        by_length = sorted(indices, key=self._length)
        num_whole, num_rest = divmod(len(by_length), self.step_size)
        rng = np.random.default_rng([self.seed, self.epoch, number])
        # the remainder is drawn from all lengths, not only from the longest samples
        rest = set(rng.choice(len(by_length), num_rest, replace=False).tolist())
        whole = [index for i, index in enumerate(by_length) if i not in rest]
        for step in rng.permutation(num_whole).tolist():
            yield whole[step * self.step_size : (step + 1) * self.step_size]
        if rest:
            yield [by_length[i] for i in sorted(rest)]

    def _deal(self, step: list[int]) -> list[int]:
        """Orders a step; it is then split into micro-batches, which go to the ranks in turn.

        Neighbors already have similar lengths and go to the ranks of one micro-step.
        """
        return step


class PackedSampler(LengthWindowSampler):
    """Balances the tokens of micro-batches, for packed samples.

    Packed samples have no padding, so lengths need not be similar, but no rank should wait for
    another. Steps keep the mixture's order by default. If micro-batches have few samples, they
    cannot be balanced; a window helps, because the samples of its steps have similar lengths.

    Args:
        num_samples: Samples per epoch.
        step_size: Samples per optimizer step, over all ranks.
        length: Returns the length of an index's sample in tokens.
        batch_size: Samples of one rank in one micro-batch; a divisor of `step_size`.
        window: Steps that are sorted together; 0 keeps the mixture's order.
        seed: Seed of the order of steps in a window.
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
        """Assigns samples, longest first, to the micro-batch with the fewest tokens and room."""
        batches: list[list[int]] = [[] for _ in range(len(step) // self.batch_size)]
        lightest = [(0, number) for number in range(len(batches))]
        lengths = {index: self._length(max(index, ~index)) for index in step}
        for index in sorted(step, key=lambda index: (-lengths[index], index)):
            tokens, number = heapq.heappop(lightest)
            batches[number].append(index)
            if len(batches[number]) < self.batch_size:
                heapq.heappush(lightest, (tokens + lengths[index], number))
        return [index for batch in batches for index in batch]
