"""Adds pieces for a language to a tokenizer and to its model.

Input: texts, and a folder with a SentencePiece tokenizer (`tokenizer.model`), optionally with a
model. Output: a folder of the same kind. Old pieces keep their ids and embeddings. The input and
output embeddings of a new piece start as the mean of the old pieces that it replaces; they are not
trained here.

New pieces are learned by continuing byte-pair encoding from the splits of the existing tokenizer. A
tokenizer that is trained from scratch would propose pieces that the old one never produces, because
its own merges come first and split words elsewhere. Here, each new piece merges two existing ones,
so every piece is used.
"""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import CheckpointError, ConfigError, DataError
from llava.model.checkpoint import add_rope_theta, read_config
from llava.model.multimodal_encoder.families import resolve_tower, split_towers
from llava.model.tokenizer import load_tokenizer
from lrm_ext.corpus.sentences import Pair, corpus_pairs, in_common
from lrm_ext.corpus.store import Corpus

MODEL_FILE = "tokenizer.model"
# files of a tokenizer; tokenizer.json is not copied, because it would be read first
_TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_BPE = 2


@dataclass(frozen=True)
class Extension:
    """An extension of a vocabulary.

    Attributes:
        pieces: The new pieces in the order of their ids.
        first_id: Id of the first new piece.
        old_ids: For each new piece, the ids of the old pieces that its text consists of.
        num_words: Number of words in the texts.
    """

    pieces: tuple[NewPiece, ...]
    first_id: int
    old_ids: dict[str, tuple[int, ...]]
    num_words: int = 0


def read_model(folder: Path) -> Any:
    """Reads `tokenizer.model`.

    Raises:
        ConfigError: The tokenizer is of another type, or tokens were added behind its pieces.
    """
    from sentencepiece import sentencepiece_model_pb2 as protobuf

    path = folder / MODEL_FILE
    if not path.is_file():
        raise ConfigError(
            f"{folder}: there is no {MODEL_FILE}; pieces can be added to SentencePiece tokenizers "
            "(Llama 1 and 2, Vicuna, Mistral, mini), not to others"
        )
    model: Any = vars(protobuf)["ModelProto"]()  # protobuf creates the class on import
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # the class depends on the backend of protobuf
        raise ConfigError(f"{path}: not readable as a SentencePiece model: {error}") from error
    if model.trainer_spec.model_type != _BPE:
        raise ConfigError(f"{path}: expected byte-pair encoding (Llama's), found another kind")
    num_all = len(load_tokenizer(folder))
    if num_all > len(model.pieces):
        raise ConfigError(
            f"{folder}: {num_all - len(model.pieces)} tokens were added behind the "
            f"{len(model.pieces)} pieces, where new pieces would go; extend the base model instead"
        )
    return model


def extend(model: Any, folder: Path, texts: Iterable[str], num_pieces: int) -> Extension:
    """Learns pieces from texts and adds them to a SentencePiece model.

    Args:
        model: A model from `read_model`, which is changed in place.
        folder: Folder of its tokenizer.
        texts: Texts in the language that needs pieces.
        num_pieces: Largest number of new pieces.

    Raises:
        ConfigError: The texts yield no piece.
    """
    tokenizer = load_tokenizer(folder)
    words: Counter[Word] = Counter()
    for text in texts:
        words.update(split_words(tokenizer.tokenize(text)))
    pieces = learn_pieces(words, (piece.piece for piece in model.pieces), num_pieces)
    if not pieces:
        raise ConfigError(
            f"no piece is worth adding: {words.total():,} words were read; give more text"
        )
    first_id = len(model.pieces)
    ids: dict[str, tuple[int, ...]] = {
        piece.piece: (number,) for number, piece in enumerate(model.pieces)
    }
    lowest = min(piece.score for piece in model.pieces if piece.type == piece.NORMAL)
    for number, piece in enumerate(pieces, 1):
        # a lower score, so that old merges come first
        model.pieces.add(piece=piece.text, score=lowest - number)
        ids[piece.text] = tuple(old for part in piece.parts for old in ids[part])
    model.trainer_spec.vocab_size = len(model.pieces)
    old_ids = {piece.text: ids[piece.text] for piece in pieces}
    return Extension(tuple(pieces), first_id, old_ids, words.total())


