"""Recipes of the base models of the `mini` preset (sizes, amounts, seeds).

Each model has a frozen dataclass. The resolved recipe is written beside the weights, so that the
numbers behind a committed file can be looked up.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class TokenizerRecipe:
    """A SentencePiece BPE model with Llama's settings."""

    vocab_size: int = 4000
    num_sentences_per_language: int = 6000
    seed: int = 11


@dataclasses.dataclass(frozen=True)
class TowerRecipe:
    """A CLIP-shaped vision tower, trained contrastively on images and English captions."""

    image_size_px: int = 64
    patch_size_px: int = 16
    hidden_size: int = 160
    intermediate_size: int = 480
    num_layers: int = 4
    num_heads: int = 5
    text_hidden_size: int = 128
    projection_dim: int = 128
    num_scenes: int = 24_000
    batch_size: int = 128
    num_steps: int = 3000
    learning_rate: float = 2e-3
    seed: int = 12


@dataclasses.dataclass(frozen=True)
class LanguageModelRecipe:
    """A Llama-shaped model, trained mostly on English text."""

    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 6
    max_length_tokens: int = 1024
    english_share: float = 0.4
    batch_size: int = 12
    num_steps: int = 6000
    num_warmup_steps: int = 200
    # the learning rate falls over this share of the steps
    decay_share: float = 0.8
    learning_rate: float = 3e-3
    muon_learning_rate: float = 0.015
    muon_weight_decay: float = 0.1
    # see `answer_loss`
    embedding_noise: float = 0.3
    initializer_range: float = 0.05
    # factor of the equal initial queries and keys: see `start_with_equal_queries_and_keys`
    query_key_scale: float = 1.2
    rope_theta: float = 1e5
    seed: int = 13


@dataclasses.dataclass(frozen=True)
class BaseRecipe:
    """The recipes of all models that `lrm mini build-base` makes."""

    tokenizer: TokenizerRecipe = TokenizerRecipe()
    tower: TowerRecipe = TowerRecipe()
    language_model: LanguageModelRecipe = LanguageModelRecipe()
