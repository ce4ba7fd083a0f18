"""Makes batches of samples: their lengths in tokens, their order, and padding.

Input: samples and a template for lengths; lengths and batch sizes for the order; encoded samples
for a batch. Lengths are true token counts, where LLaVA counts words between blanks (which gives 1
for any Chinese question), with LLaVA's signs: positive with an image, negative for text only.
The order is LLaVA's grouping, index for index: the same seeds give the same order. A megabatch is
what all processes take in one step: `world_size * batch_size` samples.
`EventCounts` counts what happens to samples in the processes that load them.
Non-goals: left padding (generation does its own), packing (`llava.model.splice`), the mixture of
languages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler, get_worker_info

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX
from llava.conversation import Conversation
from llava.data.sample import Sample
from llava.data.tokenize import encode_chunks, num_bos, place_images, render
from llava.errors import ConfigError, DataError

_BATCH_KEYS = {"image": "images", "image_features": "image_features"}
_MAX_WORKERS = 64


class EventCounts:
    """Counts events by language, in memory that is shared with loader processes.

    Args:
        languages: Languages that are counted.
        events: Names of the events.

    Attributes:
        counts: [processes, languages, events]; each process writes its own row, so that no locks
            are needed.
    """

    def __init__(self, languages: Iterable[str], events: Sequence[str]) -> None:
        self.languages, self.events = tuple(languages), tuple(events)
        shape = (_MAX_WORKERS, len(self.languages), len(self.events))
        self.counts = torch.zeros(shape, dtype=torch.int64).share_memory_()

    def count(self, event: str, lang: str) -> None:
        """Counts an event."""
        worker = get_worker_info()
        row = 0 if worker is None else 1 + worker.id % (_MAX_WORKERS - 1)
        self.counts[row, self.languages.index(lang), self.events.index(event)] += 1


@dataclass
class DataCollatorForSupervisedDataset:
    """Pads samples to a batch.

    Attributes:
        tokenizer: Gives the padding id and the length at which rows are cut.
    """

    tokenizer: Any

    def __call__(self, instances: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Builds a batch.

        Args:
            instances: With `input_ids` [T] and `labels` [T]; all of them, or none, with `image`
                ([3, H, W], or [tiles, 3, H, W], or a list of several, or [1, frames, 3, H, W] of a
                video) or all with `image_features` ([P, D_vision], or [tiles, P, D_vision], or a
                list); perhaps all with `image_sizes`, (width, height) of each of these, and
                `image_positions`, what the images of the sample take in the model and their tiles,
                or frames.

        Returns:
            `input_ids`, `labels` (not shifted) and `attention_mask` (bool), each [B, T]; `images`
            [N, 3, H, W] of all images in order, or a list where shapes differ; `image_features`
            [N, P, D_vision]; `image_sizes` of the N images; `image_positions` of the B samples. The
            mask is true on a sample's own tokens, also on one that equals the padding id.

        Raises:
            ConfigError: The tokenizer has no padding token.
            DataError: Some samples have an image and some have none.
        """
        pad_id, limit = self.tokenizer.pad_token_id, self.tokenizer.model_max_length
        if pad_id is None:
            raise ConfigError(
                "The tokenizer has no padding token; set one (LLaVA sets pad_token = unk_token)."
            )
        ids = [instance["input_ids"][:limit] for instance in instances]
        labels = [instance["labels"][:limit] for instance in instances]
        masks = [torch.ones_like(row, dtype=torch.bool) for row in ids]
        batch: dict[str, Any] = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
            "attention_mask": pad_sequence(masks, batch_first=True, padding_value=False),
        }
        for key, batch_key in _BATCH_KEYS.items():
            given = [instance[key] for instance in instances if key in instance]
            if given and len(given) < len(instances):
                raise DataError(
                    f"{len(given)} of {len(instances)} samples of a batch have `{key}`; expected "
                    "all or none. A text-only sample carries zeros beside samples with images."
                )
            tensors = [one for each in given for one in (each if type(each) is list else [each])]
            if tensors:
                same = all(tensor.shape == tensors[0].shape for tensor in tensors)
                batch[batch_key] = torch.stack(tensors) if same else tensors
        if "image_sizes" in instances[0]:
            batch["image_sizes"] = [size for each in instances for size in each["image_sizes"]]
        if "image_positions" in instances[0]:
            batch["image_positions"] = [each["image_positions"] for each in instances]
        return batch


_BATCH = 512


def token_lengths(
    samples: Iterable[Sample],
    conv: Conversation,
    tokenizer: Any,
    mm_use_im_start_end: bool = False,
) -> Iterator[int]:
    """Yields the number of ids of each sample, an image sentinel counted as one.

    Samples are tokenised in batches, which a fast tokenizer spreads over its threads.
    """
    iterator = iter(samples)
    while batch := list(islice(iterator, _BATCH)):
        chunks: list[list[str]] = []
        for sample in batch:
            num_places = sample.num_places
            turns = place_images(sample.turns, conv, mm_use_im_start_end, num_places)
            text = render(turns, conv).text
            chunks.append(text.split(DEFAULT_IMAGE_TOKEN) if num_places else [text])
        ids, _ = encode_chunks([c for each in chunks for c in each], tokenizer, with_offsets=False)
        drop = num_bos(ids, tokenizer, chunks[0][0])
        lengths = iter(len(chunk) - drop for chunk in ids)
        for each in chunks:
            yield drop + sum(islice(lengths, len(each))) + len(each) - 1


def split_to_even_chunks(
    indices: Sequence[int], lengths: Sequence[int], num_chunks: int
) -> list[list[int]]:
    """Deals a megabatch to processes so that each gets about as many tokens.

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
    """Returns a random order whose megabatches are sorted by length, longest first.

    Args:
        lengths: Positive lengths, one per sample.
        batch_size: Samples a process takes in a step.
        world_size: Number of processes.
        generator: Source of randomness; torch's global one by default.
        merge: Accepted for LLaVA's callers; the order is always one flat list.
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
    """Returns an order grouped by length whose megabatches hold one modality each.

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
    return [index for i in order for index in megabatches[i]] + sorted(leftover)


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