def write_tokenizer(model: Any, folder: Path, out: Path) -> None:
    """Writes the tokenizer and checks that it can be read.

    Raises:
        CheckpointError: The id of an old piece has changed.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    (out / MODEL_FILE).write_bytes(model.SerializeToString())
    old, new = load_tokenizer(folder), load_tokenizer(out)
    numbers = list(range(len(old)))
    if old.convert_ids_to_tokens(numbers) != new.convert_ids_to_tokens(numbers):
        raise CheckpointError(f"{out}: old pieces have other ids than in {folder}; do not use it")
    if len(new) != len(model.pieces):
        raise CheckpointError(f"{out}: {len(new)} tokens are read, expected {len(model.pieces)}")


def write_model(folder: Path, out: Path, extension: Extension) -> None:
    """Writes a model with embeddings for the new pieces.

    Args:
        folder: A language model or LLaVA checkpoint.
        out: Output folder, which may already hold the tokenizer.
        extension: The new pieces.

    Raises:
        CheckpointError: The folder holds no model.
    """
    model = _load(folder)
    num_needed = extension.first_id + len(extension.pieces)
    num_rows = model.get_input_embeddings().weight.shape[0]
    if num_rows < num_needed:
        model.resize_token_embeddings(num_needed, mean_resizing=False)
    model.config.vocab_size = max(num_rows, num_needed)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer is not None:  # a tied table is filled twice with the same
            fill_rows(layer.weight.data, extension)
    _keep_tower(model.config, folder, out)
    model.save_pretrained(out)
    add_rope_theta(out)


def _keep_tower(config: Any, folder: Path, out: Path) -> None:
    """Makes the path of the tower absolute if it is relative to the old folder."""
    name = getattr(config, "mm_vision_tower", None)
    if name is None:
        return
    try:
        resolve_tower(name, out)
    except ConfigError:
        towers = split_towers(resolve_tower(name, folder))
        config.mm_vision_tower = "+".join(str(Path(tower).resolve()) for tower in towers)


def fill_rows(table: Tensor, extension: Extension) -> None:
    """Sets the rows of new pieces to means of old rows, and any further rows to the overall mean.

    Args:
        table: [rows, D], changed in place.
        extension: The new pieces.
    """
    old = table[: extension.first_id].float()
    table[extension.first_id :] = old.mean(dim=0).to(table.dtype)
    for number, piece in enumerate(extension.pieces, extension.first_id):
        rows = torch.tensor(extension.old_ids[piece.text], device=table.device)
        table[number] = old[rows].mean(dim=0).to(table.dtype)


def _load(folder: Path) -> Any:
    """Loads a model of any class that LLaVA supports.

    Raises:
        CheckpointError: The folder holds no model.
    """
    from transformers import AutoModelForCausalLM

    from llava.model.language_model.causal_lm import model_class_of

    config = read_config(folder)
    if config is None:
        raise CheckpointError(f"{folder}: there is no config.json; name a model's folder")
    kind: Any = model_class_of(config, str(folder), folder.name) or AutoModelForCausalLM
    return kind.from_pretrained(str(folder), dtype="auto")


# SentencePiece's symbol for a blank
BLANK = "\u2581"
_BYTE = re.compile("<0x[0-9A-F]{2}>")
# rarer pieces are not worth an embedding
MIN_COUNT = 2

Word = tuple[str, ...]


@dataclass(frozen=True)
class NewPiece:
    """A new piece.

    Attributes:
        text: The piece as the tokenizer writes it.
        parts: The two pieces that it merges, or for a new character its bytes, such as `<0xC4>`.
        count: How often it occurs in the texts.
    """

    text: str
    parts: tuple[str, ...]
    count: int


def learn_pieces(words: Counter[Word], known: Iterable[str], num_pieces: int) -> list[NewPiece]:
    """Learns new pieces.

    Args:
        words: Counts of words, each split by the current tokenizer; a character that the tokenizer
            spells in bytes is one symbol.
        known: Pieces of the tokenizer.
        num_pieces: Largest number of new pieces.

    Returns:
        Missing characters, then merges in their order.
    """
    vocabulary = set(known)
    counts = Counter[str]()
    for word, count in words.items():
        for symbol in word:
            if symbol not in vocabulary:
                counts[symbol] += count
    pieces = [
        NewPiece(symbol, tuple(f"<0x{byte:02X}>" for byte in symbol.encode()), count)
        for symbol, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if count >= MIN_COUNT
    ][:num_pieces]
    vocabulary.update(piece.text for piece in pieces)
    return pieces + _merges(words, vocabulary, num_pieces - len(pieces))


def _merges(words: Counter[Word], vocabulary: set[str], num_merges: int) -> list[NewPiece]:
    """Merges the most frequent pair repeatedly; counts are updated only for changed words."""
    forms = [list(word) for word in words]
    counts = list(words.values())
    pairs: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)

    def count(number: int, sign: int) -> None:
        for pair in _pairs(forms[number]):
            pairs[pair] += sign * counts[number]
            where[pair].add(number)

    for number in range(len(forms)):
        count(number, 1)
    learnt: list[NewPiece] = []
    while len(learnt) < num_merges and pairs:
        pair = max(pairs, key=lambda candidate: (pairs[candidate], candidate))
        if pairs[pair] < MIN_COUNT:
            break
        joined = pair[0] + pair[1]
        if joined not in vocabulary:
            vocabulary.add(joined)
            learnt.append(NewPiece(joined, pair, pairs[pair]))
        # the set may hold words that no longer contain the pair; merging leaves them unchanged
        for number in list(where[pair]):
            count(number, -1)
            forms[number] = _join(forms[number], pair)
            count(number, 1)
        del pairs[pair], where[pair]
    return learnt


def _pairs(form: Sequence[str]) -> list[tuple[str, str]]:
    """Returns neighbouring symbols that may be merged."""
    return [pair for pair in zip(form, form[1:], strict=False) if _is_word(pair[0] + pair[1])]


def _is_word(text: str) -> bool:
    """Tells whether a text has only letters and marks, since other characters stay as they are."""
    letters = text.removeprefix(BLANK)
    return bool(letters) and all(unicodedata.category(c)[0] in "LM" for c in letters)


def _join(form: Sequence[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for symbol in form:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined


def split_words(pieces: Sequence[str]) -> list[Word]:
    """Splits the pieces of a text into words; bytes become the characters that they spell."""
    words: list[list[str]] = []
    for are_bytes, run in groupby(pieces, key=lambda piece: bool(_BYTE.fullmatch(piece))):
        symbols: Iterable[str] = run
        if are_bytes:
            spelled = bytes(int(piece[3:5], 16) for piece in run)
            symbols = spelled.decode("utf-8", errors="replace")
        for symbol in symbols:
            if symbol.startswith(BLANK) or not words:
                words.append([])
            words[-1].append(symbol)
    return [tuple(word) for word in words]


_HELD_OUT_EVERY = 20


def is_held_out(row: int) -> bool:
    """Tells whether a row is held out for measuring; the rows are the same in all languages."""
    return row % _HELD_OUT_EVERY == 0


def texts_of(corpus: Corpus, lang: str, limit: int) -> Iterator[str]:
    """Yields the texts of the first rows in a language, without held-out rows.

    Args:
        corpus: The corpus.
        lang: A language of the corpus.
        limit: Largest number of rows.

    Raises:
        DataError: The corpus does not have the language.
    """
    rows = [row for row in corpus.usable_rows(lang).tolist() if not is_held_out(row)]
    for row in rows[:limit]:
        for turn in corpus.turns(lang, row) or ():
            yield turn.text.replace(DEFAULT_IMAGE_TOKEN, "").strip()


def held_out_pairs(
    path: Path, lang: str, learnt: set[str], num_sentences: int
) -> dict[str, list[Pair]]:
    """Returns sentences of held-out rows that all languages of a corpus have.

    Args:
        path: Folder of the corpus.
        lang: The language of the new pieces.
        learnt: Lines that pieces were learned from, which are left out.
        num_sentences: Largest number of sentences.

    Returns:
        Pairs by language; empty if no sentence is left.
    """
    try:
        pairs = corpus_pairs(path, None, num_sentences, is_held_out)
        pairs[lang] = [pair for pair in pairs[lang] if pair[1] not in learnt]
        return in_common(pairs)
    except DataError:  # a language has no text in these few rows, or none that all have
        return {}
