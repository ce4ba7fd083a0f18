"""An optional contrastive loss between the features of images and their texts in any language.

Input: projected image features of a batch, and the texts of its samples in English and in the
sample's language. Output: a contrastive term (InfoNCE, in both directions and for both languages)
that `--alignment_loss WEIGHT` adds to the loss. It is off by default and not part of the paper's
recipe, which regularizes by its instructions. Image features and the language model's embeddings of
the text are mean-pooled in the same space, so no further forward pass is needed.

Legend: B samples, P image features, T tokens, D hidden.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.sample import Turn
from llava.errors import ConfigError
from lrm_ext.corpus.store import AnyCorpus, num_images, parts_of
from lrm_ext.languages.registry import ENGLISH
from lrm_ext.training.dataset import EncodedItem

TEMPERATURE = 0.07
_TEXTS = ("english", "native")


class Renderings:
    """Adds a sample's texts, in English and in its language, to an item.

    Args:
        corpus: Corpus of the mixture.
        tokenizer: The model's tokenizer.

    Raises:
        ConfigError: A row has several images, of which none is the image of its text.
    """

    def __init__(self, corpus: AnyCorpus, tokenizer: Any) -> None:
        batches = (batch for part in parts_of(corpus) for batch in part.row_batches())
        if any((num_images(batch) > 1).any() for batch in batches):
            raise ConfigError(
                f"--alignment_loss compares a sample's text with its image, but {corpus.path} has "
                "rows with several images: leave it out"
            )
        self.corpus = corpus
        self.tokenizer = tokenizer

    def __call__(self, encoded: EncodedItem) -> dict[str, Any]:
        """Returns `english` and `native`, token ids [T], and `image_number`, -1 without an image.

        Samples have the same number if they have the same image.
        """
        lang = encoded.groups[0]
        english = self.corpus.row(encoded.row).turns
        native = english if lang == ENGLISH else self.corpus.turns(lang, encoded.row)
        assert native is not None, "the mixture draws only rows that have text"
        paths = self.corpus.image_paths(encoded.row)
        number = zlib.crc32(str(paths[0]).encode()) if paths else -1
        texts = {"english": self._ids(english), "native": self._ids(native)}
        return {**texts, "image_number": number}

    def _ids(self, turns: Sequence[Turn]) -> Tensor:
        text = "\n".join(turn.text for turn in turns).replace(DEFAULT_IMAGE_TOKEN, "").strip()
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def collate_renderings(items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Collates the entries of `Renderings` to `extra_...` entries, which the model does not see.

    Args:
        items: Items with the entries of `Renderings`.

    Returns:
        `extra_english` and `extra_native`, [B, T] long with -1 as padding, and
        `extra_image_number` [B].
    """
    batch = {
        f"extra_{name}": pad_sequence([item[name] for item in items], True, padding_value=-1)
        for name in _TEXTS
    }
    batch["extra_image_number"] = torch.tensor([item["image_number"] for item in items])
    return batch


class AlignmentLoss:
    """Computes the weighted term after the model's forward pass on the same batch.

    Args:
        weight: Weight of the term.
        projector: The projector; its output has one row of image features per sample.
        args: transformers' training arguments.

    Raises:
        ConfigError: The weights are sharded, so that embeddings cannot be read.
    """

    def __init__(self, weight: float, projector: nn.Module, args: Any) -> None:
        if args.fsdp or is_deepspeed_zero3_enabled():
            raise ConfigError(
                "--alignment_loss does not work with sharded weights (ZeRO-3, FSDP): use "
                "ZeRO-2 or leave it out"
            )
        self.weight = weight
        self._features: Tensor | None = None
        projector.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._features = output if module.training else None

    def __call__(self, model: Any, extra: Mapping[str, Tensor]) -> Tensor:
        """Returns the term of a batch.

        Args:
            model: The model that has just seen the batch.
            extra: The entries of `collate_renderings`.

        Returns:
            A scalar, float32; 0 if the batch has fewer than two images.
        """
        features, self._features = self._features, None
        assert features is not None, "the model has just seen this batch"
        embed = model.get_input_embeddings()
        numbers = extra["extra_image_number"]
        pooled = features.float().mean(dim=1)
        terms = [
            contrast(pooled, _pooled_text(embed, extra[f"extra_{name}"]), numbers)
            for name in _TEXTS
        ]
        return self.weight * torch.stack(terms).mean()


def _pooled_text(embed: nn.Module, ids: Tensor) -> Tensor:
    """Returns mean embeddings [B, D] of texts [B, T], in which -1 is padding."""
    is_text = (ids >= 0).unsqueeze(-1)
    vectors = embed(ids.clamp(min=0)).float() * is_text
    return vectors.sum(dim=1) / is_text.sum(dim=1).clamp(min=1)


def contrast(features: Tensor, texts: Tensor, image_numbers: Tensor) -> Tensor:
    """Computes InfoNCE between images and texts, in both directions.

    Args:
        features: [B, D].
        texts: [B, D].
        image_numbers: [B] long, -1 for a sample without an image. Samples with the same image are
            not contrasted with each other.

    Returns:
        A scalar; 0, with its graph, if there are fewer than two images.
    """
    has_image = image_numbers >= 0
    numbers = image_numbers[has_image]
    first, second = (F.normalize(vectors, dim=-1)[has_image] for vectors in (features, texts))
    if len(numbers.unique()) < 2:
        return 0.0 * (features.sum() + texts.sum())
    same = numbers[:, None] == numbers[None, :]
    other = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    scores = (first @ second.T / TEMPERATURE).masked_fill(other, float("-inf"))
    target = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
