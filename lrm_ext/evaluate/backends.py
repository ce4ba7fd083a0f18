"""Who answers: a LLaVA checkpoint, a model of transformers, or a service with OpenAI's interface.

In: the settings of an evaluation. Out: a `Backend`, which says what it is (for `run.json`) without
loading anything, and makes the answerer when there is something to ask.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from PIL import Image
from torch import Tensor

from llava.chat_service import (
    KEY_VARIABLE,
    MAX_TOKENS_FIELDS,
    ChatReply,
    ChatService,
    Dialect,
    ServiceLimits,
    ask_each,
)
from llava.conversation import conversation_to_dict
from llava.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ExhaustedError,
    RejectedError,
    ServiceError,
)
from llava.images import apply_orientation, open_image
from llava.mm_utils import get_model_name_from_path
from lrm_ext.evaluate.answerer import (
    BLIND_SIDE_PX,
    Answer,
    Answerer,
    BrokenBatchError,
    Request,
    Templates,
    load_answerer,
)
from lrm_ext.evaluate.items import REFUSED_REASON

if TYPE_CHECKING:
    from lrm_ext.evaluate.runner import EvalConfig
log = logging.getLogger(__name__)
WEIGHT_SUFFIXES: Final = (".safetensors", ".bin")
_HASH_CHUNK_BYTES: Final = 1 << 20
_CONFIG_FILE: Final = "config.json"


class Backend(Protocol):
    """A model that can be asked, wherever it runs."""

    def identity(self) -> dict[str, Any]:
        """What must be equal for two sets of answers to be of the same model.

        Raises:
            CheckpointError: The model is not there, or incomplete.
        """
        ...

    def load(self) -> Answerer:
        """Make it ready to answer."""
        ...


@dataclass(frozen=True)
class LlavaBackend:
    """A checkpoint in LLaVA's format.

    Attributes:
        folder: Where it is.
        model_base: The base model of a LoRA or projector-only checkpoint.
        templates: Its conversation template.
        max_new_tokens: Longest answer.
        device: `cuda` or `cpu`; None for a GPU where there is one.
    """

    folder: Path
    model_base: str | None
    templates: Templates
    max_new_tokens: int
    device: str | None

    def identity(self) -> dict[str, Any]:
        """See `Backend`."""
        return {
            "model_id": get_model_name_from_path(str(self.folder)),
            "model_base": self.model_base,
            "weights_sha256": weights_sha256(self.folder),
            "template": self.templates.name,
            "conversation": conversation_to_dict(self.templates.conversation),
        }

    def load(self) -> Answerer:
        """See `Backend`."""
        return load_answerer(
            self.folder, self.model_base, self.templates, self.max_new_tokens, self.device
        )


def choose_backend(config: EvalConfig) -> Backend:
    """Find out what kind of model a configuration names.

    A service if it has an address; else a folder, or a name on the Hugging Face hub, whose
    `config.json` says whether it is in LLaVA's format or one of transformers' own.

    Raises:
        CheckpointError: There is no such model, or nothing here can ask it.
        TemplateError: The conversation template is unknown.
    """
    if config.base_url is not None:
        return ServiceBackend.of(config)
    folder = local_folder(config.model_path)
    if not (folder / _CONFIG_FILE).is_file() or is_llava(folder):
        templates = Templates.of_checkpoint(folder, config.conv_mode)
        return LlavaBackend(
            folder, config.model_base, templates, config.max_new_tokens, config.device
        )

    return TransformersBackend.of(config, folder)


def is_llava(folder: Path) -> bool:
    """Whether a folder's `config.json` is LLaVA's: it names the tower in a way of its own."""
    config = json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8"))
    return "mm_vision_tower" in config or "vision_config" not in config


def local_folder(model: Path) -> Path:
    """The folder of a model; one that is named as on the Hugging Face hub is fetched.

    Raises:
        CheckpointError: It is neither a folder nor a name there, or the hub is not reachable.
    """
    if model.is_dir():
        return model
    if model.is_absolute() or len(model.parts) != 2 or model.parts[0] in (".", ".."):
        raise CheckpointError(
            f"{model} is not a folder; expected the folder of a finished training, such as "
            "runs/mini after `bash scripts/quickstart.sh`, or a name on the Hugging Face hub, such "
            "as liuhaotian/llava-v1.5-7b"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    log.info("%s is no folder here; looking for it on the Hugging Face hub", model)
    try:
        return Path(snapshot_download(model.as_posix(), ignore_patterns=["*.pth", "*.gguf"]))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{model} is neither a folder here nor can it be had from the Hugging Face hub: {error}"
        ) from error


def weights_sha256(folder: Path) -> str:
    """SHA-256 of all weights in a folder.

    Raises:
        CheckpointError: There are none.
    """
    weights = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in WEIGHT_SUFFIXES and path.name != "training_args.bin"
    )
    if not weights:
        raise CheckpointError(
            f"{folder} holds no weights; expected {' or '.join(WEIGHT_SUFFIXES)} files"
        )
    return sha256_of(weights)


def sha256_of(paths: Iterable[Path]) -> str:
    """SHA-256 of the content of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


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


_NUM_KEPT_PICTURES: Final = 256
_GREY: Final = (127, 127, 127)
_KINDS: Final = {"JPEG": "image/jpeg", "PNG": "image/png"}


