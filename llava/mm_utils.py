"""Prepares images and prompts for the model.

Role: what LLaVA's users import as `llava.mm_utils`. Input: PIL images, prompt text. Output:
pixel tensors, token ids. Non-goals: labels (`llava.data`), what the tower does with the pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria

from llava.constants import IMAGE_TOKEN_INDEX
from llava.data.tokenize import encode_prompt
from llava.files import get_model_name_from_path as get_model_name_from_path
from llava.images import expand2square as expand2square
from llava.images import shape_image, to_rgb
from llava.model.multimodal_encoder.families import processor_side
from llava.model.tiles import Tiling, is_tiled, prepare_image, read_pinpoints
from llava.model.tiles import divide_to_patches as divide_to_patches
from llava.model.tiles import get_anyres_image_grid_shape as get_anyres_image_grid_shape
from llava.model.tiles import resize_and_pad_image as resize_and_pad_image
from llava.model.tiles import select_best_resolution as select_best_resolution


def process_anyres_image(
    image: Image.Image, processor: Any, grid_pinpoints: str | Sequence[Sequence[int]]
) -> Tensor:
    """Prepares an image as an overview and its tiles.

    Returns:
        `[1 + tiles, 3, S, S]`; index 0 is the whole image, squeezed to a square.
    """
    pinpoints = read_pinpoints(grid_pinpoints, processor_side(processor))
    return prepare_image(image, processor, None, pinpoints)


def load_image_from_base64(image: str | bytes) -> Image.Image:
    """Opens an image that came as base64 text."""
    return Image.open(io.BytesIO(base64.b64decode(image)))


def process_images(
    images: Sequence[Image.Image],
    image_processor: Any,
    model_cfg: Any,
    is_one_prompt: bool = False,
) -> Tensor | list[Tensor]:
    """Prepares images as the model's configuration asks for.

    Args:
        images: Images; whatever is not RGB is converted (`llava.images.to_rgb`).
        image_processor: The tower's.
        model_cfg: `image_aspect_ratio` is `pad`, `anyres` or `anyres_max_N` (both with
            `image_grid_pinpoints`), or anything else for CLIP's own resize and crop.
        is_one_prompt: The images belong to one prompt. Where images are cut into tiles, several
            of a prompt are not: each is filled up to one square (LLaVA-NeXT). By default each
            image is the only one of its prompt, as in LLaVA.

    Returns:
        `[N, 3, S, S]`, `[N, 1 + tiles, 3, S, S]`, or a list where the numbers of tiles differ.

    Raises:
        ConfigError: `image_grid_pinpoints` is missing, or one of the two cannot be read.
    """
    images = [to_rgb(image) for image in images]
    ratio = getattr(model_cfg, "image_aspect_ratio", None)
    if is_tiled(ratio):
        tiling = Tiling.of(model_cfg, processor_side(image_processor), num_tokens=0)
        is_alone = not is_one_prompt or len(images) == 1
        prepared = [tiling.prepare(image, image_processor, is_alone) for image in images]
    elif ratio == "pad":
        prepared = [prepare_image(image, image_processor, ratio) for image in images]
    else:
        crops = [shape_image(image, image_processor, ratio) for image in images]
        return image_processor(crops, return_tensors="pt")["pixel_values"]
    is_even = all(tensor.shape == prepared[0].shape for tensor in prepared)
    return torch.stack(prepared) if is_even else prepared


def tokenizer_image_token(
    prompt: str,
    tokenizer: Any,
    image_token_index: int = IMAGE_TOKEN_INDEX,
    return_tensors: str | None = None,
) -> list[int] | Tensor:
    """Tokenizes a prompt, with one sentinel for each `<image>`.

    Args:
        prompt: The whole prompt. Text before and after a placeholder is tokenized apart.
        tokenizer: A transformers tokenizer.
        image_token_index: The sentinel.
        return_tensors: None for a list, `pt` for a LongTensor `[T]`.

    Raises:
        ValueError: Another kind of tensor was asked for.
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f"Unsupported tensor type: {return_tensors}; use 'pt' or None")
    ids = encode_prompt(prompt, tokenizer, image_token_index)
    return torch.tensor(ids, dtype=torch.long) if return_tensors else ids


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops a sequence at the first keyword that it generates.

    Args:
        keywords: Texts to stop at.
        tokenizer: A transformers tokenizer.
        input_ids: `[B, T]`, the prompt; only its length is used.
    """

    def __init__(self, keywords: Sequence[str], tokenizer: Any, input_ids: Tensor) -> None:
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self.start_len = input_ids.shape[1]
        self.keyword_ids = []
        for keyword in self.keywords:
            ids = tokenizer(keyword).input_ids
            has_bos = len(ids) > 1 and ids[0] == tokenizer.bos_token_id
            self.keyword_ids.append(torch.tensor(ids[has_bos:]))
        self.max_keyword_len = max((len(ids) for ids in self.keyword_ids), default=0)

    def call_for_batch(self, output_ids: Tensor, scores: Any, **kwargs: Any) -> bool:
        """Tells whether the first row of `output_ids` `[1, T]` ends with a keyword."""
        row = output_ids[0].cpu()
        if any(torch.equal(row[-len(ids) :], ids) for ids in self.keyword_ids):
            return True
        num_tail = min(len(row) - self.start_len, self.max_keyword_len)
        # Generation from embeddings returns no prompt, so there may be less than `start_len`.
        num_tail = num_tail if num_tail > 0 else min(len(row), self.max_keyword_len)
        tail = self.tokenizer.decode(row[-num_tail:], skip_special_tokens=True) if num_tail else ""
        return any(keyword in tail for keyword in self.keywords)

    def __call__(self, output_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Returns a bool tensor `[B]`: which rows are done."""
        done = [self.call_for_batch(row[None], scores) for row in output_ids]
        return torch.tensor(done, dtype=torch.bool, device=output_ids.device)


def pad_left(rows: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pads rows of ids to one length: ids and mask, both [B, T]."""
    length = max(map(len, rows))
    ids = [[pad_id] * (length - len(row)) + row for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)
