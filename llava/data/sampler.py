"""Orders of a dataset in which a batch holds samples of like length and one modality.

Role: LLaVA's grouping, index for index: the same seeds give the same order.
Input: lengths (with LLaVA's signs where modalities are told apart) and batch sizes. Output: index
lists. Non-goals: how lengths are counted (`lengths.py`), the mixture of languages.
A megabatch is what all processes take in one step: `world_size * batch_size` samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


def split_to_even_chunks(
    indices: Sequence[int], lengths: Sequence[int], num_chunks: int
) -> list[list[int]]:
    """Deal a megabatch to processes so that each gets about as many tokens.

    Args:
        indices: The megabatch, longest first.
        lengths: Length of each sample of the dataset.
        num_chunks: Number of processes.

    Returns:
        One list a process. If the samples do not come out even, they are dealt round.
    """
    if len(indices) % num_chunks:
        return [list(indices[i::num_chunks]) for i in range(num_chunks)]
    chunk_size = len(indices) // num_chunks
    chunks: list[list[int]] = [[] for _ in range(num_chunks)]
    totals = [0] * num_chunks
    for index in indices:
        not_full = (i for i in range(num_chunks) if len(chunks[i]) < chunk_size)
        shortest = min(not_full, key=totals.__getitem__)
        chunks[shortest].append(index)
        totals[shortest] += lengths[index]
    return chunks


def get_length_grouped_indices(
    lengths: Sequence[int],
    batch_size: int,
    world_size: int,
    generator: torch.Generator | None = None,
    merge: bool = True,
) -> list[int]:
    """Return a random order whose megabatches are sorted by length, longest first.

    Args:
        lengths: Positive lengths, one a sample.
        batch_size: Samples a process takes in a step.
        world_size: Number of processes.
        generator: Source of randomness; torch's global one by default.
        merge: Kept for LLaVA's callers; the order is always one flat list.
    """
    return [
        index
        for megabatch in _grouped_megabatches(lengths, batch_size, world_size, generator)
        for index in megabatch
    ]


def get_modality_length_grouped_indices(
    lengths: Sequence[int],
    batch_size: int,
    world_size: int,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Return an order grouped by length whose megabatches hold one modality each.

    The last megabatch is what is left over of both modalities.

    Args:
        lengths: Positive for a sample with an image, negative for text only.
        batch_size: Samples a process takes in a step.
        world_size: Number of processes.
        generator: Source of the megabatches' order. As in LLaVA, the order within a modality comes
            from torch's global generator.
    """
    assert all(length != 0 for length in lengths), "Should not have zero length."
    if all(length > 0 for length in lengths) or all(length < 0 for length in lengths):
        absolute = [abs(length) for length in lengths]
        return get_length_grouped_indices(absolute, batch_size, world_size, generator)
    megabatches: list[list[int]] = []
    leftover: list[int] = []
    for sign in (1, -1):
        members = [i for i, length in enumerate(lengths) if length * sign > 0]
        groups = _grouped_megabatches(
            [abs(lengths[i]) for i in members], batch_size, world_size, None
        )
        in_dataset = [[members[i] for i in group] for group in groups]
        megabatches += in_dataset[:-1]
        leftover += in_dataset[-1]
    order = torch.randperm(len(megabatches), generator=generator).tolist()
    flat = [index for i in order for index in megabatches[i]]
    return flat + sorted(leftover)


class LengthGroupedSampler(Sampler[int]):
    """Yields a dataset's indices grouped by length, and by modality where asked.

    Args:
        batch_size: Samples a process takes in a step.
        world_size: Number of processes (times accumulation steps).
        lengths: One a sample; signed if `group_by_modality`.
        generator: Source of randomness; torch's global one by default.
        group_by_modality: Keep samples with and without images apart.

    Raises:
        ValueError: `lengths` is missing.
    """

    def __init__(
        self,
        batch_size: int,
        world_size: int,
        lengths: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        group_by_modality: bool = False,
    ) -> None:
        if lengths is None:
            raise ValueError("Lengths must be provided.")
        self.batch_size = batch_size
        self.world_size = world_size
        self.lengths = lengths
        self.generator = generator
        self.group_by_modality = group_by_modality

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        group = (
            get_modality_length_grouped_indices
            if self.group_by_modality
            else get_length_grouped_indices
        )
        return iter(group(self.lengths, self.batch_size, self.world_size, self.generator))


def _grouped_megabatches(
    lengths: Sequence[int],
    batch_size: int,
    world_size: int,
    generator: torch.Generator | None,
) -> list[list[int]]:
    order = torch.randperm(len(lengths), generator=generator).tolist()
    size = world_size * batch_size
    megabatches = []
    for start in range(0, len(order), size):
        by_length = sorted(order[start : start + size], key=lambda i: lengths[i], reverse=True)
        chunks = split_to_even_chunks(by_length, lengths, world_size)
        megabatches.append([index for chunk in chunks for index in chunk])
    return megabatches
