"""Who answers: a LLaVA checkpoint, a model of transformers, or a service with OpenAI's interface.

In: the settings of an evaluation. Out: a `Backend`, which says what it is (for `run.json`) without
loading anything, and makes the answerer when there is something to ask.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from llava.conversation import conversation_to_dict
from llava.errors import CheckpointError
from llava.mm_utils import get_model_name_from_path
from lrm_ext.evaluation.answerer import Answerer, Templates, load_answerer

if TYPE_CHECKING:
    from lrm_ext.evaluation.runner import EvalConfig

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
        from lrm_ext.evaluation.service import ServiceBackend

        return ServiceBackend.of(config)
    folder = local_folder(config.model_path)
    if not (folder / _CONFIG_FILE).is_file() or is_llava(folder):
        templates = Templates.of_checkpoint(folder, config.conv_mode)
        return LlavaBackend(
            folder, config.model_base, templates, config.max_new_tokens, config.device
        )
    from lrm_ext.evaluation.transformers_models import TransformersBackend

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
