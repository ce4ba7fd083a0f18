"""The keys and values of all running requests: one row each, of different lengths.

In: what the attention layers compute. Out: what they attend to. A row joins with the cache of its
prompt and leaves at any time; rows lie without gaps, so that a step costs what the longest row
needs. Space grows with the longest row and is given back when no row is left.

Legend: B rows, L positions of the longest row, H heads of keys, D their width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

# Space grows by this many positions, so that it is seldom copied.
BLOCK = 128


class KVRows(Cache):
    """A cache for one step of all rows; transformers' layers call `update`.

    Args:
        max_rows: How many rows there may be.
    """

    def __init__(self, max_rows: int) -> None:
        super().__init__(layers=[])
        self._max_rows = max_rows
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._visible = torch.empty(max_rows, 0, dtype=torch.bool)
        self._rows = torch.empty(0, dtype=torch.long)
        self._ends = torch.empty(0, dtype=torch.long)
        self.lengths: list[int] = []

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.lengths)

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values."""
        return sum(t.element_size() * t.numel() for t in (*self._keys, *self._values))

    def join(self, prompt: DynamicCache) -> None:
        """Add a row.

        Args:
            prompt: The cache of its prompt, one row of L' positions in each layer.
        """
        assert self.num_rows < self._max_rows
        layers = [(layer.keys, layer.values) for layer in prompt.layers]
        length = int(layers[0][0].shape[2])
        self._reserve(length + 1, layers)
        row = self.num_rows
        for tensors, part in ((self._keys, 0), (self._values, 1)):
            for mine, given in zip(tensors, layers, strict=True):
                mine[row, :, :length] = given[part][0]
                # what the row's last owner left may not be finite
                mine[row, :, length:] = 0
        self._visible[row, :length] = True
        self._visible[row, length:] = False
        self.lengths.append(length)

    def leave(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        last = self.num_rows - 1
        if row != last:
            for tensor in (*self._keys, *self._values):
                tensor[row] = tensor[last]
            self._visible[row] = self._visible[last]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self.clear()

    def clear(self) -> None:
        """Remove all rows and give their memory back."""
        self._keys, self._values, self.lengths = [], [], []
        self._visible = torch.empty(self._max_rows, 0, dtype=torch.bool)

    def begin_step(self) -> tuple[Tensor, Tensor]:
        """Make room for one position in each row.

        Returns:
            Positions [B, 1] of the new tokens, and which positions each row sees, [B, 1, 1, L].
        """
        longest = max(self.lengths) + 1
        self._reserve(longest, None)
        device = self._keys[0].device
        self._rows = torch.arange(self.num_rows, device=device)
        self._ends = torch.tensor(self.lengths, device=device)
        self._visible[self._rows, self._ends] = True
        self.lengths = [length + 1 for length in self.lengths]
        return self._ends[:, None], self._visible[: self.num_rows, None, None, :longest]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the keys and values of one step, [B, H, 1, D]; return those of all positions.

        Returns:
            Two of [B, H, L, D]; beyond a row's end they hold what its mask hides.
        """
        longest = max(self.lengths)
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[self._rows, :, self._ends] = key_states[:, :, 0]
        values[self._rows, :, self._ends] = value_states[:, :, 0]
        return keys[: self.num_rows, :, :longest], values[: self.num_rows, :, :longest]

    def get_seq_length(self, layer_idx: int = 0, *_: Any) -> int:
        """Return the positions of the longest row."""
        return max(self.lengths, default=0)

    def _reserve(self, length: int, layers: list[tuple[Tensor, Tensor]] | None) -> None:
        """Make sure that a row of `length` positions fits."""
        capacity = self._visible.shape[1]
        if length <= capacity:
            return
        new_capacity = -(-length // BLOCK) * BLOCK
        if not self._keys:
            assert layers is not None, "the first row brings the shapes"
            self._keys = [self._like(keys, new_capacity) for keys, _ in layers]
            self._values = [self._like(values, new_capacity) for _, values in layers]
            device = layers[0][0].device
            self._visible = torch.zeros(
                self._max_rows, new_capacity, dtype=torch.bool, device=device
            )
            return
        extra = new_capacity - capacity
        # One layer after the other: old and new space of all at once may not fit.
        for tensors in (self._keys, self._values):
            for index, tensor in enumerate(tensors):
                grown = self._like(tensor, new_capacity)
                grown[: self.num_rows, :, :capacity] = tensor[: self.num_rows]
                tensors[index] = grown
        self._visible = torch.nn.functional.pad(self._visible, (0, extra))

    def _like(self, tensor: Tensor, capacity: int) -> Tensor:
        """Zeros, because what a mask hides is still multiplied: it must be finite."""
        _, heads, _, width = tensor.shape
        return tensor.new_zeros(self._max_rows, heads, capacity, width)
