"""How many tokens a tokenizer needs in each language for the same sentences.

Input: tokenizers and parallel text. Output: tokens a sentence, absolute and relative to English.
What needs twice the tokens costs twice the time, leaves half the room for answers, and is learnt
from less text: the first thing to know of a base model when a language is added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava.errors import ConfigError
from lrm_ext.languages.parallel_text import Pair

_EXPECTED = "expected a folder with a tokenizer, a tokenizer.json, or a SentencePiece model"


@dataclass(frozen=True)
class TokenCounter:
    """A tokenizer, as far as counting goes.

    Attributes:
        name: For tables and pictures.
        encode: Ids of a text, without tokens that mark beginning or end.
        unknown_id: The id that stands for what it cannot write; None if it can write everything.
    """

    name: str
    encode: Callable[[str], Sequence[int]]
    unknown_id: int | None


@dataclass(frozen=True)
class Fertility:
    """What a tokenizer makes of a language.

    Attributes:
        tokenizer: Its name.
        lang: Code of the language.
        num_sentences: Sentences that were counted.
        tokens_per_sentence: Mean.
        relative: Tokens for each token of the same sentences in English.
        characters_per_token: Mean, blanks included.
        unknown_share: Share of tokens that stand for something it cannot write.
    """

    tokenizer: str
    lang: str
    num_sentences: int
    tokens_per_sentence: float
    relative: float
    characters_per_token: float
    unknown_share: float


def measure(counter: TokenCounter, pairs: Mapping[str, Sequence[Pair]]) -> list[Fertility]:
    """Count tokens.

    Args:
        counter: A tokenizer.
        pairs: By language, English sentences and their translations; none empty.
    """
    english_counts: dict[str, int] = {}
    results = []
    for lang, found in pairs.items():
        num_english = num_tokens = num_characters = num_unknown = 0
        for english, other in found:
            if english not in english_counts:
                english_counts[english] = len(counter.encode(english))
            ids = counter.encode(other)
            num_english += english_counts[english]
            num_tokens += len(ids)
            num_characters += len(other)
            num_unknown += sum(token == counter.unknown_id for token in ids)
        results.append(
            Fertility(
                tokenizer=counter.name,
                lang=lang,
                num_sentences=len(found),
                tokens_per_sentence=num_tokens / len(found),
                relative=num_tokens / num_english,
                characters_per_token=num_characters / num_tokens,
                unknown_share=num_unknown / num_tokens,
            )
        )
    return results


def load_counters(sources: Sequence[str]) -> list[TokenCounter]:
    """Load tokenizers; those of the same name are called by where they lie.

    Raises:
        ConfigError: As `load_counter`.
    """
    counters = [load_counter(source) for source in sources]
    names = [counter.name for counter in counters]
    return [
        replace(counter, name=source) if names.count(counter.name) > 1 else counter
        for source, counter in zip(sources, counters, strict=True)
    ]


def load_counter(source: str) -> TokenCounter:
    """Load a tokenizer.

    Args:
        source: A folder as Hugging Face's libraries write it (a checkpoint's too), a file
            `tokenizer.json`, the model file of a SentencePiece tokenizer, or a name on the
            Hugging Face hub, which is downloaded.

    Raises:
        ConfigError: It is none of them, or cannot be loaded.
    """
    path = Path(source)
    if path.is_dir() or not path.exists():
        return _load_pretrained(source, path.is_dir())
    if path.suffix == ".json":
        return _load_json(path)
    return _load_sentencepiece(path)


def _load_pretrained(source: str, is_folder: bool) -> TokenCounter:
    from transformers import AutoTokenizer

    if not is_folder and (source.count("/") > 1 or source.startswith((".", "~", "/"))):
        raise ConfigError(f"tokenizer: there is no {source}; {_EXPECTED}.")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            source, local_files_only=is_folder, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        hub = "" if is_folder else " (no such file here; taken for a name on the hub)"
        raise ConfigError(
            f"tokenizer: {source} cannot be loaded{hub}: {error}\n{_EXPECTED}."
        ) from error

    def encode(text: str) -> Sequence[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    name = Path(source).resolve().name if is_folder else source
    return TokenCounter(name, encode, tokenizer.unk_token_id)


def _load_json(path: Path) -> TokenCounter:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no other class
        raise ConfigError(f"tokenizer: {path} cannot be loaded: {error}\n{_EXPECTED}.") from (error)
    unknown = getattr(tokenizer.model, "unk_token", None)
    return TokenCounter(
        path.resolve().parent.name,
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        tokenizer.token_to_id(unknown) if isinstance(unknown, str) else None,
    )


def _load_sentencepiece(path: Path) -> TokenCounter:
    import sentencepiece as spm

    processor = spm.SentencePieceProcessor()
    try:
        # from bytes: the library writes to stderr about files that it cannot read
        processor.LoadFromSerializedProto(path.read_bytes())
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"tokenizer: {path} cannot be loaded: {error}\n{_EXPECTED}.") from (error)
    name = path.name.removesuffix(".model")
    if name == "tokenizer":
        name = path.resolve().parent.name
    return TokenCounter(name, processor.EncodeAsIds, processor.unk_id())
