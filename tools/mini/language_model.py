"""A Llama-shaped language model and its tokenizer, trained mostly on English text.

Descriptions of scenes replace images, and conversations about them are in all languages. The
tokenizer is a SentencePiece BPE model with Llama's settings, trained on all languages evenly; the
settings that determine ids are stated explicitly (transformers changed their defaults). Only
answers are learnt, not prompts: two thirds of a prompt is random (the objects of a scene), and
learning to predict it would take most of the short training.

Output: a `LlamaForCausalLM` folder in half precision, with the tokenizer's files.
"""

from __future__ import annotations

import io
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import sentencepiece as spm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from llava.constants import IGNORE_INDEX
from llava.conversation import get_conversation
from llava.data.sample import Turn
from llava.data.tokenize import Encoded, encode_turns
from llava.model.checkpoint import add_rope_theta
from llava.model.tokenizer import load_tokenizer
from llava.progress import Progress
from lrm_ext.emoji.conversations import (
    SceneQuestion,
    caption,
    category_question,
    existence_question,
    make_questions,
    render_question,
)
from lrm_ext.emoji.scenes import (
    LANGUAGES,
    NUM_PATTERNS,
    Placed,
    Scene,
    concepts_by_id,
    get_vocabulary,
    sample_scene,
)
from lrm_ext.languages.registry import PAPER_LANGUAGES, answer_request, get_language
from lrm_ext.languages.templates import register_templates
from tools.mini.recipe import LanguageModelRecipe, TokenizerRecipe

Conversation: TypeAlias = tuple[Turn, ...]

# Patches on a side of the tower's image: a description has a word for each patch.
GRID = 4
# A patch is described as an object if at least this share of it lies in the object's box.
COVERED_SHARE = 0.4

# "Is there a dog?" is the hardest question to learn, and its answer is the least informative.
# Number of such questions beyond the two of each conversation of the corpus, ...
NUM_MORE_EXISTENCE = 2
# ... and the share of conversations with this number of them and nothing else. "Is there an
# animal?" would slow down learning there, so the other conversations ask it once more instead.
DRILL_SHARE = 0.4
NUM_DRILLED = 8
# Share of the other conversations that begin with a list of objects and positions: every word of
# such an answer translates one of the prompt, which teaches a small model to look words up.
LIST_SHARE = 0.2
# Rare compared with the scenes' sentences, so repeated until BPE merges them.
_REPEATS = 200
TEMPLATE = "lrm_bare"


def describe(scene: Scene) -> str:
    """Describes a scene as a grid of English words: an object's name or the background per patch.

    Images later replace these words and have no language, so the words are always English. The
    words of a longer name alternate from patch to patch.
    """
    cells = [scene.background] * GRID**2
    for placed in scene.objects:
        shares = [_covered_share(placed, index) for index in range(GRID**2)]
        words = concepts_by_id()[placed.concept].names["en"].split()
        covered = [index for index, share in enumerate(shares) if share > COVERED_SHARE]
        if len(covered) < len(words):
            best = shares.index(max(shares))
            covered = [(best + offset) % GRID**2 for offset in range(len(words))]
        for turn, index in enumerate(covered):
            cells[index] = words[turn % len(words)]
    return " ".join(cells)


def list_objects(scene: Scene, lang: str) -> str:
    """Lists the objects with their positions, and the background."""
    words = get_vocabulary(lang)
    places = [
        f"{words.positions[placed.position]}: {concepts_by_id()[placed.concept].names[lang]}"
        for placed in scene.objects
    ]
    return "; ".join([*places, words.color_backgrounds[scene.background]])


def talk(scene: Scene, lang: str, rng: random.Random) -> Conversation:
    """Returns a conversation about a described scene: its questions, a caption, perhaps a list."""
    questions = list(make_questions(scene, rng))
    questions += _existence_questions(scene, NUM_MORE_EXISTENCE, rng)
    questions.append(category_question(scene, rng))
    pairs = [render_question(question, scene, lang) for question in questions]
    pairs.append(caption(scene, lang, rng.randrange(NUM_PATTERNS["caption"])))
    rng.shuffle(pairs)
    if rng.random() < LIST_SHARE:
        pairs.insert(0, (f"{lang} =", list_objects(scene, lang)))
    return _turns(describe(scene), pairs)


def drill(scene: Scene, lang: str, rng: random.Random) -> Conversation:
    """Returns a conversation about a described scene that only asks which objects it has."""
    questions = _existence_questions(scene, NUM_DRILLED, rng)
    return _turns(describe(scene), [render_question(q, scene, lang) for q in questions])