@dataclass(frozen=True)
class ServiceBackend:
    """A model behind an address.

    Attributes:
        base_url: Up to and with `/v1`.
        model: The name that the service knows.
        max_new_tokens: Longest answer.
        dialect: Which fields of a request it takes.
    """

    base_url: str
    model: str
    max_new_tokens: int
    dialect: Dialect = Dialect()

    @classmethod
    def of(cls, config: EvalConfig) -> ServiceBackend:
        """The backend that a configuration names.

        Raises:
            ConfigError: The address is none, or a setting is for models that are loaded here.
        """
        url = str(config.base_url).rstrip("/")
        if not url.startswith(("http://", "https://")):
            raise ConfigError(
                f"--base-url is {config.base_url!r}; expected an address such as "
                "http://127.0.0.1:8000/v1"
            )
        given = [
            name
            for name in ("model_base", "conv_mode", "device")
            if getattr(config, name) is not None
        ]
        if given:
            raise ConfigError(
                f"--base-url asks a service; leave out "
                f"{', '.join('--' + name.replace('_', '-') for name in given)}, which are for "
                "models that are loaded here"
            )
        if config.max_tokens_field not in (None, *MAX_TOKENS_FIELDS):
            raise ConfigError(
                f"--max-tokens-field is {config.max_tokens_field!r}; expected "
                f"{' or '.join(MAX_TOKENS_FIELDS)}"
            )
        dialect = Dialect(config.max_tokens_field or Dialect.max_tokens_field, config.temperature)
        return cls(url, config.model_path.as_posix(), config.max_new_tokens, dialect)

    def identity(self) -> dict[str, Any]:
        """See `Backend`; whether the weights behind the name changed cannot be seen from here."""
        own = "the service's own"
        temperature = {} if self.dialect.takes_temperature else {"temperature": own}
        return {
            "model_id": self.model, "base_url": self.base_url, "template": own, **temperature,
        }  # fmt: skip

    def load(self) -> Answerer:
        """See `Backend`."""
        return ServiceAnswerer(self, os.environ.get(KEY_VARIABLE))


class ServiceAnswerer:
    """Answers by asking a service.

    Args:
        backend: What to ask.
        key: Sent as a bearer token; None for none.
        limits: How the service may be asked.
    """

    def __init__(
        self, backend: ServiceBackend, key: str | None, limits: ServiceLimits | None = None
    ) -> None:
        self._backend = backend
        self._service = ChatService(backend.base_url, key, limits, backend.dialect)
        self._picture_url = lru_cache(_NUM_KEPT_PICTURES)(picture_url)

    def num_tokens(self, request: Request) -> int:
        """Length in characters: the tokenizer is not here, and only the order matters."""
        return len(request.text)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See `Answerer`.

        A question that the service refuses is answered by nothing, with the reason `refused`.

        Raises:
            BrokenBatchError: The service does not answer any more, or cannot be used at all.
        """
        answers: list[Answer | None] = [None] * len(requests)

        def keep(position: int, outcome: ChatReply | RejectedError | ExhaustedError) -> None:
            answers[position] = self._read(requests[position], outcome)

        try:
            ask_each(self._service, [self._body(r) for r in requests], len(requests), keep)
        except ServiceError as error:
            # who mends what is wrong may have the refused ones answered, too
            kept = [a if a is None or a.finish_reason != REFUSED_REASON else None for a in answers]
            raise BrokenBatchError(
                f"{error}. What was answered is kept: run the same command again to go on, or with "
                "--fresh to have refused questions asked again, too",
                kept,
            ) from error
        return [answer for answer in answers if answer is not None]

    def _body(self, request: Request) -> dict[str, Any]:
        return {
            "model": self._backend.model,
            "messages": [{"role": "user", "content": self._content(request)}],
            "max_tokens": self._backend.max_new_tokens,
            "temperature": 0,
        }

    def _read(
        self, request: Request, outcome: ChatReply | RejectedError | ExhaustedError
    ) -> Answer:
        if isinstance(outcome, ExhaustedError):
            raise ServiceError(f"{self._backend.base_url} does not answer: {outcome}")
        refusal = outcome if isinstance(outcome, RejectedError) else outcome.refusal
        if isinstance(outcome, RejectedError) or refusal:
            log.warning("refused: %r (%s)", request.text[:80], refusal)
            return Answer("", 0, REFUSED_REASON)
        reason = "length" if outcome.is_cut else "stop"
        return Answer(outcome.text.strip(), outcome.num_output_tokens, reason)

    def _content(self, request: Request) -> list[dict[str, Any]]:
        picture = {"type": "image_url", "image_url": {"url": self._picture_url(request.image)}}
        return [picture, {"type": "text", "text": request.text}]


def picture_url(path: Path | None) -> str:
    """An image as a data URL; None gives plain grey.

    PNG and JPEG files go as they are where a service cannot see them otherwise than our own models
    do; those that are turned, transparent or of more than 8 bits go as the PNG of what these see.

    Raises:
        DataError: It cannot be read.
    """
    if path is None:
        return _as_png(Image.new("RGB", (BLIND_SIDE_PX, BLIND_SIDE_PX), _GREY))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the picture cannot be read: {error}") from error
    picture = open_image(content, str(path))
    with Image.open(io.BytesIO(content)) as file:
        is_plain = file.mode in ("L", "RGB") and "transparency" not in file.info
        is_as_seen = is_plain and apply_orientation(file) is file
        kind = _KINDS.get(file.format or "") if is_as_seen else None
    return _as_png(picture) if kind is None else _data_url(kind, content)


def _as_png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return _data_url("image/png", buffer.getvalue())


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
