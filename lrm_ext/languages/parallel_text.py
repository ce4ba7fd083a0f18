"""The same sentences in several languages, for measuring tokenizers.

Input: nothing (the built-in text: sentences about scenes, and the requests of the language files)
or a corpus. Output: by language, pairs of an English sentence and its translation. A language that
one has added has the requests at once, and whatever a corpus of one's own holds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.errors import DataError
from lrm_ext.languages.language import Language
from lrm_ext.languages.registry import ENGLISH, get_language

if TYPE_CHECKING:
    from lrm_ext.corpus.store import Corpus

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
    from lrm_ext.corpus.emoji.scenes import CONCEPTS_FILE, packed_dir

    return (packed_dir() / CONCEPTS_FILE).is_file()


def _scene_pairs(languages: Sequence[str], num_scenes: int) -> Iterator[tuple[str, Pair]]:
    from lrm_ext.corpus.emoji.conversations import caption, make_questions, render_question
    from lrm_ext.corpus.emoji.scenes import LANGUAGES, NUM_PATTERNS, sample_scene

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