def iter_conversations(english_share: float, seed: int) -> Iterator[Conversation]:
    """Yields conversations without end, in a fixed order.

    Args:
        english_share: Share of English conversations; the other languages share the rest evenly.
        seed: Seed of the order and of all draws.
    """
    rng = random.Random(seed)
    others = [lang for lang in LANGUAGES if lang != "en"]
    while True:
        lang = "en" if rng.random() < english_share else rng.choice(others)
        make = drill if rng.random() < DRILL_SHARE else talk
        yield make(sample_scene(rng, "train"), lang, rng)


def iter_tokenizer_sentences(num_per_language: int, seed: int) -> Iterator[str]:
    """Yields sentences with equal weight per language, so that names split alike.

    A tokenizer trained mostly on English splits other languages into letters; here each name
    occurs about equally often in each language.
    """
    rng = random.Random(seed)
    for _ in range(num_per_language):
        scene = sample_scene(rng, "train")
        phrasing = rng.randrange(NUM_PATTERNS["caption"])
        questions = make_questions(scene, rng)
        for lang in LANGUAGES:
            yield from caption(scene, lang, phrasing)
            for question in questions:
                yield from render_question(question, scene, lang)


def _covered_share(placed: Placed, index: int) -> float:
    """Returns the share of a patch that lies in an object's box."""
    row, column = divmod(index, GRID)
    half = placed.size / 2
    width = min((column + 1) / GRID, placed.x + half) - max(column / GRID, placed.x - half)
    height = min((row + 1) / GRID, placed.y + half) - max(row / GRID, placed.y - half)
    return max(0.0, width) * max(0.0, height) * GRID**2


def _existence_questions(scene: Scene, num: int, rng: random.Random) -> list[SceneQuestion]:
    return [existence_question(scene, rng.random() < 0.5, rng) for _ in range(num)]


def _turns(description: str, pairs: Sequence[tuple[str, str]]) -> Conversation:
    texts = [text for pair in pairs for text in pair]
    texts[0] = f"{description}\n{texts[0]}"
    return tuple(Turn(("human", "gpt")[index % 2], text) for index, text in enumerate(texts))


def train_tokenizer(
    recipe: TokenizerRecipe, language_model: LanguageModelRecipe, out_dir: Path
) -> None:
    """Trains the tokenizer and writes it to `out_dir`."""
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
    """Returns the prompt additions of the instruction formats, to save tokens."""
    sentences: list[str] = []
    for code in PAPER_LANGUAGES:
        language = get_language(code)
        sentences += [
            language.epvqa_instruction,
            *(answer_request(code, other) for other in PAPER_LANGUAGES),
            f"{language.translation_marker}\n{language.answer_marker}",
        ]
    return sentences


def model_config(recipe: LanguageModelRecipe, vocab_size: int) -> LlamaConfig:
    """Returns the model's shape; input and output embeddings share a matrix, to save bytes."""
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
    """Yields endless batches of conversations, with the template of the `mini` preset."""
    register_templates()
    tokenizer = load_tokenizer(str(tokenizer_dir))
    conv = get_conversation(TEMPLATE)
    conversations = iter_conversations(recipe.english_share, recipe.seed)
    while True:
        turns = itertools.islice(conversations, recipe.batch_size)
        yield [encode_turns(conversation, conv, tokenizer) for conversation in turns]


def collate(rows: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Pads on the right, which causal attention never reads. Returns two int64 `[B, T]`."""
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
    """Returns the mean loss over the answers' tokens, and the share predicted correctly.

    Args:
        model: The model.
        input_ids: int64 `[B, T]`.
        labels: int64 `[B, T]`, `IGNORE_INDEX` where nothing is learnt.
        noise: Standard deviation of the noise added to each embedding, in units of the embedding's
            root mean square. Projected patches are near the embedding of their word, not equal.
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
    """Makes every head initially attend to positions of the same token.

    "Is there a dog?" asks whether a name occurs twice. Pretrained models have heads for that; a
    small model learns them sooner from this start (mimetic initialisation: Trockman and Kolter,
    arXiv 2305.09828).
    """
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.q_proj.weight.mul_(scale)
        attention.k_proj.weight.copy_(attention.q_proj.weight)


def build_optimizers(
    model: LlamaForCausalLM, recipe: LanguageModelRecipe
) -> list[torch.optim.Optimizer]:
    """Returns Muon for the layers' matrices, and AdamW for embeddings and norms.

    With Muon the model learns to look words up in its prompt several times sooner. Without weight
    decay its matrices grow so large that neither stage of LLaVA can change them.
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
    """Returns a factor from 0 to 1: linear warm-up, constant, linear decay to zero."""
    up = (step + 1) / recipe.num_warmup_steps
    down = (recipe.num_steps - step) / (recipe.decay_share * recipe.num_steps)
    return min(1.0, up, down)


def train_language_model(recipe: LanguageModelRecipe, out_dir: Path) -> None:
    """Trains the model and writes it to `out_dir`, which already holds the tokenizer."""
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
