"""Ask a model behind OpenAI's chat interface: vLLM, SGLang, our own server, or somebody else's.

In: an address and a model's name. Out: answers as `LlavaAnswerer` gives them. A batch is asked all
at once, so that the service can batch it in its own way. Pictures go as data URLs.
"""

from __future__ import annotations

import base64
import io
import logging
import os
from collections.abc import Sequence
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
    Limits,
    ask_each,
)
from llava.errors import ConfigError, DataError, ExhaustedError, RejectedError, ServiceError
from llava.images import apply_orientation, open_image
from lrm_ext.benchmarks.items import REFUSED_REASON
from lrm_ext.evaluation.answerer import (
    BLIND_SIDE_PX,
    Answer,
    Answerer,
    BrokenBatchError,
    Request,
)

if TYPE_CHECKING:
    from lrm_ext.evaluation.runner import EvalConfig

log = logging.getLogger(__name__)

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
        self, backend: ServiceBackend, key: str | None, limits: Limits | None = None
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
