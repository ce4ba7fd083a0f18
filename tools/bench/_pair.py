"""The same LLaVA model and batches on both sides: ours, and transformers' `Llava`.

With images in tiles (`anyres`, up to nine) the peer is `LlavaOnevision`.

Language model and tower are of several kinds, their weights random. Lengths are mixed: questions
and answers are log-normal, with medians of 24 and 40 tokens, and cut at a limit; each sample has
one image.

Legend: N samples, T text tokens, P features of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.families import find_family
from llava.model.language_model.causal_lm import PACKED_SDPA, get_family
from llava.model.tiles import get_anyres_image_grid_shape

FIRST_TOKEN = 5  # ids below this one are special
# a tower's configuration, model and image processor, and the peer's name for its patches
TOWERS: dict[str, tuple[Any, Any, Any, str]] = {
    "clip": (CLIPVisionConfig, CLIPVisionModel, CLIPImageProcessorPil, "default"),
    "siglip2": (SiglipVisionConfig, SiglipVisionModel, SiglipImageProcessorPil, "full"),
}


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


class Tiles(NamedTuple):
    """How pictures were cut into tiles.

    Attributes:
        sizes: (width, height) of each picture in pixels.
        num_features: Positions that each takes in the model.
    """

    sizes: list[tuple[int, int]]
    num_features: list[int]


# columns and rows of tiles that a picture may be cut to
GRIDS = [(columns, rows) for columns in (1, 2, 3) for rows in (1, 2, 3)]


def make_tiles(shape: Shape, model: Any, num_pictures: int) -> tuple[list[Tensor], Tiles]:
    """Returns pictures of mixed sizes as random tiles, each [1 + tiles, 3, S, S]."""
    generator, side = torch.Generator().manual_seed(2), shape.image_size_px
    rng = np.random.default_rng(2)
    pictures, sizes, counts = [], [], []
    for _ in range(num_pictures):
        columns, rows = GRIDS[rng.integers(len(GRIDS))]
        # a little narrower or lower than its tiles, so that there is padding to cut off
        size = (int(columns * side - rng.integers(side // 3)), rows * side)
        grid = get_anyres_image_grid_shape(size, _pinpoints(shape), side)
        tiles = torch.randn(1 + grid[0] * grid[1], 3, side, side, generator=generator)
        with torch.no_grad():
            inputs = model.prepare_inputs_labels_for_multimodal(
                torch.tensor([[IMAGE_TOKEN_INDEX]]), None, None, None, None, [tiles], [size]
            )
        pictures.append(tiles)
        sizes.append(size)
        counts.append(inputs[4].shape[1])
    return pictures, Tiles(sizes, counts)


def _pinpoints(shape: Shape) -> list[tuple[int, int]]:
    side = shape.image_size_px
    return [(columns * side, rows * side) for columns, rows in GRIDS]


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
    family: str = "llama",
    tower_kind: str = "clip",
    anyres: bool = False,
) -> Any:
    """Builds a model with random weights, the same for equal shapes; its tower is frozen."""
    torch.manual_seed(0)
    tower_dir = folder / "tower"
    if not tower_dir.exists():
        config_class, tower_class, processor_class, _ = TOWERS[tower_kind]
        tower = config_class(
            hidden_size=shape.tower_hidden_size,
            intermediate_size=shape.tower_intermediate_size,
            num_hidden_layers=shape.tower_num_layers,
            num_attention_heads=shape.tower_num_heads,
            image_size=shape.image_size_px,
            patch_size=shape.patch_size_px,
        )
        tower_class(tower).save_pretrained(tower_dir)
        square = {"height": shape.image_size_px, "width": shape.image_size_px}
        is_cropped = tower_kind == "clip"
        sizes = {"size": {"shortest_edge": shape.image_size_px}, "crop_size": square}
        processor_class(**(sizes if is_cropped else {"size": square})).save_pretrained(tower_dir)
    torch.manual_seed(1)
    classes = get_family(family)
    config = classes.config_class(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        head_dim=shape.hidden_size // shape.num_heads,
        max_position_embeddings=4096,
        pad_token_id=0,
        use_cache=False,
        attn_implementation=attention,
    )
    with _default_dtype(dtype), torch.device(device):
        model = classes.model_class(config)
    arguments = SimpleNamespace(
        vision_tower=str(tower_dir), mm_vision_select_layer=-2, mm_vision_select_feature="patch",
        mm_projector_type="mlp2x_gelu", pretrain_mm_mlp_adapter=None,
        mm_patch_merge_type="spatial_unpad" if anyres else "flat",
    )  # fmt: skip
    if anyres:
        pinpoints = {"image_grid_pinpoints": _pinpoints(shape)}
        model.config.update({"image_aspect_ratio": "anyres", **pinpoints})
    model.get_model().initialize_vision_modules(arguments)
    _cast(model.to(device), dtype)
    model.get_vision_tower().requires_grad_(False)
    return model


# prefixes of weights in LLaVA and in transformers; the first match applies
_NAMES = (
    ("model.vision_tower.vision_tower.", "model.vision_tower."),
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.image_newline", "model.image_newline"),
    ("lm_head.", "lm_head."),
    ("model.", "model.language_model."),
)


def to_transformers(model: Any, dtype: torch.dtype, attention: str) -> Any:
    """Converts to transformers' class; `<image>` is the last token."""
    tower = model.get_vision_tower()
    family = find_family(model.config.model_type, "the model")
    strategy = next(kind[3] for kind in TOWERS.values() if isinstance(tower.config, kind[0]))
    is_tiled = getattr(model.config, "image_aspect_ratio", "") == "anyres"
    own: dict[str, Any] = {"image_seq_length": tower.num_image_tokens}
    config_class: Any = LlavaConfig
    model_class: Any = LlavaForConditionalGeneration
    if is_tiled:
        # (height, width); no more than nine tiles, so that no map is shrunk
        pinpoints = [[rows, columns] for columns, rows in model.config.image_grid_pinpoints]
        own = {"image_grid_pinpoints": pinpoints, "vision_aspect_ratio": "anyres_max_9"}
        own["video_token_index"] = model.config.vocab_size - 2
        config_class, model_class = LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
    config = config_class(
        text_config={**model.config.to_dict(), "model_type": family},
        vision_config=tower.config.to_dict(),
        image_token_index=model.config.vocab_size - 1,
        vision_feature_layer=-2,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=model.config.tie_word_embeddings,
        **own,
    )
    config._attn_implementation = attention
    with _default_dtype(dtype), torch.device(model.device):
        converted: Any = model_class(config)
    weights = {_renamed(name): weight for name, weight in model.state_dict().items()}
    converted.load_state_dict(weights)
    _cast(converted, dtype)
    converted.config.use_cache = converted.config.text_config.use_cache = False
    converted.model.vision_tower.requires_grad_(False)
    return converted


