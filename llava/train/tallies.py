"""Sums of what training does between two log entries, kept on the device.

Input: batches and their token losses. Output: plain numbers when they are asked for, the only time
that the host waits for the device. A group is any name that the data gives its samples; what it
means is not known here. Non-goals: when to log (`figures.py`), where to (`--report_to`).

Legend: B samples of a batch, T their positions, N supervised positions, G groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX

# columns of the sums of groups
_LOSS, _CORRECT, _TOKENS = range(3)


class GroupTally:
    """Token losses, right tokens and tokens of each group."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._sums = torch.zeros(0, 3)
        self._units: dict[str, Counter[str]] = {}
        self._num_misfits = torch.zeros(())

    def add(
        self,
        labels: Tensor,
        losses: Tensor,
        is_right: Tensor,
        groups: Sequence[Sequence[str]],
        units: Mapping[str, Sequence[float]],
    ) -> None:
        """Add a micro-batch.

        Args:
            labels: [B, T], not shifted.
            losses: [N] of its supervised positions, sample after sample.
            is_right: [N] bool.
            groups: The names of each sample's groups.
            units: By name, how many of a unit (such as characters) each sample's answers have.
        """
        counts = (labels[:, 1:] != IGNORE_INDEX).sum(dim=1)
        ends = counts.cumsum(0)
        number = torch.arange(len(losses), device=losses.device)
        sample = torch.searchsorted(ends, number, right=True).clamp(max=len(labels) - 1)
        values = torch.stack([losses, is_right.to(losses.dtype), torch.ones_like(losses)], dim=1)
        by_sample = values.new_zeros(len(labels), 3).index_add_(0, sample, values)
        places = [(row, self._place(name)) for row, names in enumerate(groups) for name in names]
        self._grow(losses.device)
        # not blocking: the host must not wait for the device in every micro-batch
        pairs = torch.tensor(places, dtype=torch.long).reshape(-1, 2).T.contiguous()
        rows, columns = pairs.to(losses.device, non_blocking=True)
        self._sums.index_add_(0, columns, by_sample[rows].to(self._sums.dtype))
        self._num_misfits += ends[-1] != len(losses)
        for unit, amounts in units.items():
            counter = self._units.setdefault(unit, Counter())
            for names, amount in zip(groups, amounts, strict=True):
                counter.update(dict.fromkeys(names, amount))

    def _place(self, name: str) -> int:
        return self._index.setdefault(name, len(self._index))

    def _grow(self, device: torch.device) -> None:
        missing = len(self._index) - len(self._sums)
        self._sums = self._sums.to(device)
        self._num_misfits = self._num_misfits.to(device)
        if missing:
            self._sums = torch.cat([self._sums, self._sums.new_zeros(missing, 3)])

    def take(self) -> GroupSums:
        """The sums since the last time, which begin anew."""
        values = self._sums.double().tolist()
        sums = {name: tuple(values[place]) for name, place in self._index.items()}
        units = {unit: dict(counter) for unit, counter in self._units.items()}
        taken = GroupSums(sums, units, int(self._num_misfits))
        self._sums, self._units = torch.zeros_like(self._sums), {}
        self._num_misfits = torch.zeros_like(self._num_misfits)
        return taken


@dataclass
class GroupSums:
    """Sums of groups, of one rank or of all.

    Attributes:
        sums: By group: sum of token losses, right tokens, tokens.
        units: By unit and group: how many.
        num_misfits: Micro-batches whose losses were not those of their labels, which happens where
            samples are cut inside the model.
    """

    sums: dict[str, tuple[float, ...]] = field(default_factory=dict)
    units: dict[str, dict[str, float]] = field(default_factory=dict)
    num_misfits: int = 0

    def __add__(self, other: GroupSums) -> GroupSums:
        names = dict.fromkeys((*self.sums, *other.sums))
        none = (0.0, 0.0, 0.0)
        sums = {
            name: tuple(
                a + b
                for a, b in zip(self.sums.get(name, none), other.sums.get(name, none), strict=True)
            )
            for name in names
        }
        units = {
            unit: dict(Counter(self.units.get(unit, {})) + Counter(other.units.get(unit, {})))
            for unit in dict.fromkeys((*self.units, *other.units))
        }
        return GroupSums(sums, units, self.num_misfits + other.num_misfits)

    def figures(self, prefix: str = "") -> dict[str, float]:
        """Mean losses, accuracies and tokens: `loss/hr`, `accuracy/hr`, `tokens/hr`, ...

        Args:
            prefix: Before the names, such as `eval_`.
        """
        figures: dict[str, float] = {}
        for name, (loss, num_correct, num_tokens) in sorted(self.sums.items()):
            if not num_tokens:
                continue
            figures[f"{prefix}loss/{name}"] = loss / num_tokens
            figures[f"{prefix}accuracy/{name}"] = num_correct / num_tokens
            figures[f"{prefix}tokens/{name}"] = num_tokens
            for unit, amounts in self.units.items():
                if amounts.get(name):
                    figures[f"{prefix}loss_per_{unit}/{name}"] = loss / amounts[name]
        return figures

    def total(self) -> tuple[float, float, float]:
        """Sum of losses, right tokens and tokens over the whole group (empty name)."""
        loss, correct, tokens = self.sums.get("", (0.0, 0.0, 0.0))
        return loss, correct, tokens


class BatchTally:
    """Real positions, padding and what operations are counted from."""

    NAMES = ("real", "padded", "squared", "supervised", "images")

    def __init__(self) -> None:
        self._sums = torch.zeros(len(self.NAMES))

    def add(self, inputs: Mapping[str, Tensor], num_image_tokens: int, packing: bool) -> None:
        """Add a micro-batch.

        Args:
            inputs: `input_ids` [B, T] with image sentinels, `labels`, perhaps `attention_mask`.
            num_image_tokens: Positions that a picture takes.
            packing: The samples lie one after the other, without padding.
        """
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        is_image = ids == IMAGE_TOKEN_INDEX
        own = torch.ones_like(is_image) if mask is None else mask.bool()
        lengths = own.sum(dim=1) + is_image.sum(dim=1) * (num_image_tokens - 1)
        lengths = lengths.float()
        padded = lengths.sum() if packing else lengths.max() * len(lengths)
        supervised = (inputs["labels"][:, 1:] != IGNORE_INDEX).sum()
        values = (lengths.sum(), padded, (lengths**2).sum(), supervised, is_image.sum())
        added = torch.stack([value.float() for value in values])
        self._sums = self._sums.to(added.device) + added

    def take(self) -> dict[str, float]:
        """The sums since the last time, which begin anew."""
        values = self._sums.tolist()
        self._sums = torch.zeros_like(self._sums)
        return dict(zip(self.NAMES, values, strict=True))
