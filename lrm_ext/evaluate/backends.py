"""Decides who answers: a LLaVA checkpoint, a model of transformers, or a service.

In: the settings of an evaluation. Out: a `Backend`, which says what it is (for `run.json`) without
loading anything, and makes the answerer when there is something to ask. Only then are torch and
transformers imported, so stored answers are scored without them.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from llava.chat_service import (
    KEY_VARIABLE,
    MAX_TOKENS_FIELDS,
    ChatReply,
    ChatService,
    Dialect,
    ServiceLimits,
    ask_each,
)
from llava.conversation import AUTO, chat_conversation, conversation_to_dict
from llava.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ExhaustedError,
    RejectedError,
    ServiceError,
    TemplateError,
)
from llava.files import get_model_name_from_path, sha256_of
from llava.images import apply_orientation, open_image
from llava.model.multimodal_encoder.families import refuse_foreign
from lrm_ext.evaluate.items import (
    BLIND_SIDE_PX,
    REFUSED_REASON,
    Answer,
    Answerer,
    BrokenBatchError,
    Request,
    content_parts,
)
from lrm_ext.languages.templates import Templates

if TYPE_CHECKING:
    from lrm_ext.evaluate.runner import EvalConfig
log = logging.getLogger(__name__)
WEIGHT_SUFFIXES: Final = (".safetensors", ".bin")
_CONFIG_FILE: Final = "config.json"
_NUM_KEPT_IMAGES: Final = 256
_GREY: Final = (127, 127, 127)
_MEDIA_TYPES: Final = {"JPEG": "image/jpeg", "PNG": "image/png"}
_SERVICES_OWN: Final = "the service's own"


@dataclass(frozen=True)
class Backend:
    """A model that can be asked, wherever it runs.

    Attributes:
        identity: Says what must be equal for two sets of answers to be of the same model. Raises
            `CheckpointError` if the model is not there, or incomplete.
        load: Makes it ready to answer.
    """

    identity: Callable[[], dict[str, Any]]
    load: Callable[[], Answerer]


def choose_backend(config: EvalConfig) -> Backend:
    """Finds out what kind of model a configuration names.

    A service if it has an address; else a folder, or a name on the Hugging Face hub, whose
    `config.json` says whether it is in LLaVA's format or one of transformers' own.

    Raises:
        CheckpointError: There is no such model, or nothing here can ask it.
        ConfigError: A setting is for another kind of model.
        TemplateError: The conversation template is unknown.
    """
    if config.base_url is not None:
        return _service_backend(config)
    folder = local_folder(config.model_path)
    path = folder / _CONFIG_FILE
    described = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    refuse_foreign(described, str(folder))
    # LLaVA's configuration names the tower in a way of its own
    if "mm_vision_tower" in described or "vision_config" not in described:
        has_tower = "mm_vision_tower" in described or config.model_base is not None
        return _llava_backend(config, folder, has_tower)
    return _transformers_backend(config, folder)


def _llava_backend(config: EvalConfig, folder: Path, has_tower: bool) -> Backend:
    if config.text_only and not has_tower and config.conv_mode is None:
        templates = _own_templates(folder)
    else:
        templates = Templates.of_checkpoint(folder, config.conv_mode)

    def identity() -> dict[str, Any]:
        return {
            "model_id": get_model_name_from_path(str(folder)),
            "model_base": config.model_base,
            "weights_sha256": weights_sha256(folder),
            "template": templates.name,
            "conversation": conversation_to_dict(templates.conversation),
        }

    def load() -> Answerer:
        from lrm_ext.evaluate.answerer import load_answerer

        return load_answerer(
            folder, config.model_base, templates, config.max_new_tokens, config.device,
            config.text_only,
        )  # fmt: skip

    return Backend(identity, load)


def _own_templates(folder: Path) -> Templates:
    """Returns the chat template of a language model's tokenizer.

    Raises:
        ConfigError: There is none that can be used.
    """
    from llava.model.tokenizer import load_tokenizer

    try:
        return Templates(AUTO, chat_conversation(load_tokenizer(str(folder))))
    except TemplateError as error:
        raise ConfigError(
            f"{folder} is a language model whose chat template cannot be used; name one with "
            f"--conv-mode, such as that of the model which was tuned from it ({error})"
        ) from error


def local_folder(model: Path) -> Path:
    """Returns the folder of a model; one that is named as on the Hugging Face hub is fetched.

    Raises:
        CheckpointError: It is neither a folder nor a name there, or the hub is not reachable.
    """
    if model.is_dir():
        return model
    # `runs/mini` looks like a name there, too; if `runs` is a folder, a folder in it was meant
    if model.is_absolute() or len(model.parts) != 2 or model.parent.is_dir():
        raise CheckpointError(
            f"{model} is not a folder; expected the folder of a finished training, such as "
            "runs/mini after `bash scripts/quickstart.sh`, or a name on the Hugging Face hub, such "
            "as liuhaotian/llava-v1.5-7b"
        )
    from huggingface_hub import snapshot_download

    log.info("%s is no folder here; looking for it on the Hugging Face hub", model)
    try:
        return Path(snapshot_download(model.as_posix(), ignore_patterns=["*.pth", "*.gguf"]))
    except (OSError, ValueError) as error:  # the hub's own errors are of these kinds
        raise CheckpointError(
            f"{model} is neither a folder here nor can it be had from the Hugging Face hub: {error}"
        ) from error


def weights_sha256(folder: Path) -> str:
    """Returns the SHA-256 of all weights in a folder.

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
    return sha256_of(*weights)