def _renamed(name: str) -> str:
    ours, theirs = next(pair for pair in _NAMES if name.startswith(pair[0]))
    return theirs + name.removeprefix(ours)


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


def our_batch(
    items: list[Item], pictures: Tensor | Sequence[Tensor], key: str, tiles: Tiles | None = None
) -> dict[str, Any]:
    """Builds a padded batch for LLaVA: one sentinel per image.

    Args:
        items: N samples.
        pictures: Pixels [.., 3, S, S] or features [.., P, D] of all items; of each item with tiles.
        key: `images` or `image_features`.
        tiles: How the pictures were cut into tiles; None if they were not.
    """
    head = torch.tensor([1, IMAGE_TOKEN_INDEX])
    rows = [torch.cat([head, item.question, item.answer]) for item in items]
    chosen = [pictures[item.picture] for item in items]
    sizes = {} if tiles is None else {"image_sizes": [tiles.sizes[item.picture] for item in items]}
    return {
        **_padded(rows, [_labels(row, item) for row, item in zip(rows, items, strict=True)]),
        key: torch.stack(chosen) if tiles is None else chosen,
        **sizes,
        "sample_ids": [item.id for item in items],
    }


def peer_batch(
    items: list[Item], pictures: Tensor | Sequence[Tensor], shape: Shape, tiles: Tiles | None = None
) -> dict[str, Any]:
    """Builds a padded batch for transformers: one `<image>` token per feature."""
    rows = []
    for item in items:
        count = shape.num_patches if tiles is None else tiles.num_features[item.picture]
        head = torch.tensor([1, *[shape.vocab_size - 1] * count])
        rows.append(torch.cat([head, item.question, item.answer]))
    chosen = [pictures[item.picture] for item in items]
    vision = {"pixel_values": pad_sequence(chosen, batch_first=True)}
    if tiles is not None:
        sizes = [tiles.sizes[item.picture] for item in items]
        vision["image_sizes"] = torch.tensor([[height, width] for width, height in sizes])
    return {
        **_padded(rows, [_labels(row, item) for row, item in zip(rows, items, strict=True)]),
        **vision,
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
