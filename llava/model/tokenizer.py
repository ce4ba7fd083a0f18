"""Load the tokenizer of a checkpoint with the settings that its training had, and save it.

In: a folder or Hub id. Out: a tokenizer. Why not `AutoTokenizer` alone: where a Llama folder
leaves out `legacy`, `add_bos_token` or `padding_side`, current transformers assumes the opposite
of what the checkpoint was trained with, and every prompt changes silently. It also leaves them out
when it saves; what it saved is then read from `tokenizer.json`. `LlamaTokenizer` writes them, and
`tokenizer.model`, for LLaVA's own code.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers import LlamaTokenizer as TransformersLlamaTokenizer

from llava.errors import CheckpointError
from llava.model.checkpoint_files import find_file, read_config

log = logging.getLogger(__name__)

# what transformers 4.37 took for a missing key
LLAMA_DEFAULTS = {
    "legacy": True,
    "add_bos_token": True,
    "add_eos_token": False,
    "padding_side": "right",
}


class LlamaTokenizer(TransformersLlamaTokenizer):
    """Llama's tokenizer of transformers 5, which saves what transformers 4 reads as well.

    Transformers 5 writes `tokenizer.json` only. LLaVA's own code reads the SentencePiece model,
    `added_tokens.json` and whether BOS and EOS are added.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # transformers builds a class without an __init__ of its own as a plain SentencePiece
        # tokenizer, which gives other ids than Llama's
        super().__init__(*args, **kwargs)

    def _save_pretrained(
        self,
        save_directory: Any,
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        names = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        path = Path(file_names[0])  # tokenizer_config.json
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings |= {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}
        text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
        if not self.can_save_slow_tokenizer:
            log.warning("%s: tokenizer.model is not written, the base has none now", save_directory)
            return names
        # not Llama's but the slow tokenizers' way, which transformers keeps in the base class
        return PreTrainedTokenizerBase._save_pretrained(
            self, save_directory, names, None, filename_prefix
        )


def load_tokenizer(name_or_path: str | Path, **overrides: Any) -> Any:
    """Load a tokenizer; missing keys of a Llama tokenizer get the defaults of transformers 4.37.

    Args:
        name_or_path: folder or Hub id.
        **overrides: for the tokenizer, e.g. `model_max_length`, `padding_side`.

    Raises:
        CheckpointError: there is no tokenizer, its file is cut short, or BOS is not added although
            it should be.
    """
    written = read_config(name_or_path, "tokenizer_config.json") or {}
    is_llama = _is_llama(name_or_path, written)
    model_file = find_file(name_or_path, "tokenizer.model") if is_llama else None
    if is_llama and model_file is None and find_file(name_or_path, "tokenizer.json") is None:
        # transformers would make a tokenizer without a vocabulary
        raise CheckpointError(
            f"{name_or_path}: there is neither tokenizer.model nor tokenizer.json; copy them from "
            "the base model"
        )
    defaults = LLAMA_DEFAULTS if is_llama else {"padding_side": "right"}
    if is_llama and "backend" in written:
        defaults = {**defaults, **_built_in_settings(name_or_path)}
    # `legacy: null` was written by versions that took it for true
    settings = {
        key: value if written.get(key) is None else written[key] for key, value in defaults.items()
    }
    settings.update(overrides)
    try:
        if model_file is not None:
            # AutoTokenizer takes another class, with other ids, for a Mistral folder
            tokenizer: Any = LlamaTokenizer.from_pretrained(str(name_or_path), **settings)
        else:
            tokenizer = AutoTokenizer.from_pretrained(str(name_or_path), use_fast=False, **settings)
    except StrictDataclassError as error:
        raise CheckpointError(f"{name_or_path}/config.json: {error}") from error
    except (OSError, ValueError) as error:
        if model_file is not None and not _is_sentencepiece(model_file):
            raise CheckpointError(
                f"{model_file}: no SentencePiece model, perhaps cut short; copy it anew from the "
                "base model"
            ) from error
        raise CheckpointError(f"{name_or_path}: cannot load its tokenizer: {error}") from error
    if is_llama:
        # so that it is written again by save_pretrained
        tokenizer.init_kwargs["legacy"] = settings["legacy"]
        if settings["add_bos_token"]:
            check_bos(tokenizer, name_or_path)
    return tokenizer


def check_bos(tokenizer: Any, where: Any) -> None:
    """Make sure that the tokenizer really puts BOS first; every template counts on it.

    Raises:
        CheckpointError: it does not.
    """
    ids = tokenizer("a").input_ids
    if ids[:1] != [tokenizer.bos_token_id]:
        raise CheckpointError(
            f"{where}: the tokenizer gives {ids} for 'a', expected BOS "
            f"({tokenizer.bos_token_id}) first; set add_bos_token in tokenizer_config.json, or "
            "delete a tokenizer.json that does not fit tokenizer.model"
        )


def _is_sentencepiece(path: Path) -> bool:
    try:
        return bool(SentencePieceProcessor(model_file=str(path)))
    except (RuntimeError, OSError):
        return False


def _is_llama(name_or_path: str | Path, written: dict[str, Any]) -> bool:
    kind = written.get("tokenizer_class")
    if kind is None:
        return find_file(name_or_path, "tokenizer.model") is not None
    return kind in ("LlamaTokenizer", "LlamaTokenizerFast")


def _built_in_settings(name_or_path: str | Path) -> dict[str, bool]:
    """Read from a `tokenizer.json` of transformers 5 what its configuration file leaves out."""
    content = read_config(name_or_path, "tokenizer.json")
    if content is None:
        return {}
    settings = {}
    pre_tokenizer = content.get("pre_tokenizer") or {}
    if pre_tokenizer.get("type") == "Metaspace":
        settings["legacy"] = pre_tokenizer.get("prepend_scheme") == "always"
    post_processor = content.get("post_processor") or {}
    if post_processor.get("type") == "TemplateProcessing":
        template = post_processor["single"]
        settings["add_bos_token"] = "SpecialToken" in template[0]
        settings["add_eos_token"] = "SpecialToken" in template[-1]
    return settings
