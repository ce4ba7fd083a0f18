"""The same LLaVA model and batches on both sides: ours, and transformers' `Llava`.

Weights are random and converted by `lrm_ext.export`. Lengths are mixed: questions and answers are
log-normal, with medians of 24 and 40 tokens, and cut at a limit; each sample has one image.

Legend: N samples, T text tokens, P features of an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
)

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.language_model.causal_lm import PACKED_SDPA
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from lrm_ext.export.transformers_checkpoint import build_config, transformers_weights

FIRST_TOKEN = 5  # ids below this one are special


class Shape(NamedTuple):
    """Sizes of a model."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    image_size_px: int
    patch_size_px: int
    tower_hidden_size: int
    tower_intermediate_size: int
    tower_num_layers: int
    tower_num_heads: int

    @property
    def num_patches(self) -> int:
        """Number of features of an image."""
        return (self.image_size_px // self.patch_size_px) ** 2


SHAPES = {
    "tiny": Shape(64, 128, 2, 4, 512, 32, 8, 32, 64, 3, 4),
    "mini": Shape(192, 512, 4, 6, 4000, 64, 16, 160, 480, 4, 5),
    "7b": Shape(4096, 11008, 32, 32, 32_000, 336, 14, 1024, 4096, 24, 16),
}


class Item(NamedTuple):
    """A sample with one image, a question and an answer."""

    id: str
    question: Tensor  # [T_q] long
    answer: Tensor  # [T_a] long
    picture: int


def make_items(
    shape: Shape, num_items: int, num_pictures: int, max_text: int, seed: int = 0
) -> list[Item]:
    """Returns random samples of mixed lengths."""
    rng = np.random.default_rng(seed)
    items = []
    for number in range(num_items):
        num_question = int(np.clip(rng.lognormal(np.log(24), 0.7), 4, max_text // 2))
        num_answer = int(np.clip(rng.lognormal(np.log(40), 1.0), 2, max_text - num_question))
        ids = torch.from_numpy(rng.integers(FIRST_TOKEN, shape.vocab_size - 1, num_question))
        answer = torch.from_numpy(rng.integers(FIRST_TOKEN, shape.vocab_size - 1, num_answer))
        items.append(Item(f"sample-{number}", ids, answer, int(rng.integers(num_pictures))))
    return items


def build_llava(
    shape: Shape,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    attention: str = PACKED_SDPA,
) -> LlavaLlamaForCausalLM:
    """Builds a model with random weights, the same for equal shapes; its tower is frozen."""
    torch.manual_seed(0)
    tower_dir = folder / "tower"
    if not tower_dir.exists():
        tower = CLIPVisionConfig(
            hidden_size=shape.tower_hidden_size,
            intermediate_size=shape.tower_intermediate_size,
            num_hidden_layers=shape.tower_num_layers,
            num_attention_heads=shape.tower_num_heads,
            image_size=shape.image_size_px,
            patch_size=shape.patch_size_px,
        )
        CLIPVisionModel(tower).save_pretrained(tower_dir)
        side = shape.image_size_px
        CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ).save_pretrained(tower_dir)
    torch.manual_seed(1)
    config = LlavaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        max_position_embeddings=4096,
        pad_token_id=0,
        use_cache=False,
        attn_implementation=attention,
    )
    with _default_dtype(dtype), torch.device(device):
        model = LlavaLlamaForCausalLM(config)
    arguments = SimpleNamespace(
        vision_tower=str(tower_dir), mm_vision_select_layer=-2, mm_vision_select_feature="patch",
        mm_projector_type="mlp2x_gelu", mm_patch_merge_type="flat", pretrain_mm_mlp_adapter=None,
    )  # fmt: skip
    model.get_model().initialize_vision_modules(arguments)
    _cast(model.to(device), dtype)
    model.get_vision_tower().requires_grad_(False)
    return model


def to_transformers(model: LlavaLlamaForCausalLM, dtype: torch.dtype, attention: str) -> Any:
    """Converts to `LlavaForConditionalGeneration`; `<image>` is the last token."""
    config: Any = build_config(model, model.config.vocab_size - 1)
    config._attn_implementation = attention
    with _default_dtype(dtype), torch.device(model.device):
        converted: Any = LlavaForConditionalGeneration(config)
    converted.load_state_dict(transformers_weights(model, config))
    _cast(converted, dtype)
    converted.config.use_cache = converted.config.text_config.use_cache = False
    converted.model.vision_tower.requires_grad_(False)
    return converted


def _cast(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Changes the parameters' dtype; buffers (the position frequencies) stay float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def our_batch(items: list[Item], pictures: Tensor, key: str) -> dict[str, Any]:
    """Builds a padded batch for LLaVA: one sentinel per image.

    Args:
        items: N samples.
        pictures: Pixels [.., 3, S, S] or features [.., P, D] of all items.
        key: `images` or `image_features`.
    """
    head = torch.tensor([1, IMAGE_TOKEN_INDEX])
    rows = [torch.cat([head, item.question, item.answer]) for item in items]
    return {
        **_padded(rows, [_labels(row, item) for row, item in zip(rows, items, strict=True)]),
        key: torch.stack([pictures[item.picture] for item in items]),
        "sample_ids": [item.id for item in items],
    }


def peer_batch(items: list[Item], pictures: Tensor, shape: Shape) -> dict[str, Any]:
    """Builds a padded batch for transformers: one `<image>` token per feature."""
    head = torch.tensor([1, *[shape.vocab_size - 1] * shape.num_patches])
    rows = [torch.cat([head, item.question, item.answer]) for item in items]
    return {
        **_padded(rows, [_labels(row, item) for row, item in zip(rows, items, strict=True)]),
        "pixel_values": torch.stack([pictures[item.picture] for item in items]),
    }


def num_positions(item: Item, shape: Shape) -> int:
    """Returns the number of real positions of a sample in the model."""
    return 1 + shape.num_patches + len(item.question) + len(item.answer)


def _labels(row: Tensor, item: Item) -> Tensor:
    labels = row.clone()
    labels[: len(row) - len(item.answer)] = IGNORE_INDEX
    return labels


def _padded(rows: list[Tensor], labels: list[Tensor]) -> dict[str, Tensor]:
    mask = [torch.ones_like(row) for row in rows]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=0),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        "attention_mask": pad_sequence(mask, batch_first=True, padding_value=0),
    }
