"""The keys and values of all running requests: one row each, of different lengths.

In: what the attention layers compute. Out: what they attend to. A row joins with the cache of its
prompt and leaves at any time; rows lie without gaps, so that a step costs what the longest row
needs. Space grows with rows and with the longest one, stays within a bound, and is given back when
no row is left.

Legend: B rows, L positions of the longest row, H heads of keys, D their width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

# Space grows by this many positions, so that it is seldom copied.
BLOCK = 128


def rounded(length: int) -> int:
    """Return the positions that are set aside for a row of a length."""
    return -(-length // BLOCK) * BLOCK


class KVRows(Cache):
    """A cache for one step of all rows; transformers' layers call `update`.

    Args:
        max_rows: How many rows there may be.
        max_positions: How many positions all rows have together; None for any number. Rows times
            `rounded` length of the longest must not exceed it: the caller sees to that.
    """

    def __init__(self, max_rows: int, max_positions: int | None = None) -> None:
        super().__init__(layers=[])
        self._max_rows = max_rows
        self._max_positions = max_positions
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._visible = torch.empty(0, 0, dtype=torch.bool)
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
        self._reserve(self.num_rows + 1, length + 1, layers)
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
        self._visible = torch.empty(0, 0, dtype=torch.bool)

    def begin_step(self) -> tuple[Tensor, Tensor]:
        """Make room for one position in each row.

        Returns:
            Positions [B, 1] of the new tokens, and which positions each row sees, [B, 1, 1, L].
        """
        longest = max(self.lengths) + 1
        self._reserve(self.num_rows, longest, None)
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

    def _reserve(
        self, num_rows: int, length: int, layers: list[tuple[Tensor, Tensor]] | None
    ) -> None:
        """Make sure that so many rows of `length` positions fit."""
        rows, capacity = self._visible.shape
        if num_rows <= rows and length <= capacity:
            return
        # Of what others left behind, only what is needed now is kept: else many short rows and
        # a long one after them would together take more than there may be.
        capacity = rounded(max([length, *self.lengths]))
        rows = self._row_capacity(num_rows, capacity)
        if not self._keys:
            assert layers is not None, "the first row brings the shapes"
            self._keys = [_like(keys, rows, capacity) for keys, _ in layers]
            self._values = [_like(values, rows, capacity) for _, values in layers]
            device = layers[0][0].device
            self._visible = torch.zeros(rows, capacity, dtype=torch.bool, device=device)
            return
        used, known = self.num_rows, max(self.lengths)
        # One layer after the other: old and new space of all at once may not fit.
        for tensors in (self._keys, self._values):
            for index, tensor in enumerate(tensors):
                grown = _like(tensor, rows, capacity)
                grown[:used, :, :known] = tensor[:used, :, :known]
                tensors[index] = grown
        visible = self._visible.new_zeros(rows, capacity)
        visible[:used, :known] = self._visible[:used, :known]
        self._visible = visible

    def _row_capacity(self, num_rows: int, capacity: int) -> int:
        """Return the rows to set aside: more than there are, as far as the bound allows."""
        rows = min(self._max_rows, 1 << (num_rows - 1).bit_length())
        if self._max_positions is not None:
            rows = max(num_rows, min(rows, self._max_positions // capacity))
        return rows


def _like(tensor: Tensor, rows: int, capacity: int) -> Tensor:
    """Return zeros, because what a mask hides is still multiplied: it must be finite."""
    _, heads, _, width = tensor.shape
    return tensor.new_zeros(rows, heads, capacity, width)
