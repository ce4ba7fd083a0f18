"""Parallel sentences: the lines of a corpus with their translations, and a built-in text.

The built-in text consists of sentences about scenes and of the requests in the language files,
which a new language has from the start.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from llava.errors import DataError
from lrm_ext.corpus.store import ENGLISH, Corpus
from lrm_ext.emoji.conversations import can_say, caption, make_questions, render_question
from lrm_ext.emoji.scenes import (
    CONCEPTS_FILE,
    NUM_PATTERNS,
    available_languages,
    packed_dir,
    sample_scene,
)
from lrm_ext.languages.registry import Language, get_language

Pair = tuple[str, str]

NUM_SCENES = 300
_SEED = 0


def in_common(pairs: Mapping[str, Sequence[Pair]]) -> dict[str, list[Pair]]:
    """Keeps the sentences that all languages have, so that counts can be compared.

    Raises:
        DataError: The languages have no sentence in common.
    """
    shared = set.intersection(*({english for english, _ in found} for found in pairs.values()))
    if not shared:
        counts = ", ".join(f"{lang} {len(found)}" for lang, found in pairs.items())
        raise DataError(
            f"no sentence exists in all languages (sentences: {counts}); name fewer languages."
        )
    return {lang: [pair for pair in found if pair[0] in shared] for lang, found in pairs.items()}


def built_in_pairs(languages: Sequence[str], num_scenes: int = NUM_SCENES) -> dict[str, list[Pair]]:
    """Returns the built-in sentences with their translations, each English sentence once.

    Args:
        languages: Language codes; English is paired with itself.
        num_scenes: Number of scenes to make questions and captions for. Without the built-in corpus
            (it is part of the repository, not of the package) only the requests remain.

    Raises:
        ConfigError: A language is unknown.
    """
    pairs = {lang: dict(_requests(get_language(lang))) for lang in languages}
    rng = random.Random(_SEED)
    for _ in range(num_scenes if (packed_dir() / CONCEPTS_FILE).is_file() else 0):
        scene = sample_scene(rng, "test")
        phrasing = rng.randrange(NUM_PATTERNS["caption"])
        questions = make_questions(scene, rng)
        said = {
            lang: [
                *caption(scene, lang, phrasing),
                *(render_question(question, scene, lang)[0] for question in questions),
            ]
            for lang in {ENGLISH, *languages} & set(available_languages())
            if can_say(scene, questions, lang)
        }
        for lang in said.keys() & pairs.keys():
            for english, other in zip(said[ENGLISH], said[lang], strict=True):
                pairs[lang].setdefault(english, other)
    return {lang: list(found.items()) for lang, found in pairs.items()}


def corpus_pairs(
    path: Path,
    languages: Sequence[str] | None = None,
    num_sentences: int | None = None,
    is_wanted: Callable[[int], bool] = lambda row: True,
) -> dict[str, list[Pair]]:
    """Returns the lines of a corpus with their translations, without `<image>` and repetitions.

    Args:
        path: Folder of the corpus.
        languages: Language codes; None for all languages of the corpus.
        num_sentences: Maximum number of sentences in each language.
        is_wanted: Tells whether to read a row, by its number.

    Raises:
        DataError: The folder is not a corpus, or has no accepted text in one of the languages.
    """
    corpus = Corpus.open(path)
    result: dict[str, list[Pair]] = {}
    for lang in languages or corpus.languages:
        found: dict[str, str] = {}
        for index in filter(is_wanted, corpus.usable(lang)):
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
    for name in ("short_answer", "option_letter", "epvqa_instruction", "system"):
        yield getattr(english, name), getattr(language, name)
    for key, text in english.fixed_prompts.items():
        if key in language.fixed_prompts:
            yield text, language.fixed_prompts[key]


def _lines(corpus: Corpus, lang: str, index: int) -> Iterator[Pair]:
    for turns in zip(corpus.row(index).turns, corpus.turns(lang, index) or (), strict=True):
        ours, theirs = (turn.text.splitlines() for turn in turns)
        if len(ours) == len(theirs):
            pairs = zip(ours, theirs, strict=True)
            yield from ((a, b) for a, b in pairs if a.strip() and "<image>" not in a)
        else:
            yield turns[0].text, turns[1].text
