"""A keyed permutation of 0 .. n-1 that is computed, not stored.

Input: n and a key. Output: where an index goes, in constant time and memory, the same on every
machine. It replaces a shuffled list of indices, which a hundred million samples and many workers
would each have to hold. Not for cryptography.

An alternating Feistel network over the smallest power of two that holds n (halves of unequal size
where needed), walked until it lands below n. Any round function makes it a bijection; how many
rounds are needed to look random depends on n (measured: eight for n >= 2^16, 24 below).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Part of what decides the order: raise it when the scheme changes, and checkpoints that were
# written under another number are not resumed in the middle of an epoch.
SCHEME_VERSION = 1

_MASK_64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MANY_ROUNDS_BELOW = 1 << 16


def mix64(value: int) -> int:
    """SplitMix64's output function: 64 bits in, 64 well-mixed bits out."""
    value = (value + _GOLDEN) & _MASK_64
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK_64
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK_64
    return value ^ (value >> 31)


def derive_key(*parts: int) -> int:
    """One 64-bit key of several numbers; their order matters."""
    key = 0
    for part in parts:
        key = mix64(key ^ mix64(part & _MASK_64))
    return key


class Permutation(Sequence[int]):
    """The permutation of 0 .. n-1 that belongs to a key.

    Args:
        n: How many indices.
        key: Parts of the key, such as (seed, purpose, epoch).

    Example:
        >>> sorted(Permutation(5, (0, 0)))
        [0, 1, 2, 3, 4]
    """

    def __init__(self, n: int, key: Sequence[int]) -> None:
        assert n >= 0
        self._n = n
        bits = max(1, (n - 1).bit_length())
        self._low_bits = bits - bits // 2
        self._low_mask = (1 << self._low_bits) - 1
        self._high_mask = (1 << (bits // 2)) - 1
        rounds = 24 if n < _MANY_ROUNDS_BELOW else 8
        self._keys = tuple(derive_key(*key, r) for r in range(rounds))
        self._key_pairs = tuple(zip(self._keys[::2], self._keys[1::2], strict=True))

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> int:  # type: ignore[override]  # no slices
        """Where `index` goes.

        Raises:
            IndexError: It is not in 0 .. n-1.
        """
        if not 0 <= index < self._n:
            raise IndexError(f"index {index} of a permutation of {self._n}")
        value = self._step(index)
        while value >= self._n:
            value = self._step(value)
        return value

    def take(self, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Where many indices go; the same as `[p[i] for i in indices]`, vectorised.

        Args:
            indices: Integers in 0 .. n-1.

        Returns:
            int64 array of the same shape.
        """
        given = np.asarray(indices, dtype=np.int64)
        if given.size and not (0 <= given.min() and given.max() < self._n):
            raise IndexError(f"indices outside of a permutation of {self._n}")
        values = self._step_many(given.astype(np.uint64))
        outside = values >= self._n
        while outside.any():
            values[outside] = self._step_many(values[outside])
            outside = values >= self._n
        return values.astype(np.int64)

    def _step(self, value: int) -> int:
        """One pass through the network, on the power-of-two domain.

        `mix64` is written out: two calls a round are half of a draw's time.
        """
        high, low = value >> self._low_bits, value & self._low_mask
        for first, second in self._key_pairs:
            mixed = ((low ^ first) + _GOLDEN) & _MASK_64
            mixed = ((mixed ^ (mixed >> 30)) * _MIX_1) & _MASK_64
            mixed = ((mixed ^ (mixed >> 27)) * _MIX_2) & _MASK_64
            high ^= (mixed ^ (mixed >> 31)) & self._high_mask
            mixed = ((high ^ second) + _GOLDEN) & _MASK_64
            mixed = ((mixed ^ (mixed >> 30)) * _MIX_1) & _MASK_64
            mixed = ((mixed ^ (mixed >> 27)) * _MIX_2) & _MASK_64
            low ^= (mixed ^ (mixed >> 31)) & self._low_mask
        return high << self._low_bits | low

    def _step_many(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        shift, low_mask = np.uint64(self._low_bits), np.uint64(self._low_mask)
        high_mask = np.uint64(self._high_mask)
        high, low = values >> shift, values & low_mask
        for number, key in enumerate(self._keys):
            if number % 2 == 0:
                high = high ^ (_mix64_many(low ^ np.uint64(key)) & high_mask)
            else:
                low = low ^ (_mix64_many(high ^ np.uint64(key)) & low_mask)
        return high << shift | low


def _mix64_many(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        values = values + np.uint64(_GOLDEN)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(_MIX_1)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(_MIX_2)
        return values ^ (values >> np.uint64(31))
