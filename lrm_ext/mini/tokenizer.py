"""A SentencePiece BPE tokenizer with Llama's settings, trained on all languages evenly.

Output: `tokenizer.model` and `tokenizer_config.json`, as a Llama checkpoint holds them, with the
settings that decide about ids stated explicitly (transformers changed their defaults).
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece as spm

from lrm_ext.languages import get_language, list_languages
from lrm_ext.mini.recipe import LanguageModelRecipe, TokenizerRecipe
from lrm_ext.mini.text import iter_tokenizer_sentences

# Rare next to the scenes' sentences, so repeated until the merges are worth their place.
_REPEATS = 200


def train_tokenizer(
    recipe: TokenizerRecipe, language_model: LanguageModelRecipe, out_dir: Path
) -> None:
    """Train the tokenizer and write it to `out_dir`."""
    sentences = list(iter_tokenizer_sentences(recipe.num_sentences_per_language, recipe.seed))
    sentences += ["USER: ASSISTANT:", *_instruction_sentences()] * _REPEATS
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=recipe.vocab_size,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=1,
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "tokenizer.model").write_bytes(model.getvalue())
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_max_length": language_model.max_length_tokens,
    }
    (out_dir / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _instruction_sentences() -> list[str]:
    """What the instruction formats add to a prompt, so that it costs few tokens."""
    sentences: list[str] = []
    for code in list_languages():
        language = get_language(code)
        sentences += [
            language.epvqa_instruction,
            *language.answer_in.values(),
            f"{language.translation_marker}\n{language.answer_marker}",
        ]
    return sentences
