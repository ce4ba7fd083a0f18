"""Asks a model that is loaded here many questions at once, greedily: LLaVA's or transformers' own.

In: a loaded model and batches of (question, images). Out: the answers, the same whatever the batch
size: rows are padded on the left, masked, and decoded without sampling. The tower runs once per
image; its output serves every question on that image in every language, and neighbouring questions
that begin alike, up to the image, share the keys and values of this beginning. Models of
transformers' own classes are asked through their processors. Knows nothing of benchmarks and files.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.errors import CheckpointError, ConfigError, DataError
from llava.images import image_size, open_image
from llava.mm_utils import (
    get_model_name_from_path,
    pad_left,
    process_images,
    tokenizer_image_token,
)
from llava.model.tiles import Tiling
from lrm_ext.evaluate.items import BLIND_SIDE_PX, Answer, Request, content_parts
from lrm_ext.languages.templates import Templates

FEATURE_CACHE_BYTES: Final = 4 << 30
# settings of `generate`; None takes back what a checkpoint names for sampling
GREEDY: Final[dict[str, Any]] = {
    "do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None,
}  # fmt: skip
QWEN_IMAGE_TOKEN: Final = "<|image_pad|>"


def load_answerer(
    model_path: Path,
    model_base: str | None,
    templates: Templates,
    max_new_tokens: int,
    device: str | None = None,
    text_only: bool = False,
) -> LlavaAnswerer:
    """Loads a checkpoint for evaluation.

    Args:
        model_path: Its folder.
        model_base: The base model of a LoRA or projector-only checkpoint.
        templates: Its conversation template.
        max_new_tokens: Longest answer.
        device: `cuda` or `cpu`; by default a GPU where there is one.
        text_only: Whether it may be a model that takes no images.

    Raises:
        CheckpointError: The folder is incomplete, or the model takes no images.
    """
    parts = load_with_tower(model_path, model_base, device, text_only)
    return LlavaAnswerer(*parts, templates, max_new_tokens)


def load_with_tower(
    model_path: Path, model_base: str | None, device: str | None, text_only: bool = False
) -> tuple[Any, Any, Any]:
    """Loads a checkpoint that takes images: its tokenizer, the model, and its image processor.

    With `text_only` it may be one that takes none; there is no image processor then.

    Raises:
        CheckpointError: The folder is incomplete, or the model takes no images.
    """
    from llava.model.builder import load_pretrained_model

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = get_model_name_from_path(str(model_path))
    tokenizer, model, image_processor, _ = load_pretrained_model(
        str(model_path), model_base, name, device=device
    )
    if image_processor is None and not text_only:
        raise CheckpointError(f"{model_path} is a text-only model: it has no vision tower")
    return tokenizer, model.eval(), image_processor


class LlavaAnswerer:
    """Answers with one loaded model.

    A request whose image is withheld gets a canvas in the mean colour of the image processor, all
    zeros once normalised: the prompt stays the same to the last token, and nothing can be seen. A
    model of transformers without a tower answers questions about no image.
    """

    def __init__(
        self,
        tokenizer: Any,
        model: Any,
        image_processor: Any,
        templates: Templates,
        max_new_tokens: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._image_processor = image_processor
        self._templates = templates
        self._max_new_tokens = max_new_tokens
        self._stop_text = templates.conversation.answer_end
        # the end-of-sequence token, and the template's terminator where that is one token
        self._stop_ids = [int(tokenizer.eos_token_id)]
        token_id = tokenizer.convert_tokens_to_ids(self._stop_text or "")
        if isinstance(token_id, int) and token_id not in (*self._stop_ids, tokenizer.unk_token_id):
            self._stop_ids.append(token_id)
        pad_id = tokenizer.pad_token_id
        self._pad_id = self._stop_ids[0] if pad_id is None else int(pad_id)
        self._ids: dict[tuple[str, str, int], list[int]] = {}
        self._sizes: dict[Path | None, tuple[int, int]] = {}
        self._features = _FeatureCache(FEATURE_CACHE_BYTES)
        self._is_llava = hasattr(model, "prepare_inputs_labels_for_multimodal")
        self._tiling: Tiling | None = None
        if image_processor is not None:
            tower = model.get_vision_tower()
            self._tiling = Tiling.of(model.config, tower.input_size, tower.num_image_tokens)

    def num_tokens(self, request: Request) -> int:
        """See `Answerer`."""
        num_text = len(self._encode(request)) - request.num_places
        return num_text + self._num_positions_of(request)

    @torch.inference_mode()
    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See `Answerer`."""
        model = self._model
        rows = [self._encode(request) for request in requests]
        features, sizes = self._image_features(requests)
        images = {
            "image_features": features,
            "image_sizes": sizes,
            "prefix_lengths": list(map(self._prefix_length, requests, rows)),
        }
        self._check_room(requests, rows)
        input_ids, mask = pad_left(rows, self._pad_id)
        with _left_padding(model.config):
            generated = model.generate(
                input_ids.to(model.device),
                attention_mask=mask.to(model.device),
                **({} if features is None else images),
                **GREEDY,
                max_new_tokens=self._max_new_tokens,
                eos_token_id=self._stop_ids,
                pad_token_id=self._pad_id,
                use_cache=True,
            )
        # transformers' own classes return the prompt, too
        start = 0 if self._is_llava else input_ids.shape[1]
        return [self._decode(ids) for ids in generated[:, start:].tolist()]

    @torch.inference_mode()
    def token_losses(self, requests: Sequence[Request], answers: Sequence[str]) -> list[Tensor]:
        """Returns the negative log-likelihood of each token of given answers to a batch: [K]."""
        model = self._model
        rows = [self._tokens(*pair) for pair in zip(requests, answers, strict=True)]
        labels = []
        for request, row in zip(requests, rows, strict=True):
            start = len(os.path.commonprefix([self._encode(request), row]))
            labels.append([IGNORE_INDEX] * start + row[start:])
        features, sizes = self._image_features(requests)
        self._check_room(requests, rows)
        input_ids, mask = (part.to(model.device) for part in pad_left(rows, self._pad_id))
        padded = pad_left(labels, IGNORE_INDEX)[0].to(model.device)
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        if not self._is_llava:
            found = model(input_ids, attention_mask=mask, position_ids=positions, use_cache=False)
            wanted = padded[:, 1:] != IGNORE_INDEX
            return _losses(found.logits[:, :-1][wanted], padded[:, 1:], wanted)
        with _left_padding(model.config):
            ids, _, mask, _, embeds, targets = model.prepare_inputs_labels_for_multimodal(
                input_ids, None, mask, None, padded, None, sizes, features
            )
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        hidden = model.get_model()(
            input_ids=ids, inputs_embeds=embeds, attention_mask=mask, position_ids=positions,
            use_cache=False,
        ).last_hidden_state[:, :-1]  # fmt: skip
        wanted = targets[:, 1:] != IGNORE_INDEX
        return _losses(model.logits_of(hidden[wanted][None])[0], targets[:, 1:], wanted)

    def forget_images(self) -> None:
        """Drops what the tower made of images; the next question about one runs it again."""
        self._features = _FeatureCache(FEATURE_CACHE_BYTES)

    def _encode(self, request: Request) -> list[int]:
        """Returns the token ids of a question in the template, with a sentinel for each image."""
        key = (request.lang, request.text, request.num_places)
        if key not in self._ids:
            self._ids[key] = self._tokens(request, None)
        return self._ids[key]

    def _tokens(self, request: Request, answer: str | None) -> list[int]:
        """Returns the token ids of a question and an answer, or the beginning of one."""
        image_token = DEFAULT_IMAGE_TOKEN
        if getattr(self._model.config, "mm_use_im_start_end", False):
            image_token = DEFAULT_IM_START_TOKEN + image_token + DEFAULT_IM_END_TOKEN
        conversation = self._templates.in_language(request.lang)
        conversation.append_message(conversation.roles[0], image_token.join(request.parts))
        conversation.append_message(conversation.roles[1], answer)
        prompt = conversation.get_prompt()
        if answer is not None:
            prompt = prompt[: prompt.rindex(answer) + len(answer)]
        ids = tokenizer_image_token(prompt, self._tokenizer)
        assert isinstance(ids, list)
        return ids

    def _decode(self, ids: Sequence[int]) -> Answer:
        return read_answer(ids, self._tokenizer, self._stop_ids, self._stop_text or "")

    def _prefix_length(self, request: Request, row: Sequence[int]) -> int:
        """Returns the positions up to the last image, which other questions on it have, too."""
        if IMAGE_TOKEN_INDEX not in row:
            return 0
        num_text = len(row) - row[::-1].index(IMAGE_TOKEN_INDEX) - request.num_places
        return num_text + self._num_positions_of(request)

    def _num_positions_of(self, request: Request) -> int:
        """Returns the positions that a question's images take in the model."""
        if self._tiling is None or not request.images:
            return 0
        if request.is_video:
            return self._tiling.num_video_positions(len(self._shown(request)))
        if not self._tiling.pinpoints or len(request.images) > 1:
            return len(request.images) * self._tiling.num_positions(None)
        (path,) = request.images
        if path not in self._sizes:
            self._sizes[path] = self._open(path).size if path is None else image_size(path)
        return self._tiling.num_positions(self._sizes[path])

    def _open(self, path: Path | None) -> Image.Image:
        return open_or_blank(path, self._image_processor.image_mean)

    def _shown(self, request: Request) -> Sequence[Path | None]:
        """Returns a question's images; of a video, the frames that are shown, as in training."""
        if not request.is_video:
            return request.images
        if self._tiling is None or not self._tiling.video_frames:
            raise ConfigError(
                f"a question about a video of {len(request.images)} frames, but the checkpoint's "
                "config.json has no video_frames: expected a model that was trained with "
                f"--video_frames (docs/towers.md): {request.text[:80]!r}"
            )
        return self._tiling.sample_frames(request.images)

    def _image_features(
        self, requests: Sequence[Request]
    ) -> tuple[Tensor | list[Tensor] | None, list[tuple[int, int]]]:
        """Returns tower outputs of a batch's N images or videos and their (width, height).

        Outputs are [N, P, D_vision], or N of [P, D_vision], [tiles, P, D_vision] or, of a video,
        [1, frames, P, D_vision]; None if there is no image.
        """
        if not any(request.images for request in requests):
            return None, []
        # only the single image of a prompt is cut into tiles; the model wants one of each row
        rows = []
        for request in requests:
            shown = self._shown(request) or (None,)
            rows.append([(path, len(shown) == 1 and not request.is_video) for path in shown])
        keys = [key for row in rows for key in row]
        missing = [key for key in dict.fromkeys(keys) if key not in self._features]
        found = {key: self._features.get(key) for key in keys if key not in missing}
        for is_alone in (True, False):
            some = [key for key in missing if key[1] == is_alone]
            images = [self._open(path) for path, _ in some]
            encoded = self._run_tower(images, is_alone) if images else []
            for key, image, features in zip(some, images, encoded, strict=True):
                found[key] = (features, image.size)
                self._features.put(key, features, image.size)
        batch: list[Tensor] = []
        sizes: list[tuple[int, int]] = []
        for request, row in zip(requests, rows, strict=True):
            own = [found[key][0].to(self._model.device) for key in row]
            if request.is_video:
                batch.append(torch.stack(own).flatten(0, -3)[None])
                sizes.append((0, 0))
            else:
                batch += own
                sizes += [found[key][1] for key in row]
        is_plain = all(features.ndim == 2 for features in batch)
        return (torch.stack(batch) if is_plain else batch), sizes

    def _run_tower(self, images: list[Image.Image], is_alone: bool) -> list[Tensor]:
        """Runs the tower once over images: [P, D_vision] or [tiles, P, D_vision] of each."""
        model, processor = self._model, self._image_processor
        if self._tiling is not None and self._tiling.pinpoints:
            pixels: Any = [self._tiling.prepare(image, processor, is_alone) for image in images]
        else:
            pixels = process_images(images, processor, model.config)
        tower = model.get_vision_tower()
        place = {"device": model.device, "dtype": model.dtype}
        if isinstance(pixels, Tensor) and pixels.ndim == 4:
            return list(tower(pixels.to(**place)))
        return [tower(tiles.to(**place)) for tiles in pixels]

    def _check_room(self, requests: Sequence[Request], rows: Sequence[list[int]]) -> None:
        """Refuses a prompt that the model would cut off silently."""
        names = ("max_position_embeddings", "tokenizer_model_max_length")
        limits = (getattr(self._model.config, name, None) for name in names)
        room = min((limit for limit in limits if limit), default=None)
        for request, row in zip(requests, rows, strict=True):
            num_text, num_image = len(row) - request.num_places, self._num_positions_of(request)
            num_tokens, said = num_text + num_image, f"{num_text} tokens"
            if request.images:
                what = "the image" if request.num_places == 1 else f"{request.num_places} images"
                what = "the video" if request.is_video else what
                said += f" with {num_image} for {what}"
            refuse_long_prompt(request.text, said, num_tokens, self._max_new_tokens, room)


