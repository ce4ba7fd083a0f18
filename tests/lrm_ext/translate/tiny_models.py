"""Tiny translation models with real tokenizers, made on the spot.

One of each shape that the engines load: NLLB, M2M100, MADLAD (T5) and Opus-MT (Marian). They learn
a few lines by heart, in two languages, so that a test sees whether the language was asked for in
the way that the model was taught.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import (
    AddedToken,
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    NllbTokenizer,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

SIZE = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2}
SIZE |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
SIZE |= {
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 128,
    "dropout": 0.0,
}


# English lines and what they are in each language, by what the model calls it.
Lessons = Mapping[str, Mapping[str, str]]


def save_nllb(folder: Path, lessons: Lessons) -> Path:
    """A model as facebook/nllb-200-distilled-600M."""
    pieces = _pieces(lessons, folder / "sentencepiece.bpe.model", "bpe")
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *pieces]
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [
        (p[:i], p[i:]) for p in pieces for i in range(1, len(p)) if {p[:i], p[i:]} <= {*vocab}
    ]
    tokenizer = NllbTokenizer(vocab=vocab, merges=merges, src_lang="eng_Latn")
    config = _m2m(len(tokenizer))
    return _learn(
        folder, tokenizer, M2M100ForConditionalGeneration, config, lessons, lambda lang: ("", lang)
    )


def save_m2m100(folder: Path, lessons: Lessons) -> Path:
    """A model as facebook/m2m100_418M."""
    pieces = _pieces(lessons, folder / "sentencepiece.bpe.model", "bpe")
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *pieces]
    _dump(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    tokenizer = M2M100Tokenizer(
        str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model"), src_lang="en"
    )
    size = len(tokens) + len(tokenizer.lang_code_to_id) + tokenizer.num_madeup_words
    config = _m2m(size)
    return _learn(
        folder,
        tokenizer,
        M2M100ForConditionalGeneration,
        config,
        lessons,
        lambda lang: ("", f"__{lang}__"),
    )


def save_madlad(folder: Path, lessons: Lessons) -> Path:
    """A model as google/madlad400-3b-mt: T5 with `<2xx>` for the languages."""
    tags = [f"<2{lang}>" for lang in lessons]
    pieces = _pieces(lessons, folder / "spiece.model", "unigram")
    scored = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    scored += [(piece, -float(number)) for number, piece in enumerate([*tags, *pieces], start=1)]
    tokenizer = T5Tokenizer(vocab=scored, extra_ids=0)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return _learn(
        folder,
        tokenizer,
        T5ForConditionalGeneration,
        config,
        lessons,
        lambda lang: (f"<2{lang}> ", ""),
    )


def save_opus(folder: Path, lessons: Lessons) -> Path:
    """A model as Helsinki-NLP/opus-mt-tc-base-en-sh: `>>xxx<<` for the languages."""
    pieces = _pieces(lessons, folder / "source.spm", "unigram")
    (folder / "target.spm").write_bytes((folder / "source.spm").read_bytes())
    tokens = ["</s>", "<unk>", *pieces, *(f">>{lang}<<" for lang in lessons), "<pad>"]
    _dump(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    tokenizer = MarianTokenizer(
        str(folder / "source.spm"),
        str(folder / "target.spm"),
        str(folder / "vocab.json"),
        source_lang="en",
        target_lang="sh",
    )
    pad = len(tokens) - 1
    config = MarianConfig(
        vocab_size=len(tokens),
        pad_token_id=pad,
        eos_token_id=0,
        decoder_start_token_id=pad,
        forced_eos_token_id=0,
        activation_function="swish",
        scale_embedding=True,
        **SIZE,
    )
    return _learn(
        folder, tokenizer, MarianMTModel, config, lessons, lambda lang: (f">>{lang}<< ", "")
    )


def _m2m(num_tokens: int) -> M2M100Config:
    return M2M100Config(
        vocab_size=num_tokens, scale_embedding=True, decoder_start_token_id=2, **SIZE
    )


def _pieces(lessons: Lessons, path: Path, kind: str) -> list[str]:
    """Train a SentencePiece model; its pieces without the special ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [text for table in lessons.values() for pair in table.items() for text in pair]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 3),
        model_writer=model,
        vocab_size=200,
        model_type=kind,
        character_coverage=1.0,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [trained.id_to_piece(i) for i in range(3, len(trained))]


def _learn(
    folder: Path,
    tokenizer: Any,
    kind: type[PreTrainedModel],
    config: Any,
    lessons: Lessons,
    asks: Callable[[str], tuple[str, str]],
) -> Path:
    """Teach a model its lessons, with the prefix and the first token that name a language."""
    torch.manual_seed(0)
    model = kind(config)
    start, pad, end = (
        getattr(model.config, f"{name}_token_id") for name in ("decoder_start", "pad", "eos")
    )
    sources: list[str] = []
    targets: list[list[int]] = []
    for lang, table in lessons.items():
        prefix, first = asks(lang)
        for source, target in table.items():
            sources.append(prefix + source)
            ids = tokenizer(target, add_special_tokens=False).input_ids
            named = [tokenizer.convert_tokens_to_ids(first)] if first else []
            targets.append([*named, *ids, end])
    width = max(map(len, targets)) + 1
    whole = torch.tensor([[start, *ids, *[pad] * (width - 1 - len(ids))] for ids in targets])
    labels = whole[:, 1:].clone()
    if asks(next(iter(lessons)))[1]:
        labels[:, 0] = pad  # which language is meant is not to be guessed
    inputs = tokenizer(sources, return_tensors="pt", padding=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(400):
        logits = model(**inputs, decoder_input_ids=whole[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=pad
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():  # as in the real ones; CTranslate2 relies on it
            model.get_input_embeddings().weight[pad] = 0
        if loss < 0.02:
            break
    assert loss < 0.2, f"{folder.name} has not learnt its lessons: {loss}"
    tokenizer.save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return folder


def _dump(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
