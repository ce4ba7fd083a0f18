"""Measures how many tokens a tokenizer needs in each language for the same sentences.

Input: tokenizers and parallel sentences. Output: tokens a sentence, absolute and relative to
English, and a plot that can be read without colours. Twice the tokens cost twice the time, leave
half the room for answers and mean less text to learn from, so this comes first when choosing a base
model for a language.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from llava.errors import ConfigError
from llava.files import PLOT_ENDINGS
from lrm_ext.languages.fonts import save_plot
from lrm_ext.languages.registry import get_language

_EXPECTED = "expected a folder with a tokenizer, a tokenizer.json, or a SentencePiece model"


@dataclass(frozen=True)
class TokenCounter:
    """A tokenizer for counting.

    Attributes:
        name: Name in tables and plots.
        encode: Returns the ids of a text, without BOS and EOS.
        unknown_id: Id of the unknown token; None if there is none.
    """

    name: str
    encode: Callable[[str], Sequence[int]]
    unknown_id: int | None


@dataclass(frozen=True)
class Fertility:
    """The fertility of a tokenizer in a language.

    Attributes:
        tokenizer: Name of the tokenizer.
        lang: Code of the language.
        num_sentences: Number of sentences.
        tokens_per_sentence: Mean number of tokens of a sentence.
        relative: Tokens per token of the same sentences in English.
        characters_per_token: Mean number of characters of a token, spaces included.
        unknown_share: Share of unknown tokens.
    """

    tokenizer: str
    lang: str
    num_sentences: int
    tokens_per_sentence: float
    relative: float
    characters_per_token: float
    unknown_share: float


def measure(
    counter: TokenCounter, pairs: Mapping[str, Sequence[tuple[str, str]]]
) -> list[Fertility]:
    """Measures the fertility of a tokenizer.

    Args:
        counter: The tokenizer.
        pairs: English sentences with their translations by language, at least one for each.
    """
    num_english = cache(lambda text: len(counter.encode(text)))
    results = []
    for lang, found in pairs.items():
        tokens = [counter.encode(other) for _, other in found]
        num_tokens = sum(map(len, tokens))
        num_unknown = sum(token == counter.unknown_id for ids in tokens for token in ids)
        results.append(
            Fertility(
                tokenizer=counter.name,
                lang=lang,
                num_sentences=len(found),
                tokens_per_sentence=num_tokens / len(found),
                relative=num_tokens / sum(num_english(english) for english, _ in found),
                characters_per_token=sum(len(other) for _, other in found) / num_tokens,
                unknown_share=num_unknown / num_tokens,
            )
        )
    return results


def load_counters(sources: Sequence[str]) -> list[TokenCounter]:
    """Loads tokenizers; those with the same name are named by their path.

    Raises:
        ConfigError: See `load_counter`.
    """
    counters = [load_counter(source) for source in sources]
    names = [counter.name for counter in counters]
    return [
        replace(counter, name=source) if names.count(counter.name) > 1 else counter
        for source, counter in zip(sources, counters, strict=True)
    ]


def load_counter(source: str) -> TokenCounter:
    """Loads a tokenizer.

    Args:
        source: A folder written by Hugging Face's libraries (such as a checkpoint), a file
            `tokenizer.json`, the model file of a SentencePiece tokenizer, or a name on the Hugging
            Face Hub, which is downloaded.

    Raises:
        ConfigError: It is none of these, or cannot be loaded.
    """
    path = Path(source)
    if not path.exists() and (source.count("/") > 1 or source.startswith((".", "~", "/"))):
        raise ConfigError(f"tokenizer: there is no {source}; {_EXPECTED}.")
    load = _load_pretrained
    if path.is_file():
        load = _load_json if path.suffix == ".json" else _load_sentencepiece
    try:
        return load(path)
    except Exception as error:  # `tokenizers` raises no other class
        hint = "" if path.exists() else " (no such file here; taken for a name on the hub)"
        raise ConfigError(
            f"tokenizer: {source} cannot be loaded{hint}: {error}\n{_EXPECTED}."
        ) from error


def _load_pretrained(path: Path) -> TokenCounter:
    from transformers import AutoTokenizer

    is_folder = path.is_dir()
    tokenizer: Any = AutoTokenizer.from_pretrained(
        str(path), local_files_only=is_folder, trust_remote_code=False
    )
    return TokenCounter(
        path.resolve().name if is_folder else str(path),
        lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]),
        tokenizer.unk_token_id,
    )


def _load_json(path: Path) -> TokenCounter:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    unknown = getattr(tokenizer.model, "unk_token", None)
    return TokenCounter(
        path.resolve().parent.name,
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        tokenizer.token_to_id(unknown) if isinstance(unknown, str) else None,
    )


def _load_sentencepiece(path: Path) -> TokenCounter:
    import sentencepiece as spm

    processor = spm.SentencePieceProcessor()
    # from bytes, because the library complains on stderr about files that it cannot read
    processor.LoadFromSerializedProto(path.read_bytes())
    name = path.name.removesuffix(".model")
    if name == "tokenizer":
        name = path.resolve().parent.name
    return TokenCounter(name, processor.EncodeAsIds, processor.unk_id())


_SHADES = ("#4d4d4d", "#c6c6c6", "#8c8c8c", "#ededed")
_HATCHES = ("", "///", "...", "xxx")
_BAR_HEIGHT_IN = 0.24
_LEGEND_CHARACTERS = 60  # that fit side by side
_ON_WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1}
_GAP = 0.25  # between languages, as a share of the height of one


def refuse_plot(out: Path, num_series: int) -> None:
    """Raises `ConfigError` if `plot_relative` could not write a plot of so many series."""
    if num_series > len(_SHADES):
        raise ConfigError(f"--out draws at most {len(_SHADES)} bars a language, got {num_series}.")
    if out.suffix not in PLOT_ENDINGS:
        raise ConfigError(f"--out {out}: expected a name that ends in {', '.join(PLOT_ENDINGS)}.")


def plot_relative(
    values: Mapping[tuple[str, str], float], out: Path, title: str, label: str, noun: str
) -> None:
    """Plots bars for each language, relative to English.

    Args:
        values: By series (a tokenizer or model) and language; each series has all languages.
        out: File of the plot; see `refuse_plot`.
        title: Of the plot.
        label: Of the axis.
        noun: What a series is, for the legend.
    """
    from matplotlib.figure import Figure

    series = list(dict.fromkeys(name for name, _ in values))
    languages = list(dict.fromkeys(lang for _, lang in values))
    height = (1 - _GAP) / len(series)
    size = len(languages) * len(series) * _BAR_HEIGHT_IN / (1 - _GAP)
    figure = Figure(figsize=(8, 1.6 + size), layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(series):
        offset = (number - (len(series) - 1) / 2) * height
        bars = axes.barh(
            [place + offset for place in range(len(languages))],
            [values[name, lang] for lang in languages],
            height,
            color=_SHADES[number],
            hatch=_HATCHES[number],
            edgecolor="black",
            linewidth=0.6,
            label=name,
        )
        # on white, because the line at 1 would cross the numbers
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9, bbox=_ON_WHITE, zorder=3)
    axes.axvline(1.0, color="black", linestyle="--", linewidth=1, zorder=0)
    axes.set_yticks(range(len(languages)), [get_language(lang).name for lang in languages])
    axes.invert_yaxis()
    axes.margins(y=0.02)
    axes.set_xlim(0, 1.12 * max(values.values()))
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) == 1:
        title += f": {noun} {series[0]}"
    else:
        columns = len(series) if sum(map(len, series)) < _LEGEND_CHARACTERS else 1
        figure.legend(title=noun, loc="outside lower center", ncols=columns)
    axes.set_title(title, loc="left")
    save_plot(figure, out, dpi=120)
