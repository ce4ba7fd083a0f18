"""LLaVA's dataset and collator, which also pass on the samples' ids, for messages.

Input: as for `llava.data`. Output: batches with an entry `sample_ids`, which the trainer takes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from llava.data.batching import DataCollatorForSupervisedDataset
from llava.data.dataset import LazySupervisedDataset


class NamedDataset(LazySupervisedDataset):
    """Samples with their `id`; a picture that is replaced keeps the id of the broken one."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        """As in LLaVA's dataset, and `id`."""
        return {**super().__getitem__(i), "id": str(self.sample(i).id)}


class NamedCollator(DataCollatorForSupervisedDataset):
    """Batches with `sample_ids`."""

    def __call__(self, instances: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """As LLaVA's collator, and `sample_ids`."""
        batch: dict[str, Tensor | list[Tensor]] = super().__call__(instances)
        return {**batch, "sample_ids": [instance["id"] for instance in instances]}
