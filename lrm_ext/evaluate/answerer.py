"""Asks a LLaVA model many questions at once, greedily.

In: a loaded model and batches of (question, images). Out: the answers, the same whatever the batch
size: rows are padded on the left, masked, and decoded without sampling. The tower runs once per
image; its output serves every question on that image in every language, and neighbouring questions
that begin alike, up to the image, share the keys and values of this beginning. Knows nothing of
benchmarks and files.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Protocol

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
from llava.conversation import (
    Conversation,
    select_conversation,
)
from llava.errors import CheckpointError, ConfigError, DataError, ServiceError
from llava.images import image_size, open_image
from llava.mm_utils import (
    get_model_name_from_path,
    pad_left,
    process_images,
    tokenizer_image_token,
)
from llava.model.tiles import Tiling
from lrm_ext.evaluate.items import check_places
from lrm_ext.languages.registry import ENGLISH, list_languages
from lrm_ext.languages.templates import in_language, register_templates

FEATURE_CACHE_BYTES: Final = 4 << 30
BLIND_SIDE_PX: Final = 336


@dataclass(frozen=True)
class Request:
    """A question.

    Attributes:
        text: Without template. Each `<image>` in it is the place of an image, in order; if there is
            none, the images come before it.
        lang: Its language, which may have a template of its own.
        images: The images; None for one that is withheld. Empty if the question is about none.
        options: Answers to choose from by their likelihood; empty to have it write one.
        is_video: The images are the frames of a video, which has one place in the text.
    """

    text: str
    lang: str
    images: tuple[Path | None, ...]
    options: tuple[str, ...] = ()
    is_video: bool = False

    @property
    def num_places(self) -> int:
        """Places in the text: one of each image, or one of the video."""
        return 1 if self.is_video else len(self.images)

    @property
    def parts(self) -> list[str]:
        """The text before, between and after the images: one part more than there are places.

        Raises:
            DataError: The text has places, but not as many as there are images.
        """
        check_places(self.text, self.num_places, repr(self.text[:80]))
        if DEFAULT_IMAGE_TOKEN in self.text or not self.images:
            return self.text.split(DEFAULT_IMAGE_TOKEN)
        return ["", *["\n"] * (self.num_places - 1), f"\n{self.text}"]


@dataclass(frozen=True)
class Answer:
    """The answer of a model.

    Attributes:
        text: Decoded and stripped, without special tokens.
        num_new_tokens: Its length; the end token is not counted.
        finish_reason: `stop`, `length` if it was cut off, `refused` if a service refused it.
    """

    text: str
    num_new_tokens: int
    finish_reason: str


class BrokenBatchError(ServiceError):
    """Raised if a batch could not be answered to its end.

    Attributes:
        answers: What was answered, in the batch's order; None where nothing was.
    """

    def __init__(self, message: str, answers: Sequence[Answer | None]) -> None:
        super().__init__(message)
        self.answers = answers


class Answerer(Protocol):
    """Answers batches of questions."""

    def num_tokens(self, request: Request) -> int:
        """Returns the length of a question's prompt, with its images, as far as it is known."""
        ...

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers a batch, in its order.

        Raises:
            BrokenBatchError: Not all of it can be answered.
        """
        ...


@dataclass(frozen=True)
class Templates:
    """The template of a checkpoint, in the language of each question where it has languages.

    Attributes:
        name: Its name.
        conversation: The template itself.
    """

    name: str
    conversation: Conversation

    @classmethod
    def of_checkpoint(cls, model_path: Path, conv_mode: str | None) -> Templates:
        """Chooses by a checkpoint's `config.json`, without loading the model.

        Raises:
            CheckpointError: There is no such file.
            TemplateError: `conv_mode` is unknown.
        """
        path = model_path / "config.json"
        if not path.is_file():
            raise CheckpointError(
                f"{model_path} holds no config.json; expected the folder of a finished training, "
                "such as runs/mini after `bash scripts/quickstart.sh`"
            )
        register_templates()
        config = SimpleNamespace(**json.loads(path.read_text(encoding="utf-8")))
        name = get_model_name_from_path(str(model_path))
        return cls(*select_conversation(config, name, conv_mode))

    def in_language(self, lang: str) -> Conversation:
        """Returns a fresh conversation for a question in a language, English if it has no file."""
        known = lang if lang in list_languages() else ENGLISH
        return in_language(self.name, self.conversation, known)


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
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
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
    return blank_image(tuple(round(255 * value) for value in mean))


def blank_image(colour: tuple[int, ...]) -> Image.Image:
    """Returns a canvas on which nothing can be seen."""
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