def _flags(config: EvalConfig, *names: str) -> str:
    """Returns the options among `names` that are given, as on the command line."""
    given = [name for name in names if getattr(config, name) is not None]
    return ", ".join("--" + name.replace("_", "-") for name in given)


def _transformers_backend(config: EvalConfig, folder: Path) -> Backend:
    """Returns the backend of a model that transformers loads by itself."""
    if given := _flags(config, "model_base", "conv_mode"):
        raise CheckpointError(
            f"{folder} is a checkpoint of transformers' own classes: leave out {given}, which are "
            "for LLaVA's"
        )

    def identity() -> dict[str, Any]:
        return {
            "model_id": get_model_name_from_path(str(config.model_path)),
            "weights_sha256": weights_sha256(folder),
            "template": "the model's own",
        }

    def load() -> Answerer:
        from lrm_ext.evaluate.answerer import load_transformers

        return load_transformers(folder, config.max_new_tokens, config.device)

    return Backend(identity, load)


def _service_backend(config: EvalConfig) -> Backend:
    """Returns the backend of a service, whose weights may change without a trace."""
    url, field = str(config.base_url).rstrip("/"), config.max_tokens_field
    if not url.startswith(("http://", "https://")):
        raise ConfigError(
            f"--base-url is {config.base_url!r}; expected an address such as "
            "http://127.0.0.1:8000/v1"
        )
    if given := _flags(config, "model_base", "conv_mode", "device"):
        raise ConfigError(
            f"--base-url asks a service; leave out {given}, which are for models that are loaded "
            "here"
        )
    if field not in (None, *MAX_TOKENS_FIELDS):
        raise ConfigError(
            f"--max-tokens-field is {field!r}; expected {' or '.join(MAX_TOKENS_FIELDS)}"
        )
    model = config.model_path.as_posix()
    identity = {"model_id": model, "base_url": url, "template": _SERVICES_OWN}
    if not config.temperature:
        identity["temperature"] = _SERVICES_OWN
    dialect = Dialect(field or Dialect.max_tokens_field, config.temperature)
    return Backend(
        lambda: dict(identity),
        lambda: ServiceAnswerer(url, model, config.max_new_tokens, dialect=dialect),
    )


class ServiceAnswerer:
    """Answers by asking a service; the key is that of the environment, if there is one.

    Args:
        url: Up to and with `/v1`.
        model: The name that the service knows.
        max_new_tokens: Longest answer.
        limits: How the service may be asked.
        dialect: Which fields of a request it takes.
    """

    def __init__(
        self,
        url: str,
        model: str,
        max_new_tokens: int,
        limits: ServiceLimits | None = None,
        dialect: Dialect | None = None,
    ) -> None:
        self._service = ChatService(url, os.environ.get(KEY_VARIABLE), limits, dialect)
        self._settings = {"model": model, "max_tokens": max_new_tokens, "temperature": 0}
        self._image_url = lru_cache(_NUM_KEPT_IMAGES)(image_url)

    def num_tokens(self, request: Request) -> int:
        """Returns the length in characters: there is no tokenizer, and only the order matters."""
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

    def _body(self, request: Request) -> Mapping[str, Any]:
        urls = map(self._image_url, request.images)
        images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        content = content_parts(request, images)
        return {**self._settings, "messages": [{"role": "user", "content": content}]}

    def _read(
        self, request: Request, outcome: ChatReply | RejectedError | ExhaustedError
    ) -> Answer:
        if isinstance(outcome, ExhaustedError):
            raise ServiceError(f"{self._service.url} does not answer: {outcome}")
        refusal = outcome if isinstance(outcome, RejectedError) else outcome.refusal
        if isinstance(outcome, RejectedError) or refusal:
            log.warning("refused: %r (%s)", request.text[:80], refusal)
            return Answer("", 0, REFUSED_REASON)
        reason = "length" if outcome.is_cut else "stop"
        return Answer(outcome.text.strip(), outcome.num_output_tokens, reason)


def image_url(path: Path | None) -> str:
    """Returns an image as a data URL; None gives plain grey.

    PNG and JPEG files go as they are where a service cannot see them otherwise than our own models
    do; those that are turned, transparent or of more than 8 bits go as the PNG of what these see.

    Raises:
        DataError: It cannot be read.
    """
    kind, content = None, b""
    if path is None:
        image = Image.new("RGB", (BLIND_SIDE_PX, BLIND_SIDE_PX), _GREY)
    else:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: the image cannot be read: {error}") from error
        image = open_image(content, str(path))
        with Image.open(io.BytesIO(content)) as file:
            is_plain = file.mode in ("L", "RGB") and "transparency" not in file.info
            if is_plain and apply_orientation(file) is file:
                kind = _MEDIA_TYPES.get(file.format or "")
    if kind is None:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        kind, content = "image/png", buffer.getvalue()
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
