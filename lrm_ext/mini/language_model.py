"""A Llama-shaped language model, trained on text that is English more than anything else.

Input: conversations of `text.py` and the tokenizer. Output: a `LlamaForCausalLM` folder in half
precision, beside the tokenizer's files. Answers are learnt, prompts are not: two thirds of a
prompt is chance (which things a scene shows), and learning to guess it costs what little time
there is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from llava.constants import IGNORE_INDEX
from llava.conversation import get_conversation
from llava.data.tokenize import Encoded, encode_turns
from llava.model.checkpoint_files import add_rope_theta
from llava.model.tokenizer import load_tokenizer
from lrm_ext.languages.templates import register_templates
from lrm_ext.mini.progress import Progress
from lrm_ext.mini.recipe import LanguageModelRecipe
from lrm_ext.mini.text import iter_conversations

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


def iter_batches(recipe: LanguageModelRecipe, tokenizer_dir: Path) -> Iterator[list[Encoded]]:
    """Batches without end of conversations with the template of the `mini` preset."""
    register_templates()
    tokenizer = load_tokenizer(str(tokenizer_dir))
    conv = get_conversation(TEMPLATE)
    conversations = iter_conversations(recipe.english_share, recipe.seed)
    while True:
        turns = itertools.islice(conversations, recipe.batch_size)
        yield [encode_turns(conversation, conv, tokenizer) for conversation in turns]


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
    model: LlamaForCausalLM, input_ids: Tensor, labels: Tensor, noise: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mean loss over the answers' tokens, and the share of them that were foretold.

    Args:
        model: The model.
        input_ids: int64 `[B, T]`.
        labels: int64 `[B, T]`, `IGNORE_INDEX` where nothing is learnt.
        noise: Standard deviation of what is added to each embedding, in units of its own root
            mean square. Projected patches will be near the embedding of their word, never on it.
    """
    embedded = model.model.embed_tokens(input_ids)
    if noise:
        size = embedded.detach().square().mean(-1, keepdim=True).sqrt()
        embedded = embedded + noise * size * torch.randn_like(embedded)
    hidden = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    learnt = targets != IGNORE_INDEX
    logits, targets = model.lm_head(hidden[learnt]), targets[learnt]
    return F.cross_entropy(logits, targets), (logits.argmax(-1) == targets).float().mean()


@torch.no_grad()
def start_with_equal_queries_and_keys(model: LlamaForCausalLM, scale: float) -> None:
    """Let every head begin by attending to positions that hold the same token.

    "Is there a dog?" asks whether a name occurs twice. Pretrained models have heads for that; a
    small one finds them sooner from here (mimetic initialisation: Trockman and Kolter, arXiv
    2305.09828).
    """
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.q_proj.weight.mul_(scale)
        attention.k_proj.weight.copy_(attention.q_proj.weight)


def build_optimizers(
    model: LlamaForCausalLM, recipe: LanguageModelRecipe
) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms.

    With Muon the model begins to look things up in its prompt several times sooner. Without weight
    decay its matrices grow until neither stage of LLaVA can move them.
    """
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in known]
    return [
        torch.optim.AdamW(
            rest, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        ),
        torch.optim.Muon(
            matrices,
            lr=recipe.muon_learning_rate,
            weight_decay=recipe.muon_weight_decay,
            momentum=0.95,
        ),
    ]


def learning_rate_factor(step: int, recipe: LanguageModelRecipe) -> float:
    """Up in a straight line, level, down in a straight line to zero; 0 to 1."""
    up = (step + 1) / recipe.num_warmup_steps
    down = (recipe.num_steps - step) / (recipe.decay_share * recipe.num_steps)
    return min(1.0, up, down)


def train_language_model(recipe: LanguageModelRecipe, out_dir: Path) -> None:
    """Train the model and write it to `out_dir`, which holds the tokenizer already."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(model_config(recipe, len(load_tokenizer(str(out_dir)))))
    start_with_equal_queries_and_keys(model, recipe.query_key_scale)
    optimizers = build_optimizers(model, recipe)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(opt, lambda step: learning_rate_factor(step, recipe))
        for opt in optimizers
    ]
    with Progress("language model", recipe.num_steps) as progress:
        for batch in itertools.islice(iter_batches(recipe, out_dir), recipe.num_steps):
            loss, right = answer_loss(model, *collate(batch), recipe.embedding_noise)
            model.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            progress.advance(loss=loss.item(), right=right.item())
    model.half().save_pretrained(out_dir)
    add_rope_theta(out_dir)