_ImageKey = tuple[Path | None, bool]
"""The path of an image, and whether it is the only one of its prompt."""


class _FeatureCache:
    """Keeps tower outputs by image; drops the least recently used when they take too much."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: OrderedDict[_ImageKey, tuple[Tensor, tuple[int, int]]] = OrderedDict()

    def __contains__(self, key: _ImageKey) -> bool:
        return key in self._entries

    def get(self, key: _ImageKey) -> tuple[Tensor, tuple[int, int]]:
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: _ImageKey, features: Tensor, size: tuple[int, int]) -> None:
        # A clone, as a slice would keep the whole batch alive.
        entry = features.detach().to("cpu", copy=True)
        self._entries[key] = (entry, size)
        self._num_bytes += entry.nbytes
        while self._num_bytes > self._max_bytes and len(self._entries) > 1:
            _, (oldest, _) = self._entries.popitem(last=False)
            self._num_bytes -= oldest.nbytes


def open_or_blank(path: Path | None, mean: Sequence[float]) -> Image.Image:
    """Opens an image; None gives a canvas in the mean colour of an image processor."""
    if path is not None:
        return open_image(path)
    colour = tuple(round(255 * value) for value in mean)
    return Image.new("RGB", (BLIND_SIDE_PX, BLIND_SIDE_PX), colour)


def refuse_long_prompt(
    text: str, said: str, num_tokens: int, max_new_tokens: int, room: int | None
) -> None:
    """Refuses a prompt that a model would cut off silently.

    Args:
        text: The question.
        said: Its length in words.
        num_tokens: Its length, the image included.
        max_new_tokens: Longest answer.
        room: Tokens that the model takes; None for any number.

    Raises:
        DataError: It leaves no room for the answer.
    """
    if room is not None and num_tokens + max_new_tokens > room:
        raise DataError(
            f"a question of {said} leaves no {max_new_tokens} for the answer in the model's "
            f"{room}: {text[:80]!r}"
        )


def read_answer(
    ids: Sequence[int], tokenizer: Any, stop_ids: Collection[int], stop_text: str = ""
) -> Answer:
    """Decodes what a model generated, up to its end.

    Args:
        ids: The new tokens.
        tokenizer: The model's.
        stop_ids: Tokens that end an answer.
        stop_text: Text that ends an answer, where it is no token of its own.
    """
    end = next((i for i, token_id in enumerate(ids) if token_id in stop_ids), None)
    kept = ids[:end]
    text = tokenizer.decode(kept, skip_special_tokens=True)
    is_stopped = end is not None
    if stop_text.strip() and stop_text in text:
        text, is_stopped = text[: text.index(stop_text)], True
    return Answer(text.strip(), len(kept), "stop" if is_stopped else "length")


def _losses(logits: Tensor, targets: Tensor, wanted: Tensor) -> list[Tensor]:
    """Returns the loss of each wanted target of each row.

    Args:
        logits: [W, V], of the wanted ones.
        targets: [B, T].
        wanted: [B, T] bool, W of them.
    """
    losses = torch.nn.functional.cross_entropy(logits.float(), targets[wanted], reduction="none")
    return list(losses.cpu().split(wanted.sum(1).tolist()))


@contextmanager
def _left_padding(config: Any) -> Iterator[None]:
    """Pads spliced rows on the left, as decoding needs; then the model has its setting again."""
    before = {k: v for k, v in vars(config).items() if k == "tokenizer_padding_side"}
    config.tokenizer_padding_side = "left"
    try:
        yield
    finally:
        del config.tokenizer_padding_side
        vars(config).update(before)


def load_transformers(
    folder: Path, max_new_tokens: int, device: str | None
) -> TransformersAnswerer:
    """Loads a model of transformers' own classes for evaluation; arguments as `load_answerer`.

    Raises:
        CheckpointError: Transformers cannot load it as a model of images and text.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.utils.import_utils import is_torchvision_available

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    trust = {"trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **trust)
        is_qwen = config.model_type.startswith("qwen") and not is_torchvision_available()
        processor = (
            QwenProcessor(folder) if is_qwen else AutoProcessor.from_pretrained(folder, **trust)
        )
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, **trust)
    except (ImportError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder}: transformers cannot load it as a model of images and text: {error}"
        ) from error
    return TransformersAnswerer(processor, model.to(device).eval(), max_new_tokens)


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
        # tokens that end an answer, as the model's generation settings name them
        named = getattr(model.generation_config, "eos_token_id", None)
        listed = named if isinstance(named, list) else [named]
        tokenizer = self._tokenizer
        self._stop_ids = {*listed, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}

    def num_tokens(self, request: Request) -> int:
        """See `Answerer`."""
        prompt = self._prompt(request)
        return len(self._tokenizer(prompt, **self._special_tokens(prompt)).input_ids)

    @torch.inference_mode()
    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See `Answerer`.

        Raises:
            DataError: A question leaves no room for an answer.
        """
        prompts = [self._prompt(request) for request in requests]
        mean = getattr(self._processor.image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
        images = [[open_or_blank(path, mean) for path in request.images] for request in requests]
        has_several = any(len(own) != 1 for own in images)
        # processors take one list of images if each prompt has one
        shown: Any = images if has_several else [own[0] for own in images]
        inputs = self._processor(
            images=shown if any(images) else None,
            text=prompts,
            padding=True,
            return_tensors="pt",
            **self._special_tokens(prompts[0]),
        ).to(self._model.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        prompt = inputs["input_ids"]
        length = prompt.shape[1]
        room = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        longest = max((request.text for request in requests), key=len)
        said = f"{length} tokens, its images included,"
        refuse_long_prompt(longest, said, length, self._max_new_tokens, room)
        ids = self._model.generate(
            **inputs,
            **GREEDY,
            max_new_tokens=self._max_new_tokens,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        # some models return the prompt, too
        if ids.shape[1] >= length and torch.equal(ids[:, :length], prompt):
            ids = ids[:, length:]
        return [read_answer(row, self._tokenizer, self._stop_ids) for row in ids.tolist()]

    def _prompt(self, request: Request) -> str:
        if getattr(self._processor, "chat_template", None) is None:
            if len(request.images) > 1 or DEFAULT_IMAGE_TOKEN in request.text:
                raise ConfigError(
                    "the model has no chat template that says where images go, so it takes one "
                    f"image before a question; found {len(request.images)}: {request.text[:80]!r}"
                )
            return request.text
        content = content_parts(request, [{"type": "image"}] * len(request.images))
        prompt = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return str(prompt)

    def _special_tokens(self, prompt: str) -> dict[str, bool]:
        """Returns settings of the tokenizer: no second BOS if the template begins with one."""
        bos = self._tokenizer.bos_token
        return {"add_special_tokens": False} if bos and prompt.startswith(bos) else {}


class QwenProcessor:
    """Tokenizer, image processor and chat template of a Qwen-VL, where torchvision is missing.

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
        self.apply_chat_template = self.tokenizer.apply_chat_template

    def __call__(
        self,
        images: Sequence[Image.Image | Sequence[Image.Image]] | None,
        text: Sequence[str],
        **settings: Any,
    ) -> Any:
        """Makes a batch.

        Args:
            images: The image of each prompt, or a list of its images; None if there are none.
            text: Prompts, with a `QWEN_IMAGE_TOKEN` for each of its images.
            settings: Of the tokenizer.

        Returns:
            `input_ids` [B, T], `attention_mask` [B, T], `mm_token_type_ids` [B, T] (1 where an
            image is), `pixel_values` [patches of all N images, pixels], `image_grid_thw` [N, 3].
        """
        if images is None:
            return self.tokenizer(text, **settings)
        every = [one for own in images for one in (own if isinstance(own, Sequence) else (own,))]
        pixels = self.image_processor(every, return_tensors="pt")
        # the model merges squares of patches into one position
        area = self.image_processor.merge_size**2
        counts = iter((pixels["image_grid_thw"].prod(dim=-1) // area).tolist())
        prompts = [
            re.sub(re.escape(QWEN_IMAGE_TOKEN), lambda mark: mark[0] * next(counts), prompt)
            for prompt in text
        ]
        batch = self.tokenizer(prompts, **settings)
        token_id = self.tokenizer.convert_tokens_to_ids(QWEN_IMAGE_TOKEN)
        batch["mm_token_type_ids"] = (batch["input_ids"] == token_id).to(torch.long)
        batch.update(pixels)
        return batch
