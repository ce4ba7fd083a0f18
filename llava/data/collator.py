"""Encoded samples in, one right-padded batch out.

Role: the last step before the model. Input: dicts with `input_ids`, `labels` and, where pictures
are, `image` or `image_features`. Output: a dict of tensors that the model's `forward` takes.
Non-goals: left padding (generation does its own), packing (`lrm_ext.training`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IGNORE_INDEX
from llava.errors import ConfigError, DataError

_BATCH_KEYS = {"image": "images", "image_features": "image_features"}


@dataclass
class DataCollatorForSupervisedDataset:
    """Pads samples to a batch.

    Attributes:
        tokenizer: Gives the padding id and the length at which rows are cut.
    """

    tokenizer: Any

    def __call__(
        self, instances: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor | list[Tensor]]:
        """Build a batch.

        Args:
            instances: With `input_ids` [T] and `labels` [T]; all of them, or none, with `image`
                ([3, H, W], or [tiles, 3, H, W]) or all with `image_features` [P, D_vision].

        Returns:
            `input_ids`, `labels` (not shifted) and `attention_mask` (bool), each [B, T]; `images`
            [B, 3, H, W], or a list where shapes differ; `image_features` [B, P, D_vision]. The mask
            is true on a sample's own tokens, also on one that equals the padding id.

        Raises:
            ConfigError: The tokenizer has no padding token.
            DataError: Some samples have a picture and some have none.
        """
        pad_id, limit = self.tokenizer.pad_token_id, self.tokenizer.model_max_length
        if pad_id is None:
            raise ConfigError(
                "The tokenizer has no padding token; set one (LLaVA sets pad_token = unk_token)."
            )
        ids = [instance["input_ids"][:limit] for instance in instances]
        labels = [instance["labels"][:limit] for instance in instances]
        masks = [torch.ones_like(row, dtype=torch.bool) for row in ids]
        batch: dict[str, Tensor | list[Tensor]] = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
            "attention_mask": pad_sequence(masks, batch_first=True, padding_value=False),
        }
        for key, batch_key in _BATCH_KEYS.items():
            tensors = [instance[key] for instance in instances if key in instance]
            if tensors and len(tensors) < len(instances):
                raise DataError(
                    f"{len(tensors)} of {len(instances)} samples of a batch have `{key}`; expected "
                    "all or none. A text-only sample carries zeros beside samples with pictures."
                )
            if tensors:
                same = all(tensor.shape == tensors[0].shape for tensor in tensors)
                batch[batch_key] = torch.stack(tensors) if same else tensors
        return batch
