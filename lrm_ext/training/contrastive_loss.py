"""An optional loss that pulls a picture's features towards what is said about it, in any language.

Input: projected image features of a batch, and the texts of its samples in English and in the
sample's language. Output: a contrastive term (InfoNCE in both directions, both languages) that
`--alignment_loss WEIGHT` adds to the loss. It is not part of the paper's recipe, whose regularizer
is its instructions; it is off by default. Features and the language model's embeddings of the text
are pooled by their mean, in the space in which the model reads both, so no further forward pass is
needed.

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
from lrm_ext.corpus.store import AnyCorpus
from lrm_ext.instructions.registry import ENGLISH
from lrm_ext.training.dataset import EncodedItem

TEMPERATURE = 0.07
_TEXTS = ("english", "native")


class Renderings:
    """Adds a sample's texts, in English and in its language, to an item.

    Args:
        corpus: That the mixture draws from.
        tokenizer: The model's.
    """

    def __init__(self, corpus: AnyCorpus, tokenizer: Any) -> None:
        self.corpus = corpus
        self.tokenizer = tokenizer

    def __call__(self, encoded: EncodedItem) -> dict[str, Any]:
        """`english` and `native`, token ids [T] each, and `picture`, a number that tells pictures.

        A sample without a picture has the number -1.
        """
        lang = encoded.groups[0]
        english = self.corpus.row(encoded.row).turns
        native = english if lang == ENGLISH else self.corpus.turns(lang, encoded.row)
        assert native is not None, "the mixture draws only rows that have text"
        path = self.corpus.image_path(encoded.row)
        picture = -1 if path is None else zlib.crc32(str(path).encode())
        return {"english": self._ids(english), "native": self._ids(native), "picture": picture}

    def _ids(self, turns: Sequence[Turn]) -> Tensor:
        text = "\n".join(turn.text for turn in turns).replace(DEFAULT_IMAGE_TOKEN, "").strip()
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def collate_renderings(items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """What the items' renderings add to a batch: `extra_...`, which the model does not see.

    Args:
        items: With what `Renderings` adds.

    Returns:
        `extra_english` and `extra_native`, [B, T] long with -1 as padding, and `extra_picture` [B].
    """
    batch = {
        f"extra_{name}": pad_sequence([item[name] for item in items], True, padding_value=-1)
        for name in _TEXTS
    }
    batch["extra_picture"] = torch.tensor([item["picture"] for item in items])
    return batch


class AlignmentLoss:
    """The term, times its weight; called after the model's forward pass on the same batch.

    Args:
        weight: Of the term.
        projector: Whose output, one row a sample, is the image features.
        args: transformers' training arguments.

    Raises:
        ConfigError: The weights are dealt out to ranks, where embeddings cannot be read.
    """

    def __init__(self, weight: float, projector: nn.Module, args: Any) -> None:
        if args.fsdp or is_deepspeed_zero3_enabled():
            raise ConfigError(
                "--alignment_loss does not work where weights are dealt out (ZeRO-3, FSDP): use "
                "ZeRO-2 or leave it out"
            )
        self.weight = weight
        self._features: Tensor | None = None
        projector.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._features = output if module.training else None

    def __call__(self, model: Any, extra: Mapping[str, Tensor]) -> Tensor:
        """The term for a batch.

        Args:
            model: Whose forward pass it was.
            extra: What `collate_renderings` added.

        Returns:
            A scalar, float32; 0 where fewer than two pictures are in the batch.
        """
        features, self._features = self._features, None
        assert features is not None, "the model has just seen this batch"
        embed = model.get_input_embeddings()
        pictures = extra["extra_picture"]
        pooled = features.float().mean(dim=1)
        texts = [_pooled_text(embed, extra[f"extra_{name}"]) for name in _TEXTS]
        terms = [contrast(pooled, text, pictures) for text in texts]
        return self.weight * torch.stack(terms).mean()


def _pooled_text(embed: nn.Module, ids: Tensor) -> Tensor:
    """Mean embeddings [B, D] of texts [B, T], -1 where they are padded."""
    is_text = (ids >= 0).unsqueeze(-1)
    vectors = embed(ids.clamp(min=0)).float() * is_text
    return vectors.sum(dim=1) / is_text.sum(dim=1).clamp(min=1)


def contrast(features: Tensor, texts: Tensor, pictures: Tensor) -> Tensor:
    """InfoNCE between pictures and texts, both ways.

    Args:
        features: [B, D].
        texts: [B, D].
        pictures: [B] long, which picture a sample shows; -1 for none. A text about the same picture
            is never a wrong one.

    Returns:
        A scalar that is 0, with its graph, where fewer than two pictures are to be told apart.
    """
    has_picture = pictures >= 0
    first, second = (F.normalize(vectors, dim=-1)[has_picture] for vectors in (features, texts))
    if len(pictures[has_picture].unique()) < 2:
        return 0.0 * (features.sum() + texts.sum())
    same = pictures[has_picture][:, None] == pictures[has_picture][None, :]
    other = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    scores = (first @ second.T / TEMPERATURE).masked_fill(other, float("-inf"))
    target = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
