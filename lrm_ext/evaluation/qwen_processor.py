"""Qwen-VL's processor for pictures alone, where torchvision is not installed.

transformers' own one cannot be made without its video processor, which needs torchvision. In:
pictures and prompts from the chat template. Out: what the model takes, equal to what transformers'
processor gives for pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image

PICTURE_TOKEN: Final = "<|image_pad|>"


class QwenPictureProcessor:
    """Tokenizer, image processor and chat template of a Qwen-VL.

    Args:
        folder: The model's folder.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.image_processor: Any = AutoImageProcessor.from_pretrained(
            folder, trust_remote_code=False
        )
        self.chat_template = self.tokenizer.chat_template

    def apply_chat_template(self, messages: Sequence[dict[str, Any]], **settings: Any) -> str:
        """The prompt of a conversation."""
        return str(self.tokenizer.apply_chat_template(messages, **settings))

    def __call__(self, images: Sequence[Image.Image], text: Sequence[str], **settings: Any) -> Any:
        """Make a batch.

        Args:
            images: One picture a prompt.
            text: Prompts, each with one `PICTURE_TOKEN`.
            settings: Of the tokenizer.

        Returns:
            `input_ids` [B, T], `attention_mask` [B, T], `mm_token_type_ids` [B, T] (1 where a
            picture is), `pixel_values` [patches of all pictures, pixels], `image_grid_thw` [B, 3].
        """
        pictures = self.image_processor(list(images), return_tensors="pt")
        # the model merges squares of patches into one position
        area = self.image_processor.merge_size**2
        counts = (pictures["image_grid_thw"].prod(dim=-1) // area).tolist()
        prompts = [
            prompt.replace(PICTURE_TOKEN, PICTURE_TOKEN * count, 1)
            for prompt, count in zip(text, counts, strict=True)
        ]
        batch = self.tokenizer(prompts, **settings)
        token_id = self.tokenizer.convert_tokens_to_ids(PICTURE_TOKEN)
        batch["mm_token_type_ids"] = (batch["input_ids"] == token_id).to(torch.long)
        batch.update(pictures)
        return batch
