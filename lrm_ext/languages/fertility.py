"""Counts the tokens that a tokenizer needs in each language for the same sentences.

Input: tokenizers and parallel text: the built-in one (sentences about scenes, and the requests of
the language files, which a new language has at once) or a corpus. Output: tokens a sentence,
absolute and relative to English, and a plot of them that reads the same without colours. What needs
twice the tokens costs twice the time, leaves half the room for answers, and is learnt from less
text: the first thing to know of a base model when a language is added.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.errors import ConfigError, DataError
from lrm_ext.files import save_figure
from lrm_ext.languages.registry import ENGLISH, Language, get_language

if TYPE_CHECKING:
    from lrm_ext.corpus.store import Corpus

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


Pair = tuple[str, str]

NUM_SCENES = 300
_SEED = 0


def in_common(pairs: Mapping[str, Sequence[Pair]]) -> dict[str, list[Pair]]:
    """The sentences that all languages have: counts of other ones could not be compared.

    Raises:
        DataError: There are none.
    """
    shared = set.intersection(*({english for english, _ in found} for found in pairs.values()))
    if not shared:
        counts = ", ".join(f"{lang} {len(found)}" for lang, found in pairs.items())
        raise DataError(
            f"no sentence is there in all languages (sentences: {counts}); name fewer languages."
        )
    return {lang: [pair for pair in found if pair[0] in shared] for lang, found in pairs.items()}


def built_in_pairs(languages: Sequence[str], num_scenes: int = NUM_SCENES) -> dict[str, list[Pair]]:
    """Questions and captions about scenes, and the fixed requests; each English sentence once.

    Args:
        languages: Codes; English is paired with itself.
        num_scenes: Scenes that sentences are made of. Where the built-in corpus is not there (it
            is part of the repository, not of the installed package) only the requests are left.

    Raises:
        ConfigError: A language is unknown.
    """
    pairs = {lang: dict(_requests(get_language(lang))) for lang in languages}
    if _has_scenes():
        for lang, found in _scene_pairs(languages, num_scenes):
            pairs[lang].setdefault(*found)
    return {lang: list(found.items()) for lang, found in pairs.items()}


def corpus_pairs(
    path: Path,
    languages: Sequence[str] | None = None,
    num_sentences: int | None = None,
    is_wanted: Callable[[int], bool] = lambda row: True,
) -> dict[str, list[Pair]]:
    """Lines of a corpus and their translations; `<image>` and repeated lines are left out.

    Args:
        path: Folder of the corpus.
        languages: Codes; None for all of the corpus.
        num_sentences: Stop after so many in each language.
        is_wanted: Whether a row, by its number, is read.

    Raises:
        DataError: It is no corpus, or has no accepted text in one of the languages.
    """
    from lrm_ext.corpus.store import Corpus

    corpus = Corpus.open(path)
    result: dict[str, list[Pair]] = {}
    for lang in languages or corpus.languages:
        found: dict[str, str] = {}
        rows = range(len(corpus)) if lang == ENGLISH else corpus.usable_rows(lang)
        for index in filter(is_wanted, map(int, rows)):
            if num_sentences is not None and len(found) >= num_sentences:
                break
            for english, other in _lines(corpus, lang, index):
                found.setdefault(english, other)
        if not found:
            raise DataError(f"{path} has no accepted text in {lang!r}; translate it first.")
        result[lang] = list(found.items())[:num_sentences]
    return result


def _requests(language: Language) -> Iterator[Pair]:
    english = get_language(ENGLISH)
    yield english.short_answer, language.short_answer
    yield english.option_letter, language.option_letter
    yield english.epvqa_instruction, language.epvqa_instruction
    yield english.system, language.system
    for key, text in english.fixed_prompts.items():
        if key in language.fixed_prompts:
            yield text, language.fixed_prompts[key]


def _has_scenes() -> bool:
    from lrm_ext.emoji.scenes import CONCEPTS_FILE, packed_dir

    return (packed_dir() / CONCEPTS_FILE).is_file()


def _scene_pairs(languages: Sequence[str], num_scenes: int) -> Iterator[tuple[str, Pair]]:
    from lrm_ext.emoji.conversations import caption, make_questions, render_question
    from lrm_ext.emoji.scenes import LANGUAGES, NUM_PATTERNS, sample_scene

    rng = random.Random(_SEED)
    for _ in range(num_scenes):
        scene = sample_scene(rng, "test")
        phrasing = rng.randrange(NUM_PATTERNS["caption"])
        questions = make_questions(scene, rng)
        said = {
            lang: [
                *caption(scene, lang, phrasing),
                *(render_question(question, scene, lang)[0] for question in questions),
            ]
            for lang in {ENGLISH, *languages} & set(LANGUAGES)
        }
        for lang in languages:
            for pair in zip(said[ENGLISH], said.get(lang, ()), strict=False):
                yield lang, pair


def _lines(corpus: Corpus, lang: str, index: int) -> Iterator[Pair]:
    turns = corpus.row(index).turns
    for english, other in zip(turns, corpus.turns(lang, index) or (), strict=True):
        ours, theirs = english.text.splitlines(), other.text.splitlines()
        if len(ours) == len(theirs):
            pairs = zip(ours, theirs, strict=True)
            yield from ((a, b) for a, b in pairs if a.strip() and "<image>" not in a)
        else:
            yield english.text, other.text


_SHADES = ("#4d4d4d", "#c6c6c6", "#8c8c8c", "#ededed")
_HATCHES = ("", "///", "...", "xxx")
MAX_TOKENIZERS = len(_SHADES)
ENDINGS = (".png", ".svg", ".pdf")
_BAR_HEIGHT_IN = 0.24
_LEGEND_CHARACTERS = 60  # names that lie side by side
_ON_WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1}
_GAP = 0.25  # between languages, of the place of one


def plot_fertility(results: Sequence[Fertility], out: Path) -> None:
    """Draw bars, one for each language and tokenizer.

    Args:
        results: At most `MAX_TOKENIZERS` tokenizers, with the same languages.
        out: The picture; its name ends in one of `ENDINGS`.
    """
    from matplotlib.figure import Figure

    tokenizers = list(dict.fromkeys(result.tokenizer for result in results))
    languages = list(dict.fromkeys(result.lang for result in results))
    values = {(result.tokenizer, result.lang): result.relative for result in results}
    height = (1 - _GAP) / len(tokenizers)
    size = len(languages) * len(tokenizers) * _BAR_HEIGHT_IN / (1 - _GAP)
    figure = Figure(figsize=(8, 1.6 + size), layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(tokenizers):
        offset = (number - (len(tokenizers) - 1) / 2) * height
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
        # on white: near 1 the line would run through the figures
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9, bbox=_ON_WHITE, zorder=3)
    axes.axvline(1.0, color="black", linestyle="--", linewidth=1, zorder=0)
    axes.set_yticks(range(len(languages)), [get_language(lang).name for lang in languages])
    axes.invert_yaxis()
    axes.margins(y=0.02)
    axes.set_xlim(0, 1.12 * max(values.values()))
    axes.set_xlabel("tokens for the same sentences, English = 1")
    axes.spines[["top", "right"]].set_visible(False)
    title = "Tokens that a language needs"
    if len(tokenizers) == 1:
        axes.set_title(f"{title}: tokenizer {tokenizers[0]}", loc="left")
    else:
        axes.set_title(title, loc="left")
        fits = sum(map(len, tokenizers)) < _LEGEND_CHARACTERS
        columns = len(tokenizers) if fits else 1
        figure.legend(title="tokenizer", loc="outside lower center", ncols=columns)
    save_figure(figure, out, dpi=120)
