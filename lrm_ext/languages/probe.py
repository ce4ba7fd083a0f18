"""Measures how well base models know a language, before anything is trained.

Input: causal language models with their tokenizers, and texts: the same sentences in several
languages, or texts of the user's. Output: the bits that a model needs for each text. A language
that costs a model three times the bits of English for the same sentences is hardly known to it; one
that costs as many is known as well as English. Bits per character compare models on one text,
whatever their tokenizers; languages are compared by the same sentences, because a character says
more in Chinese than in Croatian.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from llava.constants import IGNORE_INDEX
from llava.errors import ConfigError

BUILT_IN: Final = "built-in"
MAX_WINDOW: Final = 512
"""Tokens of a text that are read together; a longer text is cut, each part beginning anew."""
_TOKENS_PER_BATCH: Final = 1024


@dataclass(frozen=True)
class ProbeText:
    """Pieces of text in one language.

    Attributes:
        lang: Code of the language.
        name: `BUILT_IN`, or the name of the file.
        pieces: Sentences, or one long text; none of them is empty.
        english: The same sentences in English; None if there are none.
    """

    lang: str
    name: str
    pieces: Sequence[str]
    english: Sequence[str] | None = None


@dataclass(frozen=True)
class Probe:
    """The result of a base model on a text.

    Attributes:
        base: Name of the model.
        lang: Code of the language.
        text: Name of the text.
        num_characters: Its length.
        num_tokens: Its length in tokens of this model.
        bits_per_character: Negative log-likelihood to base 2, for each character.
        relative_bits: Bits for each bit of the same sentences in English; None without those.
        relative_tokens: Tokens for each token of the same sentences in English.
    """

    base: str
    lang: str
    text: str
    num_characters: int
    num_tokens: int
    bits_per_character: float
    relative_bits: float | None
    relative_tokens: float | None


@dataclass(frozen=True)
class BaseModel:
    """A causal language model and its tokenizer.

    Attributes:
        name: Name in tables and plots.
        model: As `AutoModelForCausalLM` loads it.
        tokenizer: As `AutoTokenizer` loads it.
    """

    name: str
    model: Any
    tokenizer: Any

    @torch.inference_mode()
    def count_bits(self, pieces: Sequence[str]) -> tuple[float, int]:
        """Returns the bits and the tokens of some texts, each read from its beginning.

        Raises:
            ConfigError: The tokenizer has no token to begin with.
        """
        bits, num_tokens = 0.0, 0
        for rows in _batches([window for piece in pieces for window in self._windows(piece)]):
            length = max(map(len, rows))
            ids = torch.zeros(len(rows), length, dtype=torch.long)
            labels = torch.full((len(rows), length), IGNORE_INDEX)
            for number, row in enumerate(rows):
                ids[number, : len(row)] = torch.tensor(row)
                labels[number, 1 : len(row)] = torch.tensor(row[1:])
                num_tokens += len(row) - 1
            bits += self._bits(ids, labels, torch.tensor([[len(row)] for row in rows]))
        return bits, num_tokens

    def _bits(self, ids: Tensor, labels: Tensor, lengths: Tensor) -> float:
        device = self.model.device
        mask = (torch.arange(ids.shape[1]) < lengths).long()
        logits = self.model(
            input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
        ).logits[:, :-1]
        losses = cross_entropy(
            logits.float().flatten(0, 1), labels[:, 1:].flatten().to(device), reduction="none"
        )
        return float(losses.double().sum()) / math.log(2)

    def _windows(self, piece: str) -> Iterator[list[int]]:
        """Cuts a text into windows that begin with the token that begins a text."""
        start = self.tokenizer.bos_token_id
        start = self.tokenizer.eos_token_id if start is None else start
        if start is None:
            raise ConfigError(
                f"{self.name}: its tokenizer has neither a BOS nor an EOS token, so a text cannot "
                "begin"
            )
        ids = self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        for place in range(0, len(ids), MAX_WINDOW):
            yield [start, *ids[place : place + MAX_WINDOW]]


def _batches(rows: list[list[int]]) -> Iterator[list[list[int]]]:
    """Puts rows of about the same length together; longest first, so that memory runs out early."""
    batch: list[list[int]] = []
    for row in sorted(rows, key=len, reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]) > _TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def load_base(source: str, device: str | None = None) -> BaseModel:
    """Loads a base model.

    Args:
        source: Its folder, or its name on the Hugging Face Hub.
        device: `cpu` or `cuda`; by default a GPU where there is one.

    Raises:
        ConfigError: There is no such model, or it is no causal language model of transformers.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    is_folder = Path(source).is_dir()
    # `runs/mini` looks like a name on the Hub, too; if `runs` is a folder, a folder in it was meant
    is_name = source.count("/") == 1 and not source.startswith((".", "~", "/"))
    if not is_folder and (not is_name or Path(source).parent.is_dir()):
        raise ConfigError(
            f"{source} is not a folder; expected the folder of a base model, or its name on the "
            "Hugging Face Hub, such as Qwen/Qwen3-8B"
        )
    settings = {"local_files_only": is_folder, "trust_remote_code": False}
    dtype = "auto" if device.startswith("cuda") else torch.float32
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, **settings)
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **settings)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"{source} cannot be loaded as a causal language model of transformers: {error}"
        ) from error
    name = Path(source).resolve().name if is_folder else source
    return BaseModel(name, model.to(device).eval(), tokenizer)


def parallel_texts(pairs: Mapping[str, Sequence[tuple[str, str]]]) -> list[ProbeText]:
    """Returns the texts of English sentences with their translations by language."""
    return [
        ProbeText(lang, BUILT_IN, [own for _, own in found], [english for english, _ in found])
        for lang, found in pairs.items()
    ]


def read_text(given: str) -> ProbeText:
    """Reads a text of the user's.

    Args:
        given: `CODE=FILE`, such as `hr=news.txt`; the language needs no file of its own.

    Raises:
        ConfigError: It is not written so, or the file is missing, empty or not UTF-8.
    """
    lang, _, name = given.partition("=")
    if not lang or not name:
        raise ConfigError(f"--text is {given!r}; expected CODE=FILE, such as hr=news.txt")
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error}); convert it first") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    if not text:
        raise ConfigError(f"{path}: no text in it")
    return ProbeText(lang, path.name, [text])


def measure(base: BaseModel, texts: Sequence[ProbeText]) -> Iterator[Probe]:
    """Measures a base model on each text."""
    known: dict[tuple[str, ...], tuple[float, int]] = {}

    def measured(pieces: Sequence[str]) -> tuple[float, int]:
        key = tuple(pieces)  # the English sentences are the same for most languages
        if key not in known:
            known[key] = base.count_bits(pieces)
        return known[key]

    for text in texts:
        bits, num_tokens = measured(text.pieces)
        english = measured(text.english) if text.english is not None else None
        num_characters = sum(map(len, text.pieces))
        yield Probe(
            base=base.name,
            lang=text.lang,
            text=text.name,
            num_characters=num_characters,
            num_tokens=num_tokens,
            bits_per_character=bits / num_characters,
            relative_bits=bits / english[0] if english else None,
            relative_tokens=num_tokens / english[1] if english else None,
        )
