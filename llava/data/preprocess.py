"""LLaVA's `preprocess` functions under their names: thin wrappers around `encode_turns`.

Role: code that was written for LLaVA keeps working. Input: LLaVA's lists of turns. Output: tensors
as LLaVA shapes them. Without `conv` the template is `llava.conversation.default_conversation` as it
is at the call, so that LLaVA's idiom of assigning to it works. Where LLaVA masks a whole sample
because its counting went wrong, the labels here are right.
Non-goals: any logic of labels of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import llava.conversation as conversation_lib
from llava.constants import IGNORE_INDEX
from llava.conversation import Conversation, SeparatorStyle, get_conversation
from llava.data.batching import DataCollatorForSupervisedDataset
from llava.data.dataset import LazySupervisedDataset
from llava.data.sample import DropPolicy, Turn
from llava.data.tokenize import (
    GENERIC_SIGNAL,
    encode_turns,
    generic_turn,
    mask_v0_lengths,
    place_image,
)

Source = list[dict[str, str]]
Batch = dict[str, Any]


def preprocess_multimodal(
    sources: Sequence[Source], data_args: Any, conv: Conversation | None = None
) -> Sequence[Source]:
    """Moves each sentence's `<image>` to its front; changes the sources in place, as LLaVA does.

    Args:
        sources: Conversations as lists of `{"from", "value"}`.
        data_args: `is_multimodal` false leaves everything as it is; `mm_use_im_start_end` wraps
            the placeholder.
        conv: The template; an `mmtag` version wraps the placeholder in `<Image>` tags.
    """
    if not data_args.is_multimodal:
        return sources
    conv = conv or conversation_lib.default_conversation
    for source in sources:
        for sentence in source:
            sentence["value"] = place_image(sentence["value"], conv, data_args.mm_use_im_start_end)
    return sources


def preprocess(
    sources: Sequence[Source],
    tokenizer: Any,
    has_image: bool = False,
    conv: Conversation | None = None,
) -> Batch:
    """Encodes conversations with a template.

    Args:
        sources: Conversations as lists of `{"from", "value"}`; a leading answer is left out.
        tokenizer: A Hugging Face tokenizer.
        has_image: Whether `<image>` is a placeholder. Without, ids are cut to
            `tokenizer.model_max_length`, as LLaVA does.
        conv: The template.

    Returns:
        `input_ids` and `labels`: [B, T], right-padded; lists of [T] for plain and v0 templates.
    """
    conv = conv or conversation_lib.default_conversation
    is_plain = conv.sep_style is SeparatorStyle.PLAIN
    limit = None if has_image or is_plain else tokenizer.model_max_length
    encoded = [encode_turns(_turns(s), conv, tokenizer, has_image or is_plain) for s in sources]
    ids = [torch.tensor(each.input_ids[:limit]) for each in encoded]
    labels = [torch.tensor(each.labels[:limit]) for each in encoded]
    if is_plain or conv.sep_style is SeparatorStyle.SINGLE:
        return {"input_ids": ids, "labels": labels}
    return {
        "input_ids": pad_sequence(ids, True, float(tokenizer.pad_token_id or 0)),
        "labels": pad_sequence(labels, True, IGNORE_INDEX),
    }


def _preprocess_in(
    style: SeparatorStyle,
    name: str,
    sources: Sequence[Source],
    tokenizer: Any,
    has_image: bool = False,
    conv: Conversation | None = None,
) -> Batch:
    """Encodes with a template of one style, by default the named one."""
    default = conversation_lib.default_conversation
    conv = conv or (default if default.sep_style is style else get_conversation(name))
    return preprocess(sources, tokenizer, has_image, conv)


preprocess_v1 = partial(_preprocess_in, SeparatorStyle.TWO, "vicuna_v1")
preprocess_llama_2 = partial(_preprocess_in, SeparatorStyle.LLAMA_2, "llava_llama_2")
# Answers are labelled with their `<|im_end|>`. LLaVA forgets to count it, so its samples end up all
# masked.
preprocess_mpt = partial(_preprocess_in, SeparatorStyle.MPT, "mpt")


def preprocess_plain(
    sources: Sequence[Source], tokenizer: Any, conv: Conversation | None = None
) -> Batch:
    """Encodes image and caption; the question is dropped, as in LLaVA's first stage."""
    return _preprocess_in(SeparatorStyle.PLAIN, "plain", sources, tokenizer, True, conv)


def make_supervised_data_module(
    tokenizer: Any,
    data_args: Any,
    conversation: Conversation | None = None,
    max_drop_rate: float = 0.0,
    num_image_tokens: int | None = None,
) -> dict[str, Any]:
    """Builds what LLaVA's trainer wants from one data file.

    Args:
        tokenizer: A Hugging Face tokenizer.
        data_args: With `data_path` and what `LazySupervisedDataset` reads.
        conversation: The template.
        max_drop_rate: Share of bad samples that may be left out, see `DropPolicy`.
        num_image_tokens: See `LazySupervisedDataset`.

    Returns:
        `train_dataset`, `eval_dataset` (None) and `data_collator`.
    """
    dataset = LazySupervisedDataset(
        data_args.data_path,
        tokenizer,
        data_args,
        conversation,
        DropPolicy(max_drop_rate),
        num_image_tokens,
    )
    return {
        "train_dataset": dataset,
        "eval_dataset": None,
        "data_collator": DataCollatorForSupervisedDataset(tokenizer),
    }


def _turns(source: Source) -> list[Turn]:
    first = 1 if source and source[0]["from"] != "human" else 0
    return [Turn(sentence["from"], sentence["value"]) for sentence in source[first:]]


def _tokenize_fn(strings: Sequence[str], tokenizer: Any) -> Batch:
    """Tokenizes strings one by one, cut to the maximum; lengths leave padding out."""
    ids = [
        tokenizer(
            text, return_tensors="pt", truncation=True, max_length=tokenizer.model_max_length
        ).input_ids[0]
        for text in strings
    ]
    lengths = [int(row.ne(tokenizer.pad_token_id).sum()) for row in ids]
    return {
        "input_ids": ids,
        "labels": [row.clone() for row in ids],
        "input_ids_lens": lengths,
        "labels_lens": list(lengths),
    }


def _mask_targets(target: Tensor, tokenized_lens: Sequence[int], speakers: Sequence[str]) -> None:
    """Masks a v0 sample's labels [T] in place; the first length is the header's."""
    mask_v0_lengths(target, tokenized_lens, [speaker == "human" for speaker in speakers])


def _add_speaker_and_signal(
    header: str,
    source: Source,
    get_conversation: bool = True,
    conv: Conversation | None = None,
) -> str:
    """Writes roles and signals into the turns of a v0 text, in place, and joins them."""
    conv = conv or conversation_lib.default_conversation
    names = dict(zip(("human", "gpt"), conv.roles, strict=True))
    text = header
    for sentence in source:
        role = names.get(sentence["from"].lower(), "unknown")
        sentence["value"] = generic_turn(role, sentence["value"])
        if get_conversation:
            text += sentence["value"]
    return text + GENERIC_SIGNAL
