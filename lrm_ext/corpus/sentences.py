"""Parallel sentences: lines of a corpus with their translations, and those of the built-in text.

The built-in text has sentences about scenes, and the requests of the language files, which a new
language has at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from llava.errors import DataError
from lrm_ext.corpus.store import ENGLISH, Corpus
from lrm_ext.emoji.conversations import caption, make_questions, render_question
from lrm_ext.emoji.scenes import (
    CONCEPTS_FILE,
    LANGUAGES,
    NUM_PATTERNS,
    packed_dir,
    sample_scene,
)
from lrm_ext.languages.registry import Language, get_language

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
            for lang in {ENGLISH, *languages} & set(LANGUAGES)
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
    """Lines of a corpus and their translations; `<image>` and repeated lines are left out.

    Args:
        path: Folder of the corpus.
        languages: Codes; None for all of the corpus.
        num_sentences: Stop after so many in each language.
        is_wanted: Whether a row, by its number, is read.

    Raises:
        DataError: It is no corpus, or has no accepted text in one of the languages.
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
    yield english.short_answer, language.short_answer
    yield english.option_letter, language.option_letter
    yield english.epvqa_instruction, language.epvqa_instruction
    yield english.system, language.system
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
