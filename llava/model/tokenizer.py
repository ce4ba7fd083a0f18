"""Loads and saves the tokenizer of a checkpoint with the settings that its training had.

In: a folder or Hub id. Out: a tokenizer. Why not `AutoTokenizer` alone: where a Llama folder
leaves out `legacy`, `add_bos_token` or `padding_side`, current transformers assumes the opposite
of what the checkpoint was trained with, and every prompt changes silently. It also leaves them out
when it saves; what it saved is then read from `tokenizer.json`. `LlamaTokenizer` writes them, and
`tokenizer.model`, for LLaVA's own code.
Checkpoints that use special tokens around images (most since v1.0 do not) get them here, by the
flags `mm_use_im_patch_token` and `mm_use_im_start_end`; new embedding rows are the mean of the old.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers import LlamaTokenizer as TransformersLlamaTokenizer

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.errors import CheckpointError
from llava.model.checkpoint import find_file, read_config
from llava.model.multimodal_projector.builder import gathered, read_tensors

log = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")
# the defaults of transformers 4.37
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
        # the slow tokenizers' way of saving, which transformers keeps in the base class
        return PreTrainedTokenizerBase._save_pretrained(
            self, save_directory, names, None, filename_prefix
        )


def load_tokenizer(name_or_path: str | Path, **overrides: Any) -> Any:
    """Loads a tokenizer; missing keys of a Llama tokenizer get the defaults of transformers 4.37.

    Args:
        name_or_path: Folder or Hub id.
        **overrides: For the tokenizer, e.g. `model_max_length`, `padding_side`.

    Raises:
        CheckpointError: There is no tokenizer, its file is cut short, or BOS is not added although
            it should be.
    """
    written = read_config(name_or_path, "tokenizer_config.json") or {}
    model_file = find_file(name_or_path, "tokenizer.model")
    kind = written.get("tokenizer_class") or ("LlamaTokenizer" if model_file else None)
    is_llama = kind in ("LlamaTokenizer", "LlamaTokenizerFast")
    model_file = model_file if is_llama else None
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
    known = {key: written[key] for key in defaults if written.get(key) is not None}
    settings = {**defaults, **known, **overrides}
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
    """Checks that the tokenizer puts BOS first, as every template expects.

    Raises:
        CheckpointError: It does not.
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


def _built_in_settings(name_or_path: str | Path) -> dict[str, bool]:
    """Reads from transformers 5's `tokenizer.json` what the configuration file leaves out."""
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


def add_image_tokens(tokenizer: Any, patch: bool, start_end: bool) -> int:
    """Adds `<im_patch>` and/or `<im_start>`, `<im_end>`; returns how many are new.

    The start and end tokens come last: readers of a projector file take the last two rows.
    """
    tokens = [DEFAULT_IMAGE_PATCH_TOKEN] if patch else []
    tokens += [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN] if start_end else []
    return tokenizer.add_tokens(tokens, special_tokens=True)


def resize_to_tokenizer(model: Any, num_rows: int) -> None:
    """Resizes both embedding tables to `num_rows`; new rows are the mean of the old ones."""
    # not the weight's shape, which is empty under ZeRO-3
    num_old = model.get_input_embeddings().num_embeddings
    if num_rows == num_old:
        return
    model.resize_token_embeddings(num_rows, mean_resizing=False)
    if num_rows < num_old:
        return
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        with gathered([table.weight], modify=True), torch.no_grad():
            if table.weight.numel():  # under ZeRO-3 the first rank writes for all
                table.weight[num_old:] = table.weight[:num_old].mean(dim=0, keepdim=True)


def initialize_vision_tokens(model: Any, model_args: Any, tokenizer: Any) -> None:
    """Adds the tokens that `model_args` asks for, and sets which embeddings are trained.

    Args:
        model: A multimodal causal language model.
        model_args: `mm_use_im_patch_token`, `mm_use_im_start_end`, `tune_mm_mlp_adapter`,
            `pretrain_mm_mlp_adapter`.
        tokenizer: Gets the new tokens.

    Raises:
        CheckpointError: `pretrain_mm_mlp_adapter` has embeddings of another shape.
    """
    patch, start_end = model_args.mm_use_im_patch_token, model_args.mm_use_im_start_end
    if patch:
        add_image_tokens(tokenizer, patch=True, start_end=False)
        resize_to_tokenizer(model, len(tokenizer))
    num_new = add_image_tokens(tokenizer, patch=False, start_end=start_end)
    resize_to_tokenizer(model, len(tokenizer))
    if not (patch or start_end):
        return
    if model_args.tune_mm_mlp_adapter:
        # in this order: MPT has one table for both
        model.get_output_embeddings().requires_grad_(False)
        model.get_input_embeddings().requires_grad_(start_end)
    if start_end and model_args.pretrain_mm_mlp_adapter and num_new:
        path = model_args.pretrain_mm_mlp_adapter
        copy_token_rows(model, read_tensors(path), num_new, path)


def copy_token_rows(model: Any, tensors: dict[str, Tensor], num_new: int, where: Any) -> None:
    """Copies the rows of the new tokens from a projector file, if it holds embeddings.

    Args:
        model: Its input embeddings [V, D] already have the new rows, at the end.
        tensors: The file's content; `model.embed_tokens.weight` is [V, D] or [2, D].
        num_new: The tokens that were added; must be 2.
        where: The file, for messages.

    Raises:
        CheckpointError: Another shape or number.
    """
    rows = next((v for k, v in tensors.items() if k.endswith("embed_tokens.weight")), None)
    if rows is None:
        return
    table = model.get_input_embeddings()
    whole, pair = (table.num_embeddings, table.embedding_dim), (2, table.embedding_dim)
    if num_new != 2 or tuple(rows.shape) not in (whole, pair):
        raise CheckpointError(
            f"{where}: embeddings of shape {tuple(rows.shape)} for {num_new} new token(s), "
            f"expected 2 new tokens and {whole} or {pair}"
        )
    with gathered([table.weight], modify=True), torch.no_grad():
        if table.weight.numel():
            table.weight[-2:] = rows[-2:].to(table.weight)
