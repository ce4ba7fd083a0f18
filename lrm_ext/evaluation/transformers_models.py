"""Ask a model of transformers' own: InstructBLIP, LLaVA-NeXT, Qwen-VL and others.

In: a folder as transformers writes it. Out: answers as `LlavaAnswerer` gives them: greedy, in
batches padded on the left. The question goes into the model's own chat template, or alone to a
model that has none. No code of a checkpoint is run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from llava.errors import CheckpointError, DataError
from llava.images import open_image
from llava.mm_utils import get_model_name_from_path
from lrm_ext.evaluation.answerer import BLIND_SIDE_PX, Answer, Answerer, Request
from lrm_ext.evaluation.backend import weights_sha256
from lrm_ext.evaluation.qwen_processor import QwenPictureProcessor

if TYPE_CHECKING:
    from lrm_ext.evaluation.runner import EvalConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TransformersBackend:
    """A model that transformers loads by itself.

    Attributes:
        folder: Where it is.
        model_id: Its name.
        max_new_tokens: Longest answer.
        device: `cuda` or `cpu`; None for a GPU where there is one.
    """

    folder: Path
    model_id: str
    max_new_tokens: int
    device: str | None

    @classmethod
    def of(cls, config: EvalConfig, folder: Path) -> TransformersBackend:
        """The backend that a configuration names.

        Raises:
            CheckpointError: It has settings that only LLaVA's checkpoints have.
        """
        given = [name for name in ("model_base", "conv_mode") if getattr(config, name) is not None]
        if given:
            raise CheckpointError(
                f"{folder} is a checkpoint of transformers' own classes: leave out "
                f"{', '.join('--' + name.replace('_', '-') for name in given)}, which are for "
                "LLaVA's"
            )
        name = get_model_name_from_path(str(config.model_path))
        return cls(folder, name, config.max_new_tokens, config.device)

    def identity(self) -> dict[str, Any]:
        """See `Backend`."""
        return {
            "model_id": self.model_id,
            "weights_sha256": weights_sha256(self.folder),
            "template": "the model's own",
        }

    def load(self) -> Answerer:
        """See `Backend`.

        Raises:
            CheckpointError: transformers cannot load it, or it takes no pictures.
        """
        from transformers import AutoModelForImageTextToText

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float16 if device.startswith("cuda") else torch.float32
        try:
            processor = _load_processor(self.folder)
            model: Any = AutoModelForImageTextToText.from_pretrained(
                self.folder, dtype=dtype, trust_remote_code=False
            )
        except (ImportError, OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{self.folder}: transformers cannot load it as a model of pictures and text: "
                f"{error}"
            ) from error
        return TransformersAnswerer(processor, model.to(device).eval(), self.max_new_tokens)


def _load_processor(folder: Path) -> Any:
    from transformers import AutoConfig, AutoProcessor
    from transformers.utils.import_utils import is_torchvision_available

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type.startswith("qwen") and not is_torchvision_available():
        return QwenPictureProcessor(folder)
    return AutoProcessor.from_pretrained(folder, trust_remote_code=False)


class TransformersAnswerer:
    """Answers with one loaded model.

    Args:
        processor: As `AutoProcessor` gives it.
        model: As `AutoModelForImageTextToText` gives it.
        max_new_tokens: Longest answer.
    """

    def __init__(self, processor: Any, model: Any, max_new_tokens: int) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model = model
        self._max_new_tokens = max_new_tokens
        self._stop_ids = _stop_ids(model, self._tokenizer)

    def num_tokens(self, request: Request) -> int:
        """See `Answerer`."""
        prompt = self._prompt(request.text)
        return len(self._tokenizer(prompt, **self._special_tokens(prompt)).input_ids)

    @torch.inference_mode()
    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See `Answerer`.

        Raises:
            DataError: A question leaves no room for an answer.
        """
        prompts = [self._prompt(request.text) for request in requests]
        inputs = self._processor(
            images=[self._open(request.image) for request in requests],
            text=prompts,
            padding=True,
            return_tensors="pt",
            **self._special_tokens(prompts[0]),
        ).to(self._model.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        prompt = inputs["input_ids"]
        self._check_room(requests, prompt.shape[1])
        generated = self._model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=self._max_new_tokens,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        return [self._decode(ids) for ids in _new_tokens(generated, prompt).tolist()]

    def _prompt(self, text: str) -> str:
        if getattr(self._processor, "chat_template", None) is None:
            return text
        content = [{"type": "image"}, {"type": "text", "text": text}]
        prompt = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return str(prompt)

    def _special_tokens(self, prompt: str) -> dict[str, bool]:
        """Settings of the tokenizer: where the template begins with a BOS, no second one."""
        bos = self._tokenizer.bos_token
        return {"add_special_tokens": False} if bos and prompt.startswith(bos) else {}

    def _open(self, path: Path | None) -> Image.Image:
        if path is None:
            mean = getattr(self._processor.image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
            color = tuple(round(255 * value) for value in mean)
            return Image.new("RGB", (BLIND_SIDE_PX, BLIND_SIDE_PX), color)
        return open_image(path)

    def _decode(self, ids: Sequence[int]) -> Answer:
        end = next((i for i, token_id in enumerate(ids) if token_id in self._stop_ids), None)
        kept = ids if end is None else ids[:end]
        text = self._tokenizer.decode(kept, skip_special_tokens=True)
        return Answer(text.strip(), len(kept), "length" if end is None else "stop")

    def _check_room(self, requests: Sequence[Request], num_tokens: int) -> None:
        room = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if room is not None and num_tokens + self._max_new_tokens > room:
            longest = max(requests, key=lambda request: len(request.text))
            raise DataError(
                f"a question of {num_tokens} tokens, its picture included, leaves no "
                f"{self._max_new_tokens} for the answer in the model's {room}: "
                f"{longest.text[:80]!r}"
            )


def _new_tokens(generated: Tensor, prompt: Tensor) -> Tensor:
    """What follows the prompt: [B, N]; some models return it alone.

    Args:
        generated: [B, T + N] or [B, N].
        prompt: [B, T].
    """
    length = prompt.shape[1]
    if generated.shape[1] >= length and torch.equal(generated[:, :length], prompt):
        return generated[:, length:]
    return generated


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer, as the model's generation settings name them."""
    named = getattr(model.generation_config, "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return frozenset({*listed, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None})
