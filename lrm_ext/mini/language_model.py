"""A Llama-shaped language model, trained on text that is mostly English, as Vicuna's is.

Input: conversations of `text.py` and the tokenizer. Output: a `LlamaForCausalLM` folder in half
precision, beside the tokenizer's files. Answers are learnt, prompts are not: two thirds of a
prompt is chance (which things a scene shows), and learning to guess it costs what little time
there is (measured: docs/mini.md).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from llava.constants import IGNORE_INDEX
from llava.conversation import get_conversation
from llava.data.tokenize import Encoded, encode_turns
from llava.model.tokenizer import load_tokenizer
from lrm_ext.languages.templates import register_templates
from lrm_ext.mini.progress import Progress
from lrm_ext.mini.recipe import LanguageModelRecipe
from lrm_ext.mini.text import iter_conversations

log = logging.getLogger(__name__)

TEMPLATE = "lrm_bare"


def model_config(recipe: LanguageModelRecipe, vocab_size: int) -> LlamaConfig:
    """The model's shape; input and output embeddings are one matrix, to save bytes."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        max_position_embeddings=recipe.max_length_tokens,
        tie_word_embeddings=True,
        initializer_range=recipe.initializer_range,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def encode_conversations(recipe: LanguageModelRecipe, tokenizer_dir: Path) -> list[Encoded]:
    """All conversations with the template of the `mini` preset, as ids and labels."""
    register_templates()
    tokenizer = load_tokenizer(str(tokenizer_dir))
    conv = get_conversation(TEMPLATE)
    conversations = iter_conversations(recipe.num_conversations, recipe.english_share, recipe.seed)
    encoded = [encode_turns(turns, conv, tokenizer) for turns in conversations]
    num_tokens = sum(len(item.input_ids) for item in encoded)
    num_learnt = sum(label != IGNORE_INDEX for item in encoded for label in item.labels)
    log.info("%d conversations, %d tokens, %d learnt", len(encoded), num_tokens, num_learnt)
    return encoded


def collate(rows: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Pad on the right; causal attention never looks there. Two int64 `[B, T]`."""
    length = max(len(row.input_ids) for row in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    for index, row in enumerate(rows):
        input_ids[index, : len(row.input_ids)] = torch.tensor(row.input_ids)
        labels[index, : len(row.labels)] = torch.tensor(row.labels)
    return input_ids, labels


def answer_loss(
    model: LlamaForCausalLM, input_ids: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean loss over the answers' tokens, and the share of them that were foretold."""
    hidden = model.model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    learnt = targets != IGNORE_INDEX
    logits, targets = model.lm_head(hidden[learnt]), targets[learnt]
    return F.cross_entropy(logits, targets), (logits.argmax(-1) == targets).float().mean()


@torch.no_grad()
def start_with_equal_queries_and_keys(model: LlamaForCausalLM, scale: float) -> None:
    """Let every head begin by attending to positions that hold the same token.

    "Is there a dog?" asks whether a name occurs twice. From independent queries and keys a small
    model does not find that in minutes (docs/mini.md); pretrained models have it, and mimetic
    initialisation (Trockman and Kolter, arXiv 2305.09828) gives it to small ones.
    """
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.q_proj.weight.mul_(scale)
        attention.k_proj.weight.copy_(attention.q_proj.weight)


def build_optimizers(
    model: LlamaForCausalLM, recipe: LanguageModelRecipe
) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms.

    With AdamW alone the model had not begun to look things up in its prompt after 500 steps; with
    Muon it had after 150 (docs/mini.md).
    """
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in known]
    return [
        torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
        torch.optim.Muon(matrices, lr=recipe.muon_learning_rate, weight_decay=0.0, momentum=0.95),
    ]


def train_language_model(recipe: LanguageModelRecipe, out_dir: Path) -> None:
    """Train the model and write it to `out_dir`, which holds the tokenizer already."""
    torch.manual_seed(recipe.seed)
    rows = encode_conversations(recipe, out_dir)
    model = LlamaForCausalLM(model_config(recipe, len(load_tokenizer(str(out_dir)))))
    start_with_equal_queries_and_keys(model, recipe.query_key_scale)
    optimizers = build_optimizers(model, recipe)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer, optimizer.param_groups[0]["lr"], recipe.num_steps,
            pct_start=0.05, cycle_momentum=False,
        )
        for optimizer in optimizers
    ]  # fmt: skip
    with Progress("language model", recipe.num_steps) as progress:
        for step in range(recipe.num_steps):
            first = step * recipe.batch_size
            batch = [rows[index % len(rows)] for index in range(first, first + recipe.batch_size)]
            loss, right = answer_loss(model, *collate(batch))
            model.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            progress.advance(loss=loss.item(), right=right.item())
    model.half().save_pretrained(out_dir)
