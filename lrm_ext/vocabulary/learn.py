"""Learns new pieces on top of a tokenizer's own, by going on with byte-pair encoding.

Input: texts, and how the tokenizer cuts them now. Output: pieces, each with the two that it is made
of. A tokenizer that is trained anew on the texts would propose pieces that the old one never gets
to, because its own merges come first and cut words elsewhere; going on from its own cuts, each new
piece is one merge of two that are there, and every one is used.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# SentencePiece's blank
BLANK = "\u2581"
# what is rarer is not worth a row of embeddings
MIN_COUNT = 2

Word = tuple[str, ...]


@dataclass(frozen=True)
class NewPiece:
    """A piece that is added.

    Attributes:
        text: As the tokenizer writes it.
        parts: The two pieces that it joins; its bytes, such as `<0xC4>`, for a new character.
        count: How often it could be joined in the texts.
    """

    text: str
    parts: tuple[str, ...]
    count: int


def learn_pieces(
    words: Counter[Word], known: Iterable[str], num_pieces: int, min_count: int = MIN_COUNT
) -> list[NewPiece]:
    """Learn pieces.

    Args:
        words: How often each word occurs, cut into what the tokenizer now makes of it; a character
            that it spells in bytes stands for itself.
        known: The tokenizer's pieces.
        num_pieces: At most so many.
        min_count: What is rarer is not worth a row of embeddings.

    Returns:
        Characters that were missing, then merges, each in the order in which they are made.
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
        if count >= min_count
    ][:num_pieces]
    vocabulary.update(piece.text for piece in pieces)
    return pieces + _merges(words, vocabulary, num_pieces - len(pieces), min_count)


def _merges(
    words: Counter[Word], vocabulary: set[str], num_merges: int, min_count: int
) -> list[NewPiece]:
    """Join the pair that is most frequent, again and again; a word's pairs are counted once."""
    forms = [list(word) for word in words]
    counts = list(words.values())
    pairs: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for number, form in enumerate(forms):
        for pair in _pairs(form):
            pairs[pair] += counts[number]
            where[pair].add(number)
    learnt: list[NewPiece] = []
    while len(learnt) < num_merges and pairs:
        pair = max(pairs, key=lambda candidate: (pairs[candidate], candidate))
        count = pairs[pair]
        if count < min_count:
            break
        joined = pair[0] + pair[1]
        is_new = joined not in vocabulary
        if is_new:
            vocabulary.add(joined)
            learnt.append(NewPiece(joined, pair, count))
        for number in list(where[pair]):
            for old in _pairs(forms[number]):
                pairs[old] -= counts[number]
                where[old].discard(number)
            forms[number] = _join(forms[number], pair)
            for new in _pairs(forms[number]):
                pairs[new] += counts[number]
                where[new].add(number)
        del pairs[pair]
        where.pop(pair, None)
    return learnt


def _pairs(form: Sequence[str]) -> list[tuple[str, str]]:
    """Neighbours that may be joined."""
    return [pair for pair in zip(form, form[1:], strict=False) if _is_word(pair[0] + pair[1])]


def _is_word(text: str) -> bool:
    """Letters and their marks only: digits and punctuation stay as the tokenizer cuts them."""
    letters = text.removeprefix(BLANK)
    return bool(letters) and all(unicodedata.category(c)[0] in "LM" for c in letters)


def _join(form: Sequence[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    position = 0
    while position < len(form):
        if tuple(form[position : position + 2]) == pair:
            joined.append(pair[0] + pair[1])
            position += 2
        else:
            joined.append(form[position])
            position += 1
    return joined


def split_words(pieces: Sequence[str]) -> list[Word]:
    """Cut a text's pieces into words; bytes become the characters that they spell."""
    words: list[list[str]] = []
    for symbol in _characters_of_bytes(pieces):
        if symbol.startswith(BLANK) or not words:
            words.append([])
        words[-1].append(symbol)
    return [tuple(word) for word in words]


def _characters_of_bytes(pieces: Sequence[str]) -> list[str]:
    symbols: list[str] = []
    spelled = bytearray()
    for piece in [*pieces, ""]:
        if piece.startswith("<0x") and piece.endswith(">") and len(piece) == 6:
            spelled.append(int(piece[3:5], 16))
            continue
        symbols += spelled.decode("utf-8", errors="replace")
        spelled.clear()
        if piece:
            symbols.append(piece)
    return symbols
